"""The ``remote_write`` sink: every second of a run in a Prometheus, however short the run is."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from phase_bus import (
    Answer,
    ConfigError,
    DeniedError,
    EventBase,
    PhaseEvent,
    Records,
    RefusedRowsError,
    Row,
    RunComplete,
    RunStart,
    Secret,
    Sink,
    UnavailableError,
    Verdict,
)
from phase_bus_consumers.extras import needs
from phase_bus_consumers.prometheus_encoding import SeriesEncoder
from phase_bus_consumers.remote_write_seconds import SavedTimeline, Second, Timeline, verdict_second

with needs("prometheus"):
    import cramjam

    from phase_bus_consumers.http import HttpClient, Login, header

_SECOND_NS = 1_000_000_000
# A clock that is further ahead is wrong: with a sample of that time, a Prometheus would take no other.
_AHEAD_NS = 60 * _SECOND_NS
_KEPT_RUNS = 50  # that are over, but not with everything
_REMEMBERED = 1000  # runs that were let go of, and publishers
_HEADERS = {
    "Content-Type": "application/x-protobuf",
    "Content-Encoding": "snappy",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
    "User-Agent": "phase-bus",
}
# How servers say that they have a sample of this time, or a later one, already.
_THERE = re.compile(r"answers 409|out[ -]of[ -]order|duplicate[ -](sample|timestamp)", re.IGNORECASE)
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_OWN_LABELS = {"phase", "type", "code", "model", "producer", "threshold", "unit"}


class _Saved(Struct):
    timelines: dict[str, SavedTimeline]
    done: list[str]
    taken: dict[str, int]
    done_ms: list[int] = []


class RemoteWrite(Sink):
    """Write every second of a run to a Prometheus, or to what speaks its remote-write protocol.

    The series are those of the ``prometheus`` endpoint, with native histograms and a label that names
    the run. A second that the server already has, because an answer was lost or this process crashed, is
    recognised and skipped.

    Args:
        url: the address to write to, including its path.
        token: a bearer token.
        user: the user name, if a password is required.
        password: that password.
        headers: additional headers for each request, such as ``{X-Scope-OrgID: team}``; credentials are
            never given in plain text: ``{X-Api-Key: env:NAME}`` or ``file:PATH``.
        labels: additional labels for each series, such as ``{cluster: a}``.
        run_label: the label that names the run; empty for none: then overlapping runs are added up.
        native: whether histograms are native; set it to false for a server that does not support them.
        max_buckets: the maximum number of buckets in a native histogram; one with more is made coarser. 0
            for no limit.
        timeout_s: how long one request may take.
        ca_file: certificates of authorities to trust instead of the system's.
    """

    def __init__(
        self,
        url: str,
        token: Secret | None = None,
        user: str = "",
        password: Secret | None = None,
        headers: dict[str, str] | None = None,
        labels: dict[str, str] | None = None,
        run_label: str = "run_id",
        native: bool = True,
        max_buckets: int = 0,
        timeout_s: float = 30.0,
        ca_file: Path | None = None,
        batch_rows: int = 100,
        batch_bytes: int = 1 << 20,
        **limits: Any,
    ) -> None:
        super().__init__(batch_rows=batch_rows, batch_bytes=batch_bytes, **limits)
        if (user == "") != (password is None) or (token is not None and password is not None):
            raise ValueError("give token, or user and password, or none of these")
        if max_buckets < 0:
            raise ValueError(f"max_buckets must not be negative, but it is {max_buckets}")
        self._labels, self._run_label = labels or {}, run_label
        for label in (*self._labels, *([run_label] if run_label else [])):
            if not _LABEL.fullmatch(label) or label.startswith("__") or label in _OWN_LABELS:
                raise ValueError(f"{label!r} cannot be the name of another label")
        sent: dict[str, str | Secret | Login] = {
            n: header(n, value) for n, value in (headers or {}).items()
        }
        if token is not None:
            sent["Authorization"] = Login("Bearer", token)
        elif password is not None:
            sent["Authorization"] = Login("Basic", password, user)
        self._http = HttpClient(url, sent, timeout_s=timeout_s, ca_file=ca_file)
        self._native, self._max_buckets = native, max_buckets
        self._timelines: dict[str, Timeline] = {}  # by run; of all together if there is no label
        self._done: dict[str, int] = {}  # runs that were let go of, the oldest first: last samples' ms
        self._taken: dict[str, int] = {}  # by source, the number of the last event that was counted
        self._unsure: set[str] = set()  # keys of rows that were sent without an answer
        self._maybe_before_ms = 0  # up to here, an earlier process of this name may have sent samples
        self._restored = self._told_of_clock = False

    async def connect(self) -> None:
        if self.partition is not None:
            raise ConfigError(
                f"consumer {self.name!r}: seconds cannot be shared by a group; run it without --group"
            )
        if not self._maybe_before_ms:
            ahead_ns = _AHEAD_NS if self._restored else 0
            self._maybe_before_ms = (time.time_ns() + ahead_ns) // 1_000_000
        await self._http.open()
        try:
            await self._post(b"")
        except DeniedError:
            await self._http.close()
            raise

    async def stop(self) -> None:
        await super().stop()
        await self._http.close()

    def rows(self, event: EventBase) -> Sequence[Second]:
        if not isinstance(event, RunStart | PhaseEvent | Records | RunComplete | Verdict):
            return []
        if self.sequence and self.sequence <= self._taken.get(self.source, 0):
            raise ValueError("its second is over: run a consumer of another name with --from start")
        name = event.run_id if self._run_label else ""
        timeline = self._timelines.get(name)
        if name in self._done:
            if not isinstance(event, Verdict):
                self.log.warning("an event came after its run's end, and is left out", run_id=event.run_id)
                return []
            second = verdict_second(self._encoder(name), event, self._time_of(event), self._done[name])
            self._done[name] = second.time_ms
            rows = [second]
        elif timeline is None and isinstance(event, Verdict):
            return []  # a verdict alone makes no run
        else:
            timeline = timeline or self._timelines.setdefault(name, Timeline(self._encoder(name)))
            rows = timeline.take(event, self._time_of(event))
        if self.sequence:
            self._taken.pop(self.source, None)
            self._taken[self.source] = self.sequence
            if len(self._taken) > _REMEMBERED:
                del self._taken[next(iter(self._taken))]
        if name and isinstance(event, RunComplete | Records):
            self._let_go()
        return rows

    def size_of(self, data: Second) -> int:
        return len(data.numbers) + len(data.histograms)

    async def send(self, rows: Sequence[Row]) -> Answer | None:
        try:
            await self._post(b"".join(row.data.numbers + row.data.histograms for row in rows))
        except UnavailableError:
            self._unsure.update(row.key for row in rows)
            raise
        except RefusedRowsError as error:
            if len(rows) > 1:
                raise  # the sink sends each by itself then
            if not self._may_be_there(rows[0], error):
                self._unsure.discard(rows[0].key)
                raise
            # A server that was killed may have kept the one of them without the other.
            for part in (rows[0].data.numbers, rows[0].data.histograms):
                await self._post_unless_there(part)
        self._unsure.difference_update([row.key for row in rows])
        return None

    def state(self) -> bytes:
        lines = {name: line.saved() for name, line in self._timelines.items()}
        return msgspec.msgpack.encode(
            _Saved(lines, list(self._done), self._taken, list(self._done.values()))
        )

    def restore(self, state: bytes) -> None:
        self._restored = True
        saved = msgspec.msgpack.decode(state, type=_Saved)
        done_ms = saved.done_ms or [0] * len(saved.done)  # earlier versions have none
        self._done = dict(zip(saved.done, done_ms, strict=True))
        self._taken = saved.taken
        for name, line in saved.timelines.items():
            self._timelines[name] = timeline = Timeline(self._encoder(name))
            timeline.restore(line)

    def _encoder(self, run_id: str) -> SeriesEncoder:
        labels = {**self._labels, self._run_label: run_id} if run_id else self._labels
        return SeriesEncoder(labels, self._native, self._max_buckets)

    def _time_of(self, event: EventBase) -> int:
        now_ns = time.time_ns()
        if event.ts_ns <= now_ns + _AHEAD_NS:
            return event.ts_ns
        if not self._told_of_clock:
            self._told_of_clock = True
            self.log.warning(
                "a publisher's clock is wrong: what it sends counts for the second in which it came",
                run_id=event.run_id,
                ahead_s=(event.ts_ns - now_ns) // _SECOND_NS,
            )
        return now_ns

    def _let_go(self) -> None:
        """Let go of runs of which nothing more can come, and of the oldest ones that ended otherwise."""
        ended = [name for name, line in self._timelines.items() if not line.figures.in_progress]
        for name in ended:
            if self._timelines[name].figures.complete or name in ended[:-_KEPT_RUNS]:
                self._done[name] = self._timelines.pop(name).last_ms
        while len(self._done) > _REMEMBERED:
            del self._done[next(iter(self._done))]

    def _may_be_there(self, row: Row, error: RefusedRowsError) -> bool:
        sent_before = row.key in self._unsure or row.data.time_ms <= self._maybe_before_ms
        return sent_before and _THERE.search(str(error)) is not None

    async def _post_unless_there(self, samples: bytes) -> None:
        try:
            await self._post(samples)
        except RefusedRowsError as error:
            if not _THERE.search(str(error)):
                raise

    async def _post(self, samples: bytes) -> None:
        body = bytes(cramjam.snappy.compress_raw(samples))
        await self._http.request("POST", body=body, headers=_HEADERS)
