"""Tables in a narrow terminal: names are whole, and what is left out matters least."""

from __future__ import annotations

import pytest
from rich.console import Console

from phase_bus.cli import output
from phase_bus.events import Receipt, TopicReceipt
from phase_bus.reporting.receipts import ledger, ledger_table

RUN = "0f7d1c52-9a3e-4b6e-8f7a-2d9b1c5e7a10"


def rendered(renderable: object, width: int) -> list[str]:
    """Return the lines that a terminal of this width shows."""
    console = Console(width=width)
    with console.capture() as capture:
        console.print(renderable)
    return [line.rstrip() for line in capture.get().splitlines()]


def receipt(**more: int) -> Receipt:
    """Return the receipt of a consumer with a long name."""
    counts = TopicReceipt(published=123456, received=123456, handled=123456, written=123456)
    odd = TopicReceipt(published=123456, received=123456, handled=123456, written=123456, **more)
    topics = {f"phase_progress.{RUN}$": counts, f"run_complete.{RUN}$": odd}
    return Receipt(run_id=RUN, consumer="nightly-aggregator", topics=topics)


def test_a_ledger_says_whose_row_is_whose() -> None:
    """At 80 columns consumer and kind are there in full; columns of nothing but zeros are not."""
    lines = rendered(ledger_table(ledger([receipt()])), 80)
    assert lines[0].split() == [
        "CONSUMER",
        "KIND",
        "PUBLISHED",
        "RECEIVED",
        "HANDLED",
        "WRITTEN",
        "WORST",
        "LAG",
    ]
    assert lines[1].split()[:3] == ["nightly-aggregator", "phase_progress", "123456"]
    assert len(lines) == 3


def test_a_ledger_shows_what_went_wrong() -> None:
    """A column that has something to say is there, and its row too."""
    lines = rendered(ledger_table(ledger([receipt(failed=7)])), 120)
    assert "FAILED" in lines[0]
    assert lines[2].split()[-1] == "7" or "7" in lines[2].split()


@pytest.mark.parametrize(
    ("width", "spared"), [(60, []), (80, ["PUBLISHER"]), (120, ["PUBLISHER", "JOURNAL"])]
)
def test_ids_are_whole(
    width: int, spared: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's id is never folded, as people copy it; spare columns go instead, the first one first."""
    monkeypatch.setattr(output, "make_console", lambda: Console(width=width))
    columns = ("RUN", "STATUS", "PUBLISHER", "JOURNAL")
    rows = [(RUN, "completed", "a publisher with a name", "/some/where/that/has/a/long/name/journal")]
    output.print_table(columns, rows, whole=("RUN",), spare=("JOURNAL", "PUBLISHER"))
    header, row = capsys.readouterr().out.splitlines()
    assert row.split()[0] == RUN
    assert header.split() == ["RUN", "STATUS", *spared]
