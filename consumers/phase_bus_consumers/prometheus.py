"""The ``prometheus`` consumer: an endpoint that a Prometheus scrapes while runs go on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address

import msgspec
from msgspec import Struct

from phase_bus import Consumer, PhaseEvent, Records, RunComplete, RunStart, Verdict
from phase_bus.aggregation import ExponentialHistogram, RunState
from phase_bus_consumers.extras import needs
from phase_bus_consumers.prometheus_encoding import encode_family
from phase_bus_consumers.prometheus_families import Family, classic_buckets
from phase_bus_consumers.prometheus_figures import Figures, SavedFigures

with needs("prometheus"):
    from aiohttp import web
    from prometheus_client import CollectorRegistry, Metric
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.registry import Collector

    from phase_bus_consumers.web import listen, url_of

_PROTOBUF = "application/vnd.google.protobuf"
_PROTOBUF_TYPE = f"{_PROTOBUF}; proto=io.prometheus.client.MetricFamily; encoding=delimited"
_LAST_SCRAPES_S = 5.0  # how long a scrape that is under way is waited for at the end
_FRESH_S = 0.1  # figures are not made anew for scrapes that come closer together


class _Saved(Struct):
    figures: SavedFigures
    ended_s: float | None


class PrometheusEndpoint(Consumer):
    """Show the figures of runs that go on to a Prometheus that scrapes them.

    They are at ``/metrics``, as classic histograms, or as native ones for a scraper that asks for these.
    Series have no label for the run: figures of overlapping runs are added up, and ``phase_bus_run_info``
    names the runs. They start again from zero when a run starts while no other is going on.

    In a group, the leader serves the endpoint, with what all members have counted.

    Args:
        host: the address to listen on. Everybody who can connect can read it: there is no authentication.
        port: the port; 0 for any that is free.
        keep_s: for how many seconds figures stay after the end of the last run.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 9464, keep_s: float = 600.0) -> None:
        if not 0 <= port <= 65535:
            raise ValueError(f"port must be from 0 to 65535, not {port}")
        if keep_s < 0:
            raise ValueError("keep_s must not be negative")
        self._host, self._port, self._keep_s = host, port, keep_s
        self._figures = Figures()
        self._ended_s: float | None = None  # when the last run ended, Unix time; None while one goes on
        self._made: tuple[float, list[Family]] = (0.0, [])
        self._site: web.AppRunner | None = None

    async def start(self) -> None:
        if self.partition is not None:
            return
        app = web.Application()
        app.router.add_get("/metrics", self._answer)
        app.router.add_get("/", _point)
        who = f"consumer {self.name!r}"
        self._site, host, port = await listen(app, who, self._host, self._port, _LAST_SCRAPES_S)
        may = {} if ip_address(host).is_loopback else {"readable": "for everybody who can connect"}
        self.log.info("figures for Prometheus", url=f"{url_of(host, port)}/metrics", **may)

    async def stop(self) -> None:
        if self._site is not None:
            await self._site.cleanup()

    def state(self) -> bytes:
        return msgspec.msgpack.encode(_Saved(self._figures.saved(self.leads), self._ended_s))

    def restore(self, state: bytes) -> None:
        saved = msgspec.msgpack.decode(state, type=_Saved)
        self._figures, self._ended_s = Figures.restored(saved.figures), saved.ended_s

    async def merge(self, states: Mapping[int, bytes]) -> None:
        for partition in sorted(states):
            saved = msgspec.msgpack.decode(states[partition], type=_Saved)
            for run in saved.figures.runs:
                self._figures.replace_parts(RunState.from_dict(run.state))

    def forget(self, run_id: str) -> None:
        self._figures.forget(run_id)

    async def _take(self, event: RunStart | PhaseEvent | Records | RunComplete | Verdict) -> None:
        if not self._figures.take(event):
            self.log.debug("an event of a run whose figures were let go of", run_id=event.run_id)
        self._ended_s = None if self._figures.in_progress else self._ended_s or time.time()

    # One method under several names: the names decide what is subscribed to.
    on_run_start = on_run_complete = on_records = _take
    on_phase_start = on_phase_progress = on_phase_sending_complete = on_phase_complete = _take
    on_phase_timeout = on_verdict = _take

    def _families(self) -> list[Family]:
        if self._ended_s is not None and time.time() > self._ended_s + self._keep_s:
            self._figures.clear()
        made_s, families = self._made
        now_s = time.monotonic()
        if not families or now_s > made_s + _FRESH_S:
            families = self._figures.families(time.time_ns())
            self._made = (now_s, families)
        return families

    async def _answer(self, request: web.Request) -> web.Response:
        accepted = request.headers.get("Accept", "")
        families = self._families()
        if accepted.startswith(_PROTOBUF):
            body = await asyncio.to_thread(_as_protobuf, families)
            return web.Response(body=body, headers={"Content-Type": _PROTOBUF_TYPE})
        encoder, content_type = choose_encoder(accepted)
        body = await asyncio.to_thread(encoder, _registry(families))
        return web.Response(body=body, headers={"Content-Type": content_type})


async def _point(_request: web.Request) -> web.Response:
    return web.Response(text="figures of benchmark runs are at /metrics\n")


def _as_protobuf(families: Sequence[Family]) -> bytes:
    return b"".join(map(encode_family, families))


class _Collector(Collector):
    """What prometheus_client asks for families."""

    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return map(_as_text, self._families)


def _registry(families: Sequence[Family]) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_Collector(families))
    return registry


def _as_text(family: Family) -> Metric:
    name, kind, text = family.of
    made = Metric(name.removesuffix("_total"), text, kind)
    for labels, value in family.samples:
        known = dict(labels)
        if not isinstance(value, ExponentialHistogram):
            made.add_sample(name, known, value)
            continue
        for bound, count in classic_buckets(value):
            made.add_sample(f"{name}_bucket", {**known, "le": repr(bound)}, count)
        made.add_sample(f"{name}_bucket", {**known, "le": "+Inf"}, value.count)
        if not value.negative.counts:  # else the sum may fall, and OpenMetrics has neither
            made.add_sample(f"{name}_count", known, value.count)
            made.add_sample(f"{name}_sum", known, value.sum)
    return made
