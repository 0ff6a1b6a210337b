"""The ``dashboard`` consumer: a page that shows runs while they go on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct

from phase_bus import (
    Consumer,
    Drop,
    PhaseEvent,
    PhasesConfigured,
    Receipt,
    Records,
    RunComplete,
    RunStart,
    Secret,
    Verdict,
)
from phase_bus.aggregation import RunState
from phase_bus_consumers.dashboard_access import is_loopback
from phase_bus_consumers.dashboard_bus import BusView, ReportError
from phase_bus_consumers.dashboard_feeds import Feed, Viewer
from phase_bus_consumers.dashboard_runs import Run, SavedRun
from phase_bus_consumers.dashboard_server import Server, ended
from phase_bus_consumers.dashboard_statistics import Statistics
from phase_bus_consumers.run_files import Pace

_TICK_S = 1.0
_KEEP_S = 5.0  # the least time between two checkpoints while runs go on
_REMEMBERED = 1000  # runs that were let go of
_MAX_GOING = 100  # runs beyond those to keep, if as many go on at once
_MAX_COUNTED = 20  # runs that ended without all that they announced, and may go on


class _Saved(Struct):
    runs: list[SavedRun]
    done: list[str]


class _Shown:
    """A run on the page: what is known of it, and what its viewers follow."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.brief: dict[str, Any] = {}
        self.document: dict[str, Any] = {}
        self.statistics: Statistics | None = None
        self.feeds = Feed("run"), Feed("statistics")
        self.being_read: asyncio.Task[None] | None = None  # from the journal

    def read_anew(self) -> None:
        """Let its statistics be read from the journal, when somebody looks."""
        if self.being_read is None or self.being_read.done():
            self.statistics = self.being_read = None

    def put(self, statistics: Statistics) -> None:
        """Take in its statistics, new ones or for the first time."""
        before, self.statistics = self.statistics, statistics
        self.feeds[1].put(statistics.whole, None if before is None else statistics.since(before))


class Dashboard(Consumer):
    """Show runs on a page in a browser: progress, latencies over time, errors, thresholds, consumers.

    Open the address that it logs. Everything is computed once for all viewers, and only while there are
    any. Past runs stay in the list, and are read from the bus's journal again when somebody looks at them.

    In a group, the leader serves the page, with what all members have counted.

    Args:
        host: the address to listen on. To be reached from other machines, it needs a token.
        port: the port; 0 for any that is free.
        token: the token that a viewer must enter, as ``env:NAME`` or ``file:PATH``; at least 16 characters.
            The page asks for it once, or takes it from ``#token=`` in its address.
        names: further names for the page, if a name server or a proxy leads to it.
        keep_runs: how many runs the list holds, the latest ones.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 9470,
        token: Secret | None = None,
        names: list[str] | None = None,
        keep_runs: int = 50,
    ) -> None:
        if not 0 <= port <= 65535:
            raise ValueError(f"port must be from 0 to 65535, not {port}")
        if keep_runs < 1:
            raise ValueError(f"keep_runs must be at least 1, not {keep_runs}")
        if token is None and not is_loopback(host):
            raise ValueError(
                f"host {host!r} is open to others: give token=env:NAME or token=file:PATH, or no host"
            )
        self._host, self._port, self._token, self._names = host, port, token, names or []
        self._keep_runs = keep_runs
        self._runs: dict[str, _Shown] = {}
        self._done: dict[str, None] = {}  # runs that were let go of, the oldest first
        self._list, self._bus_feed = Feed("runs"), Feed("bus")
        self._listed: dict[str, dict[str, Any]] = {}
        self._bus_status: dict[str, Any] = {}
        self._pace = Pace()
        self._kept_s = 0.0  # when its state was last kept, monotonic
        self._ended = False  # whether a run has ended since then
        self._bus = BusView("")
        self._server: Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.url = ""

    async def start(self) -> None:
        if self.partition is not None:
            return
        of_nats = self.address.startswith(("nats://", "tls://"))
        self._bus = BusView("" if of_nats else self.address)
        self._server = Server(self._feeds, self._bus.page, self._on_viewer)
        token = "" if self._token is None else self._token.value()
        self.url = await self._server.start(self._host, self._port, self._names, token)
        self.log.info(f"{self.url} shows the runs", **({"needs": "the token"} if token else {}))
        self._tasks = [asyncio.create_task(self._tick()), asyncio.create_task(self._look())]

    async def flush(self) -> None:
        # Its state is not small, and who reads a few seconds once more sees no difference.
        now_s = time.monotonic()
        self.holds_checkpoint = not self.stopping and not self._ended and now_s < self._kept_s + _KEEP_S
        if not self.holds_checkpoint:
            self._ended, self._kept_s = False, now_s

    async def stop(self) -> None:
        reading = [shown.being_read for shown in self._runs.values()]
        for task in (*self._tasks, *reading):
            await ended(task)
        if self._server is not None:
            await self._server.stop()
        await self._bus.close()

    def state(self) -> bytes:
        runs = [shown.run.saved(self.leads) for shown in self._runs.values()]
        return msgspec.msgpack.encode(_Saved(runs, list(self._done)))

    def restore(self, state: bytes) -> None:
        saved = msgspec.msgpack.decode(state, type=_Saved)
        self._done = dict.fromkeys(saved.done)
        self._runs = {run.run_id: _Shown(Run.restored(run)) for run in saved.runs}

    async def merge(self, states: Mapping[int, bytes]) -> None:
        for partition in sorted(states):
            for saved in msgspec.msgpack.decode(states[partition], type=_Saved).runs:
                shown = self._shown(saved.run_id, saved.began_ns)
                if shown is not None and saved.state is not None:
                    shown.run.replace_parts(RunState.from_dict(saved.state))
                    self._end(shown)

    def forget(self, run_id: str) -> None:
        self._runs.pop(run_id, None)
        self._done[run_id] = None
        if len(self._done) > _REMEMBERED:
            del self._done[next(iter(self._done))]

    # ---- events ----

    async def _take(self, event: RunStart | PhasesConfigured | PhaseEvent | Records | RunComplete) -> None:
        shown = self._shown(event.run_id, event.ts_ns)
        if shown is None:
            return
        if self.partition is None and isinstance(event, Records):
            # One process needs no partitions, and what is not kept by them is small and quickly merged.
            event = msgspec.structs.replace(event, partition=0)
        shown.run.take(event)
        if shown.run.result is not None:
            self._end(shown)
        elif isinstance(event, RunComplete):
            shown.read_anew()  # it went on after its end

    # One method under several names: the names decide what is subscribed to.
    on_run_start = on_phases_configured = on_records = on_run_complete = _take
    on_phase_start = on_phase_progress = on_phase_sending_complete = on_phase_timeout = _take
    on_phase_complete = _take

    async def _take_remark(self, event: Verdict | Receipt | Drop) -> None:
        """Take what consumers and the bus say of a run: it begins none."""
        shown = self._runs.get(event.run_id)
        if shown is not None:
            shown.run.take(event)

    on_verdict = on_receipt = on_drop = _take_remark

    def _shown(self, run_id: str, ts_ns: int) -> _Shown | None:
        """Return a run, a new one if need be; None for one that was let go of."""
        shown = self._runs.get(run_id)
        if shown is None and run_id not in self._done:
            shown = self._runs[run_id] = _Shown(Run(run_id, ts_ns))
            over = len(self._runs) - self._keep_runs
            if over > 0:
                ended = [other for other, known in self._runs.items() if known.run.end is not None]
                going = [] if over < _MAX_GOING else [next(iter(self._runs))]
                for other in ended[:over] or going:
                    self.forget(other)
        return shown

    def _end(self, shown: _Shown) -> None:
        """Let go of the records' statistics at a run's end, unless more of it may come."""
        run = shown.run
        if run.end is None:
            return
        self._ended = True
        if run.result is not None and run.result.final and run.status != "lost":
            shown.put(Statistics(run.result.summary()))
            run.result = None
        counted = [s.run for s in self._runs.values() if s.run.end is not None and s.run.result is not None]
        for other in counted[:-_MAX_COUNTED]:
            other.result = None

    # ---- the page ----

    def _feeds(self, viewer: Viewer) -> Iterator[Feed]:
        yield self._list
        yield self._bus_feed
        for run_id in viewer.runs:
            if run_id in self._runs:
                yield from self._runs[run_id].feeds

    def _on_viewer(self) -> None:
        for shown in self._runs.values():
            if shown.statistics is None:
                shown.read_anew()  # what did not succeed before may now
        if self._server is not None and self._server.viewers:
            self._refresh()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            if self._server is not None and self._server.viewers:
                self._refresh()

    async def _look(self) -> None:
        """Look at the bus, again and again while there is somebody to see it."""
        while True:
            if self._server is not None and (self._server.viewers or not self._bus.asked):
                status = await self._bus.status()
                if status != self._bus_status:
                    self._bus_status = status
                    self._bus_feed.put(partial(dict, status))
                    self._server.tell()
            await asyncio.sleep(_TICK_S)

    def _refresh(self) -> None:
        """Bring the feeds up to date that somebody follows."""
        assert self._server is not None
        now_ns = time.time_ns()
        self._refresh_list(now_ns)
        watched = {run_id for viewer in self._server.viewers for run_id in viewer.runs}
        for run_id in watched & self._runs.keys():
            shown = self._runs[run_id]
            document = shown.run.document(now_ns)
            if document != shown.document:
                shown.document = document
                shown.feeds[0].put(partial(dict, document))
        self._refresh_statistics([self._runs[run_id] for run_id in watched & self._runs.keys()])
        self._server.tell()

    def _refresh_list(self, now_ns: int) -> None:
        listed = {run_id: shown.run.brief(now_ns) for run_id, shown in self._runs.items()}
        changed = [brief for run_id, brief in listed.items() if self._listed.get(run_id) != brief]
        gone = [run_id for run_id in self._listed if run_id not in listed]
        if changed or gone or not self._list.version:
            self._listed = listed
            change = {"all": False, "runs": changed, "gone": gone}
            self._list.put(lambda: {"all": True, "runs": list(listed.values()), "gone": []}, change)

    def _refresh_statistics(self, watched: Iterable[_Shown]) -> None:
        """Merge and summarise what has changed, in a small part of the time however much it is."""
        counted = [s for s in watched if s.run.result is not None and s.run.changed]
        for shown in watched:
            unread = shown.statistics is None and shown.being_read is None
            if shown.run.result is None and unread and self._bus.asked:
                shown.being_read = asyncio.create_task(self._read(shown))
        if counted and self._pace.due:
            began_s = time.monotonic()
            for shown in counted:
                assert shown.run.result is not None
                shown.run.changed = False
                shown.put(Statistics(shown.run.result.summary()))
            self._pace.wrote(began_s)

    async def _read(self, shown: _Shown) -> None:
        """Have a past run's statistics computed from the journal."""
        try:
            shown.put(Statistics(await self._bus.summary(shown.run.run_id)))
        except ReportError as error:
            shown.feeds[1].put(partial(dict, id=shown.run.run_id, problem=str(error)))
        if self._server is not None:
            self._server.tell()
