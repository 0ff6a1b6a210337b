"""The hook protocol of AIPerf's example plugin, and the hook that publishes.

A phase hook has four async methods, each called with the phase and a tracker whose ``create_stats()``
returns the counts. :class:`PublisherHook` publishes what it is called with, so that any load generator
that calls hooks can be followed.
"""

from __future__ import annotations

import logging
import numbers
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from functools import lru_cache
from typing import Any, Protocol, get_type_hints, runtime_checkable

from phase_bus.core.command_line import text_without_secrets, this_process
from phase_bus.events import (
    EventBase,
    PhaseComplete,
    PhaseEvent,
    PhaseKind,
    PhaseRef,
    PhaseSendingComplete,
    PhaseStart,
    PhaseStats,
    PhaseTimeout,
    RunStart,
    RunStatus,
)

logger = logging.getLogger("phase_bus.hooks")


class PhaseTracker(Protocol):
    """What a hook gets a phase's counts from."""

    def create_stats(self) -> Any:
        """Return the counts at this moment, with the attributes of :class:`PhaseStats`."""


@runtime_checkable
class PhaseLifecycleHook(Protocol):
    """Something that is called when phases start, stop sending, complete or time out."""

    async def on_phase_start(self, phase: Any, tracker: PhaseTracker) -> None:
        """Handle that a phase has begun to send."""

    async def on_phase_sending_complete(self, phase: Any, tracker: PhaseTracker) -> None:
        """Handle that a phase has sent its last request."""

    async def on_phase_complete(self, phase: Any, tracker: PhaseTracker) -> None:
        """Handle that a phase is over."""

    async def on_phase_timeout(self, phase: Any, tracker: PhaseTracker) -> None:
        """Handle that a phase's grace period ended with requests unanswered."""


class EventTracker:
    """A tracker made from an event, for a hook in a process of its own."""

    def __init__(self, event: PhaseEvent) -> None:
        self.event = event

    def create_stats(self) -> PhaseStats:
        """Return the counts at the moment of the event."""
        return self.event.stats


class BasePhaseLifecycleHook:
    """A phase hook whose methods do nothing: override those you need."""

    async def on_phase_start(self, phase: Any, tracker: PhaseTracker) -> None:
        """Do nothing."""

    async def on_phase_sending_complete(self, phase: Any, tracker: PhaseTracker) -> None:
        """Do nothing."""

    async def on_phase_complete(self, phase: Any, tracker: PhaseTracker) -> None:
        """Do nothing."""

    async def on_phase_timeout(self, phase: Any, tracker: PhaseTracker) -> None:
        """Do nothing."""


class EventHook(BasePhaseLifecycleHook):
    """A phase hook that receives events of the run :attr:`run_id`: override :meth:`take`.

    Attributes:
        alone: whether it is called in a process of its own, where it may raise what goes wrong, so that the
            event is tried again; in a load generator it must not.
    """

    run_id = ""
    alone = False

    def take(self, event: PhaseEvent) -> None:
        """Handle an event."""

    def ref(self, phase: Any) -> PhaseRef:
        """Return the reference of a phase given as a string, an enum, or a :class:`PhaseRef`."""
        return to_ref(phase)

    async def on_phase_start(self, phase: Any, tracker: PhaseTracker) -> None:
        """Take a ``phase_start``."""
        self._take(PhaseStart, phase, tracker)

    async def on_phase_sending_complete(self, phase: Any, tracker: PhaseTracker) -> None:
        """Take a ``phase_sending_complete``."""
        self._take(PhaseSendingComplete, phase, tracker)

    async def on_phase_complete(self, phase: Any, tracker: PhaseTracker) -> None:
        """Take a ``phase_complete``."""
        self._take(PhaseComplete, phase, tracker)

    async def on_phase_timeout(self, phase: Any, tracker: PhaseTracker) -> None:
        """Take a ``phase_timeout``."""
        stats = to_stats(tracker)
        self._take(PhaseTimeout, phase, tracker, requests_cut=stats.cancelled or stats.in_flight)

    def _take(self, kind: type[PhaseEvent], phase: Any, tracker: PhaseTracker, **more: Any) -> None:
        if isinstance(tracker, EventTracker):
            self.take(tracker.event)  # made earlier, when it happened
        else:
            ref, stats = self.ref(phase), to_stats(tracker)
            self.take(kind(run_id=self.run_id, phase=ref, stats=stats, **more))


class EventPublisher(Protocol):
    """A :class:`~phase_bus.Publisher`, or one of the in-memory bus of :mod:`phase_bus.testing`."""

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


class ColumnPublisher(EventPublisher, Protocol):
    """An :class:`EventPublisher` that takes records by columns."""

    def records(
        self,
        run_id: str,
        phase: PhaseRef,
        columns: Mapping[str, Any],
        fields: Mapping[str, Any] | None = None,
        errors: Mapping[int, tuple[str, str, int | None]] | None = None,
    ) -> None:
        """Publish many requests' records, given by columns."""


class PublisherHook(EventHook):
    """Publishes the phases of a load generator that calls hooks, and the run around them.

    Call :meth:`complete` at the run's end.

    Args:
        publisher: where to; the caller closes it.
        run_id: the run's id; a new one by default.
        producer: the load generator, with its version.
        models: the models under test.
        urls: the endpoints under test.
    """

    def __init__(
        self,
        publisher: EventPublisher,
        run_id: str | None = None,
        *,
        producer: str = "",
        models: tuple[str, ...] = (),
        urls: tuple[str, ...] = (),
    ) -> None:
        self.run_id = run_id or uuid.uuid4().hex[:12]
        self._publisher = publisher
        self._phases: dict[str, PhaseRef] = {}
        publisher.publish(
            RunStart(
                run_id=self.run_id,
                producer=producer,
                models=models,
                urls=tuple(map(text_without_secrets, urls)),
                **this_process(),
            )
        )

    def take(self, event: PhaseEvent) -> None:
        """Publish an event."""
        self._publisher.publish(event)

    def ref(self, phase: Any) -> PhaseRef:
        """Return the reference of a phase; its index is its place among those seen so far."""
        ref = to_ref(phase, len(self._phases))
        return self._phases.setdefault(ref.name, ref)

    def complete(self, status: RunStatus = "completed", reason: str = "") -> None:
        """Publish ``run_complete``, with the counts of everything published."""
        self._publisher.complete_run(self.run_id, status, reason)


def to_ref(phase: Any, index: int = 0) -> PhaseRef:
    """Return the reference of a phase given as a string, an enum, or a :class:`PhaseRef`.

    A string or enum that begins with ``warm`` is taken for a warm-up, and has the place ``index``.
    """
    ref = getattr(phase, "ref", phase)  # that of :func:`to_phase`
    if isinstance(ref, PhaseRef):
        return ref
    name = str(getattr(phase, "value", phase))
    kind: PhaseKind = "warmup" if name.lower().startswith("warm") else "profiling"
    return PhaseRef(name, kind, index)


@lru_cache(maxsize=256)
def to_phase(ref: PhaseRef) -> StrEnum:
    """Return a phase as hooks know it: a string that is a member of an enum, like AIPerf's ``CreditPhase``.

    It equals the phase's name and AIPerf's own member of that value; ``value`` is the name, ``name`` the
    same in capitals, ``ref`` the :class:`PhaseRef`.
    """
    name = ref.name.upper().strip("_") or "PHASE"
    members = {name: ref.name}
    phases = StrEnum("CreditPhase", members)  # type: ignore[misc]  # names are known at run time only
    member: StrEnum = phases[name]
    member.ref = ref  # type: ignore[attr-defined]
    return member


def to_stats(tracker: PhaseTracker) -> PhaseStats:
    """Return the counts of a tracker as our own; what is missing keeps its default.

    Values of another type than ours, such as those of a mock, are left out rather than rejected: a
    hook must not disturb the load generator that calls it.
    """
    try:
        stats = tracker.create_stats()
    except Exception:
        logger.warning("phase-bus: a phase's counts could not be read", exc_info=True)
        return PhaseStats()
    if isinstance(stats, PhaseStats):
        return stats
    known: dict[str, Any] = {}
    for name, convert in _CONVERT.items():
        with suppress(Exception):
            value = getattr(stats, name, None)
            if isinstance(value, numbers.Real):  # numpy's among them
                known[name] = convert(value)
    return PhaseStats(**known)


def _converter(hint: Any) -> Callable[[Any], Any]:
    return bool if hint is bool else float if hint == float | None else int


_CONVERT = {name: _converter(hint) for name, hint in get_type_hints(PhaseStats).items()}
