"""Which buses run: each is listed while it lives, and no longer, however it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from phase_bus.cli.options import find_bus, parse_address
from phase_bus.core.address import ADDRESS_VARIABLE, Address
from phase_bus.errors import ConfigError
from phase_bus.journal.running import listed, name_running, running_buses
from tests.support.buses import BusThread
from tests.support.commands import run_here

KILLED = """
import os
from phase_bus.core.address import Address
from phase_bus.journal.running import listed
with listed([Address.parse("ipc:///tmp/killed")]):
    os._exit(0)
"""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directories of a user who has nothing yet."""
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "state" / "phase-bus" / "buses"


def parse(*texts: str) -> list[Address]:
    return [Address.parse(text) for text in texts]


def test_a_bus_is_listed_while_it_runs(state: Path) -> None:
    """By the address that clients of this machine take: the Unix sockets, if there are any."""
    with listed(parse("tcp://0.0.0.0:5670")), listed(parse("tcp://*:1", "ipc:///tmp/b")):
        assert [bus.address for bus in running_buses()] == ["ipc:///tmp/b", "tcp://127.0.0.1:5670"]
        assert {bus.pid for bus in running_buses()} == {os.getpid()}
        assert name_running(but="ipc:///tmp/b").startswith("; running now: tcp://127.0.0.1:5670 (")
    assert running_buses() == []
    assert list(state.iterdir()) == []


def test_one_that_was_killed_is_not_listed(state: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED], check=True, timeout=60)
    assert len(list(state.iterdir())) == 1
    assert running_buses() == []
    assert list(state.iterdir()) == []
    assert name_running(but="") == ""


def test_one_of_another_machine_is_not_listed(state: Path) -> None:
    """Which shares the home directory; and what is no such file keeps nobody from looking."""
    with listed(parse("ipc:///tmp/b")):
        (path,) = state.iterdir()
        path.write_text(path.read_text().replace('"host":"', '"host":"not-'))
        (state / "odd.json").write_text("{")
        assert running_buses() == []
        assert path.exists()


def test_a_bus_starts_where_nothing_can_be_listed(state: Path) -> None:
    state.parent.parent.mkdir()
    state.parent.touch()
    with listed(parse("ipc:///tmp/b")):
        assert running_buses() == []


def test_status_without_an_address_shows_what_runs(
    ipc_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One bus as it is, several as a list; with an address that one, as ever."""
    with (
        BusThread(f"ipc://{ipc_dir}/a") as first,
        BusThread("tcp://127.0.0.1:0") as second,
        listed(first.bus.addresses),
    ):
        code, out, _ = run_here(capsys, "status")
        assert (code, f"at {first.address}" in out, "no runs yet" in out) == (0, True, True)
        with listed(second.bus.addresses), listed(parse("ipc:///tmp/nobody-is-here")):
            code, out, _ = run_here(capsys, "status")
            rows = {line.split()[0]: line for line in out.splitlines()}
            assert rows.keys() >= {first.address, second.address}
            assert "does not answer" in rows["ipc:///tmp/nobody-is-here"]
            told = json.loads(run_here(capsys, "status", "--json")[1])
            assert [bus["addresses"] for bus in told] == [[second.address], [first.address]]
        told = json.loads(run_here(capsys, "status", "--json", "--address", first.address)[1])
        assert told["addresses"] == [first.address]


def test_who_looks_on_takes_the_only_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as none is given, or runs where it is looked for first."""
    default = str(parse_address(None))
    assert str(find_bus(None)) == default
    with listed(parse("ipc:///tmp/of-an-exec")):
        assert str(find_bus(None)) == "ipc:///tmp/of-an-exec"
        assert str(find_bus("ipc:///tmp/b")) == "ipc:///tmp/b"
        with listed(parse("ipc:///tmp/of-another")):
            with pytest.raises(ConfigError, match="2 buses run here; choose one with --address: ipc:"):
                find_bus(None)
            with listed(parse(default)):
                assert str(find_bus(None)) == default
        monkeypatch.setenv(ADDRESS_VARIABLE, "tcp://127.0.0.1:1")
        assert str(find_bus(None)) == "tcp://127.0.0.1:1"


def test_who_finds_no_bus_is_told_which_run(capsys: pytest.CaptureFixture[str]) -> None:
    with listed(parse("ipc:///tmp/of-an-exec")):
        code, _, err = run_here(capsys, "simulate", "-n", "1")
    assert code == 2
    assert "no bus answers at" in err
    assert "running now: ipc:///tmp/of-an-exec (choose one with --address)" in err
    assert err.count("\n") == 1
