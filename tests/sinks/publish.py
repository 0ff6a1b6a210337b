"""A publisher process: numbered records at a steady rate, and verdicts on the run by somebody else.

What it has published it writes down itself, with the longest time that a single call took: that is the
truth, which neither a bus nor a sink has had a hand in.

python -m tests.sinks.publish ADDRESS RUN_ID RECORDS RATE TRUTH [OPTION ...]

The options: ``poison=N`` marks the record with this number; with ``stay`` it does not end the run, and
waits to be killed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from phase_bus.events import (
    PhaseComplete,
    PhaseRef,
    PhaseStart,
    PhaseStats,
    RunStart,
    Verdict,
    VerdictState,
)
from phase_bus.publisher.publisher import Publisher

POISON = "poison"
_CHUNK = 50
_PENDING_LIMIT = 10_000
_PHASE = PhaseRef("profiling", "profiling", 0)
_T0_NS = 1_700_000_000_000_000_000
_ERROR = ("Timeout", "no answer", 504)
_STATES: dict[str, VerdictState] = {
    "profiling error_rate < 1 %": "failed",
    "profiling requests > 10": "passed",
}


def latency_ns(number: int) -> int:
    """Return how long a request took."""
    return 5_000_000 + number % 1000 * 125_000


def fails(number: int) -> bool:
    """Return whether a record is that of a request that failed."""
    return number % 20 == 19


def main(address: str, run_id: str, records: int, rate: float, truth: Path, *options: str) -> None:
    """Publish a run, and wait until the bus has all of it."""
    poison = next((int(each.removeprefix("poison=")) for each in options if each.startswith("poison=")), -1)
    slowest_s = 0.0
    with (
        Publisher(address, name="benchmark", batch_records=64) as publisher,
        Publisher(address, name="judge") as judge,
    ):
        publisher.publish(RunStart(run_id=run_id, producer="test", models=("mock",)))
        publisher.publish(
            PhaseStart(run_id=run_id, phase=_PHASE, stats=PhaseStats(start_ns=time.time_ns()))
        )
        begin_s = time.monotonic()
        for number in range(records):
            fields = {
                "x_request_id": f"{run_id}.{number}{f'.{POISON}' if number == poison else ''}",
                "worker_id": f"worker-{number % 3}",
                "request_start_ns": _T0_NS + number * 1_000_000,
                "request_end_ns": _T0_NS + number * 1_000_000 + latency_ns(number),
            }
            metrics = {
                "request_latency": latency_ns(number),
                "output_sequence_length": 10,
                "request_count": 1,
            }
            if number == records // 2:
                _judge(judge, run_id, final=False)
            before_s = time.perf_counter()
            if fails(number):
                publisher.record(run_id, _PHASE, {"error_request_count": 1}, fields, error=_ERROR)
            else:
                publisher.record(run_id, _PHASE, metrics, fields)
            slowest_s = max(slowest_s, time.perf_counter() - before_s)
            if number % _CHUNK == 0:
                time.sleep(max(0.0, begin_s + number / rate - time.monotonic()))
                while publisher.pending > _PENDING_LIMIT:  # the bus is away
                    time.sleep(0.002)
        took_s = time.monotonic() - begin_s
        stats = PhaseStats(sent=records, completed=records, end_ns=time.time_ns())
        publisher.publish(PhaseComplete(run_id=run_id, phase=_PHASE, stats=stats))
        if "stay" not in options:
            publisher.complete_run(run_id, "completed")
        if not publisher.flush(120.0):
            sys.exit("the bus did not acknowledge everything")
        if "stay" not in options:
            _judge(judge, run_id, final=True)  # after the run's end, as it is always
        if not judge.flush(120.0):
            sys.exit("the bus did not acknowledge the verdicts")
        said = {
            "records": records,
            "dropped": publisher.undelivered,
            "slowest_s": slowest_s,
            "took_s": took_s,
            "verdicts": [
                [threshold, state, final]
                for final in ((False,) if "stay" in options else (False, True))
                for threshold, state in _STATES.items()
            ],
        }
        truth.with_suffix(".part").write_text(json.dumps(said))
        truth.with_suffix(".part").replace(truth)
        while "stay" in options:
            time.sleep(1.0)


def _judge(judge: Publisher, run_id: str, *, final: bool) -> None:
    for threshold, state in _STATES.items():
        said = Verdict(
            run_id=run_id,
            producer="judge",
            threshold=threshold,
            phase="profiling",
            state=state,
            final=final,
        )
        judge.publish(said)


if __name__ == "__main__":
    _, address, run_id, records, rate, truth, *options = sys.argv
    main(address, run_id, int(records), float(rate), Path(truth), *options)
