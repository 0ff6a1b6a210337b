"""Spool files: what a publisher could not deliver before it had to end, to be delivered later.

A file is :data:`MAGIC` and a head, then one entry per message, in the order of the source's sequence:

- the head: length (u4) and crc (u4) of what follows, a :class:`SpoolHead` in msgpack;
- an entry: the lengths of topic, header and payload (u4 each), a crc (u4) over lengths and frames, and
  the three frames as sent (:mod:`phase_bus.core.wire`), with their original source and sequences, so
  that a bus that already has some of them recognises those.

All numbers are little-endian; a crc is zlib's. A file cut short anywhere is good up to there. It is
first written as ``<name>.part``; one that is left because the publisher was killed can be delivered too.
"""

from __future__ import annotations

import logging
import os
import re
import struct
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
import zmq
from msgspec import Struct

from phase_bus.core.address import Address
from phase_bus.core.files import make_private_directory, private
from phase_bus.core.keys import Key, key_for
from phase_bus.core.outbox import Message, Outbox
from phase_bus.core.wire import decode, unpack_header
from phase_bus.errors import BusUnreachableError, SpoolError, WireError
from phase_bus.publisher.link import BusLink

logger = logging.getLogger("phase_bus.spool")

MAGIC = b"pbspool\x02"  # the last byte is the format's version
SUFFIX = ".spool"
_HEAD = struct.Struct("<II")
_LENGTHS = struct.Struct("<III")
_CRC = struct.Struct("<I")
_WHICH_FILE = "give the file of a publisher"
_BUFFER_BYTES = 1 << 20
_LINGER_MS = 200
_UNFIT = re.compile(r"[^\w.-]+", re.ASCII)  # for a file's name


class SpoolHead(Struct, frozen=True, kw_only=True):
    """The head of a spool file: the publisher's id (16 bytes) and name, and how much is inside."""

    source: bytes
    name: str
    created_ns: int
    events: int
    records: int


class SpoolReport(Struct, frozen=True, kw_only=True):
    """The result of delivering a spool file.

    Attributes:
        path: where the file is now.
        events: messages that could be read, with ``records`` in them.
        known: how many of them the bus had already; ``remaining`` it did not acknowledge in time.
        damage: why ``missing`` messages could not be read, empty if everything could.
    """

    path: Path
    events: int
    records: int
    known: int
    remaining: int
    damage: str = ""
    missing: int = 0

    @property
    def complete(self) -> bool:
        """Whether the bus has everything that was ever in the file."""
        return not self.remaining and not self.damage


_decode_head = msgspec.msgpack.Decoder(SpoolHead).decode

# ---- writing ----


def prepare_directory(directory: Path) -> None:
    """Make the directory if need be; raise OSError if it cannot be made or written to."""
    make_private_directory(directory)
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(f"{str(directory)!r} cannot be written to")


def write_spool(directory: Path, name: str, outbox: Outbox) -> tuple[Path, SpoolHead]:
    """Write all that is not acknowledged into a new file, and return the file and its head.

    Nothing is synchronised to the disk: what is written survives the process, and a process at its end
    has no time for more. A power cut within seconds may cut the file short. If it cannot be written, which
    raises OSError, nothing is left of it.
    """
    head = SpoolHead(
        source=outbox.source,
        name=name,
        created_ns=time.time_ns(),
        events=len(outbox),
        records=sum(message.records for message in outbox),
    )
    make_private_directory(directory)
    when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(head.created_ns // 10**9))
    path = directory / f"{_UNFIT.sub('_', name)[:80]}-{when}-{head.source.hex()}{SUFFIX}"
    aside = path.with_name(f"{path.name}.part")
    try:
        with open(aside, "wb", _BUFFER_BYTES, opener=private) as file:
            _write(file, head, outbox)
        aside.rename(path)
    except BaseException:
        # Half a file would be of some use, but on a full disk it could cost the benchmark its results.
        aside.unlink(missing_ok=True)
        raise
    return path, head


def _write(file: BinaryIO, head: SpoolHead, messages: Iterable[Message]) -> None:
    payload = msgspec.msgpack.encode(head)
    file.write(MAGIC + _HEAD.pack(len(payload), zlib.crc32(payload)) + payload)
    pack, pack_crc, write, crc32 = _LENGTHS.pack, _CRC.pack, file.write, zlib.crc32
    for message in messages:
        topic, header, payload = message.frames
        lengths = pack(len(topic), len(header), len(payload))
        small = lengths + topic + header
        write(lengths + pack_crc(crc32(payload, crc32(small))) + topic + header)
        write(payload)


# ---- reading ----


class SpoolReader:
    """The messages of a spool file, in order, up to its end or its first damage.

    After iterating, ``damage`` says why the rest could not be read; it is empty if everything could.

    Raises:
        SpoolError: if the file cannot be read, or is not a spool file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.damage = ""
        try:
            with self.path.open("rb") as file:
                self._size = os.fstat(file.fileno()).st_size
                self.head = self._read_head(file)
                self._start = file.tell()
        except OSError as error:
            raise SpoolError(self.path, error.strerror or str(error), _WHICH_FILE) from None

    def __iter__(self) -> Iterator[Message]:
        self.damage = ""
        previous: Message | None = None
        with self.path.open("rb", buffering=_BUFFER_BYTES) as file:
            file.seek(self._start)
            for _ in range(self.head.events):
                try:
                    message = self._read_message(file, previous)
                except WireError as error:
                    self.damage = str(error)
                    return
                yield message
                previous = message

    def _read_head(self, file: BinaryIO) -> SpoolHead:
        magic = file.read(len(MAGIC))
        if magic[:-1] != MAGIC[:-1]:
            raise SpoolError(self.path, "is not a spool file", _WHICH_FILE)
        if magic != MAGIC:
            raise SpoolError(self.path, f"is of version {magic[-1]}", "deliver it with that version")
        try:
            size, crc = _HEAD.unpack(file.read(_HEAD.size))
            payload = file.read(min(size, self._size))
            if len(payload) != size or zlib.crc32(payload) != crc:
                raise ValueError("it does not agree with its checksum")
            return decode(_decode_head, payload, "not a head")
        except (struct.error, ValueError, WireError) as error:
            raise SpoolError(
                self.path, f"its beginning is damaged ({error})", "nothing of it can be delivered"
            ) from None

    def _read_message(self, file: BinaryIO, previous: Message | None) -> Message:
        fixed = file.read(_LENGTHS.size + _CRC.size)
        if len(fixed) < _LENGTHS.size + _CRC.size:
            raise WireError("the file ends early")
        lengths = _LENGTHS.unpack_from(fixed)
        if sum(lengths) > self._size - file.tell():
            raise WireError("the file ends early, or a length is damaged")
        topic, header, payload = (file.read(length) for length in lengths)
        crc = zlib.crc32(payload, zlib.crc32(fixed[: _LENGTHS.size] + topic + header))
        if crc != _CRC.unpack_from(fixed, _LENGTHS.size)[0]:
            raise WireError("an event does not agree with its checksum")
        place = unpack_header(header, topic)
        if place.source != self.head.source or (previous and place.source_seq != previous.seq + 1):
            raise WireError("an event is out of its sequence")
        return Message(
            place.source, place.source_seq, topic, place.topic_seq, payload, sum(lengths), place.records
        )


def is_spool(path: Path) -> bool:
    """Return whether a file is a spool file, of whatever version."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC))[:-1] == MAGIC[:-1]
    except OSError:
        return False


# ---- delivering ----


def deliver_spool(path: str | Path, address: str, timeout_s: float = 30.0) -> SpoolReport:
    """Send the content of a spool file to a bus, as the publisher itself would have.

    The bus takes what it lacks, and a run that it gave up as ``lost`` goes on and ends as it did. Once
    the bus has acknowledged everything, the file is renamed to ``<name>.delivered``: delivering it again
    does no harm, and deleting it is up to the user. A damaged file keeps its name.

    Without progress for ``timeout_s`` seconds it gives up.

    Raises:
        SpoolError: if the file cannot be read, or is not a spool file.
        AddressError: if the address is malformed.
        KeyFileError: if there is a key file, and it is not fit for use.
        BusUnreachableError: if no bus answers there.
    """
    parsed = Address.parse(address)
    key = key_for(parsed)
    reader = SpoolReader(path)
    outbox = Outbox(reader.head.source, 0)
    for message in reader:
        outbox.restore(message)
    events, records = len(outbox), sum(message.records for message in outbox)
    missing = reader.head.events - events
    known = _deliver(outbox, parsed, key, reader.head.name, missing, timeout_s) if events else 0
    delivered = not len(outbox) and not reader.damage
    return SpoolReport(
        path=_mark_delivered(reader.path) if delivered else reader.path,
        events=events,
        records=records,
        known=known,
        remaining=len(outbox),
        damage=reader.damage,
        missing=missing,
    )


def _deliver(
    outbox: Outbox, address: Address, key: Key | None, name: str, missing: int, timeout_s: float
) -> int:
    """Send until everything is acknowledged or nothing moves; return how much the bus had already."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    known: int | None = None
    try:
        link = BusLink(context, address, outbox, name, _LINGER_MS, key)
        total = len(outbox)
        while len(outbox) and link.turn(timeout_s) < timeout_s:
            if known is None and link.connected:
                known = total - len(outbox)  # nothing has been sent yet
        link.close(missing)
    finally:
        context.destroy()
    if known is None:
        raise BusUnreachableError(str(address), timeout_s)
    return known


def _mark_delivered(path: Path) -> Path:
    done = path.with_name(f"{path.name}.delivered")
    try:
        return path.rename(done)
    except OSError as error:
        logger.warning("phase-bus: %s is delivered, but could not be renamed: %s", path, error)
        return path
