"""What the page asks the bus and its journal: who is there, and what past runs were."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from phase_bus import BusClient, PhaseBusError
from phase_bus_consumers.dashboard_runs import shown

_ANSWER_S = 1.0
_REPORT_S = 300.0
_NICE = 10  # a report is made beside a benchmark that goes on
_MAX_CONSUMERS = 200
_MAX_WAITING = 8
_SILENT_S = 5.0  # from when on it is told how long a consumer has said nothing


class ReportError(Exception):
    """Why there is no report, in a line."""


class BusView:
    """A bus, seen by a consumer that is on it.

    Args:
        address: where it is, empty for nowhere.

    Attributes:
        journal: where it keeps its journal, None as long as that is not known.
        asked: whether it is known as far as it can be.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._client: BusClient | None = None
        self._one_at_a_time = asyncio.Lock()
        self._waiting = 0
        self._asking: asyncio.Task[dict[str, Any]] | None = None
        self.journal: Path | None = None
        self.asked = not address

    async def status(self) -> dict[str, Any]:
        """Return who is on it, for the page."""
        if not self._address:
            return {"answers": None, "consumers": []}
        try:
            self._asking = asyncio.create_task(asyncio.to_thread(self._ask))
            return await asyncio.shield(self._asking)
        except PhaseBusError as error:
            return {"answers": False, "problem": shown(str(error)), "consumers": []}

    async def close(self) -> None:
        """Let go of the connection."""
        if self._asking is not None:
            with suppress(PhaseBusError):
                await self._asking
        if self._client is not None:
            self._client.close()
            self._client = None

    async def summary(self, run_id: str) -> dict[str, Any]:
        """Return the summary of a run, computed from the journal.

        Raises:
            ReportError: if there is none.
        """
        return dict(msgspec.json.decode(await self._report(run_id, "json")))

    async def page(self, run_id: str) -> bytes:
        """Return the report of a run as one file of HTML.

        Raises:
            ReportError: if there is none.
        """
        return await self._report(run_id, "html")

    def _ask(self) -> dict[str, Any]:
        if self._client is None:
            self._client = BusClient(self._address)
        status = self._client.status(_ANSWER_S)
        self.journal = None if status.journal is None else Path(status.journal)
        self.asked = True
        clients = [client for client in status.clients if client.role == "consumer"]
        return {
            "answers": True,
            "bus_id": status.bus_id[:8],
            "events": status.offset,
            "consumers": [
                {
                    "name": shown(client.name),
                    "group": bool(client.group),
                    "state": client.state,
                    "host": shown(client.host),
                    "pid": client.pid,
                    "received": client.received,
                    "failed": client.failed,
                    "behind": None
                    if client.position is None
                    else max(status.offset - client.position.offset, 0),
                    "silent_s": round(client.age_s) if client.age_s > _SILENT_S else 0,
                }
                for client in sorted(clients, key=lambda client: (client.state != "ready", client.name))
            ][:_MAX_CONSUMERS],
        }

    async def _report(self, run_id: str, form: str) -> bytes:
        """Let ``phase-bus report`` make it, in a process of its own that does not keep events waiting."""
        if self.journal is None:
            raise ReportError("the bus keeps no journal that can be read")
        if self._waiting >= _MAX_WAITING:
            raise ReportError("too many reports are being made; try again in a while")
        self._waiting += 1
        try:
            async with self._one_at_a_time:
                with tempfile.TemporaryDirectory(prefix="phase-bus-") as directory:
                    return await _run_report(self.journal, run_id, form, Path(directory) / "report")
        finally:
            self._waiting -= 1


async def _run_report(journal: Path, run_id: str, form: str, output: Path) -> bytes:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "phase_bus", "report", f"--data={journal}", f"--format={form}", f"--output={output}"),
        *("--", run_id),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        os.setpriority(os.PRIO_PROCESS, process.pid, _NICE)
        async with asyncio.timeout(_REPORT_S):
            _, said = await process.communicate()
    except (TimeoutError, ProcessLookupError):
        said = b"it took too long"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        return await asyncio.to_thread(output.read_bytes)
    except FileNotFoundError:
        raise ReportError(shown(said.decode(errors="replace").strip() or "it ended early")) from None
