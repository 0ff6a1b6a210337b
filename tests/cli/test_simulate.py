"""``phase-bus simulate``: what it says of what it published."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from phase_bus.cli import simulate as command
from phase_bus.errors import PhaseBusError


class Stub:
    """A publisher whose bus takes everything from the flush on that is given, or never (0)."""

    address = "ipc:///tmp/b"
    rejected = pending = 0
    undelivered: dict[str, int]

    def __init__(self, taken_at: int) -> None:
        self._left = taken_at
        self.undelivered = {}

    def __call__(self, *_: object, **__: object) -> Stub:
        return self

    def __enter__(self) -> Stub:
        return self

    def __exit__(self, *_: object) -> None:
        self.undelivered = {} if self._left == 0 else {"records": 8, "run_complete": 1}

    def publish(self, *_: object) -> None:
        """Take something."""

    records = complete_run = publish

    def flush(self, timeout_s: float) -> bool:
        """Return at once, as if so much time had gone by."""
        assert timeout_s > 0
        self._left -= 1
        return self._left == 0


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Publish a few requests through a stub."""

    def run(stub: Any, runs: int = 1) -> None:
        monkeypatch.setattr(command, "Publisher", stub)
        monkeypatch.setattr(command, "check_bus", lambda _: None)
        command.simulate(requests=1500, rate=0, run_id="r", runs=runs)

    return run


def test_published_once_it_is_delivered(
    simulate: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    simulate(Stub(1))
    assert capsys.readouterr().err == "phase-bus: run r: 1,550 records published\n"


def test_it_says_that_it_waits(simulate: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    simulate(Stub(2))
    waiting, published = capsys.readouterr().err.splitlines()
    assert waiting == "phase-bus: waiting up to 60 s for the bus to take the rest"
    assert "1,550 records published" in published


def test_what_is_not_delivered_is_not_published(
    simulate: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does it go on with the next run."""
    with pytest.raises(PhaseBusError, match="9 events were not delivered"):
        simulate(Stub(9), 2)
    assert capsys.readouterr().err == "phase-bus: waiting up to 60 s for the bus to take the rest\n"
