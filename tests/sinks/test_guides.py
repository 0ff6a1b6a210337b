"""The commands of the guide's pages on sinks, run as a reader types them in, against the tests' servers.

All ``sh`` blocks of a page are one script. Left out are the lines that install something, start a server,
need a program that is no part of phase-bus, or go on for ever: of the latter the consumer is built with its
options. A default address, or an example's, is replaced by that of the test's server. The pages on logs
have their test in tests/consumers/test_log_guides.py.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import duckdb
import psycopg
import pyarrow.parquet as pq
import pytest

from phase_bus.journal.reader import JournalReader
from phase_bus.plugins.build import build, parse_use
from phase_bus.plugins.registry import Registry
from tests.e2e.pages import ROOT, Page
from tests.support.postgres import PASSWORD, Postgres
from tests.support.servers.mongodb import MongoDB
from tests.support.servers.otlp import OtlpReceiver
from tests.support.servers.prometheus import Prometheus
from tests.support.servers.webhook import Webhook
from tests.support.workplace import Workplace

pytestmark = [pytest.mark.slow]

PAGES = ROOT / "docs" / "guide" / "sinks"
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
_LEFT_OUT = ("pip ", "prometheus ", "mongosh ", "chmod ", "phase-bus consume ", "phase-bus up ")


class Guide:
    """One page, in a place where its commands can be run.

    Args:
        workplace: where they are run.
        name: the page's.
        replaced: what else stands for some texts of the page, each of which must be there.

    Attributes:
        page: the page.
    """

    def __init__(self, workplace: Workplace, name: str, replaced: dict[str, str] | None = None) -> None:
        self._workplace = workplace
        self.page = Page(PAGES / f"{name}.md")
        text = "\n".join(self.page.blocks("sh"))
        for old, new in (replaced or {}).items():
            assert old in text, f"{name}.md does not say {old!r} any more"
            text = text.replace(old, new)
        self.script = text

    def run(self, **environment: str) -> int:
        """Run the commands; return how many records the runs have, by the bus's journals."""
        lines = [line for line in self.script.splitlines() if not line.startswith(_LEFT_OUT)]
        if shutil.which("curl") is None:
            assert not any(line.startswith("curl ") for line in lines), "curl is missing"
        process = self._workplace.start("sh", "-ec", "\n".join(lines), PATH=PATH, **environment)
        done = self._workplace.finish(process)
        assert done.returncode == 0, done.stderr
        return sum(map(_records_in, self._workplace.directory.rglob("journal.sqlite")))


def _records_in(journal: Path) -> int:
    with JournalReader(journal.parent) as reader:
        return sum(entry.records for entry in reader.entries())


def test_mongodb(workplace: Workplace, mongodb: MongoDB) -> None:
    database = mongodb.new_database()
    address = {"mongodb://127.0.0.1:27017": mongodb.url, "database=bench": f"database={database}"}
    assert Guide(workplace, "mongodb", address).run() == mongodb.count(database, "records") > 0


def test_otlp(workplace: Workplace, otlp_receiver: OtlpReceiver) -> None:
    records = Guide(workplace, "otlp", {"http://127.0.0.1:4318": otlp_receiver.url}).run()
    last = {
        (
            each.place.resource["phase_bus.run_id"],
            each.attributes["phase_bus.phase.name"],
        ): each.point.as_int
        for each in otlp_receiver.points("phase_bus.requests")
    }
    assert records == sum(last.values()) > 0


def test_remote_write(workplace: Workplace, prometheus: Prometheus) -> None:
    records = Guide(workplace, "remote-write", {"http://127.0.0.1:9090": prometheus.url}).run()
    assert records == prometheus.value("sum(last_over_time(phase_bus_requests_total[10m]))") > 0


def test_prometheus(workplace: Workplace) -> None:
    assert Guide(workplace, "prometheus").run() > 0


def test_sql(workplace: Workplace, postgres: Postgres) -> None:
    database = postgres.new_database()
    url = f"postgresql://tester@/{database}?host={postgres.socket_dir}"
    guide = Guide(
        workplace, "sql", {"postgresql://bench@127.0.0.1/results": url, "export PGPASSWORD=...": ""}
    )
    records = guide.run(PGPASSWORD=PASSWORD)
    count = "SELECT count(*) FROM phase_bus_records"
    with closing(sqlite3.connect(workplace.directory / "results.db")) as lite:
        found = [lite.execute(count).fetchone()[0]]
    with duckdb.connect(str(workplace.directory / "results.duckdb")) as duck:
        found += duck.execute(count).fetchone() or ()
    with psycopg.connect(postgres.url(database)) as connection:
        found += connection.execute(count).fetchone() or ()
    assert len(found) == 3
    assert records == sum(found)


def test_parquet(workplace: Workplace) -> None:
    records = Guide(workplace, "parquet").run()
    files = (workplace.directory / "results").rglob("records-*.parquet")
    assert records == sum(pq.read_metadata(file).num_rows for file in files) > 0


def test_alerting(workplace: Workplace, webhook: Webhook) -> None:
    slack = "https://hooks.slack.com/services/T000/B000/XXXX"
    address = webhook.url.replace("http:", "json:")
    guide = Guide(workplace, "alerting", {slack: address})
    assert guide.run() > 0


def test_the_overview(workplace: Workplace) -> None:
    """A sink with the tables that are there by default; and the sink that the page shows is one."""
    guide = Guide(workplace, "index", {"phase-bus simulate": "phase-bus simulate --requests 100"})
    assert guide.run() > 0
    (code,) = re.findall(
        r'^```python title="lines.py"\n(.*?)^```', guide.page.text, re.DOTALL | re.MULTILINE
    )
    (workplace.directory / "lines.py").write_text(code)
    arguments = (
        "exec",
        "--with",
        "lines:Lines:path=phases.txt",
        "--",
        "phase-bus",
        "simulate",
        "--requests",
    )
    done = workplace.run(*arguments, "100", PATH=PATH)
    assert done.returncode == 0, done.stderr
    kinds = [line.split()[-1] for line in (workplace.directory / "phases.txt").read_text().splitlines()]
    assert "phase_start" in kinds
    assert "phase_complete" in kinds


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_consumers_take_the_options_that_a_page_gives_them(page: Path) -> None:
    registry = Registry.load()
    for command in Page(page).commands():
        if command.startswith("phase-bus consume ") and "NAME" not in command:
            name, options = parse_use(shlex.split(command)[2])
            build(registry, name, name, options)
