"""The dashboard for PostgreSQL: every query in it, asked of a real one with a run inside."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
import yaml

from phase_bus.core.records import RecordBatch
from phase_bus.events import EventBase, Records, Verdict
from phase_bus.testing import MemoryBus, make_event, make_run
from phase_bus_consumers.sql import SqlSink
from tests.support.postgres import Postgres
from tests.support.recent import recent

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "grafana"
DASHBOARD = json.loads((FOLDER / "postgresql.json").read_text())
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"]}
INTERVAL_MS = 100
Rows = list[dict[str, Any]]


def rendered(text: str, from_ns: int, until_ns: int) -> str:
    """Return a query as Grafana sends it, for all runs and phases."""
    text = re.sub(
        r"\$__unixEpochNanoFilter\((\w+)\)", rf"\1 >= {from_ns} AND \1 <= {until_ns}", text
    ).replace("$__interval_ms", str(INTERVAL_MS))
    text = text.replace("${run:sqlstring}", "SELECT run_id FROM phase_bus_runs")
    text = text.replace("${phase:sqlstring}", "SELECT phase FROM phase_bus_phases")
    assert "$" not in text
    return text


def judged() -> list[EventBase]:
    """Return what is said of two thresholds, the one of them in the end."""
    return [
        make_event(Verdict, threshold="a < 1", state="unknown"),
        make_event(Verdict, threshold="b < 1"),
        make_event(Verdict, threshold="a < 1", state="failed", value=2.0, limit=1.0, final=True),
    ]


@pytest.fixture
async def published(dashboard_url: str) -> list[EventBase]:
    """A run that is in the database."""
    events = recent([*make_run(records=800, error_rate=0.1), *judged()])
    bus = MemoryBus()
    bus.publish(*events)
    outcome = await bus.run_consumer(SqlSink, url=dashboard_url)
    assert outcome.receipt.complete
    return events


@pytest.fixture
def dashboard_url(postgres: Postgres) -> str:
    engine = sa.create_engine(
        postgres.url().replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.execute(sa.text("DROP DATABASE IF EXISTS dashboard"))
        connection.execute(sa.text("CREATE DATABASE dashboard"))
    engine.dispose()
    return postgres.url("dashboard")


async def test_every_query_tells_the_truth(published: list[EventBase], dashboard_url: str) -> None:
    """Each gives rows; counts and percentiles are those of what was published."""
    records = [record for event in published if isinstance(event, Records) for record in RecordBatch(event)]
    good = [record for record in records if record["error"] is None]
    ends = [record["request_end_ns"] for record in records]
    engine = sa.create_engine(dashboard_url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:

        def ask(text: str) -> Rows:
            found = connection.exec_driver_sql(
                rendered(text, min(event.ts_ns for event in published), max(ends))
            )
            return [dict(row) for row in found.mappings()]

        answers = {title: ask(panel["targets"][0]["rawSql"]) for title, panel in PANELS.items()}
        variables = [ask(each["query"]) for each in DASHBOARD["templating"]["list"][1:]]
    engine.dispose()
    assert all(answers.values()), [title for title, rows in answers.items() if not rows]
    assert [{row[key] for row in rows for key in row} for rows in variables] == [
        {published[0].run_id},
        {"warmup", "profiling"},
    ]
    failed = len(records) - len(good)
    assert failed > 50
    assert answers["Requests"] == [{"requests": len(records)}]
    assert answers["Failed"] == [{"failed": failed}]
    assert answers["Runs in progress"] == [{"runs": 0}]
    (run,) = answers["Runs"]
    assert (run["status"], run["published"], run["stored"]) == ("completed", len(records), len(records))
    assert sum(row["requests"] for row in answers["Errors"]) == failed
    for title, count in (("Requests a second", len(records)), ("Failed, by error", failed)):
        assert round(sum(row["value"] for row in answers[title]) * INTERVAL_MS / 1000) == count
    p99 = np.percentile([record["request_latency"] for record in good], 99) / 1e9
    assert answers["Request duration, p99"][0]["p99"] == pytest.approx(p99)
    tokens = sum(record["output_sequence_length"] for record in good)
    assert answers["Output tokens"] == [{"tokens": tokens}]
    told = sum(row["output"] for row in answers["Tokens a second"]) * INTERVAL_MS / 1000
    assert float(told) == pytest.approx(tokens)
    for title in ("Request duration", "Time to first token", "Inter-token latency"):
        assert all(0 < row["p50"] <= row["p90"] <= row["p99"] < 60 for row in answers[title])
    states = {row["threshold"]: (row["state"], row["final"]) for row in answers["Thresholds"]}
    assert states == {"a < 1": ("failed", True), "b < 1": ("passed", False)}
    compared = {row["phase"]: row for row in answers["Runs and phases, compared"]}
    assert sum(row["requests"] for row in compared.values()) == len(records)
    assert all(row["tokens_per_s"] > 0 for row in compared.values())


def test_provisioning() -> None:
    """What Grafana is given names the dashboard's data source, and no secret."""
    text = (FOLDER / "provisioning" / "datasources" / "postgresql.yaml").read_text()
    (source,) = yaml.safe_load(text)["datasources"]
    variables = DASHBOARD["templating"]["list"]
    assert variables[0]["query"] == source["type"]
    assert variables[0]["current"]["value"] == source["uid"]
    assert source["secureJsonData"] == {"password": "$PGPASSWORD"}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
