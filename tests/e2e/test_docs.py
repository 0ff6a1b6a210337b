"""The code in the documentation is run, page by page, from top to bottom, as a reader would."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.e2e.pages import ROOT, Page, moved, words
from tests.support.servers.process import free_port
from tests.support.workplace import Workplace, wait_for

# Pages that have tests of their own, where these are.
ELSEWHERE = {
    "guide/fleet.md": "e2e/test_fleet_guide.py",
    "guide/hooks.md": "e2e/test_guide.py",
    "guide/testing.md": "e2e/test_guides.py",
    "guide/verify.md": "e2e/test_verify.py",
    "reference/commands.md": "docs/test_reference.py",
    # Sinks need servers.
    **{
        f"guide/sinks/{path.name}": "consumers/test_log_guides.py"
        if path.stem in ("elasticsearch", "splunk", "log-files")
        else "sinks/test_guides.py"
        for path in (ROOT / "docs" / "guide" / "sinks").glob("*.md")
    },
}
# What stays running until the reader ends it, and what shows that it is up.
STAYS = {"bus": "bus ready", "up": "consumers ready", "consume": "", "dashboard": "http://"}
PAGES = sorted(
    name
    for path in (ROOT / "docs").rglob("*.md")
    if (name := str(path.relative_to(ROOT / "docs"))) not in ELSEWHERE and Page(path).commands()
)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_the_code_of_a_page(workplace: Workplace, name: str) -> None:
    """Its files are written, its commands succeed one after another."""
    page = Page(f"docs/{name}")
    place = {"ipc:///tmp": f"ipc://{workplace.directory}", "127.0.0.1:5670": f"127.0.0.1:{free_port()}"}
    place |= {port: str(free_port()) for port in ("9464", "9465")}  # of health
    place |= {
        "--with dashboard ": "--with dashboard:port=0 ",
        "phase-bus dashboard": "phase-bus dashboard --port 0",
    }
    for file, content in page.files().items():
        (workplace.directory / file).write_text(moved(content, place))
    environment: dict[str, str] = {}
    staying: list[subprocess.Popen[str]] = []
    for command in page.commands():
        command = moved(command, place)
        if command == "pip install .":
            continue  # done already
        if " aiperf " in command:  # needs a server; the README's is run against one
            assert command in Page("README.md").commands()
            continue
        if found := re.fullmatch(r"export (\w+)=(\S+)", command):
            environment[found[1]] = found[2]
            continue
        line = words(command)
        process = workplace.start(*line, **environment)
        if (up := STAYS.get(command.split()[1])) is None:
            done = workplace.finish(process)
            assert done.returncode == 0, (command, done.stderr, done.stdout)
            continue
        staying.append(process)
        wait_for(lambda: up in workplace.stdout(process) + workplace.stderr(process), command)  # noqa: B023
    for process in reversed(staying):
        process.send_signal(signal.SIGTERM)
        assert workplace.finish(process).returncode == 0


@pytest.mark.parametrize(("name", "test"), ELSEWHERE.items())
def test_the_others_have_tests(name: str, test: str) -> None:
    """Each page that is left out above is named in the file that is said to test it."""
    assert re.search(rf"[\"/]{Path(name).stem}(\.md)?\"", (ROOT / "tests" / test).read_text())
