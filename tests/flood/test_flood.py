"""A run goes on whole while its bus is attacked, which keeps its memory and answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flood.siege import Siege, a_siege

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(300)]


@pytest.fixture
def siege(tmp_path: Path, ipc_dir: Path) -> Iterator[Siege]:
    """A bus with consumers."""
    with a_siege(tmp_path, ipc_dir) as made:
        yield made


@pytest.mark.parametrize(
    ("attack", "counted"),
    [
        ("junk", "malformed"),
        ("large_frames", ""),  # ZeroMQ ends the connection, and tells nobody why
        ("half_open", "handshake"),
        ("slow_loris", "handshake"),
        ("hasty", "handshake"),
    ],
)
@pytest.mark.parametrize("scheme", ["tcp", "ipc"])
def test_by_strangers(attack: str, counted: str, scheme: str, siege: Siege) -> None:
    siege.run(attack, scheme)
    siege.check(counted)


@pytest.mark.parametrize(
    ("attack", "counted"),
    [
        ("junk_subscriptions", ""),  # half of them are in order
        ("large_names", "name"),
        ("large_events", ""),
        ("names", "checkpoints"),
        ("groups", "groups"),
        ("sources", "sources"),
        ("runs", "open_runs"),
        ("deaf_subscribers", ""),
        ("deaf_readers", ""),
        ("deaf_askers", ""),
    ],
)
def test_by_clients(attack: str, counted: str, siege: Siege) -> None:
    siege.run(attack, "tcp")
    siege.check(counted)


@pytest.mark.parametrize("scheme", ["tcp", "ipc"])
def test_more_connections_than_descriptors(scheme: str, tmp_path: Path, ipc_dir: Path) -> None:
    """They are turned away, which is said once and costs little."""
    limited = ("bash", "-c", 'ulimit -Sn 256 && ulimit -Hn 256 && exec "$@"', "bash")
    with a_siege(tmp_path, ipc_dir, under=limited) as siege:
        siege.run("many_connections", scheme, leaves=True)
        siege.check("connections")
        assert siege.cpu < 0.7, siege.report
        assert siege.bus.log.read_text().count("file descriptors are in use") == 1
