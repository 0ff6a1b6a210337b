"""Keys beside a stream are changed by revision; large values are objects, of which none is left behind."""

from __future__ import annotations

import asyncio

import pytest

from phase_bus.jetstream.connection import NatsUnreachableError
from phase_bus.jetstream.keys import Kept, key_of
from tests.support.servers.nats import NatsCluster, NatsServer
from tests.support.streams import Opened, opened

LARGE = b"large" * 500_000


async def _objects(opened: Opened) -> int:
    """Return how many messages the object store has."""
    return int((await opened.connection.js.stream_info("OBJ_phase-bus")).state.messages)


async def test_each_change_names_the_revision_that_was_seen(nats: NatsServer) -> None:
    async with opened(nats.url) as here, opened(nats.url) as there:
        first = await here.keys.create("name.a", b"one")
        assert first is not None
        assert await there.keys.create("name.a", b"two") is None
        assert await there.keys.get("name.a") == Kept(b"one", first)

        second = await there.keys.update("name.a", b"two", first)
        assert second is not None
        assert second > first
        assert await here.keys.update("name.a", b"late", first) is None
        assert not await here.keys.delete("name.a", first)
        assert await here.keys.get("name.a") == Kept(b"two", second)

        assert await there.keys.delete("name.a", second)
        assert await here.keys.get("name.a") is None
        assert await here.keys.update("name.a", b"late", second) is None
        third = await here.keys.create("name.a", b"")
        assert await there.keys.get("name.a") == Kept(b"", third or 0)


async def test_of_many_who_want_a_key_one_gets_it(nats: NatsServer) -> None:
    async with opened(nats.url) as here, opened(nats.url) as there:
        for number in range(10):
            both = (here.keys, there.keys)
            got = await asyncio.gather(*(each.create(f"name.{number}", b"x") for each in both * 3))
            (revision,) = [each for each in got if each is not None]
            deleted = await asyncio.gather(*(each.delete(f"name.{number}", revision) for each in both))
            assert sorted(deleted) == [False, True]


async def test_deleted_keys_leave_nothing_behind(nats: NatsServer) -> None:
    async with opened(nats.url) as here:
        for number in range(20):
            revision = await here.keys.create(f"member.g.{number}", b"x")
            assert revision is not None
            assert await here.keys.delete(f"member.g.{number}", revision)
        assert (await here.connection.js.stream_info("KV_phase-bus")).state.messages == 0


async def test_what_is_below_a_prefix(nats: NatsServer) -> None:
    async with opened(nats.url) as here:
        assert await here.keys.all("group") == {}
        for key in ("group.a", "group.b.07", "grouping", "group", "group.c"):
            assert await here.keys.create(key, key.encode())
        revision = await here.keys.create("group.d", b"x")
        assert revision is not None
        assert await here.keys.delete("group.d", revision)
        found = await here.keys.all("group")
        assert list(found) == ["group.a", "group.b.07", "group.c"]
        assert [kept.value.decode() for kept in found.values()] == list(found)
        assert found["group.a"] == await here.keys.get("group.a")
        after = found["group.b.07"].revision
        assert list(await here.keys.all("group", after=after)) == ["group.c"]
        assert await here.keys.all("group", after=found["group.c"].revision) == {}


async def test_what_has_changed_below_a_prefix(nats: NatsServer) -> None:
    async with opened(nats.url) as here:
        for key in ("group.a", "group.b", "other.c"):
            assert await here.keys.create(key, b"x")
        first, second = await here.keys.all("group")
        seen = (await here.keys.all("group"))[second].revision
        assert await here.keys.all("group", after=seen) == {}
        revision = await here.keys.update(first, b"y", seen - 1)
        assert await here.keys.all("group", after=seen) == {first: Kept(b"y", revision or 0)}


async def test_many_keys_below_a_prefix(nats: NatsServer) -> None:
    async with opened(nats.url) as here:
        await asyncio.gather(*(here.keys.create(f"dead.a.{n}", str(n).encode()) for n in range(1500)))
        found = await here.keys.all("dead.a")
        assert await here.keys.all("dead.a", after=max(kept.revision for kept in found.values())) == {}
        assert {key: kept.value.decode() for key, kept in found.items()} == {
            f"dead.a.{n}": str(n) for n in range(1500)
        }
        latest = sorted(kept.revision for kept in found.values())
        assert len(await here.keys.all("dead.a", after=latest[-3])) == 2


async def test_a_large_value_is_an_object_and_old_ones_are_deleted(nats: NatsServer) -> None:
    async with opened(nats.url) as here, opened(nats.url) as there:
        revision = await here.keys.create("checkpoint.g.07", LARGE)
        assert revision is not None
        assert await there.keys.get("checkpoint.g.07") == Kept(LARGE, revision)
        assert await there.keys.all("checkpoint") == {"checkpoint.g.07": Kept(LARGE, revision)}
        once = await _objects(here)
        assert await there.keys.update("checkpoint.g.07", b"late" + LARGE, revision - 1) is None
        assert await _objects(here) == once
        for number in range(5):
            changed = await here.keys.update("checkpoint.g.07", LARGE + bytes([number]), revision)
            assert changed is not None
            revision = changed
        assert await _objects(here) == 2 * once  # the last one may still be read by somebody
        assert await there.keys.get("checkpoint.g.07") == Kept(LARGE + b"\4", revision)
        for small in (b"a", b"b"):
            changed = await here.keys.update("checkpoint.g.07", small, revision)
            assert changed is not None
            revision = changed
        assert await _objects(here) == 0


async def test_objects_of_processes_that_were_killed_are_swept(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(nats.url) as here, opened(nats.url) as there:
        with monkeypatch.context() as broken:
            broken.setattr(type(here.keys), "_publish", _die)
            with pytest.raises(KeyboardInterrupt):
                await here.keys.create("checkpoint.a", LARGE)
        left = await _objects(here)
        assert left > 0
        assert await there.keys.create("checkpoint.b", LARGE) is not None  # it is another key's
        assert await _objects(here) == 2 * left
        assert await there.keys.create("checkpoint.a", LARGE) is not None
        assert await _objects(here) == 2 * left


async def _die(*_: object) -> None:
    raise KeyboardInterrupt


async def test_no_answer_is_told_as_such(nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(nats.url) as here:
        revision = await here.keys.create("name.a", b"x")
        assert revision is not None
        here.connection.js._timeout = 0.3
        nats.pause()
        with pytest.raises(NatsUnreachableError, match="does not answer"):
            await here.keys.get("name.a")
        with pytest.raises(NatsUnreachableError, match="does not answer"):
            await here.keys.update("name.a", b"y", revision)
        here.connection.js._timeout = 5.0
        nats.resume()
        # It may be done or not. The server was only slow: it does it, once, though it was sent twice.
        deadline_s = asyncio.get_running_loop().time() + 10
        while (kept := await here.keys.get("name.a")) is None or kept.value != b"y":
            assert asyncio.get_running_loop().time() < deadline_s
        info = await here.connection.js.stream_info("KV_phase-bus")
        assert info.state.last_seq == kept.revision == revision + 1


@pytest.mark.slow
async def test_a_change_made_while_a_cluster_loses_its_leader(nats_cluster: NatsCluster) -> None:
    async with opened(nats_cluster.url) as here:
        revision = await here.keys.create("name.a", b"0")
        assert revision is not None
        changes = 0
        nats_cluster.leader_of("KV_phase-bus").kill()
        deadline_s = asyncio.get_running_loop().time() + 60
        while changes < 3:
            assert asyncio.get_running_loop().time() < deadline_s
            try:
                kept = await here.keys.get("name.a")
                assert kept is not None
                assert kept.value in (str(changes).encode(), str(changes + 1).encode())
                changes = int(kept.value)
                if changes < 3:
                    await here.keys.update("name.a", str(changes + 1).encode(), kept.revision)
            except NatsUnreachableError:
                await asyncio.sleep(0.1)


def test_a_key_is_made_of_texts_of_any_kind() -> None:
    assert key_of("checkpoint", "my consumer", "07") == "checkpoint.my=20consumer.07"
