"""What is told of an exception that a consumer's own code raised: where, without the frames of others."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from traceback import FrameSummary
from types import FrameType, TracebackType

from phase_bus.consumer.rows import UnavailableError

_AROUND = ("phase_bus", "tenacity", "asyncio", "concurrent")  # what is called before the consumer's code is
_FILES = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
_SHOWN_FRAMES = 3
_DEPTH = 20  # of causes


def in_words(error: BaseException) -> str:
    """Return an exception in one line: its notes, and the lines of the user's own code that led to it."""
    places = [_place(each) for leaf in _leaves(error) for each in _own_frames(leaf)[-_SHOWN_FRAMES:]]
    where = f" ({', then '.join(places)})" if places else ""
    return "; ".join((repr(error) + where, *getattr(error, "__notes__", ())))


def as_traceback(error: BaseException) -> str:
    """Return an exception's traceback from the consumer's code on."""
    return "".join(traceback.format_exception(type(error), error, _trimmed(error.__traceback__)))


def is_away(error: BaseException) -> bool:
    """Return whether something else is the reason, such as a server that may answer in a while.

    That is an :class:`OSError`, which time-outs and refused connections are, among an exception and its
    causes; libraries for HTTP raise their own because of one. Files that are not there do not count.
    """
    for leaf in _leaves(error):
        cause: BaseException | None = leaf
        for _ in range(_DEPTH):
            if cause is None:
                break
            if isinstance(cause, OSError | UnavailableError) and not isinstance(cause, _FILES):
                return True
            cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return False


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, or those in it if it is a group: several hooks may have failed on an event."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


def _trimmed(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback from the first frame on that is not of what is around consumers."""
    first = trace
    while first is not None and _package(first.tb_frame) in _AROUND:
        first = first.tb_next
    return first or trace


def _own_frames(error: BaseException) -> list[FrameSummary]:
    """Return the frames of a consumer's own package and of the modules beside it, the innermost last."""
    trace = _trimmed(error.__traceback__)
    if trace is None:
        return []
    own = _package(trace.tb_frame)
    found = []
    for frame, line in traceback.walk_tb(trace):
        package = _package(frame)
        installed = "site-packages" in frame.f_code.co_filename or package in sys.stdlib_module_names
        if package == own or not (installed or package in _AROUND):
            found.append(FrameSummary(frame.f_code.co_filename, line, frame.f_code.co_name))
    return found


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _place(frame: FrameSummary) -> str:
    path = Path(frame.filename)
    with suppress(OSError, ValueError):  # there is no working directory any more, or it is elsewhere
        path = path.relative_to(Path.cwd())
    return f"{path}:{frame.lineno} in {frame.name}: {frame.line}"
