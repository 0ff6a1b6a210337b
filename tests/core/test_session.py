"""The client's side of the conversation with the bus, without sockets and without a clock."""

from __future__ import annotations

import pytest

from phase_bus.core.control import Ack, Beat, Endpoint, Heard, Hello, Welcome
from phase_bus.core.session import LAST_HELLO_S, SILENT_AFTER_S, Session

HELLO = Hello(client_id="c", role="publisher", name="n")
BEAT = Beat(client_id="c", state="ready")


def welcome(bus_id: str = "bus", heartbeat_s: float = 1.0) -> Welcome:
    """A bus's welcome."""
    return Welcome(bus_id=bus_id, events=Endpoint(), heartbeat_s=heartbeat_s)


@pytest.fixture
def session() -> Session:
    """A session that begins at 0."""
    return Session(lambda: HELLO, lambda: BEAT, 0.0)


def test_hello_is_repeated_ever_more_slowly(session: Session) -> None:
    """Without an answer, hello comes again and again, at most twice a second in the end."""
    now_s, waits = 0.0, []
    for _ in range(10):
        assert session.due(now_s) is HELLO
        assert session.due(now_s) is None
        waits.append(session.wait_s(now_s))
        now_s += session.wait_s(now_s)
    assert waits == sorted(waits)
    assert waits[-1] == LAST_HELLO_S


def test_welcome_leads_to_beats(session: Session) -> None:
    """Once welcomed, the client beats at once and then as often as the bus wants."""
    session.due(0.0)
    assert session.heard(welcome(), 0.1)
    assert session.connected
    assert session.due(0.1) is BEAT
    assert session.due(0.2) is None
    assert session.wait_s(0.2) == pytest.approx(0.9)
    assert session.due(1.1) is BEAT


def test_beat_now(session: Session) -> None:
    """News makes the next beat due."""
    session.heard(welcome(), 0.0)
    session.due(0.0)
    session.beat_now(0.3)
    assert session.due(0.3) is BEAT


@pytest.mark.parametrize("reply", [Heard(bus_id="bus", known=False), Heard(bus_id="another")])
def test_a_bus_that_does_not_know_the_client(session: Session, reply: Heard) -> None:
    """It is greeted again, at once."""
    session.heard(welcome(), 0.0)
    assert not session.heard(reply, 0.5)
    assert not session.connected
    assert session.due(0.5) is HELLO


def test_silence(session: Session) -> None:
    """A bus that says nothing for too long is lost; any word counts."""
    session.heard(welcome(), 0.0)
    session.heard(Ack(seq=1), 2.0)
    assert session.due(2.0 + SILENT_AFTER_S) is BEAT
    assert session.connected
    assert session.due(2.1 + SILENT_AFTER_S) is HELLO
    assert not session.connected


def test_silence_with_slow_heartbeats(session: Session) -> None:
    """A bus that asks for few beats is not taken for a silent one."""
    session.heard(welcome(heartbeat_s=10.0), 0.0)
    session.due(0.0)
    assert session.due(10.0) is BEAT
    session.heard(Heard(bus_id="bus"), 10.1)
    assert session.due(20.1) is BEAT
    assert session.connected
    assert session.due(45.0) is HELLO
