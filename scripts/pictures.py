"""The README's pictures, from a real run: ``python -m scripts.pictures`` writes them to ``docs/assets``.

AIPerf benchmarks the mock server of the examples, with ``phase-bus exec`` around it, in a terminal of tmux.
The screen at the end becomes ``terminal.svg``, and Chromium's view of the run's report ``report.png``. This
takes a minute, and needs AIPerf, tmux and chromium. The numbers differ from run to run.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "docs" / "assets"
WIDTH = 124
HEIGHT = 60
REPORT_PX = (1180, 1620)
TIMEOUT_S = 300.0
# What is typed. The script runs AIPerf, with its own output going to a file, so that the picture has ours.
TYPED = """\
phase-bus exec --with aggregator --with logging:log_file=phases.log --threshold 'error_rate < 5 %, abort' \\
    --threshold 'time_to_first_token p99 < 500 ms' -- ./benchmark.sh"""
BENCHMARK = (
    "exec aiperf profile -m my-model --url {url} --endpoint-type chat --streaming --ui none"
    " --tokenizer ./tokenizer --warmup-request-count 20 --benchmark-duration 40 --concurrency 8"
    " --output-tokens-mean 16 --output-tokens-stddev 4 --synthetic-input-tokens-mean 32 --no-gpu-telemetry"
    " >aiperf.log 2>&1"
)


def main() -> int:
    """Write both pictures."""
    with tempfile.TemporaryDirectory(prefix="phase-bus-pictures-") as name:
        place = Path(name)
        subprocess.run(
            [sys.executable, ROOT / "examples" / "make_tokenizer.py", place / "tokenizer"],
            capture_output=True,
            check=True,
        )
        with server(place) as url:
            benchmark = place / "benchmark.sh"
            benchmark.write_text(f"#!/bin/sh\n{BENCHMARK.format(url=url)}\n")
            benchmark.chmod(0o755)
            screen = run_in_terminal(TYPED, place)
        (ASSETS / "terminal.svg").write_text(as_svg(screen), encoding="utf-8")
        take_report(place)
    print(f"wrote {ASSETS / 'terminal.svg'} and {ASSETS / 'report.png'}; look at them")
    return 0


def environment(place: Path) -> dict[str, str]:
    """Return one in which `phase-bus` is that of this tree, and all that is kept is in a place."""
    programs = place / "bin"
    programs.mkdir(exist_ok=True)
    program = programs / "phase-bus"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m phase_bus "$@"\n')
    program.chmod(0o755)
    path = f"{programs}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "XDG_STATE_HOME": str(place / "state")}


@contextmanager
def server(place: Path) -> Iterator[str]:
    """Run the mock server meanwhile, and yield its URL."""
    script: list[str | Path] = [
        sys.executable,
        ROOT / "examples" / "mock_llm_server.py",
        "--exit-with-parent",
    ]
    ports = place / "port"
    options: list[str | Path] = ["--tokens", "64", "--tokenizer", place / "tokenizer", "--port-file", ports]
    process = subprocess.Popen([*script, *options], stdout=subprocess.DEVNULL)
    try:
        wait_for(ports.exists)
        yield f"http://127.0.0.1:{ports.read_text().strip()}"
    finally:
        process.terminate()
        process.wait()


def run_in_terminal(command: str, place: Path) -> str:
    """Run a command in a terminal of its own; return what is on the screen then, with its colours."""
    script, done = place / "run.sh", place / "done"
    script.write_text(f"{command}\ntouch {done}\nexec sleep 600\n")
    tmux = ["tmux", "-S", str(place / "tmux"), "-f", "/dev/null"]
    size = ["-x", str(WIDTH), "-y", str(HEIGHT)]
    start = [*tmux, "new-session", "-d", *size, "sh", str(script)]
    subprocess.run(start, cwd=place, env={**environment(place), "TERM": "xterm-256color"}, check=True)
    try:
        wait_for(done.exists)
        capture = [*tmux, "capture-pane", "-e", "-J", "-p", "-S", "-"]
        return subprocess.run(capture, capture_output=True, text=True, check=True).stdout
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("nothing came of it")
        time.sleep(0.1)


def as_svg(screen: str) -> str:
    """Return a picture of a terminal: the command as typed, and what phase-bus said."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {TYPED}", style="bold"), soft_wrap=True)
    for line in screen.rstrip().splitlines():
        console.print(Text.from_ansi(line), soft_wrap=True, end="\n")
    picture = console.export_svg(title="phase-bus", theme=MONOKAI)
    return re.sub(
        r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL
    )  # which would be fetched from a network


def take_report(place: Path) -> None:
    """Write the picture of the last run's report."""
    page = place / "report.html"
    report = ["phase-bus", "report", "latest", "--format", "html", "--output", str(page)]
    subprocess.run(report, env=environment(place), cwd=place, check=True)
    chromium = shutil.which("chromium") or "chromium-browser"
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=4000"),
        f"--user-data-dir={place / 'chromium'}",
        f"--window-size={','.join(map(str, REPORT_PX))}",
        f"--screenshot={ASSETS / 'report.png'}",
    ]
    subprocess.run(
        [chromium, *options, page.as_uri()],
        capture_output=True,
        check=True,
    )


if __name__ == "__main__":
    sys.exit(main())
