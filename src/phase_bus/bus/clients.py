"""How clients come to the bus, are heard, and go."""

from __future__ import annotations

import logging
import re

from phase_bus.bus.checkpoints import Positions
from phase_bus.bus.ledger import Client, Ledger
from phase_bus.bus.members import Members
from phase_bus.bus.options import BusOptions
from phase_bus.bus.run_ends import RunEnds
from phase_bus.bus.sockets import BusSockets
from phase_bus.bus.stream import Stream
from phase_bus.core.control import WIRE_VERSION, Beat, Heard, Hello, Refused, Welcome
from phase_bus.errors import WireError

logger = logging.getLogger("phase_bus.bus")

_CLIENT_ID = re.compile("[0-9a-f]{32}")


class Clients:
    """Answers hellos, beats and goodbyes, and notices who is gone without one.

    Who is gone leaves its group, and the runs that it has published and not ended are lost.

    Args:
        bus_id: names this process of the bus.
        options: how the bus behaves.
        sockets: where clients are answered, and what else they are to connect to.
        stream: where it stands is told to a client that comes.
        ledger: who is there.
        positions: where consumers are to go on, and where it is kept how far they are.
        members: those of groups.
        run_ends: ends the runs of publishers that are gone.
    """

    def __init__(
        self,
        bus_id: str,
        options: BusOptions,
        *,
        sockets: BusSockets,
        stream: Stream,
        ledger: Ledger,
        positions: Positions,
        members: Members,
        run_ends: RunEnds,
    ) -> None:
        self._bus_id = bus_id
        self._options = options
        self._sockets = sockets
        self._reply = sockets.reply
        self._stream = stream
        self._ledger = ledger
        self._positions = positions
        self._members = members
        self._run_ends = run_ends

    def refuse_version(self, identity: bytes, hello: Hello) -> None:
        """Tell a client that it and this bus do not understand each other."""
        reason = (
            f"it reads wire version {WIRE_VERSION}, and {hello.name!r} on {hello.host or 'this host'} "
            f"writes {hello.wire_version}; use the same phase-bus on both sides"
        )
        logger.warning("phase-bus bus: %s %r is refused: %s", hello.role, hello.name, reason)
        self._reply(identity, Refused(seq=hello.next_seq - 1, reason=reason))

    def welcome(self, identity: bytes, hello: Hello, now_s: float) -> None:
        """Take in a client that introduces itself, for the first time or again.

        All that was taken in is to be in the stream by now: the client is told where that stands.

        Raises:
            WireError: its id is none.
            JournalError: it cannot be read where the client is to go on.
        """
        if not _CLIENT_ID.fullmatch(hello.client_id):
            raise WireError(f"client id {hello.client_id!r:.100} is not 32 hex digits")
        client = self._ledger.hello(hello, identity, now_s)
        kept = self._positions.find(hello)
        welcome = Welcome(
            bus_id=self._bus_id,
            events=self._sockets.events_endpoint,
            heartbeat_s=self._options.heartbeat_s,
            silent_after_s=self._ledger.silent_after_s,
            last_seq=client.last_seq,
            replay=self._sockets.replay_endpoint,
            journal_id=self._positions.journal_id,
            offset=self._stream.head.offset,
            event_number=self._stream.head.event_number,
            checkpoint=kept.offset if kept else None,
            state=kept.state if kept else None,
        )
        self._reply(identity, welcome)

    def hear(self, identity: bytes, beat: Beat, now_s: float) -> Client | None:
        """Take in that a client is alive, and what it has done; return it, or None if it is not known."""
        client = self._ledger.clients.get(beat.client_id)
        if client is None or not self._ledger.beat(beat, identity, now_s):
            # Its commits are judged when it has said hello and says them again.
            self._reply(identity, Heard(bus_id=self._bus_id, known=False))
            return None
        kept = self._positions.keep(client.info, beat, self._members.group_of(beat.client_id))
        heard = Heard(
            bus_id=self._bus_id,
            dead_letters=tuple(kept.dead_letters),
            kept=kept.shares,
            refused=tuple(kept.refused),
        )
        self._reply(identity, heard)
        self._members.take_beat(beat)
        return client

    def take_leave(self, identity: bytes, client_id: str) -> None:
        """Let go of a client that says goodbye."""
        client = self._ledger.leave(client_id)
        if client is not None:
            self._gone(client, "its publisher left without ending it")
        self._reply(identity, Heard(bus_id=self._bus_id))

    def miss(self, now_s: float) -> None:
        """Let go of the clients that are silent for too long, or did not come back to a new bus."""
        for client in self._ledger.newly_silent(now_s):
            logger.warning(
                "phase-bus bus: %s %r (pid %d) has not answered for %g s",
                client.info.role,
                client.info.name,
                client.info.pid,
                self._options.silent_after_s,
            )
            self._gone(client, "its publisher fell silent")
        for source in self._ledger.newly_orphaned(now_s):
            self._run_ends.end("its publisher did not come back after a restart of the bus", source)

    def _gone(self, client: Client, reason: str) -> None:
        self._members.leave(client.info.client_id)
        if client.info.role == "publisher":
            self._run_ends.end(reason, client.source)
