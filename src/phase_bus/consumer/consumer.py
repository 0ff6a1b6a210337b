"""What a consumer is: a class whose methods say what it subscribes to.

:class:`Consumer` is what people subclass; the functions beside it read such a class.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import structlog
from msgspec import Struct, field

from phase_bus.core.output_file import OutputFile
from phase_bus.core.position import Lineage, Position
from phase_bus.errors import ConsumerDefinitionError, suggest
from phase_bus.events import KINDS, EventBase

C = TypeVar("C", bound="Consumer")
Handler: TypeAlias = Callable[[Any], Awaitable[None]]

_ANY = "on_event"


class Context(Struct):
    """What the host of a consumer gives it: see the properties of :class:`Consumer`.

    Attributes:
        name: what the user calls the consumer; in a group, that and the partition.
        address: where its bus is, empty if it has none.
        lineage: the streams of the bus's journal.
        event: the source of the event that is handled, and its number among that one's.
        event_number: how many events of the journal up to the one that is handled are no records.
        merged_offset: on a group's leader, see :attr:`Consumer.merged_offset`.
        claim: what only the consumers have that the bus lets have this name, one after another; empty if no
            bus has said so.
        stopping: whether what is flushed now is the last.
        outputs: the files that it has opened, which are closed after :meth:`Consumer.stop`.
    """

    name: str = ""
    address: str = ""
    log: Any = field(default_factory=lambda: structlog.get_logger("phase_bus.consumer"))
    offset: int = 0
    lineage: Lineage = field(default_factory=Lineage)
    event: tuple[bytes, int] = (b"", 0)
    event_number: int = 0
    merged_offset: int = 0
    partition: int | None = None
    leads: bool = False
    publish: Callable[[EventBase], None] = lambda _event: None
    fail: Callable[[EventBase, int, Exception], None] = lambda _event, _offset, _error: None
    claim: str = ""
    stopping: bool = False
    outputs: list[OutputFile] = field(default_factory=list)

    @property
    def stream(self) -> str:
        """The stream that the offset is in; empty without a journal."""
        return self.lineage.position(self.offset).stream


class Consumer:
    """A process of its own that does something with the events of benchmark runs.

    Define ``async def on_<kind>(self, event)`` for each kind of event you want (``on_phase_complete``,
    ``on_records`` ...; ``on_event`` takes all kinds that have no handler of their own): these methods
    decide what the consumer subscribes to. They run one after another, in the order of the events. The
    constructor's parameters are the consumer's options, converted and checked by their type hints. The
    first line of the class's docstring describes it.

    Attributes:
        group: the group that processes of this class form unless the user names another; empty for none.
            In a group, processes share the work of one consumer: each partition of the records has an
            instance in one of them, and one more instance, the leader, has all events that are not records.
        holds_checkpoint: set it in :meth:`flush` to leave the checkpoint where it is, so that the next
            process reads all events since then again.
        retry_times: how often a handler that raises is called again before its event becomes a dead letter.
            None: twice, over about three seconds; but over a minute if it raises an :class:`OSError` or
            :class:`UnavailableError`, since a server does not answer.
        retry_wait_s: the longest wait between two tries, in seconds: the first is half a second, each
            further one four times as long as the one before.

    The last two are options of every consumer: a class may set its own defaults, and the user decides.
    """

    group: str = ""
    holds_checkpoint: bool = False
    retry_times: int | None = None
    retry_wait_s: float = 10.0

    @cached_property
    def context(self) -> Context:
        """What the process around the consumer gives it, before :meth:`start`."""
        return Context()

    @property
    def name(self) -> str:
        """What the user calls this consumer."""
        return self.context.name

    @property
    def address(self) -> str:
        """Where the bus is that this consumer's events come from; empty without a bus."""
        return self.context.address

    @property
    def log(self) -> Any:
        """A structlog logger that names this consumer."""
        return self.context.log

    @property
    def offset(self) -> int:
        """While a handler runs, its event's place in the bus's journal; 0 without one."""
        return self.context.offset

    @property
    def journal_id(self) -> str:
        """Which journal the bus has, however often it was restarted on it; empty without one.

        It is the first of :attr:`streams`.
        """
        return self.context.lineage.journal_id

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams of the bus's journal, the oldest first; set before :meth:`position` is called.

        Each start of a bus begins a new one. An offset means something together with its stream only.
        """
        return self.context.lineage.streams

    @property
    def stream(self) -> str:
        """While a handler runs, the stream that :attr:`offset` is in; empty without a journal."""
        return self.context.stream

    @property
    def source(self) -> str:
        """While a handler runs, who published its event: 32 hex digits."""
        return self.context.event[0].hex()

    @property
    def sequence(self) -> int:
        """While a handler runs, the number of its event among all that its source published.

        The numbers of one source grow. By source and sequence an event is recognised that comes again in
        another place: from a journal that was cut, and got again what its publisher had kept.
        """
        return self.context.event[1]

    @property
    def event_number(self) -> int:
        """While a handler runs, how many events up to its own are no records; 0 without a journal.

        All records between two other events have the same number, in whatever partition they are. So by
        it, and without being told, each instance of a group cuts its records where the leader's events lie.
        """
        return self.context.event_number

    @property
    def merged_offset(self) -> int:
        """On the leader of a group, the offset up to which every partition is in what :meth:`merge` got."""
        return self.context.merged_offset

    @property
    def stopping(self) -> bool:
        """While :meth:`flush` runs, whether it is the last time: the process ends."""
        return self.context.stopping

    @property
    def partition(self) -> int | None:
        """In a group, the partition whose records this instance gets; None for the leader."""
        return self.context.partition

    @property
    def leads(self) -> bool:
        """Whether this instance leads a group, where the records are with others."""
        return self.context.leads

    async def start(self) -> None:
        """Prepare: called once, before the first event. An exception here ends the process."""

    async def flush(self) -> None:
        """Write out what is buffered: called every second, after each run's end, and before :meth:`stop`.

        The checkpoint moves only when it succeeds; when it raises it is called again.
        """

    async def stop(self) -> None:
        """Let go of everything: called once, last."""

    async def position(self) -> Position | None:
        """Say up to which place this consumer has stored everything, if it keeps that with its data.

        Called after :meth:`start`, and again if the bus comes back with another stream, of whose
        :attr:`streams` the last one read is not any more, or no further than to an earlier offset. One that
        stores data and ``Position(self.stream, self.offset)`` in one transaction gets every event after it
        and is exactly-once. None leaves it to the bus, which keeps the place of the last flush as a
        checkpoint: then an event may come twice after a crash.
        """
        return None

    def state(self) -> bytes | None:
        """Return what is to be kept in the checkpoint, for a consumer whose results live in memory."""
        return None

    def restore(self, state: bytes) -> None:
        """Go on from a state that an earlier process of this name left. Called before any event.

        Raise a :class:`~phase_bus.errors.StateError` if it is of a version that cannot be gone on from.
        """

    async def merge(self, states: Mapping[int, bytes]) -> None:
        """Take over what the partitions of the group have come to; called on the leader only.

        Called about once a second while something changes, and always before the leader's
        ``on_run_complete``, which in a group comes when every partition has handled all of the run.

        Args:
            states: the :meth:`state` in the latest checkpoint of each partition that changed, in order.
        """

    def forget(self, run_id: str) -> None:
        """Let go of a run that the whole group has handled; called on the instances of partitions."""

    def open_output(self, path: Path, option: str) -> OutputFile:
        """Return a file that this consumer alone writes; call it in :meth:`start`. It is closed at the end.

        Args:
            path: the file.
            option: the option that the user set it by, for messages.

        Raises:
            ConfigError: if it cannot be written, or is written by another process.
        """
        file = OutputFile(path, option, self.name, self.context.claim)
        self.context.outputs.append(file)
        return file

    def publish(self, event: EventBase) -> None:
        """Put an event on the bus, for other consumers. Never blocks, never raises."""
        self.context.publish(event)

    def fail(self, event: EventBase, offset: int, error: Exception) -> None:
        """Say, in :meth:`flush`, that what a handler accepted cannot be done after all.

        The event becomes a dead letter and counts as failed, as if its handler had raised the error.

        Args:
            event: the event.
            offset: what :attr:`offset` was while its handler ran.
            error: why.
        """
        self.context.fail(event, offset, error)


def handlers_of(consumer: Consumer) -> dict[str, Handler]:
    """Return a consumer's handlers by kind of event; one for ``*`` takes all other kinds.

    Raises:
        ConsumerDefinitionError: if it has none, one for a kind that does not exist, or one that is not an
            ``async def``.
    """
    handlers: dict[str, Handler] = {}
    cls = type(consumer)
    for name in dir(cls):
        if not name.startswith("on_"):
            continue
        method = getattr(consumer, name)
        kind = name.removeprefix("on_")
        if name != _ANY and kind not in KINDS:
            known = [f"on_{k}" for k in KINDS]
            raise ConsumerDefinitionError(
                f"consumer class {cls.__name__}: {name} handles no kind of event{suggest(name, known)}"
            )
        if not inspect.iscoroutinefunction(method):
            raise ConsumerDefinitionError(
                f"consumer class {cls.__name__}: {name} must be written 'async def {name}(self, event)'"
            )
        handlers["*" if name == _ANY else kind] = method
    if not handlers:
        raise ConsumerDefinitionError(
            f"consumer class {cls.__name__} handles nothing; "
            "define 'async def on_phase_complete(self, event)' or another on_<kind>"
        )
    return handlers


def description_of(cls: type) -> str:
    """Return the first line of a consumer class's docstring."""
    return (inspect.getdoc(cls) or "").partition("\n")[0].rstrip(".")


def named(consumer: C, name: str) -> C:
    """Give a consumer a context with its name, and check that it handles something.

    Raises:
        ConsumerDefinitionError: if it does not.
    """
    log = structlog.get_logger("phase_bus.consumer").bind(consumer=name)
    consumer.context = Context(name=name, log=log)
    handlers_of(consumer)
    return consumer


def subscriptions_of(handlers: Mapping[str, Handler]) -> tuple[str, ...]:
    """Return the topic prefixes that a consumer with these handlers subscribes to."""
    kinds = (k for k in KINDS if k != "heartbeat") if "*" in handlers else handlers
    return tuple(sorted({f"{kind}." for kind in kinds if kind != "*"}))
