"""Runs of pytest in projects of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

OTHERS = ("-p", "no:dash", "-p", "no:locust", "-p", "no:cacheprovider", "-W", "error")


def run_pytest(directory: Path, *options: str) -> str:
    """Run pytest in a project of its own; return what it said."""
    scope = "" if "no:asyncio" in options else "asyncio_default_fixture_loop_scope = function\n"
    (directory / "pytest.ini").write_text(f"[pytest]\n{scope}")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *OTHERS, *options],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
