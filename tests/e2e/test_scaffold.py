"""`phase-bus new consumer`: what it writes works, as it is, wherever phase-bus is installed."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from phase_bus.errors import ConfigError
from phase_bus.events import KINDS as EVENT_KINDS
from phase_bus.plugins.scaffold import DEFAULT_KINDS, write_consumer
from phase_bus.plugins.scaffold.handlers import HANDLED
from tests.support.commands import run_here
from tests.support.workplace import Workplace, json_lines

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = ROOT / "src" / "phase_bus" / "plugins" / "scaffold" / "consumer"
LONG = "a-name-that-is-as-long-as-goes"


def run(directory: Path, *arguments: str) -> str:
    """Run a Python module's command in a directory; return what it said."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=directory, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def new(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the command; return exit code, standard output and standard error."""
    return run_here(capsys, "new", "consumer", *arguments)


KINDS = {  # that a consumer may be asked to handle
    "records": "records",
    "one": "phase_complete",
    "the end": "run_complete",
    "both": "phase_complete,records",
    "all": ",".join(HANDLED),
}


@pytest.mark.parametrize("name", ["x", "slow-requests", LONG])
@pytest.mark.parametrize("on", [DEFAULT_KINDS, *KINDS.values()], ids=["default", *KINDS])
def test_what_it_writes_is_clean(tmp_path: Path, name: str, on: str) -> None:
    """It passes ruff, whatever the name's length and the kinds of event."""
    write_consumer(name, tmp_path / "package", on)
    run(tmp_path / "package", "ruff", "check", "--no-cache")
    run(tmp_path / "package", "ruff", "format", "--check", "--no-cache")


def test_it_handles_what_was_asked_for(tmp_path: Path) -> None:
    """These kinds, in this order, and no others; what is no kind of event is named."""
    write_consumer("watch", tmp_path / "package", "phase_complete, on_records")
    code = (tmp_path / "package" / "src" / "watch" / "consumer.py").read_text()
    assert re.findall(r"async def (on_\w+)", code) == ["on_phase_complete", "on_records"]
    with pytest.raises(ConfigError, match="did you mean 'phase_complete'"):
        write_consumer("watch", tmp_path / "other", "phase_complet")
    with pytest.raises(ConfigError, match="no kind of event; known: drop, "):
        write_consumer("watch", tmp_path / "other", " ,")
    assert not (tmp_path / "other").exists()
    assert {*HANDLED} == {*EVENT_KINDS} - {"heartbeat"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("on", "tests"), [(DEFAULT_KINDS, 5), (KINDS["all"], 16), (KINDS["one"], 3), (KINDS["the end"], 3)]
)
def test_what_it_writes_passes_its_tests_and_types(tmp_path: Path, on: str, tests: int) -> None:
    """pytest and mypy (strict) pass."""
    write_consumer("slow-requests", tmp_path / "package", on)
    said = run(tmp_path / "package", "pytest", "-p", "no:dash", "-W", "error")
    assert f"{tests} passed" in said
    if on == KINDS["all"]:
        run(tmp_path / "package", "mypy")


def test_it_says_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every file, then three commands; the package is in a directory of its name."""
    monkeypatch.chdir(tmp_path)
    code, out, _ = new(capsys, "slow-requests")
    assert code == 0
    written = re.findall(r"^wrote (.*)$", out, re.MULTILINE)
    assert sorted(written) == sorted(
        str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()
    )
    assert "slow-requests/src/slow_requests/registry.yaml" in written
    commands = out.partition("Next:\n")[2].splitlines()
    words = [shlex.split(command) for command in commands]
    assert {Path(shutil.which(word[0]) or "").resolve() for word in words} == {
        Path(sys.executable).resolve()
    }
    assert [word[2] for word in words] == ["pip", "pytest", "phase_bus"]
    assert words[0][-1] == "slow-requests[dev]"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Slow", "lower-case letters"),
        ("slow requests", "lower-case letters"),
        ("2fast", "lower-case letters"),
        ("class", "lower-case letters"),
        ("../slow", "lower-case letters"),
        (LONG + "x", "up to 30"),
        ("metrics", "is taken"),
        ("json", "Python module 'json'"),
        ("phase-bus", "Python module 'phase_bus'"),
    ],
)
def test_a_bad_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, why: str
) -> None:
    """In one line, with exit code 2, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    code, out, err = new(capsys, name)
    assert (code, out) == (2, "")
    assert err.startswith(f"phase-bus: consumer name {name!r}: ")
    assert why in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_there_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even an empty one; one that cannot be created is reported too."""
    code, _, err = new(capsys, "slow-requests", "--directory", str(tmp_path))
    assert code == 2
    assert "exists already; give another one with --directory" in err
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written: Not a directory"):
        write_consumer("slow-requests", tmp_path / "file" / "package")


@pytest.mark.slow
def test_the_wheel_has_the_templates(tmp_path: Path) -> None:
    """All of them: an installed phase-bus writes what a clone does."""
    run(ROOT, "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    templates = {str(path.relative_to(ROOT / "src")) for path in TEMPLATES.rglob("*.tmpl")}
    assert len(templates) == 7
    assert templates <= names


@pytest.mark.slow
def test_installed_in_another_environment(workplace: Workplace) -> None:
    """By pip in a fresh environment: it is listed, and works in `exec`, by name and with options."""
    write_consumer("slow-requests", workplace.directory / "package")
    python = environment(workplace.directory / "venv")
    install = ("pip", "--python", str(python), "install", "-q", "--no-deps", "--no-build-isolation")
    run(workplace.directory, *install, "--disable-pip-version-check", "./package")
    listed = workplace.finish(workplace.start(str(python), "-m", "phase_bus", "consumers", "--json"))
    (entry,) = (e for e in json.loads(listed.stdout) if e["name"] == "slow-requests")
    assert (entry["plugin"], entry["tags"], entry["problem"]) == ("slow-requests", ["metrics"], "")
    defaults = {option["name"]: option["default"] for option in entry["options"]}
    assert (defaults["output"], defaults["threshold_ms"]) == ("slow-requests.json", "1000")
    simulate = (str(python), "-m", "phase_bus", "simulate", "-n", "500", "-r", "0")
    use = ("--with", "slow-requests:threshold_ms=0.001", "--with", "logging:log_file=log,json=true")
    done = workplace.finish(
        workplace.start(str(python), "-m", "phase_bus", "exec", *use, "--", *simulate), timeout_s=100
    )
    assert done.returncode == 0, done.stderr
    (counts,) = workplace.json("slow-requests.json").values()
    (end,) = (
        event
        for event in json_lines((workplace.directory / "log").read_text())
        if event["event"] == "run_complete"
    )
    assert 500 < counts["slow_requests"] < end["records"] == 550
    assert workplace.run("consume", "slow-requests", timeout_s=20).returncode == 2, "not installed here"


def environment(directory: Path) -> Path:
    """Make an environment that has what this one has, and return its Python."""
    venv.create(directory, symlinks=True)
    (packages,) = directory.glob("lib/python*/site-packages")
    lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
    (packages / "parent.pth").write_text("\n".join(lines) + "\n")
    assert os.access(directory / "bin" / "python", os.X_OK)
    return directory / "bin" / "python"
