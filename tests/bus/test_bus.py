"""The bus, spoken to in raw frames."""

from __future__ import annotations

import math
import os
import uuid
from pathlib import Path

import pytest

from phase_bus.bus.options import BusOptions
from phase_bus.core.control import Ack, Beat, EndRuns, Goodbye, Heard, Hello, Welcome
from phase_bus.core.wire import Header, encode_event, stream_tag, topic_of
from phase_bus.errors import AddressError
from phase_bus.events import PhaseRef, PhaseStart, RunComplete, RunStart
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing.process import BusProcess
from phase_bus.testing.waiting import wait_until
from tests.support.buses import BusThread
from tests.support.clients import RawClient, Subscriber

pytestmark = pytest.mark.usefixtures("no_leaks")

SOURCE = uuid.UUID(int=7).bytes
CLIENT_ID = SOURCE.hex()
HELLO = Hello(client_id=CLIENT_ID, role="publisher", name="raw", pid=1)


def start(number: int = 0, run_id: str = "r") -> PhaseStart:
    """An event with a number in it."""
    return PhaseStart(run_id=run_id, phase=PhaseRef("profiling"), ts_ns=number)


def greet(client: RawClient, hello: Hello = HELLO) -> Welcome:
    """Say hello; return the welcome."""
    reply = client.ask(hello)
    assert isinstance(reply, Welcome)
    return reply


def last_ack(client: RawClient, seq: int) -> Ack:
    """Read replies until one acknowledges a sequence number; return it."""
    while True:
        reply = client.reply()
        if isinstance(reply, Ack) and reply.seq == seq:
            return reply


def test_hello(bus: BusThread) -> None:
    """A hello is answered with everything a client needs, as often as it is said."""
    with RawClient(bus.address) as client:
        welcome = greet(client)
        assert welcome.bus_id == bus.bus.bus_id
        assert welcome.last_seq == 0
        assert greet(client) == welcome


def test_events_are_acknowledged_and_passed_on(bus: BusThread) -> None:
    """An event goes to subscribers as it came, and its number goes back."""
    with RawClient(bus.address) as client, Subscriber(bus.address) as subscriber:
        greet(client)
        for seq in range(1, 6):
            client.publish(start(seq), SOURCE, seq)
        assert last_ack(client, 5) == Ack(seq=5)
        events = wait_until(lambda: len(e := subscriber.read()) == 5 and e)
        assert events == [start(seq) for seq in range(1, 6)]
        stream = stream_tag(bus.bus.bus_id)
        assert subscriber.headers[4] == Header(SOURCE, 5, 5, offset=5, event_number=5, stream=stream)
        assert greet(client).last_seq == 5


def test_duplicates_are_acknowledged_and_dropped(bus: BusThread) -> None:
    """What comes again is not passed on again."""
    with RawClient(bus.address) as client, Subscriber(bus.address) as subscriber:
        greet(client)
        for seq in (1, 2, 1, 2, 2, 3):
            client.publish(start(seq), SOURCE, seq)
        last_ack(client, 3)
        wait_until(lambda: len(subscriber.read()) == 3)
        client.publish(start(2), SOURCE, 2)
        assert client.reply() == Ack(seq=3)
        assert len(subscriber.read()) == 3


def test_a_hole_is_asked_for_once(bus: BusThread) -> None:
    """After a gap nothing is passed on until what is missing has come; one request is enough."""
    with RawClient(bus.address) as client, Subscriber(bus.address) as subscriber:
        greet(client)
        client.publish(start(1), SOURCE, 1)
        assert client.reply() == Ack(seq=1)
        client.publish(start(3), SOURCE, 3)
        assert client.reply() == Ack(seq=1, resend=True)
        client.publish(start(4), SOURCE, 4)
        client.publish(start(5), SOURCE, 5)
        client.socket.send(b"")  # the bus is through with those once it has set this aside
        assert wait_until(lambda: client.status().dropped) == 1
        for seq in (2, 3, 4, 5):
            client.publish(start(seq), SOURCE, seq)
        assert not last_ack(client, 5).resend
        wait_until(lambda: len(subscriber.read()) == 4 or len(subscriber.read()) == 5)
        wait_until(lambda: len(subscriber.read()) == 5)
        assert [header.source_seq for header in subscriber.headers] == [1, 2, 3, 4, 5]


def test_a_beat_tells_of_a_loss(bus: BusThread) -> None:
    """A publisher that sent more than arrived is asked for it, though nothing came after."""
    with RawClient(bus.address) as client:
        greet(client)
        client.publish(start(1), SOURCE, 1)
        assert client.reply() == Ack(seq=1)
        beat = Beat(client_id=CLIENT_ID, state="ready", sent_seq=3)
        assert client.ask(beat) == Heard(bus_id=bus.bus.bus_id)
        assert client.reply() == Ack(seq=1, resend=True)


def test_a_hello_that_is_ahead(bus: BusThread) -> None:
    """What another bus has acknowledged cannot come again, and is not waited for."""
    with RawClient(bus.address) as client:
        greet(client)
        assert (
            greet(client, Hello(client_id=CLIENT_ID, role="publisher", name="raw", next_seq=50)).last_seq
            == 49
        )
        client.publish(start(50), SOURCE, 50)
        assert client.reply() == Ack(seq=50)


def test_unknown_source(bus: BusThread) -> None:
    """A client that has not said hello is asked to."""
    with RawClient(bus.address) as client:
        client.publish(start(), SOURCE, 1)
        assert client.reply() == Heard(bus_id=bus.bus.bus_id, known=False)
        reply = client.ask(Beat(client_id=CLIENT_ID, state="ready"))
        assert reply == Heard(bus_id=bus.bus.bus_id, known=False)


@pytest.mark.parametrize(
    "frames",
    [
        [b""], [b"\xc1"], [b"a", b"b"], [b"a", b"b", b"c"], [b"a", b"b", b"c", b"d"],
        [b"phase_start.r$", b"\x02" + bytes(47), b""], [b"phase_start.r$", Header(SOURCE, 1, 1).pack()],
    ],
)  # fmt: skip
def test_malformed_frames(bus: BusThread, frames: list[bytes]) -> None:
    """They are counted and skipped, and the bus goes on."""
    with RawClient(bus.address) as client:
        client.socket.send_multipart(frames)
        assert wait_until(lambda: client.status().dropped) == 1
        greet(client)


@pytest.mark.parametrize("client_id", ["", "xyz", "7" * 31, "G" * 32])
def test_malformed_client_id(bus: BusThread, client_id: str) -> None:
    """A malformed id does not end the bus."""
    with RawClient(bus.address) as client:
        client.socket.send(b"\x00")
        client.ask(EndRuns(reason=""))
        from phase_bus.core.wire import encode_control

        client.socket.send(encode_control(Hello(client_id=client_id, role="publisher", name="n")))
        assert wait_until(lambda: client.status().dropped) == 2


def test_malformed_events_of_a_known_source(bus: BusThread) -> None:
    """A malformed topic or run_complete is skipped; what follows is taken in."""
    with RawClient(bus.address) as client, Subscriber(bus.address, "phase_start.") as subscriber:
        greet(client)
        client.socket.send_multipart((b"no topic", Header(SOURCE, 1, 1).pack(), b""))
        client.socket.send_multipart((b"run_complete.r$", Header(SOURCE, 2, 1).pack(), b"\xc1"))
        client.publish(start(3), SOURCE, 3, 1)
        last_ack(client, 3)
        wait_until(lambda: subscriber.read())
        assert client.status().dropped == 2


def test_status(bus: BusThread) -> None:
    """The status names clients and runs, with their states."""
    with RawClient(bus.address) as client:
        greet(client)
        greet(client, Hello(client_id="1" * 32, role="consumer", name="c", subscriptions=("phase_start.",)))
        client.ask(Beat(client_id="1" * 32, state="ready", handled_runs=("r",), received=5))
        client.publish(RunStart(run_id="r"), SOURCE, 1)
        client.publish(start(), SOURCE, 2, 1)
        last_ack(client, 2)
        status = client.status()
        assert status.pid == os.getpid()
        assert status.addresses == (bus.address,)
        consumer = next(c for c in status.clients if c.role == "consumer")
        assert (consumer.name, consumer.state, consumer.received) == ("c", "ready", 5)
        assert consumer.subscriptions == ("phase_start.",)
        (run,) = status.runs
        assert (run.run_id, run.status, run.events, run.publisher) == ("r", "running", 2, "raw")
        client.publish(RunComplete(run_id="r", status="completed", ts_ns=9), SOURCE, 3, 1)
        last_ack(client, 3)
        (run,) = client.status().runs
        assert (run.status, run.ended_ns) == ("completed", 9)


def test_end_runs(bus: BusThread) -> None:
    """Open runs end as lost, once, with what the bus has of them; others stay as they are."""
    with RawClient(bus.address) as client, Subscriber(bus.address, "run_complete.") as subscriber:
        greet(client)
        client.publish(start(1, "open"), SOURCE, 1, 1)
        client.publish(start(2, "open"), SOURCE, 2, 2)
        client.publish(RunComplete(run_id="done", status="completed"), SOURCE, 3, 1)
        last_ack(client, 3)
        for _ in range(2):
            assert client.ask(EndRuns(reason="it is over")) == Heard(bus_id=bus.bus.bus_id)
        assert {run.run_id: run.status for run in client.status().runs} == {
            "open": "lost",
            "done": "completed",
        }
        done, lost = wait_until(lambda: len(e := subscriber.of(RunComplete)) == 2 and e)
        assert (done.run_id, lost.run_id) == ("done", "open")
        assert (lost.status, lost.reason) == ("lost", "it is over")
        assert lost.published == {"phase_start.open$": 2}


def test_end_runs_comes_after_what_was_sent(bus: BusThread) -> None:
    """A run ends after the events that wait to be taken in, whichever connection they came by."""
    with RawClient(bus.address) as sender, RawClient(bus.address) as client:
        greet(sender)
        with Subscriber(bus.address) as subscriber:
            for seq in range(1, 801):
                sender.publish(start(seq), SOURCE, seq)
            last_ack(sender, 800)
            client.ask(EndRuns(reason="x"))
            events = wait_until(lambda: len(e := subscriber.read()) == 801 and e)
        assert isinstance(events[-1], RunComplete)
        assert events[-1].published == {"phase_start.r$": 800}


def test_goodbye_ends_the_publishers_runs(bus: BusThread) -> None:
    """A publisher that leaves without ending its run has lost it; it may come back."""
    with RawClient(bus.address) as client, Subscriber(bus.address, "run_complete.") as subscriber:
        greet(client)
        client.publish(RunStart(run_id="r"), SOURCE, 1)
        client.publish(RunStart(run_id="other"), SOURCE, 2, 1)
        last_ack(client, 2)
        client.ask(Goodbye(client_id=CLIENT_ID))
        wait_until(lambda: len(subscriber.of(RunComplete)) == 2)
        client.publish(start(3), SOURCE, 3, 1)
        assert client.reply() == Heard(bus_id=bus.bus.bus_id, known=False)
        assert greet(client).last_seq == 2
        client.publish(start(3), SOURCE, 3, 1)
        last_ack(client, 3)
        status = client.status()
        assert {run.run_id: run.status for run in status.runs} == {"r": "running", "other": "lost"}
        assert [info.received for info in status.clients if info.role == "publisher"] == [3]


def test_silent_publisher(ipc_dir: Path) -> None:
    """The run of a publisher that has fallen silent is lost, once; that of a live one goes on."""
    options = BusOptions(heartbeat_s=0.05, silent_after_s=0.3)
    with (
        BusThread(f"ipc://{ipc_dir}", options=options) as bus,
        RawClient(bus.address) as client,
        Subscriber(bus.address, "run_complete.") as subscriber,
        Publisher(bus.address) as alive,
    ):
        alive.publish(start(run_id="alive"))
        greet(client)
        client.publish(start(), SOURCE, 1)
        last_ack(client, 1)
        (lost,) = wait_until(lambda: subscriber.of(RunComplete))
        assert (lost.run_id, lost.status, lost.published) == ("r", "lost", {"phase_start.r$": 1})
        uptime_s = client.status().uptime_s
        wait_until(lambda: client.status().uptime_s > uptime_s + 0.5)
        assert [event.run_id for event in subscriber.of(RunComplete)] == ["r"]
        states = {c.name: c.state for c in client.status().clients}
        assert (states["raw"], states["publisher"]) == ("silent", "ready")


def test_published_counts_survive_a_restart(bus_process: BusProcess) -> None:
    """A new bus counts the events that the one before it took in, by the topic's sequence."""
    with RawClient(bus_process.address) as client:
        greet(client, Hello(client_id=CLIENT_ID, role="publisher", name="raw", next_seq=6))
        client.publish(start(), SOURCE, 6, 6)
        last_ack(client, 6)
        assert client.status().runs[0].events == 6


def test_a_second_bus_on_the_same_directory(bus: BusThread) -> None:
    """The second is refused, and the first is unharmed."""
    with pytest.raises(AddressError, match="in use"):
        BusThread(bus.address)
    with RawClient(bus.address) as client:
        greet(client)


def test_a_second_bus_on_the_same_port() -> None:
    """It is refused."""
    with BusThread("tcp://127.0.0.1:0") as bus:
        with pytest.raises(AddressError, match="in use"):
            BusThread(bus.address)
        with RawClient(bus.address) as client:
            greet(client)


@pytest.mark.parametrize(
    "addresses",
    [
        ("direct+tcp://127.0.0.1:0",),
        ("tcp://127.0.0.1:0", "tcp://127.0.0.1:0"),
        ("ipc:///proc/nowhere",),
        ("tcp://192.0.2.1:5555",),
    ],
)
def test_addresses_that_cannot_be_bound(addresses: tuple[str, ...]) -> None:
    """They raise AddressError, and nothing stays open."""
    with pytest.raises(AddressError):
        BusThread(*addresses)


def test_both_schemes_at_once(ipc_dir: Path) -> None:
    """A bus with two addresses is one bus."""
    with BusThread(f"ipc://{ipc_dir}", "tcp://127.0.0.1:0") as bus:
        ipc, tcp = bus.addresses
        with Subscriber(tcp, "phase_start.") as over_tcp, Subscriber(ipc, "phase_start.") as over_ipc:
            with Publisher(ipc) as one, Publisher(tcp) as other:
                one.publish(start(1, "one"))
                other.publish(start(2, "other"))
            for subscriber in over_tcp, over_ipc:
                wait_until(lambda: {e.run_id for e in subscriber.of(PhaseStart)} == {"one", "other"})  # noqa: B023


def test_a_killed_buses_files_are_no_obstacle(bus_process: BusProcess) -> None:
    """The next bus binds where a killed one left its sockets."""
    bus_process.kill()
    bus_process.start()
    with RawClient(bus_process.address) as client:
        greet(client)


def test_sigterm(bus_process: BusProcess, ipc_dir: Path) -> None:
    """SIGTERM ends a bus soon, with exit code 0, runs ended, and no socket files left."""
    with (
        RawClient(bus_process.address) as client,
        Subscriber(bus_process.address, "run_complete.") as subscriber,
    ):
        greet(client)
        client.publish(start(), SOURCE, 1)
        last_ack(client, 1)
        assert bus_process.terminate() == 0
        (lost,) = wait_until(lambda: subscriber.of(RunComplete))
        assert lost.status == "lost"
    assert sorted(path.name for path in ipc_dir.iterdir()) == ["bus.lock"]


def test_a_large_event(bus: BusThread) -> None:
    """Large payloads, which are not copied, arrive as they were."""
    with RawClient(bus.address) as client, Subscriber(bus.address, "run_start.") as subscriber:
        greet(client)
        event = RunStart(run_id="r", variation={"x": "y" * 1_000_000})
        client.publish(event, SOURCE, 1)
        wait_until(lambda: subscriber.read() == [event])
        assert len(encode_event(event)) > 1_000_000
        assert subscriber.topics == [topic_of(event)]


@pytest.mark.parametrize(
    "options", [{"heartbeat_s": 0.0}, {"silent_after_s": math.nan}, {"heartbeat_s": math.inf}]
)
def test_options_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must be more than 0|not a finite number"):
        BusOptions(**options)  # type: ignore[arg-type]
