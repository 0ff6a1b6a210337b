"""Frames are sent and received the same way where pyzmq has no such backend as it has today."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
import zmq
import zmq.backend

from phase_bus.core import sockets


@pytest.fixture(params=["backend", "public interface"])
def reloaded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The module as it is with pyzmq's backend, and without."""
    with monkeypatch.context() as patch:
        if request.param == "public interface":
            patch.delattr(zmq.backend, "Socket")
        importlib.reload(sockets)
        assert (sockets.send is zmq.Socket.send) is (request.param == "public interface")
        yield
    importlib.reload(sockets)


@pytest.mark.usefixtures("reloaded")
def test_a_frame_there_and_back(no_leaks: None) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    dealer = sockets.dealer(context, f"tcp://127.0.0.1:{port}", immediate=False)
    try:
        sockets.send(dealer, b"there", 0)
        assert router.poll(5000)
        assert sockets.getsockopt(router, zmq.EVENTS) & zmq.POLLIN
        name = sockets.recv(router, zmq.NOBLOCK, False)
        assert name.more
        assert sockets.recv_bytes(router, zmq.NOBLOCK) == b"there"
        with pytest.raises(zmq.Again):
            sockets.recv_bytes(router, zmq.NOBLOCK)
    finally:
        context.destroy(linger=0)
