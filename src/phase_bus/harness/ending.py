"""How a process of ours ends: asked by a first signal, at once by a second one, and always in time."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, Self

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_CUT_OFF = 3  # something was left undone
CONSUMER_S = 10.0  # how long a consumer may take, unless its user says otherwise
BUS_S = 10.0
CLIENT_S = 15.0  # who has nothing but a publisher to close
MARGIN_S = 2.0  # by which whoever waits for a process waits longer than that process gives itself

_SAYING_S = 1.0  # nobody may read what is said at the end
_DONE = 0  # no signal has this number


class EndedEarlyError(Exception):
    """This process was asked to end before it had begun its work."""


def _nothing() -> str:
    return ""


class Ending:
    """Watches, as a context manager, for what ends this process, in a thread of its own.

    Whatever keeps the main thread, such as a handler that hangs, keeps no signal. SIGINT, SIGTERM,
    SIGHUP (unless ``nohup`` has it ignored) and the end of the file ``eof`` ask it to end. A second signal
    forces it, with the exit code 128 + signal; the end of the time does, too, with the exit code 3.

    Args:
        say: prints a line for the user.
        within_s: how long this process may take to end once it was asked to.
        eof: a descriptor that ends with the process at its other end.
        output: a descriptor whose reader, if it is a pipe, ends this process when it goes away.

    Attributes:
        within_s: the same.
        signum: the signal by which it was asked, 0 for none.
    """

    def __init__(
        self,
        say: Callable[[str], object],
        within_s: float,
        *,
        eof: int | None = None,
        output: int | None = None,
    ) -> None:
        self.signum = 0
        self.within_s = within_s
        self._say = say
        self._eof = eof
        self._output = output
        self._name = "this process"
        self._stop: Callable[[], object] = lambda: None
        self._left: Callable[[], str] = _nothing
        self._force: Callable[[], object] = lambda: None
        self._passed_on: Callable[[int], object] | None = None
        self._lock = threading.Lock()
        self._deadline_s: float | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._write_fd, False)
        # A signal's number is in the pipe at once, whatever the main thread does.
        self._earlier_fd = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for signum in ENDING:
            if signum != signal.SIGHUP or signal.getsignal(signum) is not signal.SIG_IGN:
                self._before[signum] = signal.signal(signum, _note)
        self._thread = threading.Thread(target=self._watch, name="ending", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        signal.set_wakeup_fd(self._earlier_fd)
        for signum, before in self._before.items():
            signal.signal(signum, before)
        os.write(self._write_fd, bytes((_DONE,)))
        self._thread.join()
        os.close(self._read_fd)
        os.close(self._write_fd)

    def begin(
        self,
        name: str,
        stop: Callable[[], object],
        within_s: float | None = None,
        *,
        left: Callable[[], str] = _nothing,
        force: Callable[[], object] = lambda: None,
    ) -> None:
        """Say who is to be asked; at once, if this process was asked to end before.

        The functions may be called from any thread.

        Args:
            name: what to call it.
            stop: asks it.
            within_s: another time for it to end within.
            left: says what it has left undone, in words; empty for nothing.
            force: does what has to be done even when this process is to end at once.
        """
        with self._lock:
            self._name, self._stop, self._left, self._force = name, stop, left, force
            self.within_s = self.within_s if within_s is None else within_s
            asked = self._deadline_s is not None
        if asked:
            stop()

    @contextmanager
    def passing_on(
        self, handler: Callable[[int], object], signums: Iterable[int]
    ) -> Iterator[Callable[[int], object]]:
        """Give all signals to a function meanwhile, from any thread, also one that has just come.

        Gives what takes back a signal that came too late for whoever the function gives them to: it is then
        for this process, as soon as the signals are.
        """
        late: list[int] = []

        def take_back(signum: int) -> None:
            with self._lock:
                passing_on = self._passed_on is handler
                if passing_on:
                    late.append(signum)
            if not passing_on:
                self._come_again([signum])

        more = {n: signal.signal(n, _note) for n in signums if n not in self._before}
        with self._lock:
            earlier, self.signum, self._deadline_s = self.signum, 0, None
            self._passed_on = handler
        if earlier:
            handler(earlier)
        try:
            yield take_back
        finally:
            with self._lock:
                self._passed_on = None
            for signum, before in more.items():
                signal.signal(signum, before)
            self._come_again(late)

    def _come_again(self, signums: Iterable[int]) -> None:
        """Let signals come once more, to its thread, which has to know when the time begins."""
        os.write(self._write_fd, bytes(signums))

    # ---- in its thread ----

    def _watch(self) -> None:
        poller = select.poll()
        poller.register(self._read_fd, select.POLLIN)
        if self._eof is not None:
            poller.register(self._eof, select.POLLIN)
        if self._output is not None:
            poller.register(self._output, 0)  # what is wrong with it is told all the same
        while True:
            ready = dict(poller.poll(self._wait_ms()))
            if self._eof in ready and not os.read(self._eof or 0, 4096):
                poller.unregister(self._eof or 0)
                self._ask()
            if self._output is not None and self._output in ready:
                poller.unregister(self._output)
                self._output = None
                self._ask()
            if self._read_fd in ready:
                for signum in os.read(self._read_fd, 4096):
                    if signum == _DONE:
                        return
                    self._take(signum)
            if self._deadline_s is not None and time.monotonic() >= self._deadline_s:
                self._end(EXIT_CUT_OFF, f"had not ended {self.within_s:g} s after it was asked to")

    def _wait_ms(self) -> float | None:
        return (
            None if self._deadline_s is None else max(self._deadline_s - time.monotonic(), 0.0) * 1000 + 1
        )

    def _take(self, signum: int) -> None:
        with self._lock:
            passed_on, first = self._passed_on, not self.signum
            if passed_on is None and signum in self._before and first:
                self.signum = signum
        if passed_on is not None:
            with suppress(RuntimeError):  # its event loop has just been closed
                passed_on(signum)
        elif signum not in self._before:
            pass  # it was for somebody else, a moment ago
        elif first:
            self._ask()
        else:
            self._end(128 + signum, "was ended by a second signal")

    def _ask(self) -> None:
        with self._lock:
            if self._deadline_s is None:
                self._deadline_s = time.monotonic() + self.within_s
            stop = self._stop
        with suppress(RuntimeError):  # its event loop has just been closed
            stop()

    def _end(self, code: int, how: str) -> NoReturn:
        # Daemons: neither what is said nor what is done may keep it.
        for work in (lambda: self._tell(how), self._force):
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            thread.join(_SAYING_S)
        os._exit(code)

    def _tell(self, how: str) -> None:
        try:
            left = self._left()
        except Exception as error:  # it is looked at from outside, while it changes
            left = f"what it has left undone is unknown ({error!r})"
        self._say(f"{self._name} {how}{left and f'; {left}'}")


def _note(_signum: int, _frame: object) -> None:
    """Do nothing: the number is in the pipe."""
