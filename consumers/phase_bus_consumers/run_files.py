"""JSON files of many runs, on a bus that never stops: bounded, and not written all the time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec

from phase_bus import printable_json

KEPT_RUNS = 100
_SHARE = 0.05  # the largest part of the time that a file may be written while runs go on


class Pace:
    """Says when a file may be written again, so that it takes a small part of the time."""

    def __init__(self) -> None:
        self._next_s = 0.0

    @property
    def due(self) -> bool:
        """Whether enough time has passed since the file was written."""
        return time.monotonic() >= self._next_s

    def wrote(self, began_s: float) -> None:
        """Note that the file was written, from a moment on by :func:`time.monotonic` until now."""
        now_s = time.monotonic()
        self._next_s = now_s + (now_s - began_s) / _SHARE


class Pieces:
    """The texts of runs' documents, each made once and not again while the document is the same object."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[Any, str]] = {}

    def file(self, documents: Mapping[str, Any], left_out: int) -> str:
        """Return ``{"runs": {run_id: document}, "runs_left_out": n}`` as JSON."""
        self._made = {run_id: self._piece(run_id, document) for run_id, document in documents.items()}
        pieces = [f"    {_json(run_id)}: {text}" for run_id, (_, text) in self._made.items()]
        runs = "{\n" + ",\n".join(pieces) + "\n  }" if pieces else "{}"
        return printable_json(f'{{\n  "runs": {runs},\n  "runs_left_out": {left_out}\n}}\n')

    def changed(self, run_id: str) -> None:
        """Note that a document is another one, though it is the same object."""
        self._made.pop(run_id, None)

    def _piece(self, run_id: str, document: Any) -> tuple[Any, str]:
        made = self._made.get(run_id)
        if made is not None and made[0] is document:
            return made
        return document, _json(document).replace("\n", "\n    ")


def _json(document: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
