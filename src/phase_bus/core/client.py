"""Asking a bus something, from a program that is neither publisher nor consumer."""

from __future__ import annotations

import logging
import math
import time
from typing import Self, TypeVar

import msgspec
import zmq

from phase_bus.core.address import Address
from phase_bus.core.control import EndRuns, Heard, Refused, RemoveDeadLetter, Request, Status, StatusRequest
from phase_bus.core.handshakes import watched_dealer
from phase_bus.core.ipc_directory import check_directory
from phase_bus.core.keys import key_for
from phase_bus.core.sockets import queue
from phase_bus.core.wire import encode_control, receive_reply
from phase_bus.errors import BusUnreachableError, RefusedError, WireError

logger = logging.getLogger("phase_bus.client")

_LOOK_S = 0.1  # how often to look whether an answer can still come

_R = TypeVar("_R", Heard, Status)


class BusClient:
    """Asks one bus, and waits for its answers.

    Args:
        address: where it is; a text is parsed.

    Raises:
        KeyFileError: if there is a key file, and it is not fit for use.
        AddressError: if there is nothing to connect to, or others may have put a bus of theirs there; by
            every method that asks as well.
        BusUnreachableError: by every method that asks, if no answer comes within its ``timeout_s``.
        RefusedError: by every method that asks, if the bus refuses that.
    """

    def __init__(self, address: Address | str) -> None:
        parsed = Address.parse(address) if isinstance(address, str) else address
        self.address = parsed.connectable()
        self._key = key_for(self.address)
        check_directory(self.address)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def status(self, timeout_s: float = 3.0) -> Status:
        """Return who is on the bus and how the runs are, of a large bus part by part."""
        deadline_s = time.monotonic() + timeout_s
        first = part = self._ask(StatusRequest(), timeout_s, Status)
        clients = {each.client_id: each for each in first.clients}
        runs = {each.run_id: each for each in first.runs}
        groups = {each.name: each for each in first.groups}
        while part.next:
            left_s = max(deadline_s - time.monotonic(), 0.0)
            part = self._ask(StatusRequest(after=part.next), left_s, Status)
            clients |= {each.client_id: each for each in part.clients}
            runs |= {each.run_id: each for each in part.runs}
            groups |= {each.name: each for each in part.groups}
        if not first.next:
            return first
        return msgspec.structs.replace(
            first,
            clients=tuple(clients.values()),
            runs=tuple(runs.values()),
            groups=tuple(groups.values()),
            next=0,
        )

    def end_runs(self, reason: str, timeout_s: float = 3.0) -> None:
        """Let every running run end as ``lost``: their publishers are known to be gone."""
        self._ask(EndRuns(reason=reason), timeout_s, Heard)

    def remove_dead_letter(self, letter_id: int, saved: bytes | None, timeout_s: float = 3.0) -> None:
        """Let the bus forget a dead letter that was handled after all.

        The state is kept with the consumer's checkpoint from now on; None leaves that as it is.
        """
        self._ask(RemoveDeadLetter(letter_id=letter_id, saved=saved), timeout_s, Heard)

    def close(self) -> None:
        """Close the socket."""
        self._disconnect()
        self._context.term()

    def _ask(self, request: Request, timeout_s: float, wanted: type[_R]) -> _R:
        check_directory(self.address)
        self._watch.connect_again()  # what is queued for a connection that was given up goes nowhere
        queue(self._dealer, encode_control(request))
        deadline_s = time.monotonic() + timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0 and not self._watch.given_up:
            if self._dealer.poll(math.ceil(min(left_s, _LOOK_S) * 1000)):
                try:
                    reply = receive_reply(self._dealer, self.address)
                except WireError as error:
                    logger.warning("the bus at %s: %s; skipped", self.address, error)
                    continue
                if isinstance(reply, Refused):
                    raise RefusedError(str(self.address), reply.reason)
                if isinstance(reply, wanted):
                    return reply
        # The answer may still come: on a new connection it is not taken for that to the next question.
        why = self._watch.reason
        self._disconnect()
        self._connect()
        raise BusUnreachableError(str(self.address), timeout_s, why)

    def _connect(self) -> None:
        self._dealer, self._watch = watched_dealer(
            self._context,
            self.address.control,
            self._key,
            immediate=False,
            reconnect_ms=20,
            reconnect_max_ms=0,
        )

    def _disconnect(self) -> None:
        self._watch.close()
        self._dealer.close()
