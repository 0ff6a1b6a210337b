"""Which of the runs whose end was handled go on, by what the stream has of them after that end."""

from __future__ import annotations

import asyncio

import msgspec
import nats.js.errors

from phase_bus.core.control import Beat
from phase_bus.events import PhaseStart, Records, RunComplete, RunStart
from phase_bus.jetstream.connection import Connection, asking
from phase_bus.jetstream.message import token

_KINDS = (RunStart.kind, PhaseStart.kind, RunComplete.kind)  # what a run that goes on has at least


class Ends:
    """Looks, once for each end of a run, whether it was the last one."""

    def __init__(self, connection: Connection, stream: str) -> None:
        self._connection = connection
        self._stream = stream
        self._going_on: dict[tuple[str, int], bool] = {}

    async def without_going_on(self, beat: Beat) -> Beat:
        """Return a beat without the runs that have not ended yet, or once more, since they were handled.

        Of a run that a beat names the members of a group let go: what came of it then would count as new.

        Raises:
            NatsUnreachableError: no answer in time.
        """
        ends = list(zip(beat.handled_runs, beat.handled_ends, strict=False))
        for end in [end for end in ends if end not in self._going_on]:
            self._going_on[end] = await self._goes_on(*end)
        self._going_on = {end: self._going_on[end] for end in ends}
        going_on = {run_id for (run_id, _), goes_on in self._going_on.items() if goes_on}
        if not going_on:
            return beat
        names = ("handled_runs", "incomplete_runs", "lost_runs")
        kept = {n: tuple(each for each in getattr(beat, n) if each not in going_on) for n in names}
        return msgspec.structs.replace(beat, **kept)

    async def _goes_on(self, run_id: str, offset: int) -> bool:
        run = token(run_id)
        subjects = [f"{self._stream}.*.{kind}.{run}" for kind in _KINDS]
        subjects.append(f"{self._stream}.*.{Records.kind}.*.{run}")
        with asking(self._connection.address):
            return max(await asyncio.gather(*map(self._last, subjects))) > offset

    async def _last(self, subject: str) -> int:
        try:
            found = await self._connection.js.get_last_msg(self._stream, subject)
        except nats.js.errors.NotFoundError:
            return 0
        return found.seq or 0
