"""Names as somebody would choose them who wants to spoil a terminal, a table or a log."""

from __future__ import annotations

import unicodedata

from msgspec.structs import replace

from phase_bus import PhaseComplete, PhaseRef, PhaseStart, PhaseTimeout, Publisher, RunStart

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


def publish_hostile_run(publisher: Publisher) -> None:
    """Publish a run all of whose names are hostile."""
    phase = PhaseRef(f"phase {HOSTILE}", "profiling", 0)
    start = RunStart(run_id=RUN, producer=HOSTILE, models=(HOSTILE,), label=HOSTILE, sweep_id="s", trial=0)
    publisher.publish(replace(start, variation={HOSTILE: HOSTILE}))
    publisher.publish(PhaseStart(run_id=RUN, phase=phase))
    for _ in range(20):
        publisher.record(RUN, phase, {HOSTILE: 1.5, "request_latency": 1e6}, {})
    publisher.record(RUN, phase, {}, {}, (f"type {HOSTILE}", f"message {HOSTILE}", 500))
    publisher.publish(PhaseTimeout(run_id=RUN, phase=phase, requests_cut=3))
    publisher.publish(PhaseComplete(run_id=RUN, phase=phase))
    publisher.complete_run(RUN, "failed", f"reason {HOSTILE}")
