"""What a consumer's process tells of its health."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from msgspec import Struct
from msgspec.structs import asdict

from phase_bus.consumer.account import Totals
from phase_bus.core.control import State
from phase_bus.core.health import Metric, Values

_WHAT = {
    "received": "Events received.",
    "replayed": "Those of them that came from the journal.",
    "repeated": "Events that came once more, and were skipped.",
    "missed": "Events that were published and never came.",
    "handled": "Events that were handled.",
    "written": "Those of them that were written out.",
    "failed": "Events that the consumer failed on, or that were malformed.",
}


class ConsumerSnapshot(Struct, frozen=True, kw_only=True):
    """What a consumer leaves at a turn of its loop; see :class:`phase_bus.core.health.Snapshot`.

    Attributes:
        name: what it is called, or its group.
        connected: whether the bus answers.
        cannot_write: whether it could not write out what it has handled.
        lag_s, worst_lag_s: from an event's happening to its being handled: of the last one, the longest.
        dead_letters: those that the bus has not taken over yet.
        offset: all in the stream up to here is handled, or of no interest.
        behind: how far it is behind the stream's end, while it reads the journal.
    """

    taken_s: float
    patience_s: float
    name: str
    state: State
    connected: bool
    cannot_write: bool
    totals: Totals
    lag_s: float
    worst_lag_s: float
    dead_letters: int
    offset: int
    behind: int

    @property
    def problem(self) -> str:
        """Why it is not ready, empty if it is. What it is about in detail may be secret: the log has it."""
        if self.state != "ready":
            return f"it is {self.state}"
        if not self.connected:
            return "the bus does not answer"
        return "it cannot write out what it has handled; its log says why" if self.cannot_write else ""

    def metrics(self) -> Iterator[Metric]:
        """Yield the metrics."""
        labels = ("consumer",)
        name: tuple[str, ...] = (self.name,)
        for what, count in asdict(self.totals).items():
            yield Metric(f"phase_bus_consumer_{what}_total", "counter", _WHAT[what], {name: count}, labels)
        for what, text, value in (
            ("connected", "Whether the bus answers.", self.connected),
            ("lag_seconds", "From the last event's happening to its being handled.", self.lag_s),
            ("worst_lag_seconds", "The longest such time since the start.", self.worst_lag_s),
            (
                "dead_letters_pending",
                "Dead letters that the bus has not taken over yet.",
                self.dead_letters,
            ),
            ("offset", "All in the stream up to here is handled, or of no interest.", self.offset),
            ("offset_behind", "Offsets still to be read from the journal; 0 while live.", self.behind),
        ):
            yield Metric(f"phase_bus_consumer_{what}", "gauge", text, {name: value}, labels)
        states: Values = {(self.name, state): float(state == self.state) for state in get_args(State)}
        yield Metric(
            "phase_bus_consumer_state", "gauge", "1 for the state it is in.", states, ("consumer", "state")
        )
