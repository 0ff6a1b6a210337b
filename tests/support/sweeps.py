"""Sweeps of made-up runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from phase_bus.reporting.source import compute
from phase_bus.reporting.sweep import Sweep
from tests.support.journals import Made, write_journal


def sweep_document(directory: Path, *runs: Made, sweep_id: str = "s", warmup: bool = False) -> Any:
    """Write runs into a journal; return what they come to as a sweep."""
    journal = write_journal(directory, *runs)
    sweep = Sweep(sweep_id, warmup=warmup)
    for run in runs:
        sweep.add(journal, compute(journal, run.run_id))
    return sweep.document()
