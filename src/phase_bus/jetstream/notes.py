"""What is written down beside a stream under its keys: who has a name, checkpoints, dead letters.

====================================  ===============================  ==================================
key                                   value                            changed by
====================================  ===============================  ==================================
``name.<consumer>``                   :class:`NameNote`                who has the name, with each beat
``checkpoint.<consumer>``             :class:`CheckpointNote`          likewise, with each commit
``checkpoint.<group>.<share>``        :class:`CheckpointNote`          who the share is assigned to
``member.<group>.<client id>``        ``MemberNote`` [1]_              the member, with each beat
``group.<group>``                     ``GroupNote`` [1]_               the group's coordinator, likewise
``dead.<consumer>.<offset>``          :class:`LetterNote`              whoever handled the event in vain
====================================  ===============================  ==================================

.. [1] Of :mod:`phase_bus.jetstream.coordinator`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TypeVar

import msgspec
from msgspec import Struct

from phase_bus.core.control import DeadLetterNote, State
from phase_bus.core.position import Position
from phase_bus.errors import PhaseBusError
from phase_bus.jetstream.keys import Kept, Keys, key_of

T = TypeVar("T")

encode_note = msgspec.msgpack.encode
"""Returns the value of a key that holds one of these."""


class NameNote(Struct, frozen=True, kw_only=True):
    """Which process has a consumer's name, and how it is, as of its last beat.

    Attributes:
        client_id, name, pid, host, pid_space: as in its :class:`~phase_bus.core.control.Hello`.
        state, received, failed: as in its last :class:`~phase_bus.core.control.Beat`.
    """

    client_id: str
    name: str
    pid: int = 0
    host: str = ""
    pid_space: str = ""
    state: State = "starting"
    received: int = 0
    failed: int = 0


class CheckpointNote(Struct, frozen=True, kw_only=True):
    """A checkpoint.

    Attributes:
        owner: the client id of the process that wrote it.
        epoch: in which the share was assigned to that one; 0 for a consumer on its own.
        position: the place up to which everything is handled, None if nothing was committed yet.
        saved: the state there.
    """

    owner: str = ""
    epoch: int = 0
    position: Position | None = None
    saved: bytes | None = None


class LetterNote(Struct, frozen=True, kw_only=True):
    """An event that a consumer could not handle.

    Attributes:
        consumer: its name; of a group's share that of its checkpoint, such as ``team/07``.
        letter: which event, and why.
        ts_ns: when this was written down, in Unix ns.
    """

    consumer: str
    letter: DeadLetterNote
    ts_ns: int


def letter_key(consumer: str, offset: int) -> str:
    """Return the key of a consumer's dead letter."""
    return key_of("dead", consumer, str(offset))


async def keep_letters(keys: Keys, consumer: str, letters: Iterable[DeadLetterNote]) -> None:
    """Write down what a consumer could not handle; what is there already stays as it is.

    Do so before the checkpoint is moved beyond it.
    """
    for letter in letters:
        note = LetterNote(consumer=consumer, letter=letter, ts_ns=time.time_ns())
        await keys.create(letter_key(consumer, letter.offset), encode_note(note))


def read_note(kind: type[T], key: str, kept: Kept) -> T:
    """Return what is written down under a key.

    Raises:
        PhaseBusError: it is not what belongs there.
    """
    try:
        return msgspec.msgpack.decode(kept.value, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PhaseBusError(
            f"key {key!r} beside the stream cannot be read: {error}; take it away with NATS's own tools to "
            "begin anew"
        ) from None
