"""The ``prometheus`` endpoint: what it says, and what a real Prometheus makes of it."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from phase_bus.aggregation import base_unit, describe
from phase_bus.aggregation.units import METRICS
from phase_bus.consumer.options import build_consumer
from phase_bus.core.records import RecordBatch
from phase_bus.errors import ConfigError, OptionError
from phase_bus.events import EventBase, Records, RunComplete, RunStart
from phase_bus.plugins.registry import Registry
from phase_bus.testing import MemoryBus, make_event, make_records, make_run
from phase_bus.testing.waiting import until
from phase_bus_consumers.prometheus import PrometheusEndpoint
from phase_bus_consumers.prometheus_families import families_of
from phase_bus_consumers.prometheus_figures import Figures
from tests.support.servers.prometheus import Prometheus

REQUESTS = "phase_bus_requests_total"
ERRORS = "phase_bus_request_errors_total"
DURATION = "phase_bus_request_duration_seconds"
OPEN_METRICS = "application/openmetrics-text;version=1.0.0"


def place_of(endpoint: PrometheusEndpoint) -> str:
    """Return the host and port where an endpoint listens."""
    assert endpoint._site is not None
    host, port = endpoint._site.addresses[0][:2]
    return f"{host}:{port}"


async def scrape(endpoint: PrometheusEndpoint, accept: str = "") -> tuple[str, str]:
    """Return what it answers, and the type of that."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{place_of(endpoint)}/metrics", headers={"Accept": accept}) as answer,
    ):
        assert answer.status == 200
        return (await answer.read()).decode("utf-8", "replace"), answer.headers["Content-Type"]


async def figures(endpoint: PrometheusEndpoint) -> dict[str, float]:
    """Return all samples of a scrape, by name and labels."""
    text, _ = await scrape(endpoint)
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    found = {name: float(value) for name, _, value in lines}
    assert len(found) == len(lines)
    return found


def durations(events: Sequence[EventBase], phase: str) -> np.ndarray[Any, Any]:
    batches = [RecordBatch(e) for e in events if isinstance(e, Records) and e.phase.name == phase]
    return np.concatenate([batch.values("request_latency") for batch in batches]) / 1e9


async def test_figures_are_those_of_the_run(no_leaks: None) -> None:
    events = make_run(records={"warmup": 50, "profiling": 900}, error_rate=0.1)
    bus = MemoryBus()
    bus.publish(*events)
    async with bus.consumer(PrometheusEndpoint(port=0)) as running:
        await running.catch_up()
        found = await figures(running.consumer)
    assert found[f'{REQUESTS}{{phase="warmup"}}'] == 50
    assert found[f'{REQUESTS}{{phase="profiling"}}'] == 900
    assert found['phase_bus_requests_sent_total{phase="profiling"}'] == 900
    assert found['phase_bus_phase_progress_ratio{phase="profiling"}'] == 1
    assert found["phase_bus_runs_in_progress"] == 0
    assert found['phase_bus_run_info{model="test-model",producer="test 1.0",run_id="run-1"}'] == 1
    errors = sum(len(event.errors) for event in events if isinstance(event, Records))
    assert (
        sum(v for name, v in found.items() if name.startswith("phase_bus_request_errors_total")) == errors
    )
    values = durations(events, "profiling")
    assert found[f'{DURATION}_count{{phase="profiling"}}'] == len(values)
    assert found[f'{DURATION}_sum{{phase="profiling"}}'] == pytest.approx(values.sum(), rel=1e-12)
    bounds = 0
    for name, count in found.items():
        if match := re.fullmatch(rf'{DURATION}_bucket{{le="(.+)",phase="profiling"}}', name):
            assert count == (values <= float(match[1])).sum()
            bounds += 1
    assert 20 <= bounds <= 32


async def test_promtool_has_no_complaint(promtool: str) -> None:
    """Of all metrics that are known, and odd ones."""
    odd = {"Temperature of GPU-0": 1.5, "a_total": 1.0, "blobs.count": 2.0, "ünïcode": -1.0, "x\ny": 0.0}
    records = [{**dict.fromkeys(METRICS, 3), **odd}] * 5
    bus = MemoryBus()
    bus.publish(make_event(RunStart, run_id='a"', models=('m"\\', "n")), make_records(records, run_id='a"'))
    async with bus.consumer(PrometheusEndpoint(port=0)) as running:
        await running.catch_up()
        text, kind = await scrape(running.consumer)
        assert kind.startswith("text/plain")
        done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not done.stdout + done.stderr
        assert text.count("# TYPE ") > 70
        open_metrics, kind = await scrape(running.consumer, OPEN_METRICS)
        assert kind.startswith("application/openmetrics-text")
        parse: Any = text_string_to_metric_families  # which is strict
        assert len(list(parse(open_metrics))) > 70


def test_names_have_base_units_and_are_one_each() -> None:
    families = families_of(METRICS)
    assert len({family.name for family in families.values()}) == len(families)
    for metric, family in families.items():
        unit = base_unit(describe(metric).unit).name
        assert family.name.endswith("_total" if unit == "requests" else unit)


def test_unlike_metrics_stay_unlike() -> None:
    """What has one name to Prometheus gets a second one, and none is left out."""
    families = families_of(["my.metric", "my_metric", "my metric"])
    assert len({family.name for family in families.values()}) == 3


@pytest.mark.parametrize(
    "metric", ["requests_in_flight", "phase_progress_ratio", "requests", "request_errors", "output_tokens"]
)
def test_a_metric_named_as_one_of_ours_is_another_family(metric: str) -> None:
    """Two families of a name are none to Prometheus, and two samples of a series cost the whole second."""
    figures = Figures()
    start, *others, end = make_run(200)
    for event in (start, *others, make_records([{metric: 1.0}]), end):
        figures.take(event)
    names = [family.of.name.removesuffix("_total") for family in figures.families(1)]
    assert f"phase_bus_{metric}_values" in names
    assert len({*names}) == len(names)


@pytest.mark.slow
@pytest.mark.parametrize("native", [True, False])
async def test_a_prometheus_scrapes_it(tmp_path: Path, native: bool) -> None:
    """While a run goes on; at its end all counts are right, and percentiles within a bucket."""
    events = make_run(records=2000, error_rate=0.02)
    bus = MemoryBus()
    middle = len(events) // 2
    bus.publish(*events[:middle])
    async with bus.consumer(PrometheusEndpoint(port=0)) as running:
        await running.catch_up()
        target = place_of(running.consumer)
        with Prometheus(tmp_path / "prometheus", target, native=native) as server:
            half = sum(e.count for e in events[:middle] if isinstance(e, Records))
            await until(lambda: _asked(server, f"sum({REQUESTS})") == half)
            bus.publish(*events[middle:])
            await running.catch_up()
            await until(lambda: _asked(server, f"sum({REQUESTS})") == 4000)
            values = np.sort(durations(events, "profiling"))
            if native:
                assert _asked(server, f'histogram_count({DURATION}{{phase="profiling"}})') == len(values)
                total = _asked(server, f'histogram_sum({DURATION}{{phase="profiling"}})')
            else:
                assert _asked(server, f'{DURATION}_count{{phase="profiling"}}') == len(values)
                total = _asked(server, f'{DURATION}_sum{{phase="profiling"}}')
            assert total == pytest.approx(values.sum(), rel=1e-12)
            for q in (0.5, 0.9, 0.99):
                series = DURATION if native else f"{DURATION}_bucket"
                found = _asked(server, f'histogram_quantile({q}, {series}{{phase="profiling"}})')
                assert found is not None
                width = 2 ** (1 / 128) if native else 1.67  # of the buckets that these are in
                rank = int(q * len(values))
                assert values[rank - 1] / width <= found <= values[rank + 1] * width


def _asked(server: Prometheus, expression: str) -> float | None:
    found = server.query(expression)
    return float(found[0]["value"][1]) if found else None


async def test_runs_that_overlap_are_added_up_and_the_next_one_begins_anew() -> None:
    one, two, three = (make_run(records=100, run_id=run_id) for run_id in "abc")
    bus = MemoryBus()
    async with bus.consumer(PrometheusEndpoint(port=0)) as running:
        bus.publish(*one[:-1], *two)
        await running.catch_up()
        found = await figures(running.consumer)
        assert found[f'{REQUESTS}{{phase="profiling"}}'] == 200
        assert found["phase_bus_runs_in_progress"] == 1
        assert sum(name.startswith("phase_bus_run_info") for name in found) == 2
        bus.publish(one[-1], *three[:-1])
        await running.catch_up()
        await asyncio.sleep(0.11)  # figures are not made anew for scrapes that come closer together
        found = await figures(running.consumer)
        assert found[f'{REQUESTS}{{phase="profiling"}}'] == 100
        (info,) = [name for name in found if name.startswith("phase_bus_run_info")]
        assert 'run_id="c"' in info


async def test_figures_are_kept_for_a_time_and_over_a_restart() -> None:
    bus = MemoryBus()
    bus.publish(*make_run(records=100))
    for _ in range(2):
        async with bus.consumer(PrometheusEndpoint(port=0), name="p") as running:
            await running.catch_up()
            found = await figures(running.consumer)
            assert found[f'{REQUESTS}{{phase="profiling"}}'] == 100
    async with bus.consumer(PrometheusEndpoint(port=0, keep_s=0), name="p") as running:
        assert await figures(running.consumer) == {"phase_bus_runs_in_progress": 0}


async def test_types_of_errors_are_bounded_and_nothing_falls() -> None:
    """Whatever comes first has a series of its own for good."""
    bus = MemoryBus()
    before: dict[str, float] = {}
    async with bus.consumer(PrometheusEndpoint(port=0)) as running:
        for number in range(4):
            batch = make_records(40, error_rate=1.0, seed=number)
            errors = [
                msgspec.structs.replace(error, type=f"E{number % 3}-{error.row}") for error in batch.errors
            ]
            bus.publish(msgspec.structs.replace(batch, errors=tuple(errors)))
            await running.catch_up()
            running.consumer._made = (0.0, [])
            found = await figures(running.consumer)
            errors_told = {n: v for n, v in found.items() if n.startswith(ERRORS)}
            assert len(errors_told) <= 51
            assert sum(errors_told.values()) == 40 * (number + 1)
            assert all(found[name] >= value for name, value in before.items())
            before = errors_told


async def test_a_group_counts_and_its_leader_tells() -> None:
    bus = MemoryBus()
    events = make_run(records=500)
    bus.publish(*events)
    outcome = await bus.run_group(PrometheusEndpoint, name="g", port=0)
    told = {f.of.name: f.samples for f in outcome.consumer._figures.families(0)}
    assert dict(told[REQUESTS]) == {(("phase", "warmup"),): 500, (("phase", "profiling"),): 500}


async def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}: .*; give another port") as caught:
            await MemoryBus().run_consumer(PrometheusEndpoint(port=port))
    assert "\n" not in str(caught.value)
    cls = Registry.load().class_of("consumer", "prometheus")
    for options, said in (({"port": "70000"}, "0 to 65535"), ({"keep_s": "-1"}, "not be negative")):
        with pytest.raises(OptionError, match=said):
            build_consumer(cls, "p", options)


async def test_a_run_that_was_lost_and_goes_on() -> None:
    events = make_run(records=200)
    lost = RunComplete(run_id=events[0].run_id, status="lost", records=10)
    middle = len(events) // 2
    bus = MemoryBus()
    async with bus.consumer(PrometheusEndpoint(port=0)) as running:
        bus.publish(*events[:middle], lost, *events[middle:])
        await running.catch_up()
        found = await figures(running.consumer)
    assert found[f'{REQUESTS}{{phase="profiling"}}'] == 200
