"""The commands of the guides to Elasticsearch, Splunk and log files, run as they stand there."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers.hec import Hec
from tests.support.servers.opensearch import OpenSearch, PlainIndexes
from tests.support.workplace import Workplace

pytestmark = pytest.mark.slow

GUIDES = Path(__file__).parents[2] / "docs" / "guide" / "sinks"


def run(workplace: Workplace, guide: str, blocks: int, default: str = "", url: str = "") -> str:
    """Run the first blocks of commands, at another address; return what they say."""
    found = re.findall(r"^```sh\n(.*?)^```", (GUIDES / guide).read_text(), re.MULTILINE | re.DOTALL)
    script = re.sub(r"^pip install .*\n", "", "".join(found[:blocks]), flags=re.MULTILINE)
    if default:
        assert default in script
        script = script.replace(default, url)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = workplace.finish(workplace.start("bash", "-euc", script, PATH=path))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_elasticsearch(workplace: Workplace, opensearch: OpenSearch) -> None:
    """The server has no data streams: their templates make plain indexes."""
    with PlainIndexes(opensearch.url) as proxy:
        said = run(workplace, "elasticsearch.md", 2, "http://127.0.0.1:9200", proxy.url)
    count, average, failed = _objects(said)[-3:]
    assert count["count"] == opensearch.count("logs-phase_bus.records-default") == 1050
    assert average["hits"]["total"]["value"] == 1000
    assert average["aggregations"]["latency_ns"]["value"] > 1e6
    assert all(hit["_source"]["error"]["code"] == "500" for hit in failed["hits"]["hits"])


def test_splunk(workplace: Workplace, hec: Hec) -> None:
    run(workplace, "splunk.md", 1, "http://127.0.0.1:8088", hec.url)
    assert Counter(each["sourcetype"] for each in hec.indexed)["phase_bus:records"] == 1050


def test_log_files(workplace: Workplace) -> None:
    run(workplace, "log-files.md", 1)
    lines = (workplace.directory / "phases.json").read_text().splitlines()
    assert [json.loads(line)["event"]["action"] for line in lines][-1] == "run_complete"


def _objects(text: str) -> list[Any]:
    """Return the JSON objects of a text that has them one after another, behind other lines."""
    decoder, at, found = json.JSONDecoder(), text.find('{"'), []
    while at >= 0:
        value, end = decoder.raw_decode(text, at)
        found.append(value)
        at = text.find('{"', end)
    return found
