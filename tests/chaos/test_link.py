"""The link to NATS is cut, for half a minute and for five: the bus keeps everything until it is back."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from phase_bus.testing.waiting import wait_until
from tests.support.fleet import await_results, forwarding_bus, worker
from tests.support.load import Load, check_forwarded, forwarded
from tests.support.servers.nats import NatsServer
from tests.support.servers.tcp_faults import TcpProxy

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(500)]


@pytest.mark.parametrize(
    ("seconds", "silently"), [(30.0, False), (300.0, True)], ids=["half a minute", "five minutes"]
)
def test_a_link_is_cut(
    tmp_path: Path,
    ipc_dir: Path,
    nats: NatsServer,
    tcp_proxy: Callable[[int], TcpProxy],
    seconds: float,
    silently: bool,
) -> None:
    """Connections are refused, or hang and deliver late; the run goes on, and arrives whole, once."""
    proxy = tcp_proxy(nats.port)
    url = proxy.through(nats.url)
    with (
        forwarding_bus(tmp_path, f"ipc://{ipc_dir}", url) as bus,
        worker(tmp_path, 0, url) as team,
        Load(bus.address, "run", 20.0) as load,
    ):
        wait_until(lambda: nats.last_offset() > 3, 60)
        if silently:
            proxy.silent = True
        else:
            proxy.kill()
        time.sleep(seconds)
        before = nats.last_offset()
        records = load.end()  # nothing of this has left the bus's host
        if silently:
            proxy.silent = False
        else:
            proxy.start()
        back_s = time.monotonic()
        await_results(tmp_path / "team.json", {"run": records}, team, timeout_s=60.0)
        print(f"{records} records; all there {time.monotonic() - back_s:.1f} s after the link came back")
        assert before < nats.last_offset()
        check_forwarded(forwarded(nats.url), {"run": records})
        assert (team.terminate(), bus.terminate()) == (0, 0), team.tail()
