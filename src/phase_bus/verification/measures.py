"""What is measured of a run: AIPerf's own results, and the CPU time of processes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from phase_bus.core.classes import import_extra

EXPORT = "profile_export_aiperf.json"


class Measure(Struct, frozen=True):
    """A figure that is compared between modes: a statistic of one of AIPerf's metrics."""

    metric: str
    statistic: str
    title: str
    unit: str

    @property
    def key(self) -> str:
        """Its key in a run's values."""
        return f"{self.metric}.{self.statistic}"


_LATENCIES = {
    "time_to_first_token": "TTFT",
    "inter_token_latency": "ITL",
    "request_latency": "request latency",
}
_STATISTICS = {"avg": "mean", "p50": "p50", "p99": "p99"}
# Not in AIPerf's results: what the shell sees of the command.
DURATION = Measure("command", "duration", "duration of the command", "s")
MEASURES = (
    Measure("request_throughput", "avg", "request throughput", "requests/s"),
    *(
        Measure(metric, statistic, f"{title} {word}", "ms")
        for metric, title in _LATENCIES.items()
        for statistic, word in _STATISTICS.items()
    ),
    DURATION,
)
# Reported like the others, but never judged: it is what the plugin costs, not what the benchmark feels.
CPU = Measure("aiperf", "cpu", "CPU time of AIPerf", "s")


class Results(Struct, frozen=True, kw_only=True):
    """AIPerf's results of a run: ``values`` by :attr:`Measure.key`, as far as it measured them."""

    values: dict[str, float]
    profiling_s: float
    requests: int
    errors: int


def read_results(artifacts: Path) -> Results | str:
    """Return the results in a directory of AIPerf's, or why they cannot be used."""
    path = artifacts / EXPORT
    try:
        export = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        return f"AIPerf wrote no {EXPORT}; verify takes a command of one run, no sweep"
    except (OSError, msgspec.DecodeError) as error:
        return f"{path} cannot be read: {error}"
    if export.get("was_cancelled"):
        return "AIPerf says that the run was cancelled"
    values = {m.key: _statistic(export, m.metric, m.statistic) for m in MEASURES}
    return Results(
        values={key: value for key, value in values.items() if value is not None},
        profiling_s=_statistic(export, "benchmark_duration", "avg") or 0.0,
        requests=int(_statistic(export, "request_count", "avg") or 0),
        errors=int(_statistic(export, "error_request_count", "avg") or 0),
    )


def processes_of(pid: int) -> list[Any]:
    """Return a process and all below it, as psutil has them; nothing of one that is gone."""
    psutil = load_psutil()
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_s_of(pid: int) -> float | None:
    """Return the CPU time, in seconds, of a process and all below it; None if it is gone."""
    total_s = None
    for process in processes_of(pid):
        with suppress(load_psutil().NoSuchProcess):
            # Of children that have ended it holds what they used, of the living ones it does not.
            total_s = (total_s or 0.0) + sum(process.cpu_times()[:4])
    return total_s


def load_psutil() -> Any:
    """Return the module psutil; raise a ConfigError if it is not installed."""
    return import_extra("psutil", "verify")


def _statistic(export: dict[str, Any], metric: str, statistic: str) -> float | None:
    entry = export.get(metric)
    value = entry.get(statistic) if isinstance(entry, dict) else None
    return float(value) if isinstance(value, int | float) else None
