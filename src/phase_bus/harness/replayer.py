"""Publishing past events again on a bus, in their order and at their pace or faster."""

from __future__ import annotations

import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

import msgspec
import zmq

from phase_bus.core.address import Address
from phase_bus.core.keys import key_for
from phase_bus.core.outbox import Outbox
from phase_bus.core.wire import decode_event, encode_event, parse_topic, topic_in, topic_of
from phase_bus.errors import PhaseBusError
from phase_bus.events import RunComplete
from phase_bus.journal.rows import Entry
from phase_bus.publisher.link import BusLink

_BUFFER_BYTES = 8 << 20  # read ahead of what the bus has acknowledged
_TURN_EVERY = 64  # events between two looks at the socket, while there is room
_LINGER_MS = 500
_LONGEST_IDLE_S = 1.0  # between runs nothing happens, and nobody wants to wait for it
_PATIENCE_S = 30.0  # for how long the bus may acknowledge nothing before it is given up


class Replayer:
    """Publishes past events on a bus under a new source id, and waits until the bus has them.

    It has no thread and drops nothing: it reads no further than the bus takes. Payloads stay as they are,
    except for the end of a run, whose counts become those of what its publishers published, as one.
    The time between events is divided by ``speed``; None is for as fast as the bus takes them. ``on_sent``
    is called with the number of events that the bus has.
    """

    def __init__(
        self, address: Address, *, speed: float | None, run_id: str | None, on_sent: Callable[[int], None]
    ) -> None:
        self.events = 0
        self.records = 0
        self._address = address
        self._speed = speed
        self._run_id = run_id
        self._on_sent = on_sent
        self._outbox = Outbox(uuid.uuid4().bytes, _BUFFER_BYTES)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._link = BusLink(self._context, address, self._outbox, "replay", _LINGER_MS, key_for(address))
        # By run: here they have one publisher, however many they had.
        self._published: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._published_records: Counter[str] = Counter()
        self._going_on: set[str] = set()
        self._due_s = 0.0
        self._last_ns: int | None = None

    def publish(self, events: Iterable[Entry]) -> None:
        """Publish events until the bus has acknowledged all of them, and leave it; open runs end then.

        Raises:
            PhaseBusError: if the bus takes nothing for too long, or a run is to get another id and an
                event is of a kind that this version cannot write.
        """
        try:
            for past in events:
                self._wait_until_due(past)
                while self._outbox.size_bytes > _BUFFER_BYTES:
                    self._turn(_PATIENCE_S)
                self._put(past)
                if self.events % _TURN_EVERY == 0:
                    self._turn(0.0)
            while len(self._outbox):
                self._turn(_PATIENCE_S)
            self._on_sent(self.events)
        finally:
            self._link.close()
            self._context.term()

    def _put(self, past: Entry) -> None:
        topic, payload = self._rewritten(past)
        self._outbox.add(topic, payload, past.records)
        self._published[past.run_id][topic.decode()] += 1
        self._published_records[past.run_id] += past.records
        self.events += 1
        self.records += past.records

    def _rewritten(self, past: Entry) -> tuple[bytes, bytes]:
        kind, run_id = parse_topic(past.topic)
        if kind != RunComplete.kind:
            self._going_on.add(run_id)
            if self._run_id is None:
                return past.topic, past.payload
        event = decode_event(past.topic, past.payload)
        if event is None:
            raise PhaseBusError(
                f"events of kind {kind!r} are newer than this phase-bus, and cannot be given another run "
                "id; update phase-bus, or replay without --run-id"
            )
        if isinstance(event, RunComplete):
            self._going_on.discard(run_id)
            # What the journal lost, or is damaged in it, was published all the same: it shall be missed.
            other = run_id if self._run_id is None else self._run_id
            published = Counter({topic_in(each, run_id, other): n for each, n in event.published.items()})
            event = msgspec.structs.replace(
                event,
                published=dict(self._published.pop(run_id, Counter()) | published),
                records=max(self._published_records.pop(run_id, 0), event.records),
                parts={},
            )
        if self._run_id is not None:
            event = msgspec.structs.replace(event, run_id=self._run_id)
        return topic_of(event), encode_event(event)

    # ---- time, and the bus ----

    def _wait_until_due(self, past: Entry) -> None:
        if self._speed is None:
            return
        now_s = time.monotonic()
        if self._last_ns is None:
            self._due_s = now_s
        else:
            distance_s = max(past.ts_ns - self._last_ns, 0) / 1e9 / self._speed
            self._due_s += distance_s if self._going_on else min(distance_s, _LONGEST_IDLE_S)
        self._last_ns = past.ts_ns
        while (left_s := self._due_s - time.monotonic()) > 0:
            self._turn(left_s)

    def _turn(self, longest_s: float) -> None:
        """Give the link its turn; give the bus up if it has taken nothing for too long."""
        silent_s = self._link.turn(longest_s)
        delivered = self.events - len(self._outbox)
        self._on_sent(delivered)
        if silent_s > _PATIENCE_S:
            raise PhaseBusError(
                f"the bus at {self._address} has acknowledged nothing for {_PATIENCE_S:g} s; "
                f"{delivered} events were delivered; see whether it is running and its disk has space"
            )
