"""The wire: the only module that knows bytes.

An event is three frames: ``topic``, ``header``, ``payload``.

- The topic is ``<kind>.<qualifier>$`` in UTF-8, where the qualifier is the run id, for records with the
  partition before it: ``phase_start.3f2a$``, ``records.07.3f2a$``. Subscribing to a prefix filters.
- The header is 64 bytes, little-endian (:data:`HEADER`): wire version (u1), the beginning of the stream's
  id (3 bytes), the number of request records inside (u4), source (16 bytes), source sequence, topic
  sequence, offset, event number, previous offset (u8 each): see :class:`Header`. The numbers count from 1
  and have no holes.
- The payload is the event in msgpack, a map tagged by ``kind``.
- Events of one topic that one source publishes in a row may travel as a bundle, in one message: see
  :mod:`phase_bus.core.bundle`.

A control message between a client and the bus is one frame, msgpack tagged by ``op``
(:mod:`phase_bus.core.control`).
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
import zmq
from msgspec import Struct

from phase_bus.core import sockets
from phase_bus.core.address import Address
from phase_bus.core.control import WIRE_VERSION as WIRE_VERSION
from phase_bus.core.control import Reply, Request
from phase_bus.core.ipc_directory import check_answer
from phase_bus.core.values import as_text
from phase_bus.errors import WireError
from phase_bus.events import KINDS, Event, EventBase, Records, RunComplete

T = TypeVar("T")

HEADER = struct.Struct("<B3sI16sQQQQQ")
SIZE_BYTES = 4  # of what the header frame of a bundle says of each of its events
BUNDLED_MOST = 256  # events in a bundle
NO_STREAM = bytes(3)
TOPIC_END = "$"
NO_PARTITION = -1  # of events that are no records
READY = b"ready."  # how the topic begins by which the bus greets a consumer

# As plain numbers: combining pyzmq's enumerations costs more than sending.
_SNDMORE, _NOBLOCK = int(zmq.SNDMORE), int(zmq.NOBLOCK)
_EVENTS, _POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)
_send, _recv, _recv_bytes, _get = sockets.send, sockets.recv, sockets.recv_bytes, sockets.getsockopt

_event_encoder = msgspec.msgpack.Encoder()


# Each is built when it is first used: that takes milliseconds, and a process needs one or two of the three.
@functools.cache
def event_decoder() -> Callable[[bytes | memoryview], Event]:
    """Return what decodes events; call it by :func:`decode`, or inside what that calls."""
    return msgspec.msgpack.Decoder(Event).decode


@functools.cache
def _control_decoder(messages: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(messages)


def stream_tag(stream: str) -> bytes:
    """Return what of a stream's id is in headers."""
    return bytes.fromhex(stream[:6])


class Header(NamedTuple):
    """The binary header beside an event.

    Attributes:
        source: 16 bytes, a UUID that names the publishing process.
        source_seq: the event's number among all of its source.
        topic_seq: the event's number among those of its source on its topic.
        records: how many request records the event carries.
        offset: its place among all that the bus took in; given by the bus, and 0 before.
        event_number: how many events up to and including this one are no records; likewise.
        previous: for records, the offset of those before them in their partition, whatever their run, or 0;
            likewise. It shows whoever reads one partition alone what is missing.
        stream: the first 3 bytes of the id of the stream that the offset is in; likewise. A reader that was
            connected to another bus without a word sees by it that this is not the stream it follows.
        events: how many events the message carries; of more than one, a bundle, the numbers are those of
            the first.
    """

    source: bytes
    source_seq: int
    topic_seq: int
    records: int = 0
    offset: int = 0
    event_number: int = 0
    previous: int = 0
    stream: bytes = NO_STREAM
    events: int = 1

    def pack(self) -> bytes:
        """Return the header's 64 bytes."""
        return self.pack_at(self.offset, self.event_number, self.previous, self.stream)

    def pack_at(self, offset: int, event_number: int, previous: int, stream: bytes) -> bytes:
        """Return the 64 bytes of this header with the place that the bus gives."""
        source, source_seq, topic_seq, records, *_ = self
        return HEADER.pack(
            WIRE_VERSION, stream, records, source, source_seq, topic_seq, offset, event_number, previous
        )


class Topic(NamedTuple):
    """A topic, taken apart. The run id is empty for control events."""

    kind: str
    run_id: str


def topic_of(event: EventBase) -> bytes:
    """Return the topic an event travels on."""
    if type(event) is Records:
        return _topic(f"records.{event.partition:02d}", event.run_id)
    return _topic(event.kind, event.run_id)


def end_topic(run_id: str) -> str:
    """Return the topic that a run's end travels on, as text."""
    return _topic(RunComplete.kind, run_id).decode()


@functools.lru_cache(maxsize=1024)
def _topic(kind: str, run_id: str) -> bytes:
    return f"{kind}.{run_id}{TOPIC_END}".encode("utf-8", "replace")


@functools.lru_cache(maxsize=4096)
def parse_topic(topic: bytes) -> Topic:
    """Take a topic apart.

    Raises:
        WireError: if the topic is malformed.
    """
    try:
        text = topic.decode()
    except UnicodeDecodeError:
        raise WireError("the topic is not UTF-8", topic) from None
    kind, dot, rest = text.partition(".")
    if not dot or not rest.endswith(TOPIC_END):
        raise WireError("the topic is not '<kind>.<qualifier>$'", topic)
    qualifier = rest.removesuffix(TOPIC_END)
    # A run id may hold dots ("llama-3.1"); only records have something before it.
    return Topic(kind, qualifier.partition(".")[2] if kind == Records.kind else qualifier)


def topic_in(topic: str, run_id: str, other: str) -> str:
    """Return a topic of one run as it is in another run; one of neither stays as it is."""
    end = f".{run_id}{TOPIC_END}"
    return f"{topic.removesuffix(end)}.{other}{TOPIC_END}" if topic.endswith(end) else topic


@functools.lru_cache(maxsize=4096)
def partition_of(topic: bytes) -> int:
    """Return the partition of a topic of records, :data:`NO_PARTITION` for any other topic.

    Raises:
        WireError: if it is a topic of records without a number.
    """
    if not topic.startswith(b"records."):
        return NO_PARTITION
    number = topic.split(b".", 2)[1]
    if not (number.isdigit() and len(number) <= 4):
        raise WireError("the topic is not 'records.<partition>.<run>$'", topic)
    return int(number)


def partition_prefix(partition: int) -> bytes:
    """Return the prefix that subscribes to one partition of the records of all runs."""
    return f"records.{partition:02d}.".encode()


def topic_prefix(kind: str) -> bytes:
    """Return the prefix that subscribes to a kind of event of all runs."""
    return f"{kind}.".encode()


def encode_event(event: EventBase) -> bytes:
    """Return an event's payload; what UTF-8 cannot carry in its texts becomes a question mark."""
    try:
        return _event_encoder.encode(event)
    except UnicodeEncodeError:  # names of files and arguments may hold lone surrogates
        return _event_encoder.encode(_encodable(event))


def _encodable(value: Any) -> Any:
    """Return a value with all texts in it made such that UTF-8 can carry them."""
    if isinstance(value, str):
        return as_text(value)
    if isinstance(value, Struct):
        names = value.__struct_fields__
        return msgspec.structs.replace(value, **{name: _encodable(getattr(value, name)) for name in names})
    if isinstance(value, Mapping):
        return {_encodable(key): _encodable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(each) for each in value]
    return value


def decode_event(topic: bytes, payload: bytes | memoryview) -> Event | None:
    """Return the event of a payload, or None for a kind that this version does not know.

    The tables of a ``records`` event are views on ``payload``.

    Raises:
        WireError: if the payload is not an event of its topic's kind.
    """
    kind = parse_topic(topic).kind
    if kind not in KINDS:
        return None
    event = decode(event_decoder(), payload, "not an event", topic)
    if event.kind != kind:
        raise WireError(f"the payload is a {event.kind!r}", topic)
    return event


def decode(decoder: Callable[[Any], T], data: bytes | memoryview, what: str, topic: bytes = b"") -> T:
    """Return what a decoder makes of bytes from elsewhere: the one place to call one.

    Raises:
        WireError: in whichever way the decoder fails; the message begins with ``what``.
    """
    try:
        return decoder(data)
    except Exception as error:  # text that is not UTF-8, nesting, numbers: each fails in a way of its own
        raise WireError(f"{what}: {error or type(error).__name__}", topic) from error


def unpack_header(frame: bytes | memoryview, topic: bytes = b"") -> Header:
    """Return the header of a frame.

    Raises:
        WireError: if it has not the size of a header, or is of a wire version that this program does not
            read.
    """
    size_bytes, events = len(frame), 1
    if size_bytes != HEADER.size:
        events, rest = divmod(size_bytes - HEADER.size, SIZE_BYTES)
        if rest or not 1 < events <= BUNDLED_MOST:
            raise WireError(f"a header has {HEADER.size} bytes, this one {size_bytes}", topic)
    version, stream, records, source, source_seq, topic_seq, offset, number, previous = HEADER.unpack_from(
        frame
    )
    if version != WIRE_VERSION:
        raise WireError(
            f"wire version {version} is not {WIRE_VERSION}; use the same phase-bus on both sides",
            topic,
        )
    return Header(source, source_seq, topic_seq, records, offset, number, previous, stream, events)


def send_frames(socket: zmq.Socket[bytes], frames: Sequence[bytes | zmq.Frame], flags: int = 0) -> None:
    """Send a message of several frames; one that was received is passed on without copying.

    Frame by frame, because pyzmq's own ``send_multipart`` takes several times as long.

    Raises:
        zmq.Again: with ``NOBLOCK``, if it cannot be queued now; nothing is sent then.
    """
    more = flags | _SNDMORE
    for frame in frames[:-1]:
        _send(socket, frame, more)
    _send(socket, frames[-1], flags)


def receive_frames(socket: zmq.Socket[bytes], most: int | None = None) -> list[zmq.Frame]:
    """Receive a message without waiting, its frames uncopied; of a longer one the first ``most``.

    Raises:
        zmq.Again: if there is none.
    """
    frame = _recv(socket, _NOBLOCK, False)
    frames = [frame]
    while frame.more:
        frame = _recv(socket, _NOBLOCK, False)
        if len(frames) != most:
            frames.append(frame)
    return frames


def receive_event(socket: zmq.Socket[bytes]) -> tuple[bytes, bytes, zmq.Frame]:
    """Receive topic, header and payload without waiting, the payload uncopied.

    For small frames a copy is a third of the price of a :class:`zmq.Frame`.

    Raises:
        zmq.Again: if there is none.
        WireError: if the message has not three frames; what was received in place of missing ones is lost.
    """
    topic = _recv_bytes(socket, _NOBLOCK)
    try:
        header, payload = _recv_bytes(socket, _NOBLOCK), _recv(socket, _NOBLOCK, False)
    except zmq.Again:  # the frames of a message come together
        raise WireError("an event has three frames, this message has fewer", topic) from None
    if payload.more:
        last = payload
        while last.more:
            last = _recv(socket, _NOBLOCK, False)
        raise WireError("an event has three frames, this message has more", topic)
    return topic, header, payload


def receive_reply(socket: zmq.Socket[bytes], address: Address, *, another: bool = False) -> Reply | None:
    """Receive a reply of the bus without waiting, None if there is none.

    The socket is asked first, because the exception would cost several times as much.

    Args:
        another: whether one was received just now, so that another is likely, and the address was checked.

    Raises:
        AddressError: if it may be somebody else's.
        WireError: if it is malformed, or has more frames: none of them is taken for a reply of its own.
    """
    if not another and not _get(socket, _EVENTS) & _POLLIN:
        return None
    try:
        frame, *more = receive_frames(socket)
    except zmq.Again:
        return None
    check_answer(address, frame, checked=another)
    if more:
        raise WireError("a control message has one frame, this message has more")
    return decode_reply(frame.buffer)


def encode_control(message: Request | Reply) -> bytes:
    """Return a control message's frame."""
    return _event_encoder.encode(message)


def decode_request(frame: bytes | memoryview) -> Request:
    """Return a request to the bus.

    Raises:
        WireError: if it is malformed.
    """
    request: Request = decode(_control_decoder(Request).decode, frame, "not a request")
    return request


def decode_reply(frame: bytes | memoryview) -> Reply:
    """Return a reply of the bus.

    Raises:
        WireError: if it is malformed.
    """
    reply: Reply = decode(_control_decoder(Reply).decode, frame, "not a reply")
    return reply
