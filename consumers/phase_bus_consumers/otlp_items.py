"""From events to what the ``otlp`` sink sends: metrics, log records and spans."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from phase_bus import (
    Drop,
    EventBase,
    PhaseComplete,
    PhaseEvent,
    PhaseSendingComplete,
    PhaseTimeout,
    RecordBatch,
    Records,
    RunComplete,
    RunStart,
    StateError,
    Verdict,
)
from phase_bus_consumers.otlp_logs import log_record
from phase_bus_consumers.otlp_metrics import points, threshold_point
from phase_bus_consumers.otlp_runs import Counts, Mark, Phase, Run, Temporality
from phase_bus_consumers.otlp_spans import phase_span, request_spans, run_span
from phase_bus_consumers.otlp_values import Item

_KEPT_ENDED = 10  # runs that ended, and may go on after all
_MARKS = 100  # in a phase


class Items:
    """Makes items of events, and keeps what was counted of each run.

    Args:
        temporality: what metrics count from.
        interval_ns: how much of a run is between two points of its metrics.
        max_buckets: how many buckets a histogram has at most.
        trace_requests: the share of the requests that have a span.
        common: attributes of all metrics and requests.
    """

    def __init__(
        self,
        temporality: Temporality,
        interval_ns: int,
        max_buckets: int,
        trace_requests: float,
        common: Mapping[str, Any],
    ) -> None:
        self._temporality: Temporality = temporality
        self._interval_ns = interval_ns
        self._max_buckets = max_buckets
        self._share = trace_requests
        self._common = common
        self._runs: dict[str, Run] = {}

    def to_bytes(self) -> bytes:
        """Return what was counted."""
        runs = [run.to_dict() for run in self._runs.values()]
        return msgspec.msgpack.encode({"temporality": self._temporality, "runs": runs})

    def restore(self, state: bytes) -> None:
        """Go on from what was counted.

        Raises:
            StateError: if it was counted with another temporality.
        """
        kept = msgspec.msgpack.decode(state)
        if kept["temporality"] != self._temporality:
            raise StateError(f"its state was counted with temporality={kept['temporality']}")
        self._runs = {run.run_id: run for run in map(Run.from_dict, kept["runs"])}

    def of(self, event: EventBase, key: str, source: str, sequence: int) -> list[Item]:
        """Return what is to be sent because of an event, points of what came before it included.

        Args:
            key: names the event.
            source: who published it.
            sequence: its number among all that the source published, 0 without one.
        """
        if isinstance(event, Drop):  # it may be of a run that never began
            return [Item("logs", event.run_id, log_record(event, key))]
        if isinstance(event, Verdict) and event.run_id not in self._runs:  # which it does not begin
            point = threshold_point(event, event.ts_ns)
            return [
                Item("logs", event.run_id, log_record(event, key)),
                Item("metrics", event.run_id, point),
            ]
        if not isinstance(event, RunStart | PhaseEvent | Records | RunComplete | Verdict):
            return []
        run = self._runs.get(event.run_id) or Run(event.run_id, event.ts_ns)
        # Whatever may be wrong with the event comes to light before it changes anything.
        counts = None
        if isinstance(event, Records):
            batch = RecordBatch(event)
            named = self._attributes(run, event)
            spans = request_spans(event, batch, key, self._share, named)
            items = [Item("traces", event.run_id, span) for span in spans]
            counts = Counts.of(batch)
        else:
            items = [Item("logs", event.run_id, log_record(event, key))]
        self._runs[event.run_id] = run
        if run.is_new(source, sequence):
            cut_ns = run.cut_before(event.ts_ns, self._interval_ns)
            if cut_ns is not None:
                items += self._points(run, cut_ns, run.phases.values())
            items += self._take(run, event, counts)
            run.note(source, sequence)
        elif run.end_ns is not None and self._temporality == "cumulative":
            items += self._points(run, run.cut_ns, run.phases.values(), all_of_them=True)
        return items

    def _take(self, run: Run, event: EventBase, counts: Counts | None) -> Iterator[Item]:
        """Take note of an event; yield the points and spans of what has ended."""
        if isinstance(event, Verdict):
            run.judge(event)
            run.cut_ns = run.cut_now(event.ts_ns)
            yield Item("metrics", run.run_id, threshold_point(event, run.cut_ns))
            return
        run.end_ns = None  # it goes on, unless this is its end
        if isinstance(event, RunStart):
            run.start = run.start or event
        elif isinstance(event, Records) and counts is not None:
            run.phase(event.phase, event).count(counts)
        elif isinstance(event, PhaseEvent):
            phase = run.phase(event.phase, event)
            if isinstance(event, PhaseSendingComplete | PhaseTimeout) and len(phase.marks) < _MARKS:
                phase.marks.append(Mark(event.ts_ns, f"phase_bus.{event.kind}"))
            if isinstance(event, PhaseComplete):
                yield from self._points(run, run.cut_now(event.ts_ns), [phase], all_of_them=True)
                if not phase.sent:
                    yield Item("traces", run.run_id, phase_span(run, phase, event))
                    phase.sent = True
        elif isinstance(event, RunComplete):
            run.end_ns = event.ts_ns
            yield from self._points(run, run.cut_now(event.ts_ns), run.phases.values(), all_of_them=True)
            for phase in run.phases.values():
                if not phase.sent:
                    yield Item("traces", run.run_id, phase_span(run, phase, event))
            yield Item("traces", run.run_id, run_span(run, event))
            self._let_go()

    def _points(
        self, run: Run, now_ns: int, phases: Iterable[Phase], *, all_of_them: bool = False
    ) -> Iterator[Item]:
        """Yield points of phases: of those with something new, or whatever there is of all of them."""
        run.cut_ns = now_ns
        for verdict in run.verdicts.values():
            yield Item("metrics", run.run_id, threshold_point(verdict, now_ns))
        delta = self._temporality == "delta"
        for phase in phases:
            if not phase.changed and (delta or not all_of_them or not phase.requests):
                continue
            phase.changed = False
            named = self._attributes(run, phase)
            for metric in points(phase, now_ns, self._temporality, self._max_buckets, named):
                yield Item("metrics", run.run_id, metric)
            if delta:
                phase.clear(now_ns)

    def _attributes(self, run: Run, of: Phase | Records) -> dict[str, Any]:
        """Return the attributes of all metrics and requests of a phase."""
        ref = of.ref if isinstance(of, Phase) else of.phase
        named: dict[str, Any] = {
            **self._common,
            "phase_bus.phase.name": ref.name,
            "phase_bus.phase.kind": ref.kind,
        }
        start = run.start
        if start is not None and len(start.models) == 1:
            named["gen_ai.request.model"] = start.models[0]
        if start is not None and len(start.urls) == 1:
            named.update(_server(start.urls[0]))
        return named

    def _let_go(self) -> None:
        """Let go of the oldest runs that ended, beyond those that are kept in case that they go on."""
        ended = sorted((run.end_ns, run.run_id) for run in self._runs.values() if run.end_ns is not None)
        for _, run_id in ended[:-_KEPT_ENDED]:
            del self._runs[run_id]


def _server(url: str) -> dict[str, Any]:
    """Return the attributes of a server under test."""
    try:
        parts = urlsplit(url if "://" in url else f"//{url}")
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    except ValueError:
        return {}
    return {"server.address": parts.hostname, "server.port": port} if parts.hostname else {}
