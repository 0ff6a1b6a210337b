"""What phase-bus costs the benchmark's process, against AIPerf's own encoding of the same objects."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

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
    spread,
)
from phase_bus.aiperf.mapping import (
    RECORD_FIELDS,
    phase_ref,
    phase_stats,
    record_error,
    record_fields,
)
from phase_bus.events import PhaseProgress
from phase_bus.publisher import Publisher

QUESTION = "What do a record and a phase event cost the benchmark's process, in CPU time?"
_POOL = 1024  # different records, used again and again
_SECOND = 1000  # records of the paced form, and how many a second

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
            _records(plan, report, publisher)
            _phase_events(plan, report, publisher)
    report.notes.append(
        "Whole: CPU time of all threads of the process, ZeroMQ's as well, with a real bus that "
        "acknowledges. The bus process itself is not in it."
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
    paced = alternate(
        {
            "paced": lambda: _paced(publisher, objects),
            "idle": lambda: _paced(None, objects),
        },
        Plan(rounds=min(plan.rounds, 5), limit_s=plan.limit_s),
    )
    values["paced"] = [a - b for a, b in zip(paced["paced"], paced["idle"], strict=True)]
    titles = {
        "call": "phase-bus: the call alone, in AIPerf's thread (mapping + Publisher.record)",
        "whole": "phase-bus: whole, at full speed (batches of 256)",
        "failures": "phase-bus: whole, 2 % failed requests among them",
        "paced": "phase-bus: whole, at 1,000 records/s (batches of some 50; an idle loop's cost taken off)",
        "model_dump_json": "AIPerf: record.model_dump_json() with its trace, headers left out",
        "pushed": "AIPerf: RecordsMessage.to_json_bytes(), as it pushes each record",
        "exported": "AIPerf: model_dump, scrub, orjson without the trace, as its JSONL export does",
    }
    base = values.get("model_dump_json")
    rows = []
    for name, title in titles.items():
        if name not in values:
            continue
        report.figures[f"record_{name}_us"] = spread(values[name])
        cells = [title, spread(values[name]).show()]
        n = min(len(values[name]), len(base or ()))
        ratio = ratios(values[name][:n], base[:n]) if base else None
        if ratio is not None:
            report.figures[f"record_{name}_ratio"] = ratio
        rows.append([*cells, ratio.show() if ratio else "-"])
    report.tables.append(Table("One record, CPU", ["what", "µs", "of AIPerf's model_dump_json"], rows))
    if base is None:
        report.notes.append("AIPerf is not installed: its side is missing, and no ratio can be given.")


def _phase_events(plan: Plan, report: Report, publisher: Publisher) -> None:
    count = plan.count(4000)
    source, message = _phase_message()
    sides: dict[str, Side] = {
        "call": lambda: _publish(publisher, source, count, whole=False),
        "whole": lambda: _publish(publisher, source, count, whole=True),
        "single": lambda: _publish_singly(publisher, source, plan.count(100)),
    }
    if message is not None:
        sides["aiperf"] = _each(lambda m: m.to_json_bytes(), [message], count)
    values = alternate(sides, plan)
    titles = {
        "call": "phase-bus: the call alone, in AIPerf's thread (mapping + publish)",
        "whole": "phase-bus: whole, many in a row",
        "single": "phase-bus: whole, one every 4 ms (with its wake-ups, system calls and acknowledgement)",
        "aiperf": "AIPerf: CreditPhaseProgressMessage.to_json_bytes()",
    }
    rows = []
    for name, some in values.items():
        ratio = ratios(some, values["aiperf"]) if message is not None else None
        report.figures[f"event_{name}_us"] = spread(some)
        if ratio is not None:
            report.figures[f"event_{name}_ratio"] = ratio
        rows.append([titles[name], spread(some).show(), ratio.show() if ratio else "-"])
    report.tables.append(Table("One phase event, CPU", ["what", "µs", "of AIPerf's"], rows))


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


def _paced(publisher: Publisher | None, objects: Sequence[Any]) -> float:
    """The same at a fixed rate; without a publisher what the pacing itself costs."""
    started_s, before_s = time.monotonic(), time.process_time()
    for number in range(_SECOND):
        if publisher is not None:
            _record_all(publisher, (objects[number % _POOL],))
        time.sleep(max(started_s + (number + 1) / _SECOND - time.monotonic(), 0.0))
    return (time.process_time() - before_s) / _SECOND * 1e6


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


def _publish(publisher: Publisher, source: Any, count: int, *, whole: bool) -> float:
    clock = time.process_time if whole else time.thread_time
    before_s = clock()
    for _ in range(count):
        event = PhaseProgress(run_id=shapes.RUN_ID, phase=phase_ref(source), stats=phase_stats(source))
        publisher.publish(event)
    spent_s = clock() - before_s
    publisher.flush(30.0)
    return (clock() - before_s if whole else spent_s) / count * 1e6


def _publish_singly(publisher: Publisher, source: Any, count: int) -> float:
    """Publish one event every few ms; return what a loop that publishes nothing does not cost."""
    return _singly(publisher, source, count) - _singly(None, source, count)


def _singly(publisher: Publisher | None, source: Any, count: int) -> float:
    before_s = time.process_time()
    for _ in range(count):
        if publisher is not None:
            stats = phase_stats(source)
            publisher.publish(PhaseProgress(run_id=shapes.RUN_ID, phase=phase_ref(source), stats=stats))
        time.sleep(0.004)  # until all of it has gone to sleep again
    return (time.process_time() - before_s) / count * 1e6


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
