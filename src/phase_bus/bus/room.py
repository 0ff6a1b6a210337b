"""Whether there is room for one more: client, group, run, publisher of a run, topic."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

from phase_bus.bus.limits import at_most
from phase_bus.bus.options import BusOptions
from phase_bus.bus.runs import Runs
from phase_bus.core.control import ClientInfo, Hello
from phase_bus.core.wire import parse_topic, topic_in
from phase_bus.errors import WireError
from phase_bus.events import BEGIN_NO_RUN
from phase_bus.journal.writer import RUNNING

_COUNTED_FOR_S = 0.1  # after which it is counted anew who is here; until then who comes is added


class RoomForRuns:
    """Judges events on topics that are new from their publisher, by what has been counted of the runs.

    What was admitted since the last :meth:`clear` and is not counted yet is counted here.
    """

    def __init__(self, options: BusOptions, runs: Runs) -> None:
        self._options = options
        self._runs = runs
        self._topics: defaultdict[tuple[str, bytes], set[str]] = defaultdict(set)
        self._sources: defaultdict[str, set[bytes]] = defaultdict(set)

    def clear(self) -> None:
        """Begin anew: all that was admitted has been counted."""
        if self._topics:
            self._topics.clear()
            self._sources.clear()

    def check(self, topic: bytes, source: bytes) -> None:
        """Look whether there is room for a topic, and for its run.

        Raises:
            WireError: if there is none.
        """
        kind, run_id = parse_topic(topic)
        options, run = self._options, self._runs.run_of(run_id, source, kind)
        part = None if run is None else run.parts.get(source)
        coming = self._topics[run_id, source]
        name = topic.decode()
        if part is not None and run is not None and topic_in(name, run_id, run.run_id) in part.published:
            return
        if name not in coming:
            known = 0 if part is None else len(part.published)
            _check(options, "topics", known + len(coming), "topics from its publisher", topic)
        sources = self._sources[run_id]
        if kind not in BEGIN_NO_RUN and part is None and source not in sources:
            known = 0 if run is None else len(run.parts)
            _check(options, "sources", known + len(sources), "publishers", topic)
            if (run is None or run.status != RUNNING) and not sources:
                going_on = sum(run.status == RUNNING for run in self._runs.by_id.values())
                new = sum(bool(each) for run_id, each in self._sources.items() if not self._goes_on(run_id))
                _check(options, "open_runs", going_on + new, "open runs", topic)
            sources.add(source)
        coming.add(name)

    def _goes_on(self, run_id: str) -> bool:
        run = self._runs.by_id.get(run_id)
        return run is not None and run.status == RUNNING


def _check(
    options: BusOptions, word: str, there: int, what: str, topic: bytes = b"", limit: str = ""
) -> None:
    """Raise a WireError, counted as a word, if there are as many of something as a limit allows.

    That is ``max_<word>``, unless it has another name.
    """
    limit = limit or f"max_{word}"
    if there >= getattr(options, limit):
        reason = f"there are {there} {what} already ({at_most(options, limit)})"
        raise WireError(reason, topic, counted_as=word)


class RoomForClients:
    """Judges hellos of clients that are not here, by who is.

    Args:
        here: yields whoever is here, with its connection.
    """

    def __init__(
        self,
        options: BusOptions,
        here: Callable[[], Iterable[tuple[ClientInfo, bytes]]],
    ) -> None:
        self._options = options
        self._here = here
        self._until_s = 0.0
        self._count()

    def check(self, identity: bytes, hello: Hello, now_s: float) -> None:
        """Look whether there is room for a client that is not here, and count it.

        Raises:
            WireError: if there is none.
        """
        if now_s >= self._until_s:
            self._count()
            self._until_s = now_s + _COUNTED_FOR_S
        options = self._options
        there, limit = self._connections[identity], "max_clients_a_connection"
        _check(options, "clients", there, "clients on its connection", limit=limit)
        if hello.role == "publisher":
            _check(options, "sources", self._publishers, "publishers")
        else:
            _check(options, "consumers", self._others, "consumers and others that look on")
        if hello.group and hello.group not in self._names:
            _check(options, "groups", len(self._names), "groups")
            self._names.add(hello.group)
        self._connections[identity] += 1
        self._publishers += hello.role == "publisher"
        self._others += hello.role != "publisher"

    def _count(self) -> None:
        self._connections: Counter[bytes] = Counter()
        self._publishers = self._others = 0
        self._names: set[str] = set()
        for info, identity in self._here():
            self._connections[identity] += 1
            self._publishers += info.role == "publisher"
            self._others += info.role != "publisher"
            if info.group:
                self._names.add(info.group)
