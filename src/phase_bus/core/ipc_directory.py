"""The directory of an ``ipc://`` address: who may use it, and that only one bus does.

ZeroMQ takes whatever listens at a path for the bus. So the directory has to be one in which nobody else
can have put a socket. Clients look at it as well as the bus: before they say anything, and when they are
answered, since somebody may have made it, or made it anew, meanwhile.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from typing import IO

import zmq

from phase_bus.core.address import Address
from phase_bus.core.files import inode_of, is_at, lock_file, make_private_directory, set_mode
from phase_bus.core.peer import peer_of
from phase_bus.errors import AddressError

BUS_LOCK = "bus.lock"  # in the directory, held by its bus
CHECKED_FOR_S = 0.05
"""How long a check may hold for what is sent or taken often: less than a socket waits to connect anew."""
_SHARED_MODE = 0o2770  # the first bit: what is made in there is the group's, too
_ROOT = 0


def check_directory(address: Address) -> bool:
    """Check that nobody else can have put sockets into an ipc address's directory; return if there is one.

    If it is shared on purpose: nobody outside its group. Of other addresses it returns True.

    Raises:
        AddressError: if somebody can.
    """
    if address.scheme != "ipc":
        return True
    directory = address.directory
    try:
        there = link = os.lstat(directory)  # often: a Path costs twice as much
        if stat.S_ISLNK(link.st_mode):
            with suppress(FileNotFoundError):
                there = os.stat(directory)  # noqa: PTH116 - likewise
    except FileNotFoundError:
        return False
    except OSError as error:
        raise AddressError(
            str(address), f"cannot be looked at: {error.strerror}", "choose another directory"
        ) from None
    groups = (os.getegid(), *os.getgroups()) if address.shared else ()
    fault = find_fault(there, link, shared=address.shared, user=os.geteuid(), groups=groups)
    if fault is not None:
        raise _fault(address, fault)
    return True


def check_answer(address: Address, frame: zmq.Frame, *, checked: bool = False) -> None:
    """Check that what came from a client's socket is of the bus, as far as the system tells who sent it.

    Who was in the directory when ZeroMQ connected may have made it vanish since.

    Args:
        checked: whether the directory was looked at just now.

    Raises:
        AddressError: if it is another user's.
    """
    if address.scheme != "ipc":
        return
    if not checked:
        check_directory(address)
    if address.shared:
        return
    uid = peer_of(frame).uid
    if uid not in (None, os.geteuid(), _ROOT):
        reason = f"another user (uid {uid}) answers in the bus's place"
        raise AddressError(str(address), reason, "choose another directory")


def _fault(address: Address, fault: tuple[str, str]) -> AddressError:
    reason, remedy = fault
    return AddressError(str(address), reason, remedy.replace("DIRECTORY", address.directory))


def find_fault(
    there: os.stat_result, link: os.stat_result, *, shared: bool, user: int, groups: Container[int]
) -> tuple[str, str] | None:
    """Return why a directory is not fit for sockets, and what to do about it; None if it is.

    Args:
        there: the directory.
        link: the link that leads to it, or the directory itself.
        shared: whether it is shared with its group on purpose.
        user: who is to use it ...
        groups: ... and is in these groups.
    """
    mode, owner = stat.S_IMODE(there.st_mode), there.st_uid
    if stat.S_ISLNK(link.st_mode) and link.st_uid not in (user, _ROOT, owner if shared else user):
        return f"is a link that another user made (uid {link.st_uid})", "choose another directory"
    if not stat.S_ISDIR(there.st_mode):
        return "is no directory", "choose another one"
    if shared:
        if mode & 0o007:
            return f"others than its group may use it (mode {mode:04o})", _change(mode, _SHARED_MODE)
        if owner != user and there.st_gid not in groups:
            return (
                f"is shared with a group that you are not in (gid {there.st_gid})",
                "become a member of it, or choose another directory",
            )
    elif owner != user:
        return (
            f"belongs to another user (uid {owner})",
            "choose another directory, or write group+ipc:// if that one is shared with you on purpose",
        )
    elif mode & 0o077:
        return (
            f"others may use it (mode {mode:04o})",
            f"{_change(mode, 0o700)}, or write group+ipc:// if it is shared with its group on purpose",
        )
    return None


def _change(mode: int, wanted: int) -> str:
    if mode & stat.S_ISVTX:  # it is there for all, as /tmp is
        return "choose a directory of its own for the bus"
    return f"choose another directory, or 'chmod {wanted:o} DIRECTORY' if it is for the bus alone"


class DirectoryLock:
    """Keeps others from binding in an ipc address's directory, until :meth:`release`.

    ZeroMQ itself would take the sockets away from whoever has them.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._sockets: dict[Path, int] = {}  # with their inodes

    def remember_sockets(self) -> None:
        """Take those that are in the directory now for ours."""
        found = Path(self._file.name).parent.glob("*.ipc")
        self._sockets = {path: inode for path in found if (inode := inode_of(path))}

    @property
    def is_ours(self) -> bool:
        """Whether the directory is the one that was locked: a cleaner may have removed it since."""
        return is_at(self._file.fileno(), self._file.name)

    @property
    def is_whole(self) -> bool:
        """Whether the directory and the sockets in it are still ours."""
        return self.is_ours and all(inode_of(path) == inode for path, inode in self._sockets.items())

    def release(self) -> None:
        """Remove our own sockets, and let others have the directory.

        The lock's own file stays: removing it would race with the next process that locks it.
        """
        for path, inode in self._sockets.items():
            if self.is_ours and inode_of(path) == inode:
                path.unlink(missing_ok=True)
        self._file.close()


def lock_directory(address: Address) -> DirectoryLock:
    """Make an ipc address's directory, and keep others from binding there.

    Raises:
        AddressError: if it is in use, cannot be written to, or others can use it.
    """
    directory = Path(address.directory)
    try:
        if address.shared:
            _make_shared(directory)
        else:
            make_private_directory(directory)
        check_directory(address)
        if address.shared and directory.stat().st_mode & _SHARED_MODE != _SHARED_MODE:
            raise _fault(address, ("not all of its group may use it", _change(0, _SHARED_MODE)))
        file = lock_file(directory / BUS_LOCK)
    except BlockingIOError:
        raise AddressError(
            str(address),
            "is in use by another bus",
            "choose another directory, or end that bus ('phase-bus status' shows it)",
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AddressError(
            str(address), f"cannot be used: {reason}", "choose a directory that you may write to"
        ) from None
    if address.shared:
        with suppress(PermissionError):  # another member has made it: its owner has let us in
            os.fchmod(file.fileno(), 0o660)
    return DirectoryLock(file)


def _make_shared(directory: Path) -> None:
    """Make a directory for its owner's group, unless it is there, whatever the umask."""
    missing = [above for above in directory.parents if not above.is_dir()]
    make_private_directory(directory.parent, 0o755)
    for above in missing:  # the group has to come through
        set_mode(above, 0o755)
    with suppress(FileExistsError):
        directory.mkdir(0o700)
        set_mode(directory, _SHARED_MODE)
