"""What the ledger says of receipts, and of the losses in them."""

from __future__ import annotations

from phase_bus.cli.output import make_console
from phase_bus.events import Loss, Receipt, TopicReceipt
from phase_bus.reporting.receipts import is_whole, ledger, ledger_in_brief, losses, print_losses

GOOD = {"phase_start.r$": TopicReceipt(published=1, received=1, handled=1, written=1)}
LOST = Loss(run_id="old", reason="pruned", events=18, records=3050)


def receipt(consumer: str, *lost: Loss) -> Receipt:
    """A receipt of the run, all of which was handled."""
    return Receipt(run_id="r", consumer=consumer, topics=GOOD, lost=lost)


def test_a_loss_before_the_run_is_told_with_it() -> None:
    """Not whole, though all of the run itself was handled; a later receipt does not take it back."""
    again = Loss(run_id="older", reason="pruned", events=1)
    said = [receipt("a"), receipt("b", LOST), receipt("b", LOST, again), receipt("b")]
    assert not is_whole(said)
    assert losses(said) == {"a": (), "b": (LOST, again)}
    assert is_whole([receipt("a"), receipt("b")])


def test_it_is_shown_in_words(capsys) -> None:  # type: ignore[no-untyped-def]
    print_losses([receipt("b", LOST)], make_console())
    assert capsys.readouterr().out == "b lost 18 events with 3,050 records of run old: pruned\n"


def test_what_another_consumer_published_is_in_the_whole_ledger_only() -> None:
    """Nobody says how many verdicts there were: no more can have been received than was published."""
    verdicts = TopicReceipt(received=1, handled=1, written=1)
    said = Receipt(run_id="r", consumer="a", topics={**GOOD, "verdict.r$": verdicts})
    assert [(row.kind, row.published, row.received) for row in ledger_in_brief([said])] == [("all", 1, 1)]
    assert [(row.kind, row.published, row.received) for row in ledger([said])] == [
        ("phase_start", 1, 1),
        ("verdict", None, 1),
    ]
    failed = Receipt(run_id="r", consumer="a", topics={**GOOD, "verdict.r$": TopicReceipt(failed=1)})
    assert [row.kind for row in ledger_in_brief([failed])] == ["phase_start", "verdict"]
