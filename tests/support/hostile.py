"""Names as somebody would choose them who wants to spoil a terminal, a table or a log."""

from __future__ import annotations

import unicodedata

from msgspec.structs import replace

from phase_bus import PhaseComplete, PhaseRef, PhaseStart, PhaseTimeout, Publisher, RunStart

MARKUP = "x[/bold][red]:warning:é"
HOSTILE = "".join(
    (
        "x[/bold][red]:warning:",  # markup
        "\x1b[31m\x1b]0;title\x07\x1b[2J\x9b2J",  # colour, title, clear the screen
        "\r\nphase-bus: all is well\u2028",  # a line that looks like ours
        "\u202e\x7f\x00é",  # from right to left
    )
)
RUN = f"run {HOSTILE}"
_UNSEEN = ("Cc", "Cs", "Zl", "Zp")
_TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def harmful(text: str) -> set[str]:
    """Return the characters of a text that a terminal must not be sent, but for ends of lines and tabs."""
    return {
        each
        for each in text
        if each not in "\n\t"
        and (unicodedata.category(each) in _UNSEEN or unicodedata.bidirectional(each) in _TURNING)
    }


def publish_hostile_run(publisher: Publisher, run_id: str = RUN) -> None:
    """Publish a run all of whose names are hostile; a bus takes only such ids as can be printed."""
    phase = PhaseRef(f"phase {HOSTILE}", "profiling", 0)
    start = RunStart(
        run_id=run_id, producer=HOSTILE, models=(HOSTILE,), label=HOSTILE, sweep_id="s", trial=0
    )
    publisher.publish(replace(start, variation={HOSTILE: HOSTILE}))
    publisher.publish(PhaseStart(run_id=run_id, phase=phase))
    for _ in range(20):
        publisher.record(run_id, phase, {HOSTILE: 1.5, "request_latency": 1e6}, {})
    publisher.record(run_id, phase, {}, {}, (f"type {HOSTILE}", f"message {HOSTILE}", 500))
    publisher.publish(PhaseTimeout(run_id=run_id, phase=phase, requests_cut=3))
    publisher.publish(PhaseComplete(run_id=run_id, phase=phase))
    publisher.complete_run(run_id, "failed", f"reason {HOSTILE}")
