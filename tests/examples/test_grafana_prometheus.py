"""The dashboard for Prometheus: every query in it, asked of a real one with a run inside."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from phase_bus.events import EventBase, PhaseStart, Verdict
from phase_bus.testing import MemoryBus, make_event, make_run
from phase_bus_consumers.prometheus import PrometheusEndpoint
from phase_bus_consumers.remote_write import RemoteWrite
from tests.support.recent import recent
from tests.support.servers.prometheus import Prometheus

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "grafana"
DASHBOARD = json.loads((FOLDER / "prometheus.json").read_text())
VARIABLES = {"$__rate_interval": "4s", "$run": ".*", "$phase": ".*"}


def queries() -> Iterator[tuple[str, str]]:
    """Yield the panel and the text of each query, as Grafana sends it."""
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            text = target["expr"]
            for name, value in VARIABLES.items():
                text = text.replace(name, value)
            assert "$" not in text
            yield panel["title"], text


def check(server: Prometheus, start_s: float, end_s: float) -> None:
    """Each query has data, and each variable values."""
    asked = 0
    for title, text in queries():
        found = server.query_range(text, start_s, end_s)
        values = [value for series in found for _, value in series["values"]]
        assert any(value not in ("NaN", "0") for value in values), (title, text)
        asked += 1
    assert asked > 15
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
            assert match
            assert all(match[2] in series for series in server.series(match[1]))
            assert server.series(match[1])


def run() -> list[EventBase]:
    """Return a run with errors, requests in flight, and a threshold that passes."""
    events: list[EventBase] = []
    for event in make_run(records=800, error_rate=0.1):
        if isinstance(event, PhaseStart):
            stats = msgspec.structs.replace(event.stats, in_flight=3)
            events.append(msgspec.structs.replace(event, stats=stats))
            events.append(make_event(Verdict, ts_ns=event.ts_ns))
        else:
            events.append(event)
    return events


async def test_with_remote_write(prometheus: Prometheus) -> None:
    events = recent(run())
    bus = MemoryBus()
    bus.publish(*events)
    await bus.run_consumer(RemoteWrite(prometheus.write_url))
    check(prometheus, events[0].ts_ns / 1e9, events[-1].ts_ns / 1e9 + 1)


@pytest.mark.slow
@pytest.mark.parametrize("native", [True, False])
async def test_with_scrapes(tmp_path: Path, native: bool) -> None:
    events = run()
    bus = MemoryBus()
    async with bus.consumer(PrometheusEndpoint(port=0)) as running:
        site = running.consumer._site
        assert site is not None
        with Prometheus(tmp_path, f"127.0.0.1:{site.addresses[0][1]}", native=native) as server:
            bus.publish(*events[:10])
            await running.catch_up()
            start_s = time.time()
            while not server.query("phase_bus_requests_total"):  # Prometheus takes its time to begin
                await asyncio.sleep(0.1)
                assert time.time() < start_s + 20
            for event in events[10:]:
                bus.publish(event)
                await running.catch_up()
                await asyncio.sleep(0.05)
            check(server, start_s, time.time())


def test_provisioning() -> None:
    """What Grafana is given names the dashboard's data source, and no place of this machine."""
    (source,) = _read("datasources/prometheus.yaml")["datasources"]
    (provider,) = _read("dashboards/phase-bus.yaml")["providers"]
    assert source["type"] == "prometheus"
    assert DASHBOARD["templating"]["list"][0]["current"]["value"] == source["uid"]
    assert (source["url"], provider["options"]["path"]) == ("$PROMETHEUS_URL", "$PHASE_BUS_DASHBOARDS")
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def _read(name: str) -> Any:
    return yaml.safe_load((FOLDER / "provisioning" / name).read_text())
