"""The plugin: a stream exporter inside AIPerf's RecordsManager.

AIPerf imports this module in every run, even if the plugin is off: what publishes is loaded only if there
is an address, before the benchmark begins.
"""

from __future__ import annotations

import os
from typing import Any

from phase_bus.aiperf.options import disabled, read_options


class PhaseBusExporter:
    """The class that AIPerf calls to get a run's :class:`~phase_bus.aiperf.exporter.RunExporter`.

    ``run`` is AIPerf's ``BenchmarkRun``; it may hand over more, now ``service_id`` and ``pub_client``.

    Raises:
        Exception: if the plugin is off, or its configuration is wrong; AIPerf goes on without it.
    """

    def __new__(cls, *, run: Any, **_others: Any) -> Any:
        """Return the exporter; it is of another class."""
        options = read_options(getattr(run, "variables", None), os.environ)
        if not options.address:
            raise disabled("phase-bus: no address is set")
        from phase_bus.aiperf.exporter import RunExporter

        return RunExporter(run, options)
