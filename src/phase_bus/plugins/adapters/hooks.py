"""Phase hooks in a process of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from phase_bus.consumer.consumer import Consumer
from phase_bus.events import PhaseEvent, RunComplete
from phase_bus.plugins.adapters.parts import Part, awaited
from phase_bus.publisher.hooks import EventHook, EventTracker, to_phase

_KEPT_RUNS = 100
_KEPT_EVENTS = 1000  # dead letters for which it is known who has had them

_decode_state = msgspec.msgpack.Decoder(dict[str, list[str]]).decode


class HookConsumer(Consumer):
    """Calls phase hooks, in the order of their priority.

    Each run has hooks of its own, made when its first phase begins, so that what a hook keeps is of one
    run. A hook that raises does not keep the event from the others; the event is tried again, and becomes
    a dead letter if need be, for that hook alone.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._runs: dict[str, list[Any]] = {}
        self._called: dict[str, list[str]] = {}  # which hooks have had an event that others failed on

    def state(self) -> bytes:
        """Return which hooks have had the events that became dead letters."""
        return msgspec.msgpack.encode(self._called)

    def restore(self, state: bytes) -> None:
        """Go on from a state."""
        self._called = _decode_state(state)

    async def _tell(self, event: PhaseEvent) -> None:
        hooks = self._hooks(event.run_id)
        phase, tracker = to_phase(event.phase), EventTracker(event)
        key = f"{self.offset}/{event.run_id}/{event.kind}/{event.ts_ns}"
        called = self._called.setdefault(key, [])
        failures: dict[str, Exception] = {}
        for part, hook in zip(self._parts, hooks, strict=True):
            method = getattr(hook, f"on_{event.kind}", None)
            if method is None or part.name in called:
                continue
            try:
                await awaited(method(phase, tracker))
            except Exception as error:
                failures[part.name] = error
            else:
                called.append(part.name)
        if failures:
            while len(self._called) > _KEPT_EVENTS:
                del self._called[next(iter(self._called))]
            raise ExceptionGroup(f"hook {', '.join(failures)} failed", list(failures.values()))
        del self._called[key]

    # One method under several names: which names there are decides what is subscribed to.
    on_phase_start = on_phase_sending_complete = on_phase_timeout = on_phase_complete = _tell

    async def on_run_complete(self, event: RunComplete) -> None:
        """Let go of the run's hooks."""
        self._runs.pop(event.run_id, None)

    def _hooks(self, run_id: str) -> list[Any]:
        if run_id not in self._runs:
            hooks = self._runs[run_id] = [part.make() for part in self._parts]
            for hook in hooks:
                if isinstance(hook, EventHook):
                    hook.alone = True
            if len(self._runs) > _KEPT_RUNS:  # phases that trail their run's end
                del self._runs[next(iter(self._runs))]
        return self._runs[run_id]
