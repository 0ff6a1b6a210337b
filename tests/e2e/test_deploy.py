"""deploy/: what it starts really starts, with the options that it gives, and does what it is for."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.pages import PROGRAM, ROOT, moved
from tests.support.servers.process import free_port
from tests.support.workplace import Workplace, wait_for

DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").iterdir())
WORKFLOW = DEPLOY / "github-actions" / "benchmark.yml"
BINARY = "/opt/phase-bus/bin/phase-bus"
NATS_BINARY = "/usr/local/bin/nats-server"


def unit(name: str) -> dict[str, str]:
    """Return what a unit says about its service."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((DEPLOY / "systemd" / name).read_text())
    return dict(parser["Service"])


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_takes_the_units(path: Path, tmp_path: Path) -> None:
    """It knows each key and value."""
    for each in UNITS:
        text = each.read_text().replace(BINARY, sys.executable).replace(NATS_BINARY, sys.executable)
        (tmp_path / each.name.replace("@", "@logging")).write_text(text)
    copy = str(tmp_path / path.name.replace("@", "@logging"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_the_units_work_together(workplace: Workplace) -> None:
    """The bus is ready, the consumer follows a run on it, and SIGTERM ends both well."""
    place = {"/run/phase-bus": f"{workplace.directory}/run", "/var/lib": str(workplace.directory)}
    run = workplace.directory / "run"
    run.mkdir()
    run.chmod(int(unit("phase-bus.service")["RuntimeDirectoryMode"], 8))
    bus = workplace.start(*line_of(unit("phase-bus.service")["ExecStart"], place))
    wait_for(lambda: "bus ready" in workplace.stdout(bus), "the bus")
    service = unit("phase-bus-consume@.service")
    text = (DEPLOY / "systemd" / "phase-bus-consume@.service").read_text()
    (options,) = re.findall(r"^#   CONSUMER=(\S+)$", text, re.MULTILINE)
    log = Path(moved(options.partition("log_file=")[2].partition(",")[0], place))
    log.parent.mkdir()
    place |= {"%i": "logging", "${CONSUMER}": moved(options, place)}
    given: Any = dict(pair.split("=", 1) for pair in shlex.split(moved(service["Environment"], place)))
    assert given["CONSUMER"] == "logging"  # without such a file
    consumer = workplace.start(*line_of(service["ExecStart"], place), **given)
    assert workplace.run("simulate", "--requests", "20", "--rate", "0", **given).returncode == 0
    wait_for(lambda: log.exists() and "PROFILING" in log.read_text(), "the consumer's lines")
    for process in (consumer, bus):
        process.terminate()
        assert workplace.finish(process).returncode == 0


def line_of(command: str, place: dict[str, str]) -> list[str]:
    """Return a unit's command, with the program under test and places of the test's own."""
    first, *rest = shlex.split(moved(command, {" $OPTIONS": "", **place}))  # which are not given
    assert first == BINARY
    return [*PROGRAM, *rest]


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines) if word]


@pytest.mark.slow
def test_the_image_has_what_it_is_built_of(tmp_path: Path) -> None:
    """What the Dockerfile copies makes the wheel that it installs, and there are such extras."""
    stage = instructions()[: [word for word, _ in instructions()].index("FROM", 1)]
    for word, rest in stage:
        if word == "COPY":
            *sources, target = rest.split()
            for source in sources:
                copy_into(ROOT / source, Path(f"{tmp_path}{target}"), is_only=len(sources) == 1)
    (build,) = [rest for word, rest in stage if word == "RUN"]
    pip, *arguments = shlex.split(
        moved(build, {"/wheels": f"{tmp_path}/wheels", "/source": f"{tmp_path}/source"})
    )
    assert pip == "pip"
    here = ["--no-build-isolation", "--no-index"]  # this environment has what builds it
    command = [sys.executable, "-m", "pip", *arguments, *here]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    install = next(rest for word, rest in instructions() if "pip install" in rest)
    pattern, extras = re.findall(r"ls /wheels/(\S+)\)\[(.*?)\]", install)[0]
    assert len(list((tmp_path / "wheels").glob(pattern))) == 1
    assert set(extras.split(",")) <= known_extras()


def known_extras() -> set[str]:
    """Return the names of the extras that there are."""
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def copy_into(source: Path, target: Path, *, is_only: bool) -> None:
    """Copy as Docker does: a directory's content, or files into a directory."""
    if source.is_dir():
        assert is_only
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


@pytest.mark.slow
def test_the_container_runs_a_bus(workplace: Workplace) -> None:
    """By its own command and environment: it makes a key, is healthy, and stops when it is asked to."""
    last = dict(instructions())
    port = free_port()
    place = {
        "/var/lib/phase-bus": str(workplace.directory),
        "0.0.0.0:5670": f"127.0.0.1:{port}",
        "127.0.0.1:5670": f"127.0.0.1:{port}",
    }
    environment: Any = dict(pair.split("=", 1) for pair in moved(last["ENV"], place).split())
    assert json.loads(last["ENTRYPOINT"]) == ["phase-bus"]
    assert last["EXPOSE"] == "5670 5671 5672"
    made = workplace.run("keys", "new", **environment)
    assert made.returncode == 0, made.stderr
    key = workplace.directory / "config" / "phase-bus" / "key.yaml"
    assert key.exists()
    bus = workplace.phase_bus(*json.loads(moved(last["CMD"], place)), **environment)
    wait_for(lambda: "bus ready" in workplace.stdout(bus), "the bus")
    assert str(key) in workplace.stdout(bus)
    program, *health = json.loads(last["HEALTHCHECK"].partition(" CMD ")[2])
    assert program == "phase-bus"
    checked = workplace.run(*health, **environment)
    assert checked.returncode == 0, checked.stderr
    bus.terminate()
    assert workplace.finish(bus).returncode == 0
    assert list((workplace.directory / "state").rglob("*.sqlite"))


def steps() -> dict[str, str]:
    """Return what the workflow's steps run, by their names."""
    (job,) = yaml.safe_load(WORKFLOW.read_text())["jobs"].values()
    return {step["name"]: step["run"] for step in job["steps"] if "run" in step}


def run_step(workplace: Workplace, script: str, **environment: str) -> int:
    """Run a step as the runner does, with the program under test on its path; return the exit code."""
    program = workplace.directory / "bin" / "phase-bus"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec {shlex.join(PROGRAM)} "$@"\n')
    program.chmod(0o755)
    path = os.pathsep.join((str(program.parent), str(Path(sys.executable).parent), os.environ["PATH"]))
    summary = workplace.directory / "step-summary.md"
    started = workplace.start(
        *("bash", "-e", "-c", script),
        PATH=path,
        GITHUB_SHA="abc1234",
        GITHUB_STEP_SUMMARY=str(summary),
        **environment,
    )
    return workplace.finish(started).returncode


@pytest.mark.slow
def test_the_job_fails_by_a_threshold(workplace: Workplace) -> None:
    """With 4, and what it shows and keeps is there all the same."""
    script = re.sub(
        r"aiperf profile (.|\\\n)*", "phase-bus simulate --requests 100 --rate 0", steps()["Benchmark"]
    )
    assert run_step(workplace, script.replace("< 500 ms", "< 0.001 ms")) == 4
    assert run_step(workplace, steps()["Report"]) == 0
    assert "time_to_first_token" in (workplace.directory / "step-summary.md").read_text()
    assert "<failure" in (workplace.directory / "verdicts.xml").read_text()
    assert (workplace.directory / "report.html").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.aiperf
def test_the_job_passes(workplace: Workplace, mock_llm: Callable[..., str], tokenizer: Path) -> None:
    """The step as it is, AIPerf in it; but for a tokenizer, which would be fetched."""
    (workplace.directory / "tok").symlink_to(tokenizer)
    script = steps()["Benchmark"].rstrip() + " --tokenizer ./tok"
    place: dict[str, Any] = {"LLM_URL": mock_llm(), "LLM_MODEL": "mock", "REQUESTS": "40"}
    assert run_step(workplace, script.replace("< 500 ms", "< 5 s"), **place) == 0
    assert (workplace.directory / "verdicts.xml").read_text().count("<testcase ") == 2


def test_the_extras_it_installs_are_there() -> None:
    """Those of the workflow, and of the comments that say how to install a unit."""
    known = known_extras()
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            for extras in re.findall(r"'phase-bus\[(.*?)\]'", path.read_text()):
                assert set(extras.split(",")) <= known, path


def test_each_file_is_named_in_its_page() -> None:
    """deploy/README.md has a line for each."""
    page = (DEPLOY / "README.md").read_text()
    for path in DEPLOY.rglob("*"):
        assert path.is_dir() or path.name == "README.md" or f"`{path.relative_to(DEPLOY)}`" in page
