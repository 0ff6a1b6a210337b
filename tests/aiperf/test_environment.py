"""Whether an AIPerf that is only files can be told to have the plugin or not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from phase_bus.aiperf.environment import has_dashboard, lack_of_plugin
from tests.support.workplace import Workplace


class Environment:
    """A virtual environment as files, with a script ``aiperf`` that does nothing."""

    def __init__(
        self, path: Path, version: str = "0.13.0", *, plugin: bool = False, long: bool = False
    ) -> None:
        self.path = path
        self.python, self.aiperf = path / "bin" / "python", path / "bin" / "aiperf"
        self.site = path / "lib" / "python3.11" / "site-packages"
        self.aiperf.parent.mkdir(parents=True)
        self.write("../../../pyvenv.cfg", "include-system-site-packages = false\n")
        first = (
            f"#!/bin/sh\n'''exec' '{self.python}' \"$0\" \"$@\"\n' '''\n" if long else f"#!{self.python}\n"
        )
        self.aiperf.write_text(f"{first}import aiperf\n")
        self.python.write_text('#!/bin/sh\necho ran "$@"\n')
        for program in (self.aiperf, self.python):
            program.chmod(0o755)
        self.install("aiperf", version, "[aiperf.plugins]\naiperf = aiperf.plugin:plugins.yaml\n")
        exporters = "" if version.startswith("0.11") else "stream_exporter:\n  protocol: x\n"
        self.write("aiperf/plugin/categories.yaml", f"ui:\n  protocol: x\n{exporters}")
        if plugin:
            self.install(
                "phase_bus", "0.1.0", "[aiperf.plugins]\nphase_bus = phase_bus.aiperf:plugins.yaml\n"
            )

    def install(self, name: str, version: str, entry_points: str) -> None:
        self.write(f"{name}-{version}.dist-info/METADATA", f"Name: {name}\nVersion: {version}\n")
        self.write(f"{name}-{version}.dist-info/entry_points.txt", entry_points)

    def write(self, name: str, text: str) -> None:
        path = self.site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_an_environment_with_the_plugin_lacks_nothing(tmp_path: Path) -> None:
    there = Environment(tmp_path / "a", plugin=True)
    assert lack_of_plugin((str(there.aiperf), "profile")) == ""
    assert lack_of_plugin((str(there.python), "-m", "aiperf", "profile")) == ""


@pytest.mark.parametrize("long", [False, True])
def test_an_environment_without_the_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long: bool
) -> None:
    """By its script's path or name, by its Python, by uv in its project: with what to type."""
    bare = Environment(tmp_path / ".venv", long=long)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    monkeypatch.setenv("PATH", str(bare.aiperf.parent))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("UV_PROJECT_ENVIRONMENT", raising=False)
    for command in (
        [str(bare.aiperf), "profile"],
        ["aiperf", "profile"],
        [str(bare.python), "-m", "aiperf"],
        ["uv", "run", "aiperf", "profile"],
    ):
        said = lack_of_plugin(command)
        assert "no phase-bus plugin" in said, command
        assert f"{bare.python} -m pip install phase-bus" in said


def test_an_aiperf_without_stream_exporters(tmp_path: Path) -> None:
    """The plugin may be there: it is never called."""
    old = Environment(tmp_path / "old", "0.11.0", plugin=True)
    assert "AIPerf 0.11.0 has no stream exporters" in lack_of_plugin([str(old.aiperf)])


def test_what_cannot_be_told_is_not_said(tmp_path: Path) -> None:
    """Other programs, scripts of another kind, environments over others, nonsense."""
    env = Environment(tmp_path / "a")
    (env.path / "pyvenv.cfg").write_text("include-system-site-packages = true\n")
    binary = tmp_path / "aiperf"
    binary.write_bytes(b"\x7fELF\xff\xfe")
    binary.chmod(0o755)
    empty = Environment(tmp_path / "b")
    shutil.rmtree(empty.site)
    for program in (env.aiperf, binary, empty.aiperf, "aiperf-that-is-nowhere", "true", "python", ""):
        assert lack_of_plugin([str(program)]) == ""


def test_exec_says_it_at_once_and_goes_on(workplace: Workplace) -> None:
    """Before the command runs; its exit code stays its own."""
    bare = Environment(workplace.directory / "venv")
    done = workplace.run("exec", "--quiet", "--allow-no-run", "--", str(bare.aiperf), "profile")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ran ")
    assert "no phase-bus plugin" in done.stderr


def test_doctor_says_it_too(workplace: Workplace) -> None:
    """Of the AIPerf in its own environment: that it registers the plugin is not enough."""
    old = Environment(workplace.directory / "old", "0.11.0")
    done = workplace.run("doctor", "--timeout-s", "0.1", PYTHONPATH=str(old.site))
    assert done.returncode == 1
    assert "AIPerf 0.11.0 has no stream exporters" in done.stdout
    assert "AIPerf sees the stream exporter" not in done.stdout


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("aiperf profile -m m", True),
        ("/x/bin/aiperf profile --ui dashboard", True),
        ("python3.11 -m aiperf profile --ui-type=dashboard", True),
        ("uv run aiperf profile", True),
        ("aiperf profile --ui none --ui dashboard", True),
        ("aiperf profile --config dashboard.yaml", True),
        ("aiperf profile --config nowhere.yaml", True),
        ("aiperf profile --ui none", False),
        ("aiperf profile --ui=simple", False),
        ("aiperf profile --ui-type none", False),
        ("aiperf profile -v", False),
        ("aiperf profile --extra-verbose", False),
        ("aiperf profile -f simple.yaml", False),
        ("aiperf plot", False),
        ("aiperf", False),
        ("python script.py profile", False),
        ("./nightly.sh", False),
    ],
)
def test_which_command_has_a_dashboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, expected: bool
) -> None:
    """AIPerf's rules: the last option, its configuration file, other displays with -v."""
    (tmp_path / "simple.yaml").write_text("benchmark:\n  runtime:\n    ui: simple\n")
    (tmp_path / "dashboard.yaml").write_text("benchmark:\n  model: m\n")
    monkeypatch.chdir(tmp_path)
    assert has_dashboard(command.split()) == expected
