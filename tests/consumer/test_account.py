"""What a receipt says of the run's own end."""

from __future__ import annotations

import pytest

from phase_bus.consumer.account import RunAccount
from phase_bus.core.wire import topic_of
from phase_bus.events import RunComplete


@pytest.mark.parametrize("failed", [0, 1])
def test_a_failure_on_the_runs_end_is_in_the_receipt(failed: int) -> None:
    """The end itself is not counted among what was published; a handler that failed on it is reported."""
    end = RunComplete(run_id="r", status="completed", published={})
    topic = topic_of(end)
    account = RunAccount("r")
    counts = account.counts(topic)
    counts.received = 1
    counts.failed += failed
    counts.handled += 1 - failed
    account.written()
    receipt = account.receipt(end, (b"run_complete.",), "mine", "id")
    assert receipt.complete is not bool(failed)
    assert list(receipt.topics) == [topic.decode()] * failed
    assert len(list(account.complaints(receipt))) == failed
