"""The ledger of a run: what each consumer received and handled, compared with what was published."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import msgspec
from rich.console import Console
from rich.text import Text

from phase_bus.core.printable import printable
from phase_bus.core.table import FittingTable
from phase_bus.core.wire import parse_topic
from phase_bus.events import Loss, Receipt, RunComplete, TopicReceipt

_SELDOM = frozenset(("replayed", "repeated", "missed", "failed"))
# What a narrow terminal has no room for, the first one first; what failed or is missing always stays.
_SPARE = ("RECEIVED", "WRITTEN", "WORST LAG", "REPLAYED", "REPEATED")
_COUNTS = ("received", "replayed", "repeated", "missed", "handled", "written", "failed")


class LedgerRow(TopicReceipt, frozen=True, kw_only=True):
    """The sums of one consumer's topic receipts for one kind of event, over all partitions.

    ``worst_lag_s`` is the longest time from an event to its being handled, over all kinds; ``whole`` says
    whether everything published was handled.
    """

    consumer: str
    kind: str
    worst_lag_s: float
    whole: bool


def held_against(receipts: Iterable[Receipt], end: RunComplete | None) -> list[Receipt]:
    """Return the last receipt of each consumer, held against what the run's last end says was published.

    A run that goes on after an end has more than the receipts of that time know of.
    """
    last = _last(receipts)
    return last if end is None else [_against(receipt, end) for receipt in last]


def last_end(ends: Iterable[RunComplete]) -> RunComplete | None:
    """Return the last end of a run among what its publishers said, None if there is none."""
    return next((end for end in reversed(list(ends)) if not end.running), None)


def _against(receipt: Receipt, end: RunComplete) -> Receipt:
    topics = {
        topic: msgspec.structs.replace(counts, published=end.published.get(topic, counts.published))
        for topic, counts in receipt.topics.items()
    }
    kinds = {parse_topic(topic.encode()).kind for topic in topics}
    for topic, published in end.published.items():
        if topic not in topics and parse_topic(topic.encode()).kind in kinds:
            topics[topic] = TopicReceipt(published=published)
    return msgspec.structs.replace(receipt, topics=topics)


def ledger(receipts: Iterable[Receipt]) -> list[LedgerRow]:
    """Return the ledger of one run's receipts, by consumer and kind.

    A consumer that was restarted, or whose run went on after it had seemed lost, gives more than one
    receipt: the last counts, and includes those before.
    """
    rows = []
    for receipt in _last(receipts):
        kinds: dict[str, list[TopicReceipt]] = defaultdict(list)
        for topic, counts in receipt.topics.items():
            kinds[parse_topic(topic.encode()).kind].append(counts)
        rows += [_row(receipt, kind, counts) for kind, counts in sorted(kinds.items())]
    return rows


def ledger_in_brief(receipts: Iterable[Receipt]) -> list[LedgerRow]:
    """Return the ledger with one row for each consumer, or a row for each kind if not all was handled.

    That one row is of what the run's end says was published. Other consumers' events, such as verdicts, are
    not among them: nobody says how many there were.
    """
    rows = []
    for receipt in _last(receipts):
        topics = list(receipt.topics.values())
        counted = [topic for topic in topics if topic.published is not None]
        whole = _row(receipt, "all", topics).whole
        rows += [_row(receipt, "all", counted or topics)] if whole else ledger([receipt])
    return rows


def is_whole(receipts: Iterable[Receipt]) -> bool:
    """Return whether every consumer that gave a receipt of the run handled everything."""
    return all(receipt.complete for receipt in _last(receipts))


def losses(receipts: Iterable[Receipt]) -> dict[str, tuple[Loss, ...]]:
    """Return what each consumer tells that it has lost of runs before this one."""
    return {receipt.consumer: receipt.lost for receipt in _last(receipts)}


def print_losses(receipts: Iterable[Receipt], console: Console) -> None:
    """Print a line for each such loss, and for each that the journal had."""
    receipts = list(receipts)
    for consumer, lost in losses(receipts).items():
        for loss in lost:
            console.print(f"{consumer} lost {loss}", style="red", soft_wrap=True)
    for receipt in _last(receipts):
        for found in receipt.journal_losses:
            console.print(f"{receipt.consumer}: {found}", style="red", soft_wrap=True)


def ledger_table(rows: Iterable[LedgerRow]) -> FittingTable:
    """Return a ledger as a table for the terminal; what went wrong nowhere has no column."""
    rows = list(rows)
    counts = [name for name in _COUNTS if name not in _SELDOM or any(getattr(row, name) for row in rows)]
    numbers = ("PUBLISHED", *map(str.upper, counts), "WORST LAG")
    lines = []
    last = ""
    for row in rows:
        first = row.consumer != last
        last = row.consumer
        cells = (
            row.consumer if first else "",
            row.kind,
            "" if row.published is None else str(row.published),
            *(str(getattr(row, name)) for name in counts),
            f"{row.worst_lag_s:.3f} s" if first else "",
        )
        lines.append([Text(printable(cell), "" if row.whole else "red") for cell in cells])
    return FittingTable(
        ("CONSUMER", "KIND", *numbers), lines, whole=("CONSUMER", "KIND"), spare=_SPARE, right=numbers
    )


def _last(receipts: Iterable[Receipt]) -> list[Receipt]:
    by_name: dict[str, Receipt] = {}
    for receipt in receipts:
        if (before := by_name.get(receipt.consumer)) is not None and before.lost:
            lost = tuple(dict.fromkeys((*before.lost, *receipt.lost)))  # what was told before stays lost
            receipt = msgspec.structs.replace(receipt, lost=lost)
        by_name[receipt.consumer] = receipt
    return [by_name[name] for name in sorted(by_name)]


def _row(receipt: Receipt, kind: str, topics: list[TopicReceipt]) -> LedgerRow:
    said = [topic.published for topic in topics if topic.published is not None]
    counts = {name: sum(getattr(topic, name) for topic in topics) for name in _COUNTS}
    return LedgerRow(
        consumer=receipt.consumer,
        kind=kind,
        published=sum(said) if said else None,
        worst_lag_s=receipt.worst_lag_s,
        # By topic: one partition's surplus must not hide another's shortfall.
        whole=Receipt(run_id="", consumer="", topics={str(n): t for n, t in enumerate(topics)}).complete,
        **counts,
    )
