"""The ``logging`` consumer: one line for each thing that happens in a run::

    [2026-01-31 12:00:10.250+00:00] PHASE_COMPLETE: WARMUP | Completed: 100, Cancelled: 0, Duration: 9.81s

:class:`ExampleLoggingHook` writes the same lines from inside a load generator, without a bus.
"""

from __future__ import annotations

import json
import logging
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec

from phase_bus import (
    ConfigError,
    Consumer,
    EventBase,
    EventHook,
    Origin,
    OutputFile,
    PhaseEvent,
    printable_json,
)
from phase_bus_consumers.ecs import event_document
from phase_bus_consumers.headline import headline

logger = logging.getLogger(__name__)


class PhaseLogger(Consumer):
    """Write a line for each event of a phase or run, and each verdict, to a file or to standard output.

    Args:
        log_file: the file to append to; standard output if there is none.
        verbose: also write all counts and the run's id, and lines for progress and receipts.
        json: the same as ``format=json``.
        format: ``text``; ``json``, one object per event with everything in it; or ``ecs``, one object with
            the names of the Elastic Common Schema, for log shippers.
        max_bytes: rename the file to ``NAME.1`` before it becomes larger, that one to ``NAME.2`` and so on;
            0 for never.
        keep_files: how many renamed files are kept.
        service: the ``service.name`` of ``ecs``.
    """

    def __init__(
        self,
        log_file: Path | None = None,
        verbose: bool = False,
        json: bool = False,
        format: Literal["text", "json", "ecs"] = "text",
        max_bytes: int = 0,
        keep_files: int = 5,
        service: str = "phase-bus",
    ) -> None:
        if json and format == "ecs":
            raise ValueError("json=true is format=json; give one of json and format")
        if max_bytes and log_file is None:
            raise ValueError("max_bytes is the size of a file: give log_file, too")
        if max_bytes < 0 or keep_files < 1:
            raise ValueError("max_bytes must not be negative, and keep_files at least 1")
        self.log_file = log_file
        self.verbose = verbose
        self.json = json
        self.format = "json" if json else format
        self.max_bytes, self.keep_files = max_bytes, keep_files
        self.service = service
        self._file: OutputFile | None = None

    async def start(self) -> None:
        if self.log_file is not None:
            self._file = self.open_output(self.log_file, "log_file")

    async def _write(self, event: EventBase) -> None:
        line = self._line(event) + "\n"
        if self._file is None:
            print(line, end="", flush=True)
            return
        if self.max_bytes:
            self._make_room(self._file, len(line.encode(errors="backslashreplace")))
        self._file.append(line)

    def _make_room(self, file: OutputFile, size: int) -> None:
        if not file.size or file.size + size <= self.max_bytes:
            return
        try:
            file.rotate(self.keep_files)
        except OSError as error:
            self.max_bytes = 0
            self.log.warning("the log file cannot be renamed, and grows on", reason=str(error))

    def _line(self, event: EventBase) -> str:
        if self.format == "text":
            return describe(event, self.verbose)
        if self.format == "json":
            fields = {"timestamp": clock(event.ts_ns), **msgspec.to_builtins(event), "event": event.kind}
            return json.dumps(fields)
        key = Origin(event, self.stream, self.offset, self.source, self.sequence).key
        document = event_document(event, self.service).fields
        document["event"] = {"id": f"{key}-0", **document["event"]}
        return printable_json(msgspec.json.encode(document).decode())

    async def _write_if_verbose(self, event: EventBase) -> None:
        if self.verbose:
            await self._write(event)

    # One method under several names: the names decide what is subscribed to.
    on_run_start = on_run_complete = on_drop = on_verdict = _write
    on_phase_start = on_phase_sending_complete = on_phase_timeout = on_phase_complete = _write
    on_phase_progress = on_receipt = _write_if_verbose


class ExampleLoggingHook(EventHook):
    """Write a line for each event of a phase to a file.

    Args:
        log_file: the file to append to. If it cannot be written, that is logged, and raised only in a
            process of its own: a hook must not disturb the load generator that calls it.
        verbose: write all counts.
    """

    # The default is that of AIPerf's example plugin, whose users find their lines there.
    def __init__(self, log_file: str | Path = "/tmp/phases.log", verbose: bool = False) -> None:  # noqa: S108
        self.log_file = Path(log_file)
        self.verbose = verbose

    def take(self, event: PhaseEvent) -> None:
        try:
            file = OutputFile.of_process(self.log_file, "log_file")
            file.append(describe(event, self.verbose) + "\n")
        except (OSError, ConfigError) as error:
            if self.alone:
                raise
            logger.error("log_file %s cannot be written: %s", self.log_file, error)


def describe(event: EventBase, verbose: bool = False) -> str:
    """Return an event as one line: time, kind, subject and details."""
    return f"[{clock(event.ts_ns)}] {headline(event, verbose)}"


def clock(ts_ns: int) -> str:
    """Return a time in ns as local time, with milliseconds and the offset to UTC."""
    return datetime.fromtimestamp(ts_ns / 1e9).astimezone().isoformat(" ", "milliseconds")
