"""What carries events to consumers: one interface, of the ZeroMQ bus and of what else may be in its place.

A process around consumers, a :class:`Host`, is served by a :class:`Transport`. The two speak of everything
but events in the words of :mod:`phase_bus.core.control`: a hello is answered with a welcome, which has the
checkpoint; a beat carries commits and dead letters, and the answer says which of them are kept or refused;
a member of a group is told what is assigned to it. What a transport makes of these words is its own affair.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias

from phase_bus.consumer.arrival import Arrival
from phase_bus.consumer.share import Share
from phase_bus.core.control import Beat, Hello, PrunedRun, Reply, State
from phase_bus.core.session import Session
from phase_bus.errors import PhaseBusError, WireError
from phase_bus.events import EventBase
from phase_bus.journal.rows import Checkpoint


class Piece(NamedTuple):
    """A piece of what is past.

    Attributes:
        arrivals: the events, in order.
        offset: where a reader stands that has handled them; likewise the event number.
        end: whether there was nothing more when it was read.
        pruned: the runs between there and here that are, or are being, pruned.
        damaged: the offsets of events that are damaged, and were left out.
    """

    arrivals: list[Arrival]
    offset: int
    event_number: int
    end: bool
    pruned: tuple[PrunedRun, ...] = ()
    damaged: tuple[int, ...] = ()


class Host(Protocol):
    """The process around consumers, as a transport sees it.

    Attributes:
        client_id: 32 hex digits that name the process.
        name: what a person calls its consumer, or the group.
        noun: what it calls itself in the log.
        state: what it is doing.
    """

    client_id: str
    name: str
    noun: str
    state: State

    def hello(self) -> Hello:
        """Return what introduces it."""

    def beat(self) -> Beat:
        """Return what is to be known of it now, with what is to be kept."""

    def connected(self) -> None:
        """Take in that somebody answers."""

    def heard(self, reply: Reply) -> None:
        """Take in an answer to a hello or beat, or an assignment."""

    def fail(self, failure: PhaseBusError) -> None:
        """End with an error."""

    @property
    def held(self) -> Iterable[Share]:
        """The shares that it works on."""

    @property
    def takes_live(self) -> bool:
        """Whether the next event may be a live one."""

    async def take(self, arrival: Arrival, goes_on: Callable[[], bool], *, replayed: bool) -> None:
        """Give what has arrived to the share that it is for, if that may have it now.

        What is left of it then is to be given again, as the next.

        Args:
            goes_on: whether another event may be handled now.

        Raises:
            WireError: if it is malformed.
        """

    def take_greeting(self) -> None:
        """Take in that all subscriptions are in force, for the first time or again."""

    def skip(self, error: WireError) -> None:
        """Tell of a message that is malformed."""

    async def breathe(self) -> None:
        """Let heartbeats and signals have their turns."""

    async def pause(self, seconds: float) -> None:
        """Wait for a while, unless it is to end."""


class Transport(ABC):
    """What carries events to one process around consumers, keeps its checkpoints, and takes its receipts.

    Attributes:
        session: whether somebody answers, and what the last welcome was.
        ordered: whether it gives each share all events in order, and tells itself what is lost: then no
            share looks for holes.
    """

    ordered: ClassVar[bool] = False
    session: Session

    # ---- the conversation ----

    @abstractmethod
    async def run(self) -> None:
        """Hold the conversation until cancelled; then say where the process stands, and goodbye."""

    @abstractmethod
    def tell_news(self) -> None:
        """Beat at once."""

    # ---- live events ----

    @property
    @abstractmethod
    def greeted(self) -> bool:
        """Whether all subscriptions are in force."""

    @abstractmethod
    def subscribe(self, topics: Iterable[bytes]) -> None:
        """Subscribe to topics that begin so."""

    @abstractmethod
    def unsubscribe(self, topics: Iterable[bytes]) -> None:
        """Take subscriptions back."""

    @abstractmethod
    def ask_for_greeting(self) -> None:
        """Ask to be told when all that is subscribed to up to now is in force."""

    @abstractmethod
    def ask_again(self) -> None:
        """Ask again if no greeting has come for a while."""

    @abstractmethod
    async def drain(self) -> bool:
        """Give the host what has arrived live, for a breath at most; return whether there may be more."""

    @abstractmethod
    async def wait(self, timeout_s: float) -> None:
        """Return when there may be something live, when told to look again, or after a time."""

    @abstractmethod
    def look_again(self) -> None:
        """End a wait."""

    # ---- what is past ----

    @property
    @abstractmethod
    def has_past(self) -> bool:
        """Whether past events and states can be read now."""

    @abstractmethod
    async def fetch(self, share: Share) -> Piece | None:
        """Return what comes after a share's place, None if that cannot be had now: then ask again."""

    @abstractmethod
    async def fetch_states(
        self, group: str, after: Mapping[int, int], only: int | None = None
    ) -> dict[int, Checkpoint] | None:
        """Return a group's checkpoints by share, in the order of the shares; None as for :meth:`fetch`.

        Args:
            after: by partition the offset that is known already; a checkpoint not beyond it is left out.
            only: this share alone; by default all partitions.
        """

    # ---- publishing ----

    @abstractmethod
    def publish(self, event: EventBase) -> None:
        """Publish an event for a consumer. Never blocks."""

    @abstractmethod
    async def flush(self, timeout_s: float) -> bool:
        """Wait until what was published is kept for good; return whether it is."""

    @abstractmethod
    async def close(self) -> None:
        """Deliver what was published, and let go of everything."""


OpenTransport: TypeAlias = Callable[[Any, Host, int], Transport]
"""Makes a transport from an address of its kind, for a host, with so many events queued at most."""
