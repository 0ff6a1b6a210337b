"""A server that speaks MongoDB's wire protocol: SecantusDB, which is not MongoDB."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pymongo import MongoClient

from tests.support.servers.process import HOST, ServerProcess, listens

USER, PASSWORD = "tester", "s3cret-of-the-tests"


class MongoDB(ServerProcess):
    """A server that survives ``kill()`` with all that it had acknowledged.

    Args:
        directory: where its data is.
        auth: whether clients must log in, as USER with PASSWORD; it takes a start more.
    """

    scheme = "mongodb"

    def __init__(self, directory: Path, auth: bool = False) -> None:
        super().__init__(directory)
        self._auth = auth
        self._asks_for_password = False
        self._databases = itertools.count()

    @property
    def url(self) -> str:
        """Where it is, with the password if it wants one."""
        return self.url_with(PASSWORD) if self._asks_for_password else super().url

    def url_with(self, password: str, user: str = USER) -> str:
        """Return the URL with a user and a password."""
        return f"mongodb://{user}:{password}@{HOST}:{self.port}/?authSource=admin"

    def new_database(self) -> str:
        """Return the name of a database that nobody has used: the server stands for a whole session."""
        return f"test_{next(self._databases)}"

    def start(self) -> None:
        """Start it; the first time, with the user that it is to know."""
        super().start()
        if self._auth and not self._asks_for_password:
            with self.client() as client:
                client.admin.command("createUser", USER, pwd=PASSWORD, roles=["root"])
            self.kill()
            self._asks_for_password = True
            super().start()

    @contextmanager
    def client(self) -> Iterator[MongoClient[dict[str, Any]]]:
        """Return a client for looking."""
        client: MongoClient[dict[str, Any]] = MongoClient(self.url, serverSelectionTimeoutMS=20_000)
        with client:
            yield client

    def count(self, database: str, collection: str) -> int:
        """Return the number of documents."""
        with self.client() as client:
            return client[database][collection].count_documents({})

    def documents(self, database: str, collection: str) -> list[dict[str, Any]]:
        """Return all documents, by ``_id``."""
        with self.client() as client:
            return list(client[database][collection].find().sort("_id"))

    def command(self) -> list[str]:
        program = Path(sys.executable).with_name("secantusd-py")
        return [
            str(program), "--host", HOST, "--port", str(self.port), "--storage-path",
            str(self.directory / "data"), "--cache-size", "256M", "--log-level", "WARNING",
            "--sync-on-commit",  # MongoDB's default; without it a kill loses the last acknowledged writes
            *(["--auth"] if self._asks_for_password else []),
        ]  # fmt: skip

    def answers(self) -> bool:
        return listens(self.port)
