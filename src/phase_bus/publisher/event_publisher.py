"""The type of publisher that hooks, simulations and attachments are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from phase_bus.events import EventBase, PhaseRef, RunStatus


class EventPublisher(Protocol):
    """A :class:`Publisher`, or one of the in-memory bus of :mod:`phase_bus.testing`."""

    @property
    def pending(self) -> int:
        """How many events and records wait to be sent or acknowledged."""

    def publish(self, event: EventBase) -> None:
        """Publish an event."""

    def record(
        self,
        run_id: str,
        phase: PhaseRef,
        metrics: Mapping[str, Any],
        fields: Mapping[str, Any],
        error: tuple[str, str, int | None] | None = None,
    ) -> None:
        """Publish a request's record, in a batch with others."""

    def complete_run(self, run_id: str, status: RunStatus, reason: str = "") -> None:
        """Publish the run's last event, with the counts of everything published of it."""
