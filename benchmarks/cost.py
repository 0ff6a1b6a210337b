"""What phase-bus costs the benchmark's process, against AIPerf's own encoding of the same objects."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from benchmarks import peers, shapes
from benchmarks.harness import (
    Child,
    Plan,
    Report,
    Table,
    alternate,
    directory,
    installed,
    ratios,
    run,
    shared_counts,
    spread,
    wait_for,
)
from phase_bus.aiperf.mapping import RECORD_FIELDS, record_error, record_fields
from phase_bus.aiperf.phase_log import PhaseLog
from phase_bus.core.outbox import Outbox
from phase_bus.core.wire import send_frames
from phase_bus.events import EventBase
from phase_bus.publisher.publisher import Publisher

QUESTION = "What do a record and a phase event cost the benchmark's process, in CPU time?"
_POOL = 1024  # different records, used again and again
_RATE = 1000  # records a second of the paced form
_SINGLE_S = 0.004  # between single events: until all of it has gone to sleep again
_READY_S = 10.0
_LEAST_US = 0.1  # beyond an idle loop, which on a busy machine may take longer in some round

Side = Callable[[], float]


def main() -> Report:
    """Measure, print, return."""
    return run("cost", QUESTION, measure)


def measure(plan: Plan, report: Report) -> None:
    """Fill in the report."""
    with directory() as where, Child(peers.bus, f"ipc://{where}") as bus:
        bus.ready()
        with Publisher(f"ipc://{where}", field_names=RECORD_FIELDS) as publisher:
            if not publisher.flush(10.0):
                raise RuntimeError("the bus does not answer")
            # What AIPerf's modules and models hold is not to be looked through in some round or other.
            _phase_message()
            gc.collect()
            gc.freeze()
            _records(plan, report, publisher)
            _phase_events(plan, report, publisher)
            _single_events(plan, report, publisher, f"ipc://{where}/bare")
    report.notes.append(
        "Whole: CPU time of all threads of the process, ZeroMQ's as well, with a real bus that "
        "acknowledges, until it has. The bus process itself is not in it, nor the making of the objects: "
        f"{_POOL} different ones are there before, and both sides find them in no cache."
    )
    report.notes.append(
        "Paced: after each sleep code and data are in no cache any more, so that the same takes several "
        "times as long, on all sides. What an idle loop costs that sleeps as often is taken off."
    )


def _records(plan: Plan, report: Report, publisher: Publisher) -> None:
    count = plan.count(8192)
    objects, theirs = objects_of(errors=0.0)
    mixed, _ = objects_of(errors=0.02)
    sides: dict[str, Side] = {
        "call": lambda: _call_only(publisher, objects, count),
        "whole": lambda: whole_us(publisher, objects, count),
        "failures": lambda: whole_us(publisher, mixed, count),
        **{name: _each(encode, theirs, count // 4) for name, encode in _encoders(theirs).items()},
    }
    values = alternate(sides, plan)
    paced_count = plan.count(2000)
    at_a_rate: dict[str, Side] = {
        "paced": lambda: _paced(lambda record: _record_all(publisher, (record,)), objects, paced_count),
        "idle": lambda: _paced(lambda _: None, objects, paced_count),
    }
    if theirs:
        at_a_rate["paced_model_dump_json"] = lambda: _paced(
            lambda record: record.model_dump_json(), theirs, paced_count
        )
    paced = alternate(at_a_rate, plan)
    values |= _without_idle(paced)
    titles = {
        "call": "phase-bus: the call alone, in AIPerf's thread (mapping + Publisher.record)",
        "whole": "phase-bus: whole, at full speed (batches of 256)",
        "failures": "phase-bus: whole, 2 % failed requests among them",
        "paced": "phase-bus: whole, at 1,000 records/s (batches of 100)",
        "paced_model_dump_json": "AIPerf: record.model_dump_json(), at 1,000 records/s",
        "model_dump_json": "AIPerf: record.model_dump_json() with its trace, headers left out",
        "pushed": "AIPerf: RecordsMessage.to_json_bytes(), as it pushes each record",
        "exported": "AIPerf: model_dump, scrub, orjson without the trace, as its JSONL export does",
    }
    rows = []
    for name, title in titles.items():
        if name not in values:
            continue
        report.figures[f"record_{name}_us"] = spread(values[name])
        cells = [title, spread(values[name]).show()]
        base = values.get("paced_model_dump_json" if name.startswith("paced") else "model_dump_json")
        n = min(len(values[name]), len(base or ()))
        ratio = ratios(values[name][:n], base[:n]) if base else None
        if ratio is not None:
            report.figures[f"record_{name}_ratio"] = ratio
        rows.append([*cells, ratio.show() if ratio else "-"])
    report.tables.append(Table("One record, CPU", ["what", "µs", "of AIPerf's model_dump_json"], rows))
    if not theirs:
        report.notes.append("AIPerf is not installed: its side is missing, and no ratio can be given.")


def _phase_events(plan: Plan, report: Report, publisher: Publisher) -> None:
    count = plan.count(4000)
    source, message = _phase_message()
    sides: dict[str, Side] = {
        "call": lambda: _publish(publisher, source, count, whole=False),
        "whole": lambda: _publish(publisher, source, count, whole=True),
    }
    if message is not None:
        sides["aiperf"] = _each(lambda m: m.to_json_bytes(), [message], count)
    values = alternate(sides, plan)
    titles = {
        "call": "phase-bus: the call alone, in AIPerf's thread (mapping + publish)",
        "whole": "phase-bus: whole, many in a row",
        "aiperf": "AIPerf: CreditPhaseProgressMessage.to_json_bytes()",
    }
    report.tables.append(_event_table("One phase event of many in a row, CPU", titles, values, report))


def _single_events(plan: Plan, report: Report, publisher: Publisher, endpoint: str) -> None:
    """One every few ms: with wake-ups, system calls and acknowledgement, which many in a row share."""
    count = plan.count(100)
    source, message = _phase_message()
    log = _begun(source)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    bare = context.socket(zmq.PUB)
    bare.bind(endpoint)
    frames = _frames(log.update(source)[0])
    counts = shared_counts(1)
    try:
        with Child(peers.bare_consumer, endpoint, counts, 0, by_frame=False) as consumer:
            consumer.ready()
            if not wait_for(lambda: bare.send(peers.NOTHING) is None and counts[0] == -1, _READY_S):
                raise RuntimeError("the bare consumer does not hear")
            sides: dict[str, Side] = {
                "single": lambda: _singly(lambda: _publish_all(publisher, log, source), count),
                "single_bare": lambda: _singly(lambda: send_frames(bare, frames), count),
                "idle": lambda: _singly(lambda: None, count),
            }
            if message is not None:
                sides["single_aiperf"] = lambda: _singly(message.to_json_bytes, count)
            values = _without_idle(alternate(sides, plan))
    finally:
        context.destroy(linger=0)
    titles = {
        "single": "phase-bus: whole",
        "single_bare": "bare PUB: sending the same bytes, nothing else (its I/O thread as well)",
        "single_aiperf": "AIPerf: CreditPhaseProgressMessage.to_json_bytes()",
    }
    report.tables.append(_event_table("One phase event every 4 ms, CPU", titles, values, report))
    report.figures["event_single_over_bare"] = ratios(values["single"], values["single_bare"])


def _event_table(
    title: str, titles: dict[str, str], values: dict[str, list[float]], report: Report
) -> Table:
    base = next((values[name] for name in ("aiperf", "single_aiperf") if name in values), None)
    rows = []
    for name in titles:
        if name not in values:
            continue
        report.figures[f"event_{name}_us"] = spread(values[name])
        ratio = ratios(values[name], base) if base else None
        if ratio is not None:
            report.figures[f"event_{name}_ratio"] = ratio
        rows.append([titles[name], spread(values[name]).show(), ratio.show() if ratio else "-"])
    return Table(title, ["what", "µs", "of AIPerf's"], rows)


def _without_idle(values: dict[str, list[float]]) -> dict[str, list[float]]:
    """Take off from each side, round by round, what doing nothing at that rate costs."""
    idle = values.pop("idle")
    return {
        name: [max(a - b, _LEAST_US) for a, b in zip(some, idle, strict=True)]
        for name, some in values.items()
    }


# ---- our side ----


def _call_only(publisher: Publisher, objects: Sequence[Any], count: int) -> float:
    """Return the µs of CPU of the calling thread, a record."""
    spent_s = 0.0
    for start in range(0, count, _POOL):  # in parts, so that the inbox is never full
        part = objects[: min(_POOL, count - start)]
        before_s = time.thread_time()
        _record_all(publisher, part)
        spent_s += time.thread_time() - before_s
        publisher.flush(10.0)
    return spent_s / count * 1e6


def whole_us(publisher: Publisher, objects: Sequence[Any], count: int) -> float:
    """Return the µs of CPU of the whole process, a record, until the bus has all."""
    before_s = time.process_time()
    for start in range(0, count, _POOL):
        _record_all(publisher, objects[: min(_POOL, count - start)])
    if not publisher.flush(30.0):
        raise RuntimeError("the bus did not take all records")
    return (time.process_time() - before_s) / count * 1e6


def _paced(work: Callable[[Any], object], objects: Sequence[Any], count: int) -> float:
    """Return the µs of CPU of the whole process, a record, at a fixed rate."""
    started_s, before_s = time.monotonic(), time.process_time()
    for number in range(count):
        work(objects[number % _POOL])
        time.sleep(max(started_s + (number + 1) / _RATE - time.monotonic(), 0.0))
    return (time.process_time() - before_s) / count * 1e6


def _record_all(publisher: Publisher, objects: Sequence[Any]) -> None:
    """What the plugin does for each record."""
    for record in objects:
        error = record.error
        publisher.record(
            shapes.RUN_ID,
            shapes.PHASE,
            record.metrics,
            record_fields(record.metadata),
            None if error is None else record_error(error),
        )


def _begun(source: Any) -> PhaseLog:
    """Return the plugin's log of phases, after the phase's start: all stats to come are progress."""
    log = PhaseLog(shapes.RUN_ID)
    log.update(source)  # the start
    log.update(source)  # its repetition, which AIPerf tells as progress
    return log


def _publish_all(publisher: Publisher, log: PhaseLog, source: Any) -> None:
    """What the plugin does when AIPerf hands over a phase's stats."""
    for event in log.update(source):
        publisher.publish(event)


def _publish(publisher: Publisher, source: Any, count: int, *, whole: bool) -> float:
    log = _begun(source)
    clock = time.process_time if whole else time.thread_time
    before_s = clock()
    for _ in range(count):
        _publish_all(publisher, log, source)
    spent_s = clock() - before_s
    publisher.flush(30.0)
    return (clock() - before_s if whole else spent_s) / count * 1e6


def _singly(work: Callable[[], object], count: int) -> float:
    before_s = time.process_time()
    for _ in range(count):
        work()
        time.sleep(_SINGLE_S)
    return (time.process_time() - before_s) / count * 1e6


def _frames(event: EventBase) -> tuple[bytes, bytes, bytes]:
    """Return an event's frames."""
    outbox = Outbox(bytes(16), 1 << 20)
    outbox.put(event)
    return next(iter(outbox)).frames


# ---- AIPerf's side ----


class _Plain:
    """A record's or its metadata's attributes, where AIPerf is not installed."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)


def objects_of(errors: float) -> tuple[list[Any], list[Any]]:
    """Return records for our side and, if AIPerf is installed, the same for its own."""
    payloads = shapes.payloads(_POOL, errors=errors)
    messages = installed("aiperf.common.messages.inference_messages")
    if messages is None:
        return [_plain_record(payload) for payload in payloads], []
    models = [messages.MetricRecordsData.model_validate(payload) for payload in payloads]
    return models, models


def _plain_record(payload: dict[str, Any]) -> _Plain:
    error = payload["error"]
    return _Plain(
        {
            "metadata": _Plain(payload["metadata"]),
            "metrics": payload["metrics"],
            "error": None if error is None else _Plain(error),
        }
    )


def _encoders(objects: Sequence[Any]) -> dict[str, Callable[[Any], Any]]:
    if not objects:
        return {}
    dumps = installed("orjson").dumps
    scrub = installed("aiperf.common.finite").scrub_non_finite
    envelope = installed("aiperf.common.messages.inference_messages").RecordsMessage
    # RecordProcessor._process: one envelope a record; push_client._push_message: to_json_bytes().
    # BufferedJSONLWriterMixin.buffered_write: model_dump, scrub_non_finite, orjson.dumps.
    return {
        "model_dump_json": lambda r: r.model_dump_json(),
        "pushed": lambda r: envelope(
            service_id="record_processor", metadata=r.metadata, records=[r], error=r.error
        ).to_json_bytes(),
        "exported": lambda r: dumps(
            scrub(r.model_dump(exclude_none=True, mode="json", exclude={"trace_data"}))
        ),
    }


def _phase_message() -> tuple[Any, Any]:
    stats = shapes.fixture()["phase_stats"]
    models = installed("aiperf.common.models.credit_models")
    if models is None:
        return _Plain(stats), None
    model = models.CreditPhaseStats.model_validate(stats)
    message = installed("aiperf.credit.messages").CreditPhaseProgressMessage
    return model, message(service_id="timing_manager", stats=model)


def _each(encode: Callable[[Any], Any], objects: Sequence[Any], count: int) -> Side:
    def side() -> float:
        total = len(objects)
        before_s = time.thread_time()
        for number in range(count):
            encode(objects[number % total])
        return (time.thread_time() - before_s) / count * 1e6

    return side


if __name__ == "__main__":
    main()
