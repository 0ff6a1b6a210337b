"""The ``otlp`` sink: metrics, logs and traces of runs for whatever speaks OpenTelemetry's protocol.

They are sent by HTTP, as protobuf, without an SDK: histograms come as they were counted, from a state that
is kept with the checkpoint. All times are those of events, so what is sent again is the same again.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from phase_bus import (
    Answer,
    ConfigError,
    DeniedError,
    EventBase,
    Limits,
    Origin,
    RefusedRowsError,
    Row,
    Sink,
    UnavailableError,
    __version__,
)
from phase_bus_consumers.extras import needs
from phase_bus_consumers.otlp_items import Items
from phase_bus_consumers.otlp_options import addresses, chosen_signals, headers_of, pairs
from phase_bus_consumers.otlp_runs import Temporality
from phase_bus_consumers.otlp_values import Item, Rejection, Signal, build_request, rejection_in

with needs("otlp"):
    from phase_bus_consumers.http import HttpClient


class OtlpSink(Sink):
    """Send metrics, logs and traces of runs by OTLP, OpenTelemetry's protocol.

    Args:
        url: where to, without ``/v1/metrics`` and so on; ``OTEL_EXPORTER_OTLP_ENDPOINT`` by default, or
            port 4318 here.
        metrics_url: the complete address for metrics, if it is a different one; likewise the next two.
        logs_url: the complete address for logs.
        traces_url: the complete address for traces.
        signals: what is sent: ``metrics``, ``logs`` and ``traces``, separated by commas.
        headers: HTTP headers, as ``name=value;name=env:NAME;name=file:PATH``: one that lets us in is never
            given in clear. ``OTEL_EXPORTER_OTLP_HEADERS`` by default.
        temporality: whether metrics count from a phase's start on (``cumulative``) or from the last ones
            (``delta``).
        interval_s: seconds of the run between two points of its metrics.
        max_buckets: the maximum number of buckets in a histogram; if values differ more, the buckets are
            wider.
        trace_requests: the share of the requests that have a span, 0 to 1.
        service: the name of the sending service; ``OTEL_SERVICE_NAME`` by default.
        operation: what requests are: ``chat``, ``text_completion``, ``embeddings`` ...
        provider: whose protocol they speak, by the name in the conventions.
        compress: whether requests are gzipped.
        timeout_s: how many seconds one request may take.
        ca_file: certificates of authorities to trust instead of the system's.
    """

    def __init__(
        self,
        url: str | None = None,
        metrics_url: str | None = None,
        logs_url: str | None = None,
        traces_url: str | None = None,
        signals: str = "metrics,logs,traces",
        headers: str = "",
        temporality: Temporality = "cumulative",
        interval_s: float = 5.0,
        max_buckets: int = 640,
        trace_requests: float = 0.01,
        service: str = "",
        operation: str = "chat",
        provider: str = "openai",
        compress: bool = True,
        timeout_s: float = 30.0,
        ca_file: Path | None = None,
        **limits: Unpack[Limits],
    ) -> None:
        super().__init__(**limits)
        if interval_s < 0.001:
            raise ValueError(f"interval_s must be at least 0.001, not {interval_s:g}")
        if max_buckets < 20:
            raise ValueError(f"max_buckets must be at least 20, not {max_buckets}")
        if not 0 <= trace_requests <= 1:
            raise ValueError(f"trace_requests is a part of 1, such as 0.01, not {trace_requests:g}")
        self.temporality: Temporality = temporality
        self._compress = compress
        service = service or os.environ.get("OTEL_SERVICE_NAME") or "phase-bus"
        others = pairs(os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""))
        self._resource = {**others, "service.name": service}
        own = {"metrics": metrics_url, "logs": logs_url, "traces": traces_url}
        with_headers = {**headers_of(headers), "Content-Type": "application/x-protobuf"}
        with_headers["User-Agent"] = f"phase-bus/{__version__}"
        self._clients = {
            signal: HttpClient(address, with_headers, timeout_s=timeout_s, ca_file=ca_file)
            for signal, address in addresses(url, own, chosen_signals(signals)).items()
        }
        if "traces" not in self._clients:
            trace_requests = 0.0
        named = {"gen_ai.operation.name": operation, "gen_ai.provider.name": provider}
        self._items = Items(temporality, round(interval_s * 1e9), max_buckets, trace_requests, named)
        self._remark = ""  # what the receiver said last to a request that it took

    async def start(self) -> None:
        """Look for the receiver."""
        if self.partition is not None:
            raise ConfigError(
                f"consumer {self.name!r} cannot share its work, since the metrics of a run are one series; "
                "start it without a group"
            )
        try:
            for client in self._clients.values():
                await client.open()
            await super().start()
        except BaseException:
            await self._close()
            raise

    async def stop(self) -> None:
        """Let go of the connections."""
        await super().stop()
        await self._close()

    async def _close(self) -> None:
        for client in self._clients.values():
            await client.close()

    def state(self) -> bytes:
        """Return what was counted."""
        return self._items.to_bytes()

    def restore(self, state: bytes) -> None:
        """Go on counting."""
        self._items.restore(state)

    # ---- from events to rows ----

    def rows(self, event: EventBase) -> list[Item]:
        """Return what is to be sent because of an event."""
        key = Origin(event, self.stream, self.offset, self.source, self.sequence).key
        items = self._items.of(event, key, self.source, self.sequence)
        return [item for item in items if item.signal in self._clients]

    def size_of(self, data: Item) -> int:
        """Return an item's size."""
        size: int = data.message.ByteSize()
        return size

    # ---- from rows to requests ----

    async def connect(self) -> None:
        """Send an empty request of each kind, which tells whether the receiver lets us."""
        for signal in self._clients:
            try:
                await self._ask(signal, ())
            except RefusedRowsError:  # not everybody takes an empty one
                self.log.debug("the receiver does not take an empty request", signal=signal)
            except DeniedError as error:
                raise DeniedError(f"{signal}: {error}") from None

    async def send(self, rows: Sequence[Row]) -> Answer | None:
        """Send a request for each signal; what is refused of one is found by halving."""
        parts = deque(
            (signal, places)
            for signal in self._clients
            if (places := [place for place, row in enumerate(rows) if row.data.signal == signal])
        )
        refused: dict[int, str] = {}
        while parts:
            signal, places = parts[0]
            # Parts of these may be sent twice: a receiver knows all items by ids or times, but not deltas.
            divisible = len(places) > 1 and (signal != "metrics" or self.temporality != "delta")
            try:
                rejected, reason = await self._post(signal, [rows[place].data for place in places])
                divisible &= rejected < len(places)
            except RefusedRowsError as error:  # none of them was taken
                rejected, reason, divisible = len(places), str(error), len(places) > 1
            except UnavailableError as error:
                left = [place for _, remaining in parts for place in remaining]
                if len(left) == len(rows):
                    raise
                return Answer(refused, left, str(error), error.after_s)
            parts.popleft()
            if rejected and divisible:
                half = len(places) // 2
                parts.extendleft([(signal, places[half:]), (signal, places[:half])])
            elif rejected:
                refused.update(dict.fromkeys(places, reason))
        return Answer(refused)

    async def _ask(self, signal: Signal, items: Sequence[Item]) -> Rejection:
        client = self._clients[signal]
        body = build_request(signal, items, self._resource)
        answer = await client.request("POST", body=body, compress=self._compress)
        try:
            return rejection_in(signal, answer)
        except ValueError as error:
            raise DeniedError(f"{client.host} gives {error}; check url") from None

    async def _post(self, signal: Signal, items: Sequence[Item]) -> Rejection:
        """Send items; return what the receiver did not take of them.

        Raises:
            RefusedRowsError: it takes none of them, because of one or all.
        """
        rejection = await self._ask(signal, items)
        reason = self._clients[signal].plain(rejection.reason)
        if rejection.rejected:
            said = (
                f"the receiver rejected {rejection.rejected} of {len(items)}: {reason or 'no reason given'}"
            )
            return Rejection(rejection.rejected, said)
        if reason and reason != self._remark:
            self._remark = reason
            self.log.warning("the receiver took all, with a remark", signal=signal, remark=reason)
        return rejection
