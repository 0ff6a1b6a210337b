"""The ``remote_write`` sink, against a real Prometheus."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from phase_bus.aggregation import RunResult, RunState
from phase_bus.consumer.options import build_consumer
from phase_bus.core.records import RecordBatch
from phase_bus.core.secret import Secret
from phase_bus.errors import ConfigError, OptionError
from phase_bus.events import EventBase, Records, RunComplete
from phase_bus.plugins.registry import Registry
from phase_bus.testing import MemoryBus, make_run
from phase_bus.testing.waiting import until
from phase_bus_consumers.remote_write import RemoteWrite
from tests.support.recent import recent
from tests.support.servers.faults import CUT, LOSE_ANSWER, FaultProxy, answer, delay
from tests.support.servers.prometheus import Prometheus

SECOND_NS = 1_000_000_000
BUCKET = 2.0 ** (1 / 128)
REQUESTS = "phase_bus_requests_total"
DURATION = "phase_bus_request_duration_seconds"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phase_bus.consumer.patience._back_off", lambda *_: 0.05)


def run_of(records: int, **options: Any) -> list[EventBase]:
    return list(recent(make_run(records=records, error_rate=0.05, **options)))


def end_of(events: Sequence[EventBase]) -> float:
    """Return the time of a run's last sample, in s."""
    return (events[-1].ts_ns // 1_000_000 + 1) / 1000


def truth(events: Sequence[EventBase], phase: str) -> dict[float, int]:
    """Return how many requests of a phase came before each second, from 0 before its first event on."""
    counts: dict[float, int] = {}
    for second in (*range(events[0].ts_ns // SECOND_NS + 1, int(end_of(events)) + 1), end_of(events)):
        place = next(
            (n for n, event in enumerate(events) if event.ts_ns >= second * SECOND_NS), len(events)
        )
        seen = [event for event in events[:place] if _phase_of(event) == phase]
        if seen:
            counts = counts or {second - 1: 0}
            counts[second] = sum(event.count for event in seen if isinstance(event, Records))
    return counts


def _phase_of(event: EventBase) -> str:
    ref = getattr(event, "phase", None)
    return ref.name if ref is not None else ""


def check(prometheus: Prometheus, events: Sequence[EventBase]) -> None:
    """Every second is there, in order, with the right numbers, once; and the histograms have all values."""
    end = end_of(events)
    assert isinstance(events[-1], RunComplete)
    for phase in ("warmup", "profiling"):
        selector = f'{{phase="{phase}",run_id="{events[0].run_id}"}}'
        (series,) = prometheus.samples(REQUESTS + selector, at_s=end)
        found = {float(at): int(value) for at, value in series["values"]}
        assert len(found) == len(series["values"])
        assert found == truth(events, phase)
        (histograms,) = prometheus.samples(DURATION + selector, at_s=end)
        times = [float(at) for at, _ in histograms["histograms"]]
        assert all(later == earlier + 1 for earlier, later in pairwise(times[:-1]))
        assert times[-1] == end
        values = durations(events, phase)
        count = prometheus.value(f"histogram_count({DURATION}{selector})", end)
        total = prometheus.value(f"histogram_sum({DURATION}{selector})", end)
        assert count == len(values)
        assert total == pytest.approx(values.sum(), rel=1e-12)
    assert not prometheus.query(REQUESTS, end + 1)  # the series have ended


def durations(events: Sequence[EventBase], phase: str) -> np.ndarray[Any, Any]:
    batches = [RecordBatch(e) for e in events if isinstance(e, Records) and e.phase.name == phase]
    return np.concatenate([batch.values("request_latency") for batch in batches]) / 1e9


async def test_every_second_is_there(prometheus: Prometheus, no_leaks: None) -> None:
    events = run_of(700)
    bus = MemoryBus()
    bus.publish(*events)
    outcome = await bus.run_consumer(RemoteWrite(prometheus.write_url))
    assert outcome.receipt.complete
    check(prometheus, events)


async def test_percentiles_agree_with_the_report(prometheus: Prometheus) -> None:
    """Prometheus interpolates within a bucket, which is 0.54 % wide: it is off by no more, and a rank."""
    events = run_of(5000, phases=["profiling"], batch_records=500)
    bus = MemoryBus()
    bus.publish(*events)
    await bus.run_consumer(RemoteWrite(prometheus.write_url))
    result = RunResult(RunState(events[0].run_id))
    for event in events:
        result.take(event)
    (report,) = result.summary()["phases"]
    values = np.sort(durations(events, "profiling"))
    for p in (1, 5, 25, 50, 75, 90, 95, 99):
        found = prometheus.value(f"histogram_quantile({p / 100}, {DURATION})", end_of(events))
        rank = p / 100 * len(values)
        low, high = values[max(int(rank) - 1, 0)], values[min(int(rank) + 1, len(values) - 1)]
        assert low / BUCKET <= found <= high * BUCKET
        reported = report["metrics"]["request_latency"][f"p{p}"] / 1e9
        assert found == pytest.approx(reported, rel=0.0081 + (high - low) / low)
    total = prometheus.value(f"histogram_sum({DURATION})", end_of(events))
    assert total == pytest.approx(report["metrics"]["request_latency"]["sum"] / 1e9, rel=1e-15)
    assert report["requests"] == prometheus.value(REQUESTS, end_of(events)) == 5000


async def test_answers_that_are_lost_and_requests_that_are_not_taken(
    prometheus: Prometheus, fault_proxy: Callable[..., FaultProxy]
) -> None:
    """A second that is there already is recognised; nothing is missing, and nothing a dead letter."""
    proxy = fault_proxy(prometheus.url, only="/write")
    events = run_of(500)
    bus = MemoryBus()
    bus.publish(*events)
    sink = RemoteWrite(f"{proxy.url}/api/v1/write", batch_rows=3)
    async with bus.consumer(sink) as running:
        proxy.next(LOSE_ANSWER, answer(429), answer(503), CUT, LOSE_ANSWER, LOSE_ANSWER)
        await running.catch_up()
    assert not running.dead_letters
    assert proxy.counts["lost"] == 3
    check(prometheus, events)


async def test_after_a_crash_the_samples_are_the_same(prometheus: Prometheus) -> None:
    """Those after the checkpoint are made and sent once more, and recognised."""
    events = run_of(600)
    bus = MemoryBus()
    quarter = len(events) // 4
    bus.publish(*events[:quarter])
    sink = RemoteWrite(prometheus.write_url, batch_rows=1)
    async with bus.consumer(sink, name="w") as running:
        await running.catch_up()
        await running.flush()
        bus.publish(*events[quarter : 2 * quarter])
        await running.catch_up()
        await running.crash()
    await sink.stop()
    sent = prometheus.value(f"count_over_time({REQUESTS}{{phase='warmup'}}[1h])", end_of(events))
    bus.publish(*events[2 * quarter :])
    outcome = await bus.run_consumer(RemoteWrite(prometheus.write_url, batch_rows=7), name="w")
    assert sent > 3
    assert not outcome.dead_letters
    check(prometheus, events)


@pytest.mark.slow
async def test_prometheus_is_killed_in_the_middle(
    prometheus: Prometheus, fault_proxy: Callable[..., FaultProxy]
) -> None:
    proxy = fault_proxy(prometheus.url, only="/write")
    proxy.always = delay(0.05)
    events = run_of(1500)
    bus = MemoryBus()
    bus.publish(*events)
    async with bus.consumer(RemoteWrite(f"{proxy.url}/api/v1/write", batch_rows=3)) as running:
        task = asyncio.create_task(running.catch_up())
        await until(lambda: proxy.counts["delayed"] > 4)
        prometheus.kill()
        await until(lambda: proxy.counts["unreachable"] > 4)
        assert not task.done()
        await asyncio.to_thread(prometheus.start)
        await task
    assert not running.dead_letters
    assert running.receipt.complete
    check(prometheus, events)


async def test_what_is_too_old_is_told(prometheus: Prometheus) -> None:
    """Nothing hides that the server refuses it for good."""
    now = run_of(50, run_id="now")
    old = [msgspec.structs.replace(e, ts_ns=e.ts_ns - 3 * 3600 * SECOND_NS) for e in run_of(50)]
    bus = MemoryBus()
    bus.publish(*now, *old)
    async with bus.consumer(RemoteWrite(prometheus.write_url)) as running:
        await running.catch_up()
    (note, *_) = running.dead_letters
    assert "out of bounds" in note.error
    assert all(letter.run_id == old[0].run_id for letter in running.dead_letters)


async def test_somebody_else_writes_the_same_series(prometheus: Prometheus) -> None:
    """That is no repetition of ours: it is refused, and said."""
    bus = MemoryBus()
    events = run_of(50)
    other, mine = (RemoteWrite(prometheus.write_url, batch_rows=1) for _ in range(2))
    ahead = [msgspec.structs.replace(e, ts_ns=e.ts_ns + 40 * SECOND_NS) for e in events]
    bus.publish(*ahead)
    await bus.run_consumer(other, name="other")
    later = MemoryBus()
    later.publish(*[msgspec.structs.replace(e, ts_ns=e.ts_ns + 10 * SECOND_NS) for e in events])
    async with later.consumer(mine) as running:
        await running.catch_up()
    assert any("out of order" in note.error for note in running.dead_letters)
    assert not running.receipt.complete


async def test_runs_that_overlap(prometheus: Prometheus) -> None:
    """Each has series of its own; without a label of the run they are added up."""
    one, two = run_of(200, run_id="a"), run_of(300, run_id="b", seed=1)
    bus = MemoryBus()
    bus.publish(*sorted([*one, *two], key=lambda event: event.ts_ns))
    end = max(end_of(one), end_of(two))
    await bus.run_consumer(RemoteWrite(prometheus.write_url, labels={"cluster": "x"}))
    for run, count in (("a", 200), ("b", 300)):
        found = prometheus.query(f'max_over_time({REQUESTS}{{run_id="{run}",cluster="x"}}[1h])', end)
        assert {float(each["value"][1]) for each in found} == {count}
    await bus.run_consumer(
        RemoteWrite(prometheus.write_url, run_label="", labels={"cluster": "y"}), name="y"
    )
    found = prometheus.query(f'max_over_time({REQUESTS}{{cluster="y"}}[1h])', end)
    assert {float(each["value"][1]) for each in found} == {500}


async def test_coarser_buckets_are_exact(prometheus: Prometheus) -> None:
    events = run_of(300)
    bus = MemoryBus()
    bus.publish(*events)
    await bus.run_consumer(RemoteWrite(prometheus.write_url, max_buckets=20))
    (series,) = prometheus.query(f'{DURATION}{{phase="profiling"}}', end_of(events))
    buckets = series["histogram"][1]["buckets"]
    assert 5 < len(buckets) <= 20
    values = durations(events, "profiling")
    for _, low, high, count in buckets:
        assert int(count) == ((values > float(low)) & (values <= float(high))).sum()


async def test_a_server_without_native_histograms(tmp_path: Path) -> None:
    events = run_of(300)
    bus = MemoryBus()
    bus.publish(*events)
    with Prometheus(tmp_path, native=False) as server:
        await bus.run_consumer(RemoteWrite(server.write_url, native=False))
        end = end_of(events)
        values = durations(events, "profiling")
        assert server.value(f'{DURATION}_count{{phase="profiling"}}', end) == len(values)
        assert server.value(f'{DURATION}_sum{{phase="profiling"}}', end) == pytest.approx(values.sum())
        found = server.query(f'{DURATION}_bucket{{phase="profiling"}}', end)
        assert len(found) > 20
        for each in found:
            assert float(each["value"][1]) == (values <= float(each["metric"]["le"])).sum()
        assert not server.query(f"{DURATION}_bucket", end + 1)


async def test_a_clock_that_is_far_ahead_does_no_harm(prometheus: Prometheus) -> None:
    events = [msgspec.structs.replace(e, ts_ns=e.ts_ns + 86_400 * SECOND_NS) for e in run_of(50)]
    bus = MemoryBus()
    bus.publish(*events)
    outcome = await bus.run_consumer(RemoteWrite(prometheus.write_url))
    assert outcome.receipt.complete
    found = prometheus.query(f"max_over_time({REQUESTS}[1h])", time.time() + 2)
    assert [float(each["value"][1]) for each in found] == [50, 50]


async def test_who_is_not_let_in_does_not_start(
    prometheus: Prometheus, fault_proxy: Callable[..., FaultProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RW_TOKEN", "wrong-token")
    proxy = fault_proxy(prometheus.url, authorization="Basic dTpyaWdodC13b3Jk")
    url = f"{proxy.url}/api/v1/write"
    with pytest.raises(ConfigError, match="answers 401") as caught:
        await MemoryBus().run_consumer(RemoteWrite(url, token=Secret("env:RW_TOKEN")))
    assert "wrong-token" not in str(caught.value)
    with pytest.raises(ConfigError, match="answers 404"):
        await MemoryBus().run_consumer(RemoteWrite(f"{prometheus.url}/api/v1/wrong"))
    monkeypatch.setenv("RW_PASSWORD", "right-word")
    password = Secret("env:RW_PASSWORD")
    events = run_of(50)
    bus = MemoryBus()
    bus.publish(*events)
    outcome = await bus.run_consumer(
        RemoteWrite(url, user="u", password=password, headers={"X-Scope-OrgID": "a"})
    )
    assert outcome.receipt.complete


def test_what_is_not_installed_is_named() -> None:
    script = "import sys; sys.modules['cramjam'] = None; import phase_bus_consumers.remote_write"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "pip install 'phase-bus[prometheus]'" in done.stderr.splitlines()[-1]


def test_options() -> None:
    cls = Registry.load().class_of("consumer", "remote_write")
    url = {"url": "http://h/write"}
    for headers in ("{X-Scope-OrgID: a}", "{X-Api-Key: 'env:KEY'}"):
        assert isinstance(build_consumer(cls, "w", {**url, "headers": headers}), RemoteWrite)
    for options, said in (
        ({"user": "u"}, "user and password"),
        ({"labels": "{phase: a}"}, "'phase' cannot be"),
        ({"run_label": "a-b"}, "'a-b' cannot be"),
        (
            {"headers": "{authorization: a}"},
            "the header authorization is not given in clear; write env:NAME",
        ),
        ({"headers": "{X-Api-Key: a}"}, "the header X-Api-Key is not given in clear"),
        ({"max_buckets": "-1"}, "must not be negative"),
        ({"token": "abc"}, "env:NAME"),
    ):
        with pytest.raises(OptionError, match=said):
            build_consumer(cls, "w", {**url, **options})


def test_a_dead_letter_is_not_counted_twice() -> None:
    """Nor is it settled: the seconds that it had closed cannot be made again."""
    sink = RemoteWrite("http://h/write")
    start, *_, end = run_of(50)
    for number, event in enumerate((start, end), 1):
        sink.context.event = (bytes(16), number)
        assert bool(sink.rows(event)) == (event is end)
    again = RemoteWrite("http://h/write")
    again.restore(sink.state())
    again.context.event = (bytes(16), 2)
    with pytest.raises(ValueError, match="its second is over"):
        again.rows(end)


async def test_a_damaged_batch_costs_no_second(prometheus: Prometheus) -> None:
    """It becomes a dead letter; the seconds that it would have closed are closed by the next event."""
    events = run_of(300)
    middle = next(n for n, event in enumerate(events) if isinstance(event, Records) and n > len(events) / 2)
    good = events[middle]
    assert isinstance(good, Records)
    table = good.metrics[0]
    short = msgspec.structs.replace(table, numbers=table.numbers[:-8])
    late = good.ts_ns // SECOND_NS * SECOND_NS + SECOND_NS  # the first event of its second
    bad = msgspec.structs.replace(good, metrics=(short, *good.metrics[1:]), ts_ns=late)
    bus = MemoryBus()
    bus.publish(*events[:middle], bad, *events[middle:])
    async with bus.consumer(RemoteWrite(prometheus.write_url)) as running:
        await running.catch_up()
    assert len(running.dead_letters) == 1
    check(prometheus, events)
