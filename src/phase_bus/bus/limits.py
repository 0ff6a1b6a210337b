"""What the bus takes from others at most: sizes, names, numbers. What is beyond is refused, and counted.

Each refusal is a :class:`~phase_bus.errors.WireError` that says which limit it was, by how much it was
exceeded, and which option changes it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache

from phase_bus.bus.options import BusOptions
from phase_bus.core.control import Beat, EndRuns, Hello, Request
from phase_bus.core.printable import printable
from phase_bus.core.throttle import Allowance
from phase_bus.core.wire import parse_topic, partition_of
from phase_bus.errors import WireError
from phase_bus.events import Drop, Event, RunComplete, RunStart, Summary

TOPIC = "topic"  # as which an event on such a topic is refused

_ALLOWANCE_BYTES = 64 << 10  # what ZeroMQ lets through beyond, so that the sender can be told
_LONG = 64  # times the length of a name: what members of a group run, why runs are ended
_LIST = 256  # names in a list of a beat, of which a consumer of ours needs a hundred
_ATTEMPT = 16  # letters that the bus itself may add to a run's id
_FEWEST_QUEUED, _MOST_QUEUED = 2, 1000
_WITH_FREE_PARTS = frozenset({RunStart, Summary, RunComplete, Drop})
_LARGE_BYTES = 64 << 10
_LARGE_AT_ONCE, _LARGE_EVERY_S = 4.0, 10.0
_CONNECTIONS = 10_000  # that are remembered
_TOLD_A_TURN = 8  # errors that one connection is told in a turn of the loop


def largest_frame(options: BusOptions) -> int:
    """Return the size of a frame from which on ZeroMQ closes the connection."""
    return options.max_message_bytes + _ALLOWANCE_BYTES


def queued_messages(options: BusOptions) -> int:
    """Return how many messages of one connection may wait, so that their bytes are within the limit.

    It is never changed later: with fewer than it has sent since it was last told how many were read, ZeroMQ
    would take nothing in from a connection any more.
    """
    fit = options.max_queue_bytes // options.max_message_bytes
    return min(max(fit, _FEWEST_QUEUED), _MOST_QUEUED)


def at_most(options: BusOptions, name: str, what: str = "") -> str:
    """Return a limit in words, for those who go beyond: how much of what, and which option says so."""
    return f"{getattr(options, name)}{what} at most, --{name.replace('_', '-')}"


# ---- events ----


def check_topic(options: BusOptions, topic: bytes) -> None:
    """Look at a topic before anything else does: afterwards it may be remembered.

    Raises:
        WireError: if it is too long, or the run's id is no proper name.
    """
    if len(topic) > options.max_topic_bytes:
        most = at_most(options, "max_topic_bytes")
        raise WireError(f"the topic has {len(topic)} bytes ({most})", topic, counted_as=TOPIC)
    if problem := _problem_of(topic, options.max_name_bytes):
        raise WireError(problem, topic, counted_as=TOPIC)
    _check_partition(options, topic, topic)


@lru_cache(maxsize=4096)
def _problem_of(topic: bytes, most_bytes: int) -> str:
    return _problem("the run's id", parse_topic(topic).run_id, most_bytes) or (
        "" if printable(text := topic.decode()) == text else "the topic has unprintable characters"
    )


def _check_partition(options: BusOptions, named: bytes, topic: bytes) -> None:
    """Raise a WireError for a topic if what it names is of a partition beyond those there may be."""
    if partition_of(named) >= options.max_partitions:
        most = f"below {options.max_partitions}, --max-partitions"
        reason = f"there is no partition {partition_of(named)} ({most})"
        raise WireError(reason, topic, counted_as="partitions")


def check_size(options: BusOptions, topic: bytes, header_bytes: int, payload_bytes: int) -> None:
    """Look at the size of an event, or of a bundle.

    Raises:
        WireError: if it is too large.
    """
    size_bytes = len(topic) + header_bytes + payload_bytes
    if size_bytes > options.max_message_bytes:
        raise _too_large(options, size_bytes, topic)


def check_request_size(options: BusOptions, size_bytes: int) -> None:
    """Look at the size of a request.

    Raises:
        WireError: if it is too large.
    """
    if size_bytes > options.max_message_bytes:
        raise _too_large(options, size_bytes)


def _too_large(options: BusOptions, size_bytes: int, topic: bytes = b"") -> WireError:
    most = at_most(options, "max_message_bytes", " bytes")
    return WireError(f"the message has {size_bytes} bytes ({most})", topic, counted_as="message_size")


def check_content(options: BusOptions, topic: bytes, event: Event | None) -> None:
    """Look at what is free in an event: values in one another, names of topics.

    Raises:
        WireError: if there is more of it than there may be.
    """
    if type(event) not in _WITH_FREE_PARTS:  # nearly always: a union of types would be made at each call
        return
    if isinstance(event, RunStart | Summary):
        value = event.variation if isinstance(event, RunStart) else event.result
        if _is_deeper(value, options.max_nesting):
            most = at_most(options, "max_nesting")
            raise WireError(f"its values are nested too deeply ({most})", topic, counted_as="nesting")
    elif isinstance(event, RunComplete | Drop):
        counts = (event.published, event.dropped) if isinstance(event, RunComplete) else (event.events,)
        for names in counts:
            if len(names) > options.max_topics:
                most = at_most(options, "max_topics")
                raise WireError(f"it counts {len(names)} topics ({most})", topic, counted_as="topics")
            if any(len(name) > options.max_topic_bytes + _ATTEMPT for name in names):
                raise WireError("it counts a topic that is too long", topic, counted_as=TOPIC)
            for name in names:
                _check_partition(options, name.encode(), topic)


def _is_deeper(value: object, most: int) -> bool:
    """Return whether lists and objects are in one another more than so many times."""
    level = [value]
    for _ in range(most + 1):
        level = [inner for each in level for inner in _inner(each)]
        if not level:
            return False
    return True


def _inner(value: object) -> Iterable[object]:
    """Return the values in a list or an object; other values have none in them."""
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list) else ()


# ---- requests ----


def check_request(options: BusOptions, request: Request) -> None:
    """Look at the names and lists in a request.

    Raises:
        WireError: if one is too long, or unprintable.
    """
    match request:
        case Hello():
            _check_hello(options, request)
        case Beat():
            _check_beat(options, request)
        case EndRuns(reason=reason):
            _check_name(options, "the reason", reason, _LONG)


def _check_hello(options: BusOptions, hello: Hello) -> None:
    named = {"name": hello.name, "group": hello.group, "host": hello.host, "pid space": hello.pid_space}
    for what, name in named.items():
        _check_name(options, f"its {what}", name)
    _check_name(options, "what it runs", hello.settings, _LONG)
    if len(hello.subscriptions) > options.max_subscriptions:
        most = at_most(options, "max_subscriptions")
        reason = f"it takes {len(hello.subscriptions)} prefixes of topics ({most})"
        raise WireError(reason, counted_as="subscriptions")
    if any(len(prefix) > options.max_topic_bytes for prefix in hello.subscriptions):
        most = at_most(options, "max_topic_bytes")
        raise WireError(f"a prefix of topics is too long ({most})", counted_as="subscriptions")


def _check_beat(options: BusOptions, beat: Beat) -> None:
    lists = (beat.handled_runs, beat.incomplete_runs, beat.lost_runs)
    if max(map(len, (*lists, beat.journal_losses))) > _LIST:
        raise WireError(f"a list in the beat has more than {_LIST} names", counted_as="beat")
    longest = options.max_name_bytes + _ATTEMPT
    if any(len(name) > longest for names in lists for name in names):
        raise WireError("a name of a run in the beat is too long", counted_as="beat")


def _check_name(options: BusOptions, what: str, name: str, times: int = 1) -> None:
    if problem := _problem(what, name, options.max_name_bytes * times):
        raise WireError(problem, counted_as="name")


def _problem(what: str, name: str, most_bytes: int) -> str:
    """Return what is wrong with a name, nothing if it is proper."""
    size_bytes = len(name) if name.isascii() else len(name.encode("utf-8", "replace"))
    if size_bytes > most_bytes:
        return f"{what} has {size_bytes} bytes ({most_bytes} at most, --max-name-bytes)"
    return "" if printable(name) == name else f"{what} has unprintable characters: {printable(name):.100}"


# ---- replies ----


class Errors:
    """Which errors are told: a few to each connection in a turn of the loop, so that they cost little."""

    def __init__(self) -> None:
        self._told: Counter[bytes] = Counter()

    def may_tell(self, identity: bytes) -> bool:
        """Return whether a connection is to be told one more."""
        self._told[identity] += 1
        return self._told[identity] <= _TOLD_A_TURN

    def clear(self) -> None:
        """Begin a new turn."""
        self._told.clear()


class LargeReplies:
    """Which large replies go to a connection: few, so that one that never reads them costs little memory.

    Who does not get one asks again.
    """

    def __init__(self) -> None:
        self._allowances: dict[bytes, Allowance] = {}  # by connection, those asked last at the end

    def may_send(self, identity: bytes, size_bytes: int, now_s: float) -> bool:
        """Return whether a reply of a size may go to a connection now."""
        if size_bytes < _LARGE_BYTES:
            return True
        allowance = self._allowances.pop(identity, None) or Allowance(_LARGE_AT_ONCE, _LARGE_EVERY_S)
        self._allowances[identity] = allowance
        if len(self._allowances) > _CONNECTIONS:
            del self._allowances[next(iter(self._allowances))]
        return allowance.take(now_s)


# ---- log lines ----


class LineLimit(logging.Filter):
    """Lets so many lines a second through, and says how many it left out. Errors always pass."""

    def __init__(self, lines_s: float) -> None:
        super().__init__()
        self._allowance = Allowance(max(5 * lines_s, 1.0), 1 / lines_s)
        self.left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line passes."""
        if record.levelno >= logging.ERROR:
            return True
        if not self._allowance.take():
            self.left_out += 1
            return False
        if self.left_out:
            record.msg = f"{record.msg} (and %d more lines, left out)"
            record.args = (*(record.args or ()), self.left_out)
            self.left_out = 0
        return True
