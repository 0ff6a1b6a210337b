"""The temporary directories of rigs: none outlives its rig for longer than to the start of the next one."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

from phase_bus.core.files import lock_file
from phase_bus.core.ipc_directory import BUS_LOCK

_PREFIX = "phase-bus-rig-"
_LOCK = "rig.lock"  # held by the rig while it lives, however it ends
_REMOVED = ".removed"


class RigDirectory:
    """A directory for the sockets of one rig; those that killed rigs have left are removed first.

    Attributes:
        path: where it is.
    """

    def __init__(self) -> None:
        base = Path(tempfile.gettempdir())
        _sweep(base)
        made = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=base))
        self._lock = lock_file(made / _LOCK)
        # Only now has it a name that others look for.
        self.path = made.rename(base / made.name.removeprefix("."))

    def remove(self) -> None:
        """Remove it; once more does nothing."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _sweep(base: Path) -> None:
    """Remove what rigs of this user have left that are dead, and of whose processes none is left."""
    with suppress(OSError), os.scandir(base) as entries:
        for entry in entries:
            ours = entry.name.removeprefix(".").startswith(_PREFIX)
            if not ours or not entry.is_dir(follow_symlinks=False):
                continue
            if entry.stat(follow_symlinks=False).st_uid != os.geteuid():
                continue
            if entry.name.endswith(_REMOVED):  # a process was killed as it removed it
                shutil.rmtree(entry.path, ignore_errors=True)
            elif not entry.name.startswith("."):
                _remove_dead(Path(entry.path))


def _remove_dead(directory: Path) -> None:
    """Remove a directory if it is a rig's, and neither that nor its bus, which may outlive it, has it."""
    gone = directory.with_name(f".{directory.name}{_REMOVED}")
    locks = [directory / _LOCK, directory / BUS_LOCK]
    with suppress(OSError), ExitStack() as stack:
        if not locks[0].exists():
            return
        for path in filter(Path.exists, locks):
            stack.enter_context(lock_file(path))
        directory.rename(gone)  # so that it is nobody's, should this process be killed now
        shutil.rmtree(gone, ignore_errors=True)
