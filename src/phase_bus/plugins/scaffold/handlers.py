"""The handlers of a new consumer, and their tests: what is written depends on the kinds it is to handle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from phase_bus.errors import ConfigError, suggest
from phase_bus.events import KINDS

_WIDTH = 120  # of a line, as the package's own settings for ruff say


class _Handler(NamedTuple):
    """What a handler is told, and what of that it logs."""

    told: str
    logged: str


_HANDLERS = {
    "run_start": _Handler("a run has begun", "producer=event.producer, models=event.models"),
    "phases_configured": _Handler(
        "the phases of a run are planned", "phases=[plan.phase.name for plan in event.phases]"
    ),
    "phase_start": _Handler("a phase has begun", "phase=event.phase.name"),
    "phase_progress": _Handler(
        "a phase goes on", "phase=event.phase.name, completed=event.stats.completed"
    ),
    "phase_sending_complete": _Handler(
        "all requests of a phase are sent", "phase=event.phase.name, sent=event.stats.sent"
    ),
    "phase_timeout": _Handler("a phase ran out of time", "phase=event.phase.name, cut=event.requests_cut"),
    "phase_complete": _Handler(
        "a phase is over", "phase=event.phase.name, duration_s=event.stats.duration_s"
    ),
    "run_complete": _Handler(
        "a run is over", "status=event.status, counts=self.counts.get(event.run_id, {})"
    ),
    "summary": _Handler("a consumer has a result", "producer=event.producer, final=event.final"),
    "verdict": _Handler("a threshold was judged", "threshold=event.threshold, state=event.state"),
    "receipt": _Handler(
        "a consumer says what it handled", "consumer=event.consumer, complete=event.complete"
    ),
    "drop": _Handler("something had to be dropped", "reason=event.reason, dropped=event.records"),
}
HANDLED = (*_HANDLERS, "records")

_EVENT_CODE = '''
    async def on_{kind}(self, event: {event}) -> None:
        """Take in that {told}."""
        self._count(event.run_id, "{kind}")
        self.log.info("{kind}", run=event.run_id, {logged})
'''
_RECORDS_CODE = '''
    async def on_records(self, event: Records) -> None:
        """Take in a batch of request records."""
        batch = RecordBatch(event)
        if "request_latency" in batch.metrics:  # failed requests have none
            too_long = batch.values("request_latency") > self.threshold_ms * NS_PER_MS
            self._count(event.run_id, "slow_requests", int(too_long.sum()))
'''
_RECORDS_HELPER = '''

def latencies(*latencies_ms: int) -> Records:
    """Return a batch of request records with these latencies."""
    return make_records([{"request_latency": latency * MS} for latency in latencies_ms])
'''
_RECORDS_TESTS = '''

async def test_requests_above_the_threshold_count(tmp_path: Path) -> None:
    """Those below do not, and the file says so."""
    output = tmp_path / "counts.json"
    await run_consumer($class_name, latencies(50, 150, 250), output=output, threshold_ms=100)
    assert json.loads(output.read_text()) == {"run-1": {"slow_requests": 2}}


async def test_a_threshold_that_makes_no_sense_is_refused() -> None:
    """As on the command line: $name:threshold_ms=0."""
    with pytest.raises(OptionError, match="greater than 0"):
        await run_consumer($class_name, threshold_ms="0")
'''
_EVENT_TESTS = '''

@pytest.mark.parametrize("kind", EVENTS)
async def test_events_count(kind: type[EventBase], tmp_path: Path) -> None:
    """Each is counted, and the file says so."""
    output = tmp_path / "counts.json"
    await run_consumer($class_name, make_event(kind), output=output)
    assert json.loads(output.read_text())["run-1"][kind.kind] == 1
'''


def parse_kinds(text: str) -> tuple[str, ...]:
    """Return the kinds of event in a list with commas.

    Raises:
        ConfigError: if there is no such kind, or none is given.
    """
    kinds = tuple(
        dict.fromkeys(word.strip().removeprefix("on_") for word in text.split(",") if word.strip())
    )
    for kind in kinds:
        if kind not in HANDLED:
            raise ConfigError(f"--on {text!r}: there is no event {kind!r}{suggest(kind, HANDLED)}")
    if not kinds:
        raise ConfigError(f"--on {text!r}: names no kind of event; known: {', '.join(sorted(HANDLED))}")
    return kinds


def words_for(kinds: Sequence[str]) -> dict[str, str]:
    """Return what the templates need for a consumer that handles these kinds."""
    events = [kind for kind in kinds if kind != "records"]
    records = "records" in kinds
    slow = records and not {*events} - {"run_complete"}
    first = next((kind for kind in events), "")
    option = "        threshold_ms: the latency in milliseconds above which a request counts.\n"
    handlers = [
        _RECORDS_CODE
        if kind == "records"
        else _EVENT_CODE.format(kind=kind, event=KINDS[kind].__name__, **_HANDLERS[kind]._asdict())
        for kind in kinds
    ]
    imported = [KINDS[kind].__name__ for kind in kinds] + ["RecordBatch"] * records
    tested = ["EventBase"] * bool(events) + [KINDS[kind].__name__ for kind in kinds]
    tools = ["MemoryBus", "make_run", "run_consumer"]
    tools += ["make_event"] * bool(events) + ["make_records"] * records
    return {
        "about": "the requests that took too long" if slow else "what happens in each run",
        "imports": _imports("phase_bus", ["Consumer", *imported]),
        "constants": "\nNS_PER_MS = 1e6\n" if records else "",
        "options": option if records else "",
        "parameters": "        threshold_ms: float = 1000.0,\n" if records else "",
        "checks": _CHECK if records else "",
        "assignments": "        self.threshold_ms = threshold_ms\n" if records else "",
        "handlers": "".join(handlers),
        "params": "output, threshold_ms" if records else "output",
        "test_imports": _imports("phase_bus", [*tested, *["OptionError"] * records]),
        "test_tools": _imports("phase_bus.testing", tools),
        "test_constants": "\n" + "MS = 1_000_000\n" * records + _listed(events),
        "test_helper": _RECORDS_HELPER if records else "",
        "tests": (_RECORDS_TESTS if records else "") + (_EVENT_TESTS if events else ""),
        "sample": "latencies(50, 1500)" if records else f"make_event({KINDS[first].__name__})",
        "counted": "slow_requests" if records else first,
        "option_rows": _OPTION_ROW if records else "",
    }


_CHECK = """        if threshold_ms <= 0:
            raise ValueError("threshold_ms must be greater than 0")
"""
_OPTION_ROW = "| `threshold_ms` | the latency in milliseconds above which a request counts |\n"


def _listed(events: Sequence[str]) -> str:
    """Return the list of the kinds whose events are counted, nothing if there are none."""
    lines = "".join(f"    {KINDS[kind].__name__},\n" for kind in events)
    return f"EVENTS: list[type[EventBase]] = [\n{lines}]\n" if events else ""


def _imports(module: str, names: Sequence[str]) -> str:
    """Return an import as ruff writes it."""
    ordered = sorted({*names}, key=lambda name: (not name[0].isupper(), name.lower()))
    line = f"from {module} import {', '.join(ordered)}"
    if len(line) <= _WIDTH:
        return line
    return f"from {module} import (\n" + "".join(f"    {name},\n" for name in ordered) + ")"
