"""``phase-bus doctor``: what it says at first sight."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commands import run_here


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Return the exit code and what was said."""
    code, said, _ = run_here(capsys, "doctor", "--timeout-s", "0.1", *arguments)
    return code, said


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user that has just installed it: no address, no key, no bus."""
    monkeypatch.delenv("PHASE_BUS_ADDRESS", raising=False)
    for name in ("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path))


def test_nothing_fails_where_all_is_well(at_home: None, capsys: pytest.CaptureFixture[str]) -> None:
    """That no bus runs yet is a note, as docs/index.md says."""
    code, said = doctor(capsys)
    words = {line.split()[1]: line.split()[0] for line in said.splitlines()}
    assert code == 0
    assert (words["phase-bus"], words["key"], words["bus"]) == ("OK", "OK", "NOTE")
    assert "FAIL" not in words.values()


def test_an_address_without_a_bus_fails(at_home: None, capsys: pytest.CaptureFixture[str]) -> None:
    """One that was given, since then a bus is meant."""
    code, said = doctor(capsys, "--address", "ipc:///nowhere/at/all")
    assert code == 1
    assert said.splitlines()[-1].startswith("FAIL  bus ")
    code, said = doctor(capsys, "--address", "ipc:///nowhere/at/all", "--json")
    assert (code, json.loads(said)[-1]["verdict"]) == (1, "fail")
