"""A terminal with a program in it, of which every byte is kept."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
import threading
from pathlib import Path
from typing import Self

ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"  # the alternate screen, of full-screen programs


class Terminal:
    """Runs a program in a terminal of its own, of 80 columns and 24 lines.

    Attributes:
        said: all that the terminal was sent, once the program has ended.
    """

    def __init__(self, directory: Path, *command: str, **environment: str) -> None:
        self.said = ""
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        given = {k: v for k, v in os.environ.items() if not k.startswith("PHASE_BUS")}
        self._process = subprocess.Popen(
            command,
            cwd=directory,
            env={
                **given,
                "XDG_STATE_HOME": str(directory / "state"),
                "TERM": "xterm-256color",
                **environment,
            },
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        os.close(self._ours)

    def finish(self, timeout_s: float = 60.0) -> int:
        """Wait for the program's end; return its exit code."""
        code = self._process.wait(timeout_s)
        self._reader.join(timeout_s)
        return code

    def _read(self) -> None:
        parts = []
        while True:
            try:
                part = os.read(self._ours, 1 << 16)
            except OSError:  # nobody has the other end any more
                break
            if not part:
                break
            parts.append(part)
        self.said = b"".join(parts).decode(errors="replace")
