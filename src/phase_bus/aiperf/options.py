"""The plugin's options, and how it tells AIPerf that it does not take part."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from phase_bus.core.values import ListMode

logger = logging.getLogger("phase_bus.aiperf")


class Options(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a user can set: ``variables.phase_bus.*`` in AIPerf's YAML, or ``PHASE_BUS_*``.

    Attributes:
        address: where the bus is; without one the plugin is off.
        buffer_mib: how much may wait for the bus, in MiB.
        lists: how metrics that are lists are sent.
        spool_dir: a directory for what the bus has not taken by the end, for ``phase-bus replay``.
        key_file: the file with the key for a bus at a ``tcp://`` address; by default the user's own, if
            any, and with an empty name none.
    """

    address: str = ""
    buffer_mib: float = 64.0
    lists: ListMode = "summary"
    spool_dir: str = ""
    key_file: str | None = None


def read_options(variables: Any, environ: Mapping[str, str]) -> Options:
    """Return the options in the variables of AIPerf's ``BenchmarkRun``; the environment overrides them.

    Raises:
        Exception: if an option does not exist, or is of the wrong type; AIPerf goes on without the plugin.
    """
    given = (variables.get("phase_bus") if isinstance(variables, dict) else None) or {}
    if isinstance(given, dict):
        given = {str(name): value for name, value in given.items()}
        for name in Options.__struct_fields__:
            value = environ.get(f"PHASE_BUS_{name.upper()}")
            if value or (name == "key_file" and value is not None):
                given[name] = value
    try:
        return msgspec.convert(given, Options, strict=False)
    except msgspec.ValidationError as error:
        raise refused(f"its options are wrong: {error}") from None


def refused(reason: str) -> Exception:
    """Log why the plugin does not take part, and return the exception that tells AIPerf."""
    logger.warning("phase-bus is off for this run: %s", reason)
    return disabled(f"phase-bus: {reason}")


def disabled(reason: str) -> Exception:
    """Return the exception that tells AIPerf that a plugin does not take part."""
    try:
        error: Exception = module_of_aiperf("common.exceptions").PostProcessorDisabled(reason)
    except (ImportError, AttributeError):  # AIPerf logs any other exception as well, and goes on
        return RuntimeError(reason)
    return error


def module_of_aiperf(module: str) -> Any:
    """Import a module of AIPerf: late, so that this one also works without it or with another version."""
    return importlib.import_module(f"aiperf.{module}")
