"""States whose histograms had other bins: refused in one line wherever one may come from, never misread."""

from __future__ import annotations

import base64
import logging
import zlib

import msgspec
import pytest

from phase_bus.consumer.consumer import named
from phase_bus.consumer.dispatcher import Saved
from phase_bus.consumer.leader import GroupLeader
from phase_bus.consumer.share import Share
from phase_bus.consumer.view import View
from phase_bus.core.control import EVENTS
from phase_bus.core.position import Position
from phase_bus.errors import PhaseBusError, StateError
from phase_bus.events import RunStart
from phase_bus.journal.rows import Checkpoint
from phase_bus.journal.writer import Journal
from phase_bus.publisher.publisher import Publisher
from phase_bus_consumers.aggregator import ResultsAggregator
from tests.support.buses import DurableBus
from tests.support.entries import dead_letter_at
from tests.support.workplace import Workplace, assert_one_line, wait_for

# What aggregators of version 1 left after two latencies in partition 3, in ns: the values themselves, and,
# with exact_limit=0, the counts in bins of a relative error of 0.5 %. Compressed.
OLD = {
    "exact": (
        "eNp1j79KLDEUxjOjhfaCYnWr+xrXzkLxFYYwc3YnbibJ5pys/0BQr8jt9o9wa1lnxgXRwhcYcDtxt7a0tfEVzLCrhSAEcvKd7zvnl9Nr6xT2"
        "+n8Lf0ciGWqZlNqQ0AoHT3/o8HXzbuXoeZFdPghFYCPSLVCR5AQqPnj5pR0ZR3OVUqtdM60F460Owd5baDtA+kw8kMjA26OGsDjP5Wi4wm5u"
        "uCWPstD7l5uUIwzYlRkZqxtCCtW8mU/CcBRzFYOUkLBbTanfBNZqi5+vDpfeyPJ6FV72Wbc+YW8waYXvq+F07Y3vtI9/M68Ws2C3zICsiPHk"
        "O+7FCIEijiIBVmY6A0V4lsfaKWJDdFmfjVmJbcctYF0PM6GqYcb3q2JGMbhyi+Olja1tVk13vRWIau4CW0BxWpV7QiV6D89vnDKSx76VS+iA"
        "ZF/fnWEH4yAsGlz48M+0/ycsPDldnjLGFh7Xm9NgHAaBTy5V14lW0P0A7zrShQ=="
    ),
    "counted": (
        "eNp1UD2PEzEUfNmjODoKJBAVFX8DOopD/IWV2X3Jmnhtx+85gUNCusAJ0W2Sk6hPuf2IhO6K+wMrkQ5xqSlpafgLeEnuCgSSJdvjmTfjmZ45"
        "r2k2f1+FPZbp0qi0Npal0bT4+pgPfzw9v/sGTi6lZnQxmyHqWAlGnbz+/tB4tp53KGfO+EHWATZQPaG7cDjySHytuGSZY6DHfelopyvJCk1F"
        "aYXjEGRv9rG0mSBcwKldWWf6Ukk9aHaTKFolQieoFKbw2XAWnNA54+j6NhYqEKHsrOhkDkW3otniahj9uhdt7v8Uz0dvH0FAq62wqHNkJxM6"
        "+jvuhxUhx4JkilDnJkfN9K5MjNcMS/L5HNZQ08gLh9Sdl7nU7TIXr9pqm2Jx6m+t958cPIN28zJQkbnLXdEQOcmOzx0GJznG7Rdu6m7CiPiF"
        "1PTtDpSH6AxBYw3JjjqtlJmEjG31JwcVjcaB+OdLPZE6NRM6bry2SiTBuVQ4RgU3bW5b6a17UdUXMmT7fxmfriA6mt7eAMDelweDTW8d9XpB"
        "ud+epUZj8RtWkPzd"
    ),
}
REFUSED = "its state is of an older phase-bus (histogram version 1, this one has 2)"


def old_state(kind: str) -> bytes:
    return zlib.decompress(base64.b64decode(OLD[kind]))


def checkpoint_of(state: bytes) -> bytes:
    return msgspec.msgpack.encode(Saved({}, {}, state))


@pytest.mark.parametrize("kind", OLD)
async def test_an_aggregator_goes_on_from_none(kind: str) -> None:
    with pytest.raises(StateError) as restored:
        ResultsAggregator(output=None).restore(old_state(kind))
    with pytest.raises(StateError) as merged:
        await ResultsAggregator(output=None).merge({3: old_state(kind)})
    assert str(restored.value) == str(merged.value) == REFUSED


async def test_a_groups_leader_ends_instead_of_trying_again(caplog: pytest.LogCaptureFixture) -> None:
    consumer = named(ResultsAggregator(output=None), "aggregator")
    leader = GroupLeader("stats", Share(consumer, View.in_group(consumer, "stats", EVENTS), "0" * 32))
    with caplog.at_level(logging.WARNING), pytest.raises(PhaseBusError) as ended:
        await leader.take_over({3: Checkpoint(Position("a" * 32, 5), checkpoint_of(old_state("counted")))})
    assert str(ended.value) == f"consumer group 'stats': {REFUSED}; begin anew as another --group"
    assert caplog.records == []


@pytest.mark.slow
@pytest.mark.usefixtures("no_leaks")
def test_whoever_starts_on_one_ends_with_one_line(kept: DurableBus, workplace: Workplace) -> None:
    """The retry of a dead letter, a consumer on its own, and a group's member; a new start goes on."""
    with Publisher(kept.address) as publisher:
        publisher.publish(RunStart(run_id="old"))
        assert publisher.flush(10)
    kept.close()
    with Journal(kept.data) as journal:
        place = Position(journal.stream, journal.head.offset)
        for name, kind in (("aggregator", "exact"), ("stats/03", "counted")):
            journal.commit(name, place, checkpoint_of(old_state(kind)))
        dead_letter_at(journal, "aggregator", place.offset, "old")
    retry = ("dead-letters", "retry", "--all", "--data", str(kept.data), "--with", "aggregator")
    done = workplace.run(*retry)
    assert_one_line(done.returncode, done.stderr, "'aggregator'", REFUSED)
    kept.open()
    alone = ("consume", "aggregator", "--address", kept.address)
    done = workplace.run(*alone)
    assert_one_line(done.returncode, done.stderr, "'aggregator'", REFUSED, "begin anew with --from start")
    done = workplace.run(*alone, "--group", "stats")
    assert_one_line(done.returncode, done.stderr, "'stats/03'", REFUSED, "begin anew as another --group")
    anew = workplace.phase_bus(*alone, "--from", "start")
    summary = workplace.directory / "phase-bus-summary.json"
    wait_for(lambda: summary.is_file() and '"old"' in summary.read_text(), "the run's summary")
    anew.terminate()
    assert workplace.finish(anew).returncode == 0
