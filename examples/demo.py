"""What ``make demo`` runs: a real AIPerf benchmark, followed live by four processes of phase-bus.

It makes a tokenizer, starts a mock LLM server on a free port, and runs ``phase-bus exec`` around
``aiperf profile``, leaving everything in ``demo-output/run-.../`` (``demo-output/latest`` points to
the newest). More arguments are passed on to ``aiperf profile``. Its exit code is that of
``phase-bus exec``.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = Path(__file__).resolve().parent
# Relative, so that the command line that is shown can be typed; all processes of the demo run in ROOT.
OUTPUT = Path("demo-output")
TOKENIZER = OUTPUT / "tokenizer"
BIN = Path(sys.executable).parent

SERVER_START_S = 30.0
SERVER_STOP_S = 5.0


class DemoError(Exception):
    """The demo cannot go on; the message is for the user."""


def main(argv: list[str]) -> int:
    """Run the demo and return the exit code."""
    os.chdir(ROOT)
    missing = [name for name in ("phase-bus", "aiperf") if not (BIN / name).exists()]
    try:
        if missing:
            raise DemoError(f"{' and '.join(missing)} not found in {BIN}: run it with `make demo`")
        output = make_output()
        make_tokenizer()
        with mock_server(output) as url:
            code = run(command(output, url, argv))
    except DemoError as exc:
        print(f"demo: {exc}", file=sys.stderr)
        return 2
    point_latest_to(output)
    report(output)
    return code


def make_output() -> Path:
    """Make this run's own directory: two demos at a time do not meet."""
    output = OUTPUT / f"run-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"
    try:
        output.mkdir(parents=True)
    except OSError as exc:
        raise DemoError(f"cannot make {output}: {exc.strerror}") from exc
    return output


def make_tokenizer() -> None:
    """Make the tokenizer, once for all demos."""
    script: list[str | Path] = [sys.executable, EXAMPLES / "make_tokenizer.py", TOKENIZER]
    # Shown on failure only: transformers always remarks that it found no PyTorch.
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DemoError(f"making the tokenizer failed:\n{done.stderr}")


@contextlib.contextmanager
def mock_server(output: Path) -> Iterator[str]:
    """Run the mock server meanwhile, and yield its URL."""
    port_file, log = output / "mock-server.port", output / "mock-server.log"
    script: list[str | Path] = [sys.executable, EXAMPLES / "mock_llm_server.py"]
    # 64 words at most: the length that AIPerf asks for decides.
    options = ["--exit-with-parent", "--tokens", "64", "--tokenizer", str(TOKENIZER)]
    with log.open("wb") as log_file:
        # In a session of its own, so that Ctrl-C reaches the benchmark and not the server under it.
        server = subprocess.Popen(
            [*script, *options, "--port-file", port_file],
            stdout=log_file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield f"http://127.0.0.1:{wait_for_port(server, port_file, log)}"
    finally:
        stop(server)
        port_file.unlink(missing_ok=True)


def wait_for_port(server: subprocess.Popen[bytes], port_file: Path, log: Path) -> int:
    """Wait until the server has written its port."""
    deadline = time.monotonic() + SERVER_START_S
    while not port_file.exists():
        if server.poll() is not None or time.monotonic() > deadline:
            raise DemoError(f"the mock server did not start:\n{log.read_text()}")
        time.sleep(0.02)
    return int(port_file.read_text())


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process, by force if it does not listen."""
    process.terminate()
    try:
        process.wait(SERVER_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def command(output: Path, url: str, extra: list[str]) -> list[str]:
    """The whole command line, as one would type it."""
    consumers = [
        f"logging:log_file={output}/phases.log",
        f"metrics:output={output}/metrics.json",
        f"aggregator:output={output}/summary.json,text={output}/summary.txt",
        "alerting:threshold_s=8",  # so that the ten seconds of load give an alert to look at
    ]
    benchmark = (
        f"aiperf profile -m mock --url {url} --endpoint-type chat --streaming"
        f" --tokenizer ./{TOKENIZER} --warmup-request-count 20 --benchmark-duration 10"
        " --concurrency 8 --output-tokens-mean 16 --output-tokens-stddev 4"
        f" --synthetic-input-tokens-mean 32 --ui none --artifact-dir {output}/aiperf"
    )
    with_options = [part for consumer in consumers for part in ("--with", consumer)]
    return ["phase-bus", "exec", *with_options, "--", *benchmark.split(), *extra]


def run(args: list[str]) -> int:
    """Show the command line, run it, and return its exit code as a shell would give it."""
    lines = shlex.join(args).replace(" --with ", " \\\n    --with ").replace(" -- ", " \\\n    -- ")
    print(f"$ {lines}\n", flush=True)
    path = f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"
    process = subprocess.Popen([BIN / args[0], *args[1:]], env={**os.environ, "PATH": path})

    def pass_on(signum: int, _frame: FrameType | None) -> None:
        # Ctrl-C has reached it already, as it is in our process group; SIGTERM has not.
        if signum == signal.SIGTERM:
            process.send_signal(signum)

    before = {signum: signal.signal(signum, pass_on) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = process.wait()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    return code if code >= 0 else 128 - code


def point_latest_to(output: Path) -> None:
    """Let demo-output/latest point to this run; replaced in one step, never absent."""
    aside = OUTPUT / f".latest-{os.getpid()}"
    aside.symlink_to(output.name)
    aside.replace(OUTPUT / "latest")


def report(output: Path) -> None:
    """Say which files there are to look at."""
    wanted = {
        "phases.log": "the phases as they came (logging)",
        "metrics.json": "counts and durations per phase (metrics)",
        "summary.json": "statistics of every metric (aggregator)",
        "summary.txt": "the same as a text report",
        "aiperf/profile_export_aiperf.json": "AIPerf's own results, to compare with",
        "aiperf/profile_export.jsonl": "AIPerf's own records, one per request",
    }
    there = {output / name: what for name, what in wanted.items() if (output / name).exists()}
    if not there:
        return
    print(f"\nWhere to look ({OUTPUT / 'latest'} points to the same):", flush=True)
    width = max(len(str(path)) for path in there)
    for path, what in there.items():
        print(f"  {path!s:{width}}  {what}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
