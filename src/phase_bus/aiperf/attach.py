"""Following a run of AIPerf from outside, without the plugin: phases and results, no records."""

from __future__ import annotations

import threading
import time
import uuid
from pathlib import Path
from typing import NamedTuple

from phase_bus.aiperf.listener import BusListener
from phase_bus.aiperf.mapping import (
    ConfiguredMessage,
    Outcome,
    PhaseMessage,
    StateMessage,
    decode,
    decode_summary,
    outcome_of,
    plan_of_credit_config,
)
from phase_bus.aiperf.phase_log import PhaseLog
from phase_bus.events import PhasesConfigured, RunStart, RunStatus, Summary
from phase_bus.publisher.hooks import EventPublisher

DEFAULT_PORT = 5664
SILENCE_S = 20.0  # AIPerf's services send heartbeats every 5 s
_AFTER_RESULTS_S = 2.0

_PHASE_TOPICS = (
    "credit_phase_start",
    "credit_phase_progress",
    "credit_phase_sending_complete",
    "credit_phase_complete",
)
_TOPICS = (
    *_PHASE_TOPICS,
    "credit_phases_configured",
    "process_records_result",
    "system_state_changed",
    # Frequent, and only a sign of life:
    "heartbeat",
    "worker_health",
    "processing_stats",
)


class AttachReport(NamedTuple):
    """The result of following a run.

    Attributes:
        run_id: the run's id on the bus; made up, since AIPerf's event bus does not give it.
        status: how it ended, None if AIPerf was never heard.
        reason: why, if the status alone does not say.
        phases: how many phases were seen.
    """

    run_id: str
    status: RunStatus | None
    reason: str = ""
    phases: int = 0


def ipc_address(directory: Path | str) -> str:
    """Return the address of AIPerf's event bus for its ``--zmq-ipc-path``."""
    return f"ipc://{Path(directory).absolute() / 'event_bus_proxy_backend.ipc'}"


def tcp_address(host: str, port: int = DEFAULT_PORT) -> str:
    """Return the address of AIPerf's event bus for its ``--zmq-host``."""
    return f"tcp://{f'[{host}]' if ':' in host else host}:{port}"


def run_attach(
    address: str,
    publisher: EventPublisher,
    *,
    run_id: str | None = None,
    timeout_s: float = SILENCE_S,
    stop: threading.Event | None = None,
) -> AttachReport:
    """Follow one run to its end.

    It publishes the phases as far as AIPerf's event bus reports them: events from before the attachment
    are made up for as soon as AIPerf next reports on that phase. AIPerf's own results are published as a
    final ``summary``.

    Args:
        address: AIPerf's event bus (:func:`ipc_address`, :func:`tcp_address`); it may come later.
        run_id: the run's id, by default ``attach-<hex>``.
        timeout_s: after how many seconds of silence AIPerf is taken for lost.
        stop: set it to stop following; the run then counts as lost.
    """
    run = _FollowedRun(run_id or f"attach-{uuid.uuid4().hex[:12]}", publisher)
    listener = BusListener(address, _TOPICS, run.on_message)
    listener.start()
    try:
        how = _follow(run, timeout_s, stop or threading.Event())
    finally:
        listener.stop(1.0)
    if how is None:
        return AttachReport(run.run_id, None, "AIPerf was not heard")
    publisher.complete_run(run.run_id, how.status, how.reason)
    return AttachReport(run.run_id, how.status, how.reason, run.phases)


def _follow(run: _FollowedRun, timeout_s: float, stop: threading.Event) -> Outcome | None:
    while not stop.is_set() and not run.over.wait(0.05):
        if run.heard_s is None:
            continue
        silence_s = time.monotonic() - run.heard_s
        if run.outcome is not None and silence_s > _AFTER_RESULTS_S:
            break
        if silence_s > timeout_s:
            return Outcome("lost", f"AIPerf said nothing for {timeout_s:g} s")
    if run.heard_s is None:
        return None
    if run.outcome is not None:
        return run.outcome
    if run.over.is_set():
        return Outcome("failed", "AIPerf shut down before it had results")
    return Outcome("lost", "the attachment was stopped before the run's end")


class _FollowedRun:
    """The run so far; its methods run in the listener's thread."""

    def __init__(self, run_id: str, publisher: EventPublisher) -> None:
        self.run_id = run_id
        self.heard_s: float | None = None
        self.outcome: Outcome | None = None
        self.over = threading.Event()
        self.phases = 0
        self._publisher = publisher
        self._log = PhaseLog(run_id)

    def on_message(self, topic: str, payload: bytes) -> None:
        if self.over.is_set():
            return  # the next run may use the same sockets
        if self.heard_s is None:
            self._publisher.publish(RunStart(run_id=self.run_id, producer="aiperf (attached)"))
        self.heard_s = time.monotonic()
        if topic in _PHASE_TOPICS:
            self._phase(payload)
        elif topic == "credit_phases_configured":
            self._configured(payload)
        elif topic == "process_records_result":
            self._results(payload)
        elif topic == "system_state_changed":
            message = decode(payload, StateMessage)
            if message is not None and message.state.lower() == "shutdown":
                self.over.set()

    def _phase(self, payload: bytes) -> None:
        message = decode(payload, PhaseMessage)
        if message is not None and message.stats is not None:
            for event in self._log.update(message.stats):
                self.phases += event.kind == "phase_start"
                self._publisher.publish(event)

    def _configured(self, payload: bytes) -> None:
        message = decode(payload, ConfiguredMessage)
        if message is not None:
            plans = tuple(plan_of_credit_config(config) for config in message.configs)
            self._publisher.publish(PhasesConfigured(run_id=self.run_id, phases=plans))

    def _results(self, payload: bytes) -> None:
        if self.outcome is not None:
            return
        summary = decode_summary(payload)
        if summary is not None:
            self._publisher.publish(
                Summary(run_id=self.run_id, producer="aiperf", final=True, result=summary)
            )
        self.outcome = outcome_of(payload)
