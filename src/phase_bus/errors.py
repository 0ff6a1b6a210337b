"""Every error phase-bus raises on purpose.

A message is one line that names the thing, the reason and the remedy: the command line prints it as
it is and exits with 2. Anything else that reaches the top is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import ClassVar

_SHOWN_BYTES = 600  # of a topic


class PhaseBusError(Exception):
    """Base of all errors that a user can do something about."""


class AddressError(PhaseBusError):
    """An address that cannot be understood, bound or reached.

    Attributes:
        address: the address as it was given.
    """

    def __init__(self, address: str, reason: str, remedy: str) -> None:
        self.address = address
        super().__init__(f"address {address!r}: {reason}; {remedy}")


class BusUnreachableError(PhaseBusError):
    """No bus answered at an address in time.

    Attributes:
        address: the address that was tried.
        timeout_s: how long it was tried.
    """

    def __init__(self, address: str, timeout_s: float, why: str = "") -> None:
        self.address = address
        self.timeout_s = timeout_s
        super().__init__(
            f"the bus at {address!r} does not answer: {why}"
            if why
            else f"no bus answers at {address!r} (waited {timeout_s:g} s); start one with "
            f"'phase-bus bus --address {address}', or give the address of a running one"
        )


class RefusedError(PhaseBusError):
    """A bus that refuses what it is asked.

    Attributes:
        address: its address.
        reason: what it says.
    """

    def __init__(self, address: str, reason: str) -> None:
        self.address = address
        self.reason = reason
        super().__init__(f"the bus at {address!r} refuses that: {reason}")


class ConfigError(PhaseBusError):
    """A configuration file or an option that is invalid."""


class ConsumerNotFoundError(PhaseBusError):
    """A consumer name that no registry knows, or a ``module:Class`` that does not import.

    Attributes:
        name: the name as it was given.
    """

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        super().__init__(f"consumer {name!r}: {reason}")


class NameTakenError(PhaseBusError):
    """Another process consumes under this name already, or has taken it over.

    Attributes:
        name: the consumer's name.
        pid: the process that has it, 0 if it is not known.
        host: the host that it is on.
    """

    def __init__(self, name: str, pid: int = 0, host: str = "", *, taken_over: bool = False) -> None:
        self.name = name
        self.pid = pid
        self.host = host
        who = f"the process with pid {pid} on {host or 'an unknown host'}" if pid else "another process"
        if taken_over:
            super().__init__(
                f"consumer {name!r}: {who} took the name over while this process did not answer; what this "
                "one had not committed is left to that one; start it again under another --name if both "
                "are wanted"
            )
        else:
            super().__init__(
                f"consumer {name!r}: {who} consumes under this name already, and two would take each "
                "other's place in the stream; give this one another --name, have both share the work with "
                "--group, or end that one"
            )


class ConsumerDefinitionError(PhaseBusError):
    """A consumer class that is invalid, for instance with a handler for a kind that does not exist."""


class _FileError(PhaseBusError):
    what: ClassVar[str]

    def __init__(self, path: Path, reason: str, remedy: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{self.what} {str(path)!r}: {reason}; {remedy}")


class JournalError(_FileError):
    """A journal that cannot be opened, read or written.

    Attributes:
        path: its file.
        reason: what is wrong.
    """

    what = "journal"


class JournalInUseError(JournalError):
    """A journal that another bus has open for writing."""


class JournalDamagedError(JournalError):
    """A journal whose file is damaged."""


class JournalUnreadableError(PhaseBusError):
    """The bus could not read its journal when it was asked for something; it may be asked again.

    Attributes:
        reason: what is wrong.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the bus cannot read its journal: {reason}")


class StreamMovedError(PhaseBusError):
    """Another bus, with a stream of its own, has come to the place of the one that was asked.

    Attributes:
        reason: what it says.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the bus has another stream now: {reason}")


class SpoolError(_FileError):
    """A file that is not a spool, or cannot be read.

    Attributes:
        path: the file.
        reason: what is wrong.
    """

    what = "spool"


class KeyFileError(_FileError):
    """A file with keys that does not exist, is malformed, or is not its user's alone.

    Attributes:
        path: the file.
        reason: what is wrong.
    """

    what = "key file"


class StateError(PhaseBusError):
    """A state, left by an earlier process of a consumer, that this version cannot go on from.

    :meth:`Consumer.restore` and :meth:`Consumer.merge` may raise it, with the reason only; what the user
    can do is added.
    """


class OptionError(ConfigError):
    """An option that a consumer does not have, or a value that does not fit its type.

    Attributes:
        consumer: the consumer's name.
        option: the option's name.
    """

    def __init__(self, consumer: str, option: str, reason: str) -> None:
        self.consumer = consumer
        self.option = option
        super().__init__(f"consumer {consumer!r}, option {option!r}: {reason}")


class WireError(PhaseBusError):
    """Frames that are not a message of this protocol.

    Attributes:
        topic: the topic frame, if there was one.
        reason: what is wrong.
        counted_as: what kind of refusal a bus counts it as, in a word.
    """

    def __init__(self, reason: str, topic: bytes = b"", *, counted_as: str = "malformed") -> None:
        self.topic = topic
        self.reason = reason
        self.counted_as = counted_as
        where = f" on topic {topic[:_SHOWN_BYTES].decode(errors='replace')!r}" if topic else ""
        malformed = counted_as == "malformed"
        super().__init__(f"bad message{where}: {reason}" if malformed else f"{reason}{where}")


def suggest(word: str, known: Iterable[str], *, ordered: bool = False) -> str:
    """Return ``; did you mean 'x'?``, or the known words when none is near, or nothing.

    They are sorted unless they are ``ordered`` as they should be shown.
    """
    words = list(dict.fromkeys(known)) if ordered else sorted(known)
    near = get_close_matches(word, words, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(words)}" if words else ""
