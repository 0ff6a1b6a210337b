"""Thresholds: what a run has to keep to, and whether it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phase_bus import front_door

if TYPE_CHECKING:  # with 'as', which makes each name ours for type checkers too
    from phase_bus.thresholds.baseline import resolve as resolve
    from phase_bus.thresholds.baseline import resolve_all as resolve_all
    from phase_bus.thresholds.cells import Needs as Needs
    from phase_bus.thresholds.cells import PartitionCells as PartitionCells
    from phase_bus.thresholds.expression import parse_threshold as parse_threshold
    from phase_bus.thresholds.expression import parse_thresholds as parse_thresholds
    from phase_bus.thresholds.expression import with_abort as with_abort
    from phase_bus.thresholds.judge import RunJudge as RunJudge
    from phase_bus.thresholds.judge import judge_journal as judge_journal
    from phase_bus.thresholds.threshold import Threshold as Threshold
    from phase_bus.thresholds.threshold import unit_of as unit_of

__getattr__, __dir__, __all__ = front_door(
    __name__,
    {
        "baseline": "resolve resolve_all",
        "cells": "Needs PartitionCells",
        "expression": "parse_threshold parse_thresholds with_abort",
        "judge": "RunJudge judge_journal",
        "threshold": "Threshold unit_of",
    },
)
