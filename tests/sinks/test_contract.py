"""Every sink keeps the contract, whatever happens to its server, to itself, and to everybody else.

``PHASE_BUS_TEST_SINKS`` names those that are to be tested, separated by commas; all by default.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.sinks import scenarios
from tests.sinks.case import SinkCase
from tests.sinks.cases import (
    DuckdbCase,
    ElasticsearchCase,
    MongoCase,
    OtlpCase,
    ParquetCase,
    PostgresCase,
    PrometheusCase,
    ReferenceCase,
    RemoteWriteCase,
    SplunkCase,
    SqliteCase,
)
from tests.sinks.world import World, a_world

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(300)]

ALL: tuple[type[SinkCase], ...] = (
    ReferenceCase,
    ElasticsearchCase,
    SplunkCase,
    MongoCase,
    OtlpCase,
    RemoteWriteCase,
    PrometheusCase,
    PostgresCase,
    SqliteCase,
    DuckdbCase,
    ParquetCase,
)
SOME = (ReferenceCase, PostgresCase)
LIMITS = {"max_rows_per_s": "1500", "batch_rows": "500"}


def cases(directory: Path, kinds: Sequence[type[SinkCase]] = ALL) -> list[SinkCase]:
    """Return sinks, each with a directory of its own."""
    made = [kind(directory / kind.__name__) for kind in kinds]
    wanted = os.environ.get("PHASE_BUS_TEST_SINKS", "").split(",")
    return [case for case in made if wanted == [""] or case.name in wanted]


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """All sinks, for several runs."""
    directory = tmp_path_factory.mktemp("sinks")
    with (
        tempfile.TemporaryDirectory(prefix="pb-") as ipc_dir,
        a_world(directory, Path(ipc_dir), cases(directory), **LIMITS) as world,
    ):
        yield world


@pytest.fixture
def world(standing: World) -> World:
    """The same, with everything there."""
    standing.await_ready()
    return standing


def test_its_server_is_killed(world: World) -> None:
    assert not scenarios.its_server_is_killed(world, "killed", 20.0, 1500, 500)


def test_its_server_is_slow(tmp_path: Path, ipc_dir: Path) -> None:
    with a_world(tmp_path, ipc_dir, cases(tmp_path, SOME), batch_rows="1000") as world:
        assert not scenarios.its_server_is_slow(world, "slow", 200_000, 40.0)


def test_answers_are_lost(world: World) -> None:
    assert not scenarios.answers_are_lost(world, "lost", 10_000, 1000)


def test_it_is_told_to_wait(world: World) -> None:
    assert not scenarios.it_is_told_to_wait(world, "busy", 5_000, 1000)


def test_it_is_killed(world: World) -> None:
    assert not scenarios.it_is_killed(world, "kills", 8_000, 1000)


def test_it_is_ended_during_an_outage(tmp_path: Path, ipc_dir: Path) -> None:
    with a_world(tmp_path, ipc_dir, cases(tmp_path, SOME)) as world:
        assert not scenarios.it_is_ended_during_an_outage(world, "ended", 5000, 5000)


def test_everybody_else_is_killed(world: World) -> None:
    assert not scenarios.everybody_else_is_killed(world, "restarts", 5_000, 1000)


def test_a_row_is_refused(world: World) -> None:
    assert not scenarios.a_row_is_refused(world, "refused", 4_000, 1000)


def test_its_secret_is_wrong(world: World) -> None:
    assert not scenarios.its_secret_is_wrong(world, "secret")
