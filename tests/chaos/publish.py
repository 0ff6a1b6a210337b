"""A publisher process: numbered records and phase events, at a bounded rate.

At its end it writes down what it has published, and what it was told that it dropped: that is the truth,
which no bus has had a hand in.

python -m tests.chaos.publish ADDRESS RUN_ID RECORDS PHASES RATE TRUTH
"""

from __future__ import annotations

import json
import sys
import time
from itertools import count
from pathlib import Path

from phase_bus.events import (
    PhaseComplete,
    PhaseProgress,
    PhaseRef,
    PhaseSendingComplete,
    PhaseStart,
    PhaseStats,
    RunStart,
)
from phase_bus.publisher.publisher import Publisher

EVENTS_A_PHASE = 50
_PROGRESS = EVENTS_A_PHASE - 3  # how many of them
_PENDING_LIMIT = 4096
_CHUNK = 50


def main(address: str, run_id: str, records: int, phases: int, rate: float, truth: Path) -> None:
    """Publish a run, and wait until the bus has all of it."""
    numbers = count()

    def stats() -> PhaseStats:
        return PhaseStats(sent=sent, completed=next(numbers))  # the event's number

    with Publisher(address, name="chaos", batch_records=64) as publisher:
        publisher.publish(RunStart(run_id=run_id, producer="chaos"))
        begin_s, sent = time.monotonic(), 0
        for index in range(phases):
            ref = PhaseRef(f"phase-{index}", "profiling", index)
            last = records * (index + 1) // phases
            publisher.publish(PhaseStart(run_id=run_id, phase=ref, stats=stats()))
            told, first = 0, sent
            while sent < last:
                for number in range(sent, min(sent + _CHUNK, last)):
                    metrics = {"request_latency": 1_000_000 + number, "request_count": 1}
                    publisher.record(run_id, ref, metrics, {"session_num": number})
                sent = min(sent + _CHUNK, last)
                due = _PROGRESS * (sent - first) // (last - first)
                for _ in range(due - told):
                    publisher.publish(PhaseProgress(run_id=run_id, phase=ref, stats=stats()))
                told = due
                time.sleep(max(0.0, begin_s + sent / rate - time.monotonic()))
                while publisher.pending > _PENDING_LIMIT:
                    time.sleep(0.002)
            publisher.publish(PhaseSendingComplete(run_id=run_id, phase=ref, stats=stats()))
            publisher.publish(PhaseComplete(run_id=run_id, phase=ref, stats=stats()))
        publisher.complete_run(run_id, "completed")
        if not publisher.flush(120.0):
            sys.exit("the bus did not acknowledge everything")
    said = {"records": sent, "phase_events": next(numbers), "dropped": publisher.undelivered}
    truth.write_text(json.dumps(said))


if __name__ == "__main__":
    _, address, run_id, records, phases, rate, truth = sys.argv
    main(address, run_id, int(records), int(phases), float(rate), Path(truth))
