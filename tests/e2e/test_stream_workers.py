"""Workers on a stream in NATS are killed and suspended, their coordinator too: the result is whole."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from phase_bus.bus.groups import GroupState
from phase_bus.core.control import EVENTS
from phase_bus.jetstream.coordinator import GroupNote, MemberNote
from phase_bus.jetstream.notes import read_note
from phase_bus.reporting.source import compute
from phase_bus.testing import LiveBus, wait_until
from tests.support.fleet import await_results, results, worker
from tests.support.load import Load
from tests.support.processes import Killable
from tests.support.servers.nats import NatsServer
from tests.support.streams import opened

pytestmark = pytest.mark.slow


class Team:
    """The workers of the group ``team``, as the notes beside the stream show them."""

    def __init__(self, directory: Path, url: str) -> None:
        self._directory, self._url = directory, url
        self.workers: list[Killable] = []

    def add(self) -> None:
        """Start one more."""
        self.workers.append(worker(self._directory, len(self.workers), self._url))
        self.workers[-1].start()

    def look(self) -> tuple[GroupNote | None, dict[str, int]]:
        """Return the note of the group, None for none, and the pids of the members by client id."""

        async def look() -> tuple[GroupNote | None, dict[str, int]]:
            async with opened(self._url) as (_, _, keys):
                kept = await keys.get("group.team")
                notes = await keys.all("member.team")
            members = [read_note(MemberNote, key, each).hello for key, each in notes.items()]
            note = None if kept is None else read_note(GroupNote, "group.team", kept)
            return note, {hello.client_id: hello.pid for hello in members}

        return asyncio.run(look())

    def await_shared(self, *pids: int) -> tuple[int, int]:
        """Wait until just these share all the work; return the pids of coordinator and leader."""

        def shared() -> tuple[int, int] | bool:
            for each in self.workers:
                assert each.runs or each.pid not in pids, each.tail()
            note, known = self.look()
            if note is None or {known.get(member) for member in _owners(note.state)} != set(pids):
                return False
            return note.pid, known[note.state.assignments[EVENTS].owner or ""]

        found = wait_until(shared, 40)
        assert isinstance(found, tuple)
        return found


def _owners(state: GroupState) -> set[str]:
    return {"" if each.target != each.owner else each.owner or "" for each in state.assignments.values()}


@contextmanager
def team(directory: Path, url: str, count: int) -> Iterator[Team]:
    """Some workers, killed at the end."""
    found = Team(directory, url)
    try:
        for _ in range(count):
            found.add()
        yield found
    finally:
        for each in found.workers:
            if each.runs:
                os.kill(each.pid, signal.SIGCONT)
                each.kill()


def test_workers_are_killed_and_suspended(nats: NatsServer, tmp_path: Path) -> None:
    """First the coordinator sleeps for longer than its lease, then the leader is killed, then NATS."""
    with (
        LiveBus("--forward", nats.url) as bus,
        Load(bus.address, "run") as load,
        team(tmp_path, nats.url, 3) as found,
    ):
        first, second, third = (each.pid for each in found.workers)
        pids = {first, second, third}
        asleep, _ = found.await_shared(*pids)
        os.kill(asleep, signal.SIGSTOP)
        others = pids - {asleep}
        coordinator, leader = found.await_shared(*others)
        assert coordinator in others
        os.kill(leader, signal.SIGKILL)
        os.kill(asleep, signal.SIGCONT)
        found.add()
        here = pids - {leader} | {found.workers[-1].pid}
        found.await_shared(*here)
        nats.kill()
        nats.start()
        records = load.end()
        alive = [each for each in found.workers if each.pid in here]
        await_results(tmp_path / "team.json", {"run": records}, *alive)
        assert results(tmp_path / "team.json")["run"] == compute(bus.directory / "journal", "run").summary
