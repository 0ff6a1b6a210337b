"""What becomes of thresholds around a command: when it is interrupted, and what there is in the end."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from phase_bus.consumer.consumer import Consumer
from phase_bus.events import RunComplete, Verdict
from phase_bus.reporting.verdicts import is_abort, last_verdicts


class VerdictWatch(Consumer):
    """Keeps the verdicts on a bus, and sees which one is to end the run that goes on.

    Attributes:
        producers: whose verdicts count.
        verdicts: the last one of each on each threshold of each run.
        cause: the verdict for which the command is to be interrupted, None for none: the first one.
        aborting: set with it.
    """

    def __init__(self, producers: Collection[str]) -> None:
        self.producers = frozenset(producers)
        self.verdicts: dict[tuple[str, str, str], Verdict] = {}
        self.cause: Verdict | None = None
        self.aborting = asyncio.Event()
        self._over: set[str] | None = None  # the runs that are; None as long as no command runs

    def begin(self, earlier: Iterable[str]) -> None:
        """Begin to look for verdicts that end a run; those on runs that there were before do not."""
        self._over = set(earlier)

    def end(self) -> bool:
        """Look no longer; return whether there was one."""
        self._over = None
        return self.cause is not None

    async def on_run_complete(self, event: RunComplete) -> None:
        """Note that there is nothing of this run to be ended."""
        if self._over is not None:
            self._over.add(event.run_id)

    async def on_verdict(self, event: Verdict) -> None:
        """Keep a verdict, and call for the command's end if it is to end a run that goes on."""
        if event.producer not in self.producers:
            return
        self.verdicts[event.run_id, event.threshold, event.producer] = event
        if self._over is None or event.run_id in self._over or not is_abort(event):
            return
        if self.cause is None:
            self.cause = event
            self.aborting.set()


def final_verdicts(
    found: Iterable[Verdict], run_ids: Sequence[str], judged: Mapping[str, Sequence[str]]
) -> list[Verdict]:
    """Return the final verdicts on runs, by run: one on each threshold that was to be judged, at least.

    What a producer gave no verdict on is unknown; so is everything if there is no run.

    Args:
        found: the verdicts that there are.
        judged: what each producer was to judge; nothing if that is not known.
    """
    last = {_key(verdict): verdict for verdict in last_verdicts(found)}
    verdicts = []
    for run_id in run_ids or ("",):
        for key in _expected(run_id, judged):
            if (verdict := last.pop(key, None)) is not None:
                verdicts.append(verdict)
            elif key[1] or not any((run_id, key[2]) == (other[0], other[2]) for other in last):
                verdicts.append(_none(*key))
        verdicts += [verdict for verdict in last.values() if verdict.run_id == run_id]
    return verdicts


def are_final(
    found: Iterable[Verdict], run_ids: Sequence[str], judged: Mapping[str, Sequence[str]]
) -> bool:
    """Return whether the last verdict on each threshold of each run is there and final."""
    last = {_key(verdict): verdict.final for verdict in found}
    expected = (key for run_id in run_ids for key in _expected(run_id, judged) if key[1])
    return all(last.get(key) for key in expected)


def _key(verdict: Verdict) -> tuple[str, str, str]:
    return verdict.run_id, verdict.threshold, verdict.producer


def _expected(run_id: str, judged: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str, str]]:
    """Yield what is to be judged; without a threshold for a producer of whom it is not known."""
    for producer, thresholds in judged.items():
        for threshold in thresholds or ("",):
            yield run_id, threshold, producer


def _none(run_id: str, threshold: str, producer: str) -> Verdict:
    return Verdict(
        run_id=run_id,
        producer=producer,
        threshold=threshold or f"what {producer} was to judge",
        state="unknown",
        final=True,
        reason=f"consumer {producer} gave no verdict" if run_id else "no run was seen",
    )
