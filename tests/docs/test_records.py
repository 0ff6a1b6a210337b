"""The page of records has every key that a record may have, with the unit that it has on the bus."""

from __future__ import annotations

import re
from pathlib import Path

from phase_bus.aggregation.units import METRICS
from phase_bus.aiperf.mapping import RECORD_FIELDS
from phase_bus.core.records import RecordBatch
from phase_bus.events import Records
from phase_bus.testing import make_run

DOCS = Path(__file__).resolve().parents[2] / "docs"
_ROW = re.compile(r"^\| `(\w+)` \| (.*?) ?\|", re.MULTILINE)
OTHERS = {"phase", "error"}


def keys(page: str) -> dict[str, str]:
    """Return the keys in the tables of a page, with their units."""
    return dict(_ROW.findall((DOCS / page).read_text()))


def test_the_page_lists_every_key() -> None:
    expected = {name: metric.unit for name, metric in METRICS.items()}
    expected |= {name: "ns" if name.endswith("_ns") else "" for name in (*RECORD_FIELDS, *OTHERS)}
    assert keys("reference/records.md") == expected


def test_made_up_records_have_no_other_key() -> None:
    """Those of `simulate` and of the test kit."""
    batches = [RecordBatch(event) for event in make_run(error_rate=0.2) if isinstance(event, Records)]
    found = {key for batch in batches for record in batch for key in record}
    assert {"error", "request_latency", "x_request_id"} <= found <= {*keys("reference/records.md")}


def test_the_guide_lists_the_same() -> None:
    """Fewer of them, with the same units."""
    page = (DOCS / "guide" / "consumers.md").read_text()
    table = page.partition("| key | unit | is |")[2].partition("\n\n")[0]
    listed = dict(_ROW.findall(table))
    assert len(listed) > 10
    units = keys("reference/records.md")
    for key, unit in listed.items():
        assert units[key].replace("tokens/sec/user", "tokens/s") == unit
