"""Whose directories of Unix sockets are taken, and what they and what is in them are made like."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import zmq
from msgspec.structs import replace

from phase_bus.core.address import Address
from phase_bus.core.files import set_mode, tighten
from phase_bus.core.ipc_directory import check_answer, check_directory, find_fault, lock_directory
from phase_bus.core.sockets import bind
from phase_bus.errors import AddressError

ME, OTHER, ROOT = 1000, 1001, 0
MY_GROUP, OTHER_GROUP = 100, 101


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """Each umask that users have."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def status(mode: int, uid: int = ME, gid: int = MY_GROUP, kind: int = stat.S_IFDIR) -> os.stat_result:
    """What the system says of a file."""
    return os.stat_result((kind | mode, 1, 1, 1, uid, gid, 0, 0, 0, 0))


def fault(there: os.stat_result, link: os.stat_result | None = None, *, shared: bool = False) -> str:
    """Why a directory is refused, empty if it is not."""
    found = find_fault(there, link or there, shared=shared, user=ME, groups=(MY_GROUP,))
    return "" if found is None else "; ".join(found)


def link(uid: int) -> os.stat_result:
    """A user's link."""
    return status(0o777, uid, kind=stat.S_IFLNK)


@pytest.mark.parametrize(
    ("there", "link_there", "shared", "words"),
    [
        (status(0o700), None, False, ""),
        (status(0o2700), None, False, ""),
        (status(0o500), None, False, ""),
        (status(0o700), link(ME), False, ""),
        (status(0o700), link(ROOT), False, ""),
        (status(0o700), link(OTHER), False, "another user made (uid 1001)"),
        (link(OTHER), link(OTHER), False, "another user made"),  # it leads nowhere yet
        (status(0o700, OTHER), None, False, "belongs to another user (uid 1001)"),
        (status(0o700, ROOT), None, False, "belongs to another user (uid 0)"),
        (status(0o777, OTHER), None, False, "belongs to another user (uid 1001)"),
        (status(0o701), None, False, "others may use it (mode 0701)"),
        (status(0o750), None, False, "chmod 700 DIRECTORY"),
        (status(0o2770), None, False, "write group+ipc://"),
        (status(0o1777, ROOT), None, False, "belongs to another user (uid 0)"),
        (status(0o1777), None, False, "a directory of its own"),
        (status(0o600, kind=stat.S_IFREG), None, False, "is no directory"),
        (status(0o2770), None, True, ""),
        (status(0o700), None, True, ""),
        (status(0o2770, OTHER), None, True, ""),
        (status(0o2770, OTHER), link(OTHER), True, ""),
        (status(0o2770), link(OTHER), True, "another user made (uid 1001)"),
        (status(0o2770, OTHER, OTHER_GROUP), None, True, "a group that you are not in (gid 101)"),
        (status(0o2775, OTHER), None, True, "others than its group may use it (mode 2775)"),
        (status(0o1777, ROOT), None, True, "a directory of its own"),
    ],
)
def test_whose_directories_are_taken(
    there: os.stat_result, link_there: os.stat_result | None, words: str, *, shared: bool
) -> None:
    """One's own, that nobody else can use; said explicitly, one's group's."""
    said = fault(there, link_there, shared=shared)
    assert words in said
    assert bool(said) == bool(words)


def test_everybodys_directory_is_nobodys_to_change() -> None:
    """Root is not told to take /tmp from everybody else."""
    assert "chmod" not in fault(status(0o1777))
    assert "chmod" not in fault(status(0o1777), shared=True)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize(
    ("prefix", "of_directory", "of_files"), [("ipc://", 0o700, 0o600), ("group+ipc://", 0o2770, 0o660)]
)
def test_modes_whatever_the_umask(ipc_dir: Path, prefix: str, of_directory: int, of_files: int) -> None:
    """The directory, the lock and the sockets are for whom the address says; nobody moves them."""
    address = Address.parse(f"{prefix}{ipc_dir}/above/bus")
    lock = lock_directory(address)
    directory = ipc_dir / "above" / "bus"
    with zmq.Context() as context, context.socket(zmq.ROUTER) as sock:
        bind(sock, address, address.control)
        assert stat.S_IMODE(directory.stat().st_mode) == of_directory
        assert {path.name for path in directory.iterdir()} == {"bus.lock", "control.ipc"}
        assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {of_files}
        assert not directory.parent.stat().st_mode & 0o022
        if address.shared:
            assert directory.parent.stat().st_mode & 0o011 == 0o011
        check_directory(address)
    lock.release()


def test_a_directory_that_others_may_use_is_left_as_it_is(ipc_dir: Path) -> None:
    """It may be there for more than the bus: the user is asked."""
    for mode in (0o755, 0o1777, 0o770, 0o701):
        ipc_dir.chmod(mode)
        with pytest.raises(AddressError, match=f"mode {mode:04o}"):
            lock_directory(Address.parse(f"ipc://{ipc_dir}"))
        assert stat.S_IMODE(ipc_dir.stat().st_mode) == mode
    assert not list(ipc_dir.iterdir())


def test_a_private_directory_is_not_shared_by_an_address(ipc_dir: Path) -> None:
    """A bus that nobody in the group could reach says so at its start; clients may look."""
    address = Address.parse(f"group+ipc://{ipc_dir}")
    check_directory(address)
    with pytest.raises(AddressError, match=f"chmod 2770 {ipc_dir}"):
        lock_directory(address)


def test_links_in_a_shared_directory_are_not_followed(ipc_dir: Path) -> None:
    """What another member of the group puts there leads to no file of the bus's user."""
    address = Address.parse(f"group+ipc://{ipc_dir}/bus")
    lock_directory(address).release()
    treasure = ipc_dir / "treasure"
    lock = ipc_dir / "bus" / "bus.lock"
    lock.unlink()
    lock.symlink_to(treasure)
    with pytest.raises(AddressError, match="cannot be used"):
        lock_directory(address)
    assert not treasure.exists()
    treasure.touch(0o600)
    hard = ipc_dir / "bus" / "hard"
    hard.hardlink_to(treasure)
    for path in (lock, hard):
        with pytest.raises(OSError, match="is a link"):
            set_mode(path, 0o660)
    tighten(lock)
    assert stat.S_IMODE(treasure.stat().st_mode) == 0o600


def answer(peer: str) -> zmq.Frame:
    """A frame of which the system says where it came from."""
    return cast("zmq.Frame", SimpleNamespace(get=lambda _: peer))


def test_whose_answers_are_taken(ipc_dir: Path) -> None:
    """Those of one's own user and of root; in a shared directory anybody's."""
    address = Address.parse(f"ipc://{ipc_dir}")
    me = os.geteuid()
    for uid in (me, ROOT):
        check_answer(address, answer(f"localhost:{uid}:5:7"))
    with pytest.raises(AddressError, match=r"another user \(uid 4711\) answers"):
        check_answer(address, answer("localhost:4711:5:7"))
    check_answer(replace(address, shared=True), answer("localhost:4711:5:7"))
    check_answer(address, answer("localhost"))  # not every system tells
    check_answer(address, zmq.Frame())
    check_answer(Address.parse("tcp://127.0.0.1:1"), answer("4.7.1.1"))


def test_what_is_not_there_is_nobodys(ipc_dir: Path) -> None:
    """There is nothing to check before there is a directory; a file in its way is no directory."""
    (ipc_dir / "file").touch()
    check_directory(Address.parse(f"ipc://{ipc_dir}/later/bus"))
    check_directory(Address.parse("tcp://127.0.0.1:1"))
    for below in ("file", "file/bus"):
        with pytest.raises(AddressError, match="directory"):
            check_directory(Address.parse(f"ipc://{ipc_dir}/{below}"))
