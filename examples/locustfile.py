"""A publisher in another load generator: Locust's requests and test phases on the bus.

    phase-bus exec --with aggregator -- locust -f examples/locustfile.py --headless --users 10 \
        --spawn-rate 5 --run-time 10s --host http://localhost:8000

While users are spawned it is the warm-up phase, after that the profiling phase. Nothing here waits for the
bus: an event or record is appended to a queue, and a thread sends it. (With Locust's workers, each worker
publishes a run of its own.)
"""

from __future__ import annotations

import time
import uuid
from typing import Any

from locust import HttpUser, constant, events, task
from locust.env import Environment

from phase_bus import (
    PhaseComplete,
    PhaseEvent,
    PhaseRef,
    PhaseSendingComplete,
    PhaseStart,
    PhaseStats,
    Publisher,
    RunStart,
)


class ChatUser(HttpUser):
    """Asks one short question after another."""

    wait_time = constant(0.05)

    @task
    def ask(self) -> None:
        body = {"model": "mock", "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 8}
        self.client.post("/v1/chat/completions", json=body, name="chat")


class BusListener:
    """Publishes what happens in a Locust test at ``$PHASE_BUS_ADDRESS``."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.publisher = Publisher(name="locust")
        self.run_id = ""
        self.phase = PhaseRef("warmup", "warmup", 0)
        self.completed = self.errors = self.start_ns = 0
        self.sent_end_ns: int | None = None
        for event in ("test_start", "spawning_complete", "request", "test_stopping", "test_stop", "quit"):
            getattr(environment.events, event).add_listener(getattr(self, f"on_{event}"))

    def on_test_start(self, **_: Any) -> None:
        self.run_id = uuid.uuid4().hex[:12]
        url = (self.environment.host or "",)
        self.publisher.publish(RunStart(run_id=self.run_id, producer="locust", urls=url))
        self._begin(PhaseRef("warmup", "warmup", 0))

    def on_spawning_complete(self, **_: Any) -> None:
        if self.phase.kind == "warmup":
            self._end()
            self._begin(PhaseRef("profiling", "profiling", 1))

    def on_request(
        self, name: str, response_time: float, exception: Exception | None, start_time: float, **_: Any
    ) -> None:
        begin_ns, latency_ns = int(start_time * 1e9), int(response_time * 1e6)
        fields = {"request_start_ns": begin_ns, "request_end_ns": begin_ns + latency_ns, "name": name}
        self.completed += 1
        if exception is None:
            self.publisher.record(self.run_id, self.phase, {"request_latency": latency_ns}, fields)
        else:
            self.errors += 1
            error = (type(exception).__name__, str(exception), None)
            self.publisher.record(self.run_id, self.phase, {"error_request_count": 1}, fields, error)

    def on_test_stopping(self, **_: Any) -> None:
        self.sent_end_ns = time.time_ns()
        self._publish(PhaseSendingComplete)

    def on_test_stop(self, **_: Any) -> None:
        self._end()
        self.publisher.complete_run(self.run_id, "completed")

    def on_quit(self, **_: Any) -> None:
        self.publisher.close(timeout_s=5.0)

    def _begin(self, phase: PhaseRef) -> None:
        self.phase, self.start_ns = phase, time.time_ns()
        self.completed, self.errors, self.sent_end_ns = 0, 0, None
        self._publish(PhaseStart)

    def _end(self) -> None:
        if self.sent_end_ns is None:
            self.on_test_stopping()
        self._publish(PhaseComplete, end_ns=time.time_ns())

    def _publish(self, kind: type[PhaseEvent], end_ns: int | None = None) -> None:
        stats = PhaseStats(
            sent=self.completed,
            completed=self.completed,
            errors=self.errors,
            start_ns=self.start_ns,
            sent_end_ns=self.sent_end_ns,
            end_ns=end_ns,
        )
        self.publisher.publish(kind(run_id=self.run_id, phase=self.phase, stats=stats))


@events.init.add_listener  # type: ignore[untyped-decorator] # Locust says no types of it
def attach(environment: Environment, **_: Any) -> None:
    """Called by Locust once, before everything else."""
    BusListener(environment)
