"""Quantile sketches side by side: ours, and those of packages that may be installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from benchmarks.harness import installed
from phase_bus.aggregation.sketch import RELATIVE_ERROR, LogHistogram

QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
PACKAGES = ("ddsketch", "datasketches", "crick")
_KLL_K = 1000  # a rank error of 0.25 %, the order of ours in size
_REQ_K = 40  # for rank errors that shrink towards the largest values

Column = npt.NDArray[np.float64]


class Sketch(Struct, frozen=True):
    """A kind of quantile sketch.

    Attributes:
        key: its name in figures.
        title: its name in tables.
        package: where it is from.
        make: returns an empty one.
        prepare: turns a column into what ``update`` takes, outside the time that is measured.
        update: adds values to a sketch.
        merge: adds a sketch to another one.
        quantiles: returns a sketch's quantiles.
    """

    key: str
    title: str
    package: str
    make: Callable[[], Any]
    prepare: Callable[[Column], Any]
    update: Callable[[Any, Any], object]
    merge: Callable[[Any, Any], object]
    quantiles: Callable[[Any, Sequence[float]], Any]


OURS = Sketch(
    "ours",
    "our LogHistogram",
    "phase_bus",
    lambda: LogHistogram("ns"),
    lambda column: column,
    LogHistogram.update,
    LogHistogram.merge,
    lambda made, some: made.quantiles(some),
)


def others() -> list[Sketch]:
    """Return those of the packages that are installed."""
    found = []
    if (package := installed("ddsketch")) is not None:
        found.append(_ddsketch(package))
    if (package := installed("datasketches")) is not None:
        found.extend(_datasketches(package))
    if (package := installed("crick")) is not None:
        found.append(_crick(package))
    return found


def _ddsketch(package: Any) -> Sketch:
    return Sketch(
        "ddsketch",
        f"ddsketch, {RELATIVE_ERROR:.2%}, value by value",
        "ddsketch",
        lambda: package.DDSketch(RELATIVE_ERROR),
        lambda column: column.tolist(),
        _add_each,
        lambda whole, part: whole.merge(part),
        lambda made, some: [made.get_quantile_value(q) for q in some],
    )


def _add_each(made: Any, values: Sequence[float]) -> None:
    add = made.add
    for value in values:
        add(value)


def _datasketches(package: Any) -> list[Sketch]:
    kinds = (
        ("kll", f"datasketches, KLL, k = {_KLL_K}", lambda: package.kll_doubles_sketch(_KLL_K)),
        ("req", f"datasketches, REQ, k = {_REQ_K}, in float32", lambda: package.req_floats_sketch(_REQ_K)),
    )
    return [
        Sketch(
            key,
            title,
            "datasketches",
            make,
            lambda column: column,
            lambda made, column: made.update(column),
            lambda whole, part: whole.merge(part),
            lambda made, some: made.get_quantiles(list(some)),
        )
        for key, title, make in kinds
    ]


def _crick(package: Any) -> Sketch:
    return Sketch(
        "crick",
        "crick, t-digest, compression 100",
        "crick",
        package.TDigest,
        lambda column: column,
        lambda made, column: made.update(column),
        lambda whole, part: whole.merge(part),
        lambda made, some: made.quantile(list(some)),
    )
