"""What the contract's tests need to know of a sink, and what stands between it and its server."""

from __future__ import annotations

import gzip
import time
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from aiohttp import web
from msgspec import Struct

from tests.support.servers.faults import FaultProxy
from tests.support.servers.tcp_faults import TcpProxy

_LATE_VERDICTS_S = 20.0
WRONG_SECRET = "wr0ng-t0ken"


class Server(Protocol):
    """What a sink writes to: see tests/support/servers."""

    @property
    def runs(self) -> bool: ...

    @property
    def url(self) -> str: ...

    def start(self) -> None: ...

    def kill(self) -> None: ...


class Truth(Struct):
    """What a publisher says of its run.

    Attributes:
        dropped: what it had to let go of.
        slowest_s: the longest time that one call took.
        took_s: all of them, with the pauses between them.
        verdicts: threshold, state, and whether it is final, of each verdict on the run.
    """

    records: int
    dropped: dict[str, int]
    slowest_s: float
    took_s: float
    verdicts: list[tuple[str, str, bool]]


class Proxy(FaultProxy):
    """A proxy that also knows when requests came, and answers for a server that never takes some rows.

    Attributes:
        requests: when requests with rows came, by :func:`time.monotonic`, and what was done with each.
        poison: what a body must not contain; empty for nothing.
    """

    def __init__(self, to: str, only: str = "", authorization: str = "") -> None:
        super().__init__(to, only, authorization)
        self.requests: list[tuple[float, str]] = []
        self.poison = b""
        self._rows_path = only

    async def _on_request(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if self._rows_path in request.path:
            fault = self.script[0] if self.script else self.always
            self.requests.append((time.monotonic(), fault.name))
            if self.poison and self.poison in _plain(body):
                self.counts["poisoned"] += 1
                return web.Response(status=400, text="this server takes no poison")
        return await super()._on_request(request)

    def left_alone_after(self, name: str) -> list[float]:
        """Return how long nothing came after each request with which something was done, in s."""
        pairs = pairwise(self.requests)
        return [after_s - before_s for (before_s, done), (after_s, _) in pairs if done == name]


def _plain(body: bytes) -> bytes:
    if body.startswith(b"\x1f\x8b"):
        return gzip.decompress(body)
    return zlib.decompress(body) if body.startswith(b"\x78") else body


class SinkCase(ABC):
    """A sink with a server of its own.

    Attributes:
        use: what ``phase-bus consume`` is told.
        survives: whether its server has what it had after a SIGKILL; else connections are cut instead.
        has_limits: whether it has the options of all sinks; not so a consumer that somebody else asks.
        has_rows: whether its server can be asked which rows it has.
        has_totals: whether a row of it is a total, by which any number of records come at once.
        overlaps: whether it tells runs apart that go on at the same time.
        tells_doubles: whether the server takes a row that comes again once.
        writes: what a request that writes rows has in it, of a protocol other than HTTP.
        secret: the password or token that the sink is given; empty for none.
        name: what the consumer is called.
        server: the server; None for files.
        proxy: what stands before it; None for nothing.
    """

    use: str
    name = ""
    survives = True
    writes = b""
    has_limits = True
    has_rows = True
    has_totals = False
    overlaps = True
    tells_doubles = True
    secret = ""
    proxy: Proxy | TcpProxy | None = None

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.server: Server | None = None
        self.name = self.name or self.use
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def http(self) -> Proxy:
        """The proxy, of one that speaks HTTP."""
        assert isinstance(self.proxy, Proxy)
        return self.proxy

    # ---- the server ----

    def open(self) -> None:
        """Start the server, and what is before it."""
        if self.server is not None:
            self.server.start()
        self.proxy = self.make_proxy()
        if self.proxy is not None:
            self.proxy.start()

    def make_proxy(self) -> Proxy | TcpProxy | None:
        """Return what is to stand before the server; None for nothing."""
        return None

    def close(self) -> None:
        """End both."""
        for each in (self.proxy, self.server):
            if each is not None and each.runs:
                each.kill()

    def kill(self) -> None:
        """End the server by SIGKILL, or cut all connections to one that would forget what it has."""
        if (victim := self._victim) is not None:
            victim.kill()

    def revive(self) -> None:
        """Start it again."""
        if (victim := self._victim) is not None and not victim.runs:
            victim.start()

    @property
    def _victim(self) -> Server | None:
        return self.server if self.survives else self.proxy

    # ---- the sink ----

    @abstractmethod
    def settings(self) -> dict[str, str]:
        """Return the sink's options."""

    def environment(self, secret: str) -> dict[str, str]:
        """Return the variable that has the secret."""
        return {}

    # ---- what the server has ----

    @abstractmethod
    def found(self, run_id: str) -> Counter[str]:
        """Return how often the server has each row of a run, by its id; or by what it calls its totals."""

    def count(self, run_id: str) -> int:
        """Return how many records it has."""
        return len(self.found(run_id))

    def judge(self, run_id: str, truth: Truth) -> list[str]:
        """Return what is wrong with what the server has of a run."""
        wrong = self.judge_verdicts(run_id, truth)
        found = {row.split(".")[1]: times for row, times in self.found(run_id).items()}
        wanted = {str(number) for number in range(truth.records)}
        if missing := wanted - found.keys():
            wrong.append(
                f"{len(missing)} of {truth.records} records are missing: {sorted(missing)[:5]} ..."
            )
        if foreign := found.keys() - wanted:
            wrong.append(f"{len(foreign)} records that nobody published: {sorted(foreign)[:5]} ...")
        doubles = sum(found.values()) - len(found)
        if doubles and self.tells_doubles:
            wrong.append(f"{doubles} records are there twice")
        return wrong

    def verdicts(self, run_id: str) -> list[tuple[str, str, bool]] | None:
        """Return the verdicts that the server has, as in the truth; None for a sink that sends none."""
        return None

    def judge_verdicts(self, run_id: str, truth: Truth) -> list[str]:
        """Return what is wrong with the verdicts, once the last ones are there: they come after the end."""
        wanted = sorted(truth.verdicts)

        def found() -> list[tuple[str, str, bool]] | None:
            said = self.verdicts(run_id)
            return said and sorted(said)

        until_s = time.monotonic() + _LATE_VERDICTS_S
        while (said := found()) not in (None, wanted):
            if time.monotonic() > until_s:
                return [f"its verdicts are {said}, not {wanted}"]
            time.sleep(0.1)
        return []
