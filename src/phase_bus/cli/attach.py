"""``phase-bus attach``."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from phase_bus.aiperf.attach import DEFAULT_PORT, SILENCE_S, ipc_address, run_attach
from phase_bus.cli.options import AddressOption, check_bus, check_delivered, parse_address
from phase_bus.cli.output import configure_logging, say
from phase_bus.core.address import Address, check_socket_path
from phase_bus.errors import AddressError, ConfigError
from phase_bus.harness.ending import CLIENT_S, Ending
from phase_bus.publisher.publisher import Publisher


def attach(
    *,
    ipc_path: Path | None = None,
    tcp: Annotated[str | None, Parameter(help="HOST or HOST:PORT of AIPerf's event bus.")] = None,
    address: AddressOption = None,
    run_id: str | None = None,
    timeout_s: float = SILENCE_S,
) -> int:
    """Follow a run of AIPerf from outside, where the plugin is not installed.

    Publishes phase events and AIPerf's own results, but no request records, because those do not travel
    on AIPerf's event bus. Pass the directory that AIPerf was given with --zmq-ipc-path, or the host it was
    given with --zmq-host. It waits for AIPerf to start, and ends with the run.

    For example:

        phase-bus attach --ipc-path /tmp/aiperf-ipc
        phase-bus attach --tcp 10.0.0.7:5664 --address tcp://127.0.0.1:5670

    Args:
        ipc_path: The directory of AIPerf's sockets.
        run_id: The id of the run; AIPerf's event bus does not say its own.
        timeout_s: Seconds of silence after which AIPerf counts as lost.
    """
    configure_logging()
    source = source_of(ipc_path, tcp)
    where = parse_address(address)
    check_bus(where)
    stop = threading.Event()
    with Ending(say, CLIENT_S) as ending, Publisher(str(where), name="attach") as publisher:
        ending.begin("attach", stop.set)
        say(f"waiting for AIPerf at {source}; phase events and results only, no request records")
        report = run_attach(source, publisher, run_id=run_id, timeout_s=timeout_s, stop=stop)
        publisher.flush(timeout_s=10.0)
    check_delivered(publisher)
    if report.status is None:
        say("nothing was heard from AIPerf")
        return 1
    reason = f" ({report.reason})" if report.reason else ""
    say(f"run {report.run_id} {report.status}{reason}, {report.phases} phases")
    return 0


def source_of(ipc_path: Path | None, tcp: str | None) -> str:
    """Return the ZeroMQ endpoint of AIPerf's event bus."""
    if (ipc_path is None) == (tcp is None):
        raise ConfigError("give either --ipc-path DIRECTORY or --tcp HOST[:PORT], as AIPerf was given")
    if ipc_path is not None:
        address = ipc_address(ipc_path)
        check_socket_path(str(ipc_path), address.removeprefix("ipc://"))
        return address
    assert tcp is not None
    host = f"[{tcp}]" if tcp.count(":") > 1 and not tcp.startswith("[") else tcp
    has_port = ":" in host.rpartition("]")[2]
    given = f"tcp://{host}" if has_port else f"tcp://{host}:{DEFAULT_PORT}"
    try:
        return Address.parse(given).connectable().control
    except AddressError:
        example = f"127.0.0.1:{DEFAULT_PORT} or [::1]:{DEFAULT_PORT}"
        raise ConfigError(f"--tcp {tcp!r}: write HOST or HOST:PORT, as in {example}") from None
