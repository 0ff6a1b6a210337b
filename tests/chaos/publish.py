"""A publisher process: numbered records and phase events, at a bounded rate.

At its end it writes down what it has published: that is the truth, which no bus has had a hand in.

python -m tests.chaos.publish ADDRESS RUN_ID RECORDS PHASE_EVENTS RATE TRUTH
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
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

_PENDING_LIMIT = 4096
_CHUNK = 50
_EVENTS_A_PHASE = 50  # of them 47 progress events


def main(address: str, run_id: str, records: int, phase_events: int, rate: float, truth: Path) -> None:
    """Publish a run, and wait until the bus has all of it."""
    phases = max(phase_events // _EVENTS_A_PHASE, 1)
    published: Counter[str] = Counter(run_start=1)
    with Publisher(address, name="chaos", batch_records=64) as publisher:
        publisher.publish(RunStart(run_id=run_id, producer="chaos"))
        begin_s, sent = time.monotonic(), 0
        for index in range(phases):
            ref = PhaseRef(f"phase-{index}", "profiling", index)
            last = records * (index + 1) // phases
            publisher.publish(PhaseStart(run_id=run_id, phase=ref, stats=PhaseStats()))
            published.update(("phase_start", "phase_sending_complete", "phase_complete"))
            told, first = 0, sent
            while sent < last:
                for number in range(sent, min(sent + _CHUNK, last)):
                    metrics = {"request_latency": 1_000_000 + number, "request_count": 1}
                    publisher.record(run_id, ref, metrics, {"session_num": number})
                sent = min(sent + _CHUNK, last)
                due = (_EVENTS_A_PHASE - 3) * (sent - first) // (last - first)
                published["phase_progress"] += due - told
                for _ in range(due - told):
                    publisher.publish(PhaseProgress(run_id=run_id, phase=ref, stats=PhaseStats(sent=sent)))
                told = due
                time.sleep(max(0.0, begin_s + sent / rate - time.monotonic()))
                while publisher.pending > _PENDING_LIMIT:
                    time.sleep(0.002)
            publisher.publish(PhaseSendingComplete(run_id=run_id, phase=ref, stats=PhaseStats(sent=sent)))
            publisher.publish(PhaseComplete(run_id=run_id, phase=ref, stats=PhaseStats(sent=sent)))
        publisher.complete_run(run_id, "completed")
        if not publisher.flush(120.0):
            sys.exit("the bus did not acknowledge everything")
    truth.write_text(json.dumps({"run_id": run_id, "records": sent, "events": published}))


if __name__ == "__main__":
    _, address, run_id, records, phase_events, rate, truth = sys.argv
    main(address, run_id, int(records), int(phase_events), float(rate), Path(truth))
