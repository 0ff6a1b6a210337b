"""Many runs while everything is killed, suspended, cut and replaced; consumers are held against the truth.

The seed is printed; ``PHASE_BUS_CHAOS_SEED`` sets it. ``PHASE_BUS_CHAOS_RECORDS`` and
``PHASE_BUS_CHAOS_KILLS`` make it longer. The runs, the order of the faults and the pauses between them are
the seed's; what each of them hits is up to the machine.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.chaos.faults import FAULTS, LOSING
from tests.chaos.truth import contents_of, judge
from tests.chaos.world import Observer, Run, World, a_world
from tests.support.postgres import Postgres

RECORDS = int(os.environ.get("PHASE_BUS_CHAOS_RECORDS", "200000"))
KILLS = int(os.environ.get("PHASE_BUS_CHAOS_KILLS", "32"))
SEED = int(os.environ.get("PHASE_BUS_CHAOS_SEED") or random.SystemRandom().randrange(1 << 32))
PAUSE_S = (0.4, 1.6)  # between two faults
FAULT_S = 1.2  # that one takes, about
RUNS = max(8, KILLS // 5)
RATE = RECORDS / (KILLS * (sum(PAUSE_S) / 2 + FAULT_S)) / 2  # so that the runs last as long as the faults
TIMEOUT_S = 240.0 + 4 * RECORDS / RATE

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(TIMEOUT_S)]


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    """An empty database on a real PostgreSQL; its URL."""
    name = f"chaos_{os.getpid()}"
    url = postgres.url().replace("postgresql://", "postgresql+psycopg://", 1)
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    yield postgres.url(name)
    with engine.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


def test_nothing_is_lost_silently(tmp_path: Path, ipc_dir: Path, database: str) -> None:
    """What a consumer has of a run is all of it, or somebody was told; and who says "all" has all."""
    print(f"PHASE_BUS_CHAOS_SEED={SEED}")
    begin_s = time.monotonic()
    with Observer(ipc_dir) as observer, a_world(tmp_path, ipc_dir, database, SEED, plan(), RATE) as world:
        faults = wreak_havoc(world)
        havoc_s = time.monotonic() - begin_s
        world.await_end()
        world.stop()
        print(f"{faults.total()} faults in {havoc_s:.1f} s: {dict(faults)}")
        receipts = sorted((*observer.receipts, *world.kept_receipts()), key=lambda receipt: receipt.ts_ns)
        verdict = judge(world, contents_of(world, database), receipts)
    for what in ("safe", "whole", "told", "modest"):
        print(f"of {len(world.runs)} runs, {what}: {dict(getattr(verdict, what))}")
    assert not verdict.wrong, "\n".join(verdict.wrong)
    assert faults.total() >= KILLS


def plan() -> list[Run]:
    """Return runs of different lengths, with all the records together."""
    chosen = random.Random(SEED)
    weights = [chosen.uniform(0.3, 1.7) for _ in range(RUNS)]
    sizes = [max(int(RECORDS * weight / sum(weights)), 100) for weight in weights]
    return [Run(f"run-{n:02d}", size, max(size // 10_000, 1)) for n, size in enumerate(sizes)]


def wreak_havoc(world: World) -> Counter[str]:
    """Do one thing after another to the world until all has been published, and there has been enough.

    Each kind of fault comes once at first, in an order of the seed's. While every other four runs are
    begun there are none that lose what was acknowledged, so that there are runs that must be whole.
    """
    done: Counter[str] = Counter()
    first = world.random.sample(list(FAULTS), len(FAULTS))
    deadline_s = time.monotonic() + TIMEOUT_S
    while world.keep_publishing() or done.total() < KILLS:
        assert time.monotonic() < deadline_s, world.bus.tail()
        time.sleep(world.random.uniform(*PAUSE_S))
        calm = len(world.publishers) // 4 % 2
        weights = [0 if calm and fault in LOSING else weight for fault, weight in FAULTS.items()]
        fault = first.pop() if first else world.random.choices(list(FAULTS), weights)[0]
        world.let_go()
        fault(world)
        done[fault.__name__] += 1
    world.let_go(all_of_them=True)
    return done
