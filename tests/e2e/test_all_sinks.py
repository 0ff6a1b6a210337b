"""Real AIPerf with every sink beside it at once, each into its own real server."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import ceil, floor
from typing import Any

import psycopg
import pyarrow.dataset
import pytest
import yaml

from tests.e2e.agreement import assert_same_numbers, phase_of
from tests.support.postgres import PASSWORD, Postgres
from tests.support.servers.hec import TOKEN, Hec
from tests.support.servers.mongodb import MongoDB
from tests.support.servers.opensearch import OpenSearch
from tests.support.servers.otlp import OtlpReceiver
from tests.support.servers.process import free_port
from tests.support.servers.prometheus import Prometheus
from tests.support.servers.webhook import Webhook
from tests.support.workplace import Workplace

pytestmark = [pytest.mark.aiperf, pytest.mark.slow]

# What each of AIPerf's latencies is called there, and in which unit: both have seconds.
SERIES = {
    "request_latency": "phase_bus_request_duration_seconds",
    "time_to_first_token": "phase_bus_time_to_first_token_seconds",
    "inter_token_latency": "phase_bus_inter_token_latency_seconds",
}
BUCKET = 2 ** (1 / 128)  # the width of one, as a ratio
ZERO = 2.0**-128  # the width of the bucket around 0


def test_every_sink_has_all_of_a_run(
    workplace: Workplace,
    mock_llm: Callable[..., str],
    aiperf: Callable[..., list[str]],
    postgres: Postgres,
    mongodb: MongoDB,
    opensearch: OpenSearch,
    otlp_receiver: OtlpReceiver,
    hec: Hec,
    prometheus: Prometheus,
    webhook: Webhook,
) -> None:
    """The servers have what AIPerf itself exports: counts exactly, figures within what is stated."""
    port, database = free_port(), mongodb.new_database()
    consumers: dict[str, dict[str, Any]] = {
        "aggregator": {"output": "summary.json"},
        "prometheus": {"port": port},
        "remote_write": {"url": prometheus.write_url},
        "otlp": {"url": otlp_receiver.url, "trace_requests": 0.1},
        "sql": {"url": "env:DATABASE"},
        "mongodb": {"url": mongodb.url, "database": database},
        "elasticsearch": {"url": opensearch.url, "data_stream": False},
        "splunk": {"url": hec.url, "token": "env:HEC_TOKEN"},
        "alerting": {"notify": "env:NOTIFY", "run_end": True},
        "parquet": {"path": "dataset"},
    }
    listed = [{"use": name, "set": options} for name, options in consumers.items()]
    (workplace.directory / "bus.yaml").write_text(
        yaml.safe_dump({"consumers": listed, "ready_timeout_s": 120})
    )
    prometheus.scrape(f"127.0.0.1:{port}", interval_s=2)  # ten consumers and AIPerf share the processors
    command = aiperf(
        mock_llm("--tokens", "64"), "--benchmark-duration", "15", "--warmup-request-count", "10"
    )
    environment = {
        "DATABASE": postgres.url(),
        "HEC_TOKEN": TOKEN,
        "NOTIFY": webhook.url.replace("http://", "json://"),
    }
    done = workplace.run("exec", "-c", "bus.yaml", "--", *command, timeout_s=180, **environment)
    assert done.returncode == 0, done.stderr
    for secret in (PASSWORD, TOKEN):
        assert secret not in done.stdout + done.stderr
    (run,) = workplace.json("summary.json")["runs"].values()
    export = workplace.json("aiperf-out/profile_export_aiperf.json")
    assert_same_numbers(phase_of(run), export)
    run_id, successful = run["run_id"], int(export["request_count"]["avg"])
    counts = {"warmup": 10, "profiling": successful}

    receipts = json.loads(workplace.run("receipts", run_id, "--json").stdout)
    assert {each["consumer"] for each in receipts["ledger"]} >= consumers.keys() - {"aggregator"}
    assert receipts["whole"]

    with psycopg.connect(postgres.url()) as connection:
        rows = connection.execute(
            "SELECT phase, count(*) FROM phase_bus_records WHERE run_id = %s GROUP BY phase", [run_id]
        )
        assert dict(rows.fetchall()) == counts
    found = mongodb.documents(database, "records")
    assert _by(found, lambda document: document["phase"]) == counts
    documents = [each["_source"] for each in opensearch.documents("logs-phase_bus.records-default")]
    assert _by(documents, lambda document: document["labels"]["phase"]) == counts
    indexed = [each for each in hec.indexed if each["sourcetype"] == "phase_bus:records"]
    assert len(indexed) == sum(counts.values())
    assert len({each["fields"]["key"] for each in indexed}) == len(indexed)
    dataset = pyarrow.dataset.dataset(workplace.directory / "dataset", partitioning="hive")
    table = dataset.to_table(filter=pyarrow.dataset.field("run_id") == run_id)
    assert table.num_rows
    assert _by(otlp_receiver.points("gen_ai.client.operation.duration")[-1:], lambda _point: "last")
    assert otlp_receiver.repeated() == {"points": 0, "logs": 0, "spans": 0}
    assert any(run_id in each.body.decode() for each in webhook.received)

    phase = phase_of(run)
    lines = (workplace.directory / "aiperf-out/profile_export.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for metric, name in SERIES.items():
        written = f'{name}{{phase="profiling",run_id="{run_id}"}}'
        (samples,) = prometheus.samples(written)
        end_s = samples["histograms"][-1][0]
        total = prometheus.value(f"histogram_sum({written})", end_s)
        assert total == pytest.approx(phase["metrics"][metric]["sum"] / 1e9)
        values = sorted(
            record["metrics"][metric]["value"] / 1e3
            for record in records
            if record["metadata"]["benchmark_phase"] == "profiling" and metric in record["metrics"]
        )
        # An answer of one token has no latency between tokens.
        assert metric == "inter_token_latency" or len(values) == successful
        assert prometheus.value(f"histogram_count({written})", end_s) == len(values)
        for share in (0.5, 0.9, 0.95, 0.99):
            told = prometheus.value(f"histogram_quantile({share}, {written})", end_s)
            rank = share * len(values)  # the value there is in one bucket with what Prometheus tells
            below, above = values[max(floor(rank) - 1, 0)], values[min(ceil(rank), len(values) - 1)]
            # On a busy machine tokens may come at once: of 0 s, which is a bucket of its own, up to 2^-128.
            assert below / BUCKET <= told <= max(above * BUCKET, ZERO)
    scraped = f'{SERIES["request_latency"]}{{phase="profiling",job="test"}}'
    assert 0 < prometheus.value(f"max_over_time(histogram_count({scraped})[5m:1s])") <= successful


def _by(found: list[Any], key: Callable[[Any], str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for each in found:
        counts[key(each)] = counts.get(key(each), 0) + 1
    return counts
