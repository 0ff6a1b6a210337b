"""``phase-bus doctor``."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from typing import Annotated, Literal, TypeAlias

import zmq
from cyclopts import Parameter
from msgspec import Struct
from rich.text import Text

from phase_bus import __version__
from phase_bus.aiperf.environment import KNOWN, lack_of_category
from phase_bus.cli.options import AddressOption, JsonOption
from phase_bus.cli.output import counted, make_console, print_json
from phase_bus.core.address import ADDRESS_VARIABLE, Address, default_address
from phase_bus.core.authorized import authorized_file, read_authorized
from phase_bus.core.client import BusClient
from phase_bus.core.keys import find_key
from phase_bus.core.printable import printable
from phase_bus.errors import PhaseBusError

Verdict: TypeAlias = Literal["ok", "note", "fail"]

_STYLES = {"ok": "green", "note": "yellow", "fail": "bold red"}
_AIPERF_TIMEOUT_S = 60.0
_INSTALL = "install it with: pip install"  # said of a consumer whose extra is not installed
_ERROR_LINE = re.compile(r"[\w.]+(Error|Exception|Found)\b")
# Asks AIPerf itself, in a process of its own, since importing it is slow and may fail.
_ASK_AIPERF = """
from aiperf.plugin import plugins
from aiperf.plugin.enums import PluginType
names = [entry.name for entry in plugins.iter_entries(PluginType.STREAM_EXPORTER)]
plugins.get_class(PluginType.STREAM_EXPORTER, "phase_bus")
print(",".join(names))
"""


class Finding(Struct, frozen=True):
    """What was found, and the remedy: ``note`` if it may be intended, ``fail`` if it must be mended."""

    verdict: Verdict
    subject: str
    text: str


def doctor(
    *,
    address: AddressOption = None,
    timeout_s: Annotated[float, Parameter(help="Seconds to wait for the bus.")] = 2.0,
    json: JsonOption = False,
) -> int:
    """Say what is installed, whether AIPerf sees the plugin, and whether the address works.

    A NOTE may be as you want it; a FAIL has to be put right, and makes the exit code 1.

    For example:

        phase-bus doctor
        phase-bus doctor --address tcp://127.0.0.1:5670
    """
    findings = [*_installed(), *_aiperf(), *_consumers(), _key(), *_bus(address, timeout_s)]
    if json:
        print_json(findings)
    else:
        console = make_console()
        for f in findings:
            mark = Text(f"{f.verdict.upper():<6}", _STYLES[f.verdict])
            console.print(mark + Text(printable(f"{f.subject:<12} {f.text}")), soft_wrap=True)
    return int(any(f.verdict == "fail" for f in findings))


def _installed() -> Iterator[Finding]:
    python = f"{platform.python_version()} ({sys.executable})"
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        yield Finding("ok", "python", python)
    else:
        yield Finding("fail", "python", f"{python}; phase-bus wants 3.11 to 3.13")
    yield Finding(
        "ok",
        "phase-bus",
        f"{__version__}, with pyzmq {zmq.pyzmq_version()} (libzmq {zmq.zmq_version()}), "
        f"msgspec {version('msgspec')}",
    )


def _aiperf() -> Iterator[Finding]:
    try:
        installed = distribution("aiperf")
    except PackageNotFoundError:
        remedy = "to follow its runs, install phase-bus where it is"
        yield Finding("note", "aiperf", f"not installed in this environment; {remedy}")
        return
    found = installed.version
    if found.startswith(tuple(f"{known}." for known in KNOWN)):
        yield Finding("ok", "aiperf", found)
    else:
        yield Finding("note", "aiperf", f"{found}; the plugin was tested with {' and '.join(KNOWN)}")
    if lack := lack_of_category(installed):
        yield Finding("fail", "plugin", lack)
        return
    ask = [sys.executable, "-c", _ASK_AIPERF]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=_AIPERF_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        yield Finding("fail", "plugin", f"AIPerf did not answer within {_AIPERF_TIMEOUT_S:g} s")
        return
    if answer.returncode == 0:
        yield Finding("ok", "plugin", "AIPerf sees the stream exporter 'phase_bus'")
        return
    lines = answer.stderr.strip().splitlines() or ["no reason given"]
    reason = next((line for line in lines if _ERROR_LINE.match(line)), lines[-1])
    remedy = "install phase-bus into AIPerf's own environment"
    yield Finding("fail", "plugin", f"AIPerf does not see it: {reason}; {remedy}")


def _consumers() -> Iterator[Finding]:
    from phase_bus.plugins.registry import Registry

    registry = Registry.load()
    usable, lacking = [], []
    for entry in registry.entries():
        try:
            registry.class_of(entry.kind, entry.name)
        except PhaseBusError as error:
            if _INSTALL in str(error):  # an extra, which may not be wanted here
                lacking.append(entry.use)
            else:
                yield Finding("note", entry.kind, str(error))
        else:
            usable.append(entry.use)
    yield Finding("ok", "consumers", ", ".join(usable))
    if lacking:
        remedy = "'phase-bus consume NAME' says which, 'phase-bus[dashboard,sinks]' has them all"
        yield Finding(
            "note", "consumers", f"{', '.join(lacking)} need packages that are not here; {remedy}"
        )


def _key() -> Finding:
    try:
        key = find_key()
        if key is None:
            return Finding("ok", "key", "none; for tcp:// 'phase-bus keys new' makes one")
        clients = read_authorized(authorized_file(key)) if key.is_of_bus else {}
    except PhaseBusError as error:
        return Finding("fail", "key", str(error))
    if key.is_of_bus:
        lets_in = f", which lets in {counted(len(clients), 'key')} of others" if clients else ""
        return Finding("ok", "key", f"{key.path}: that of a bus{lets_in}; public key {key.public}")
    return Finding("ok", "key", f"{key.path}: for the bus with {key.bus}; public key {key.public}")


def _bus(address: str | None, timeout_s: float) -> Iterator[Finding]:
    text, origin = address or default_address(), "given"
    if address is None:
        origin = f"${ADDRESS_VARIABLE}" if os.environ.get(ADDRESS_VARIABLE) else "the default"
    try:
        with BusClient(Address.parse(text)) as client:
            status = client.status(timeout_s)
    except PhaseBusError as error:
        verdict: Verdict = "note" if origin == "the default" else "fail"
        yield Finding(verdict, "bus", f"{error} (address: {origin})")
        return
    counts = f"{len(status.clients)} clients, {len(status.runs)} runs"
    yield Finding("ok", "bus", f"answers at {text} ({origin}): pid {status.pid}, {counts}")
