"""Key files: who may read them, what is wrong with them, and that their secrets show nowhere."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import stat
import threading
import traceback
from pathlib import Path

import msgspec
import pytest
import zmq

from phase_bus.core.authorized import ROLES, Authorized, authorize, authorized_file, read_authorized, revoke
from phase_bus.core.keys import (
    KEY_FILE_VARIABLE,
    Key,
    Secret,
    check_public,
    default_key_file,
    find_key,
    read_key,
    write_new_key,
)
from phase_bus.errors import ConfigError, KeyFileError, PhaseBusError

ROOT = os.geteuid() == 0


@pytest.fixture
def key(tmp_path: Path) -> Key:
    return write_new_key(tmp_path / "key.yaml")


def secret_of(key: Key) -> str:
    return key.secret.encode().decode()


def new_public() -> str:
    return zmq.curve_keypair()[0].decode()


def client(name: str, *roles: str, public: str = "") -> Authorized:
    return Authorized(name=name, public=public or new_public(), roles=roles or ("publish",))  # type: ignore[arg-type]


def complaint(path: Path) -> str:
    """Return why a key file is refused: a line, which quotes no secret."""
    with pytest.raises(KeyFileError) as caught:
        read_key(path)
    text = str(caught.value)
    assert "\n" not in text
    assert repr(str(path)) in text
    return text


# ---- key files ----


def test_new_key_reads_back(tmp_path: Path) -> None:
    """A file that was written is what was made, is the user's alone from the first byte, and whole."""
    path = tmp_path / "some" / "where" / "key.yaml"
    key = write_new_key(path)
    assert read_key(path) == key
    assert key.is_of_bus
    assert zmq.curve_public(key.secret.encode()).decode() == key.public
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_mode_owes_nothing_to_the_umask(tmp_path: Path) -> None:
    """Also where new files are everybody's."""
    before = os.umask(0)
    try:
        write_new_key(tmp_path / "key.yaml")
        authorize(tmp_path / "authorized.yaml", client("alice"))
    finally:
        os.umask(before)
    assert {stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("key.yaml", "authorized.yaml")} == {0o600}


def test_key_for_another_bus(tmp_path: Path, key: Key) -> None:
    """A client's key says which bus it is for, and no bus can be run with it."""
    theirs = write_new_key(tmp_path / "theirs.yaml", key.public)
    assert theirs.bus == key.public
    assert not theirs.is_of_bus
    assert read_key(theirs.path) == theirs


def test_key_is_never_overwritten(key: Key) -> None:
    """Whoever has the old one would be shut out."""
    content = key.path.read_bytes()
    with pytest.raises(KeyFileError, match="exists already"):
        write_new_key(key.path)
    assert key.path.read_bytes() == content


def test_no_key_where_none_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KeyFileError, match="cannot be written: Not a directory"):
        write_new_key(tmp_path / "file" / "key.yaml")
    with pytest.raises(KeyFileError, match="exists already"):
        write_new_key(tmp_path)
    with pytest.raises(ConfigError, match="public key"):
        write_new_key(tmp_path / "other.yaml", "no key")
    assert not (tmp_path / "other.yaml").exists()


def test_no_option_looks_like_a_key() -> None:
    """A public key that begins with a hyphen would be taken for an option."""
    import phase_bus.core.keys as module

    assert not any(module._new_pair()[0].startswith("-") for _ in range(500))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o666, 0o644])
def test_key_of_others_too_is_refused(key: Key, mode: int) -> None:
    key.path.chmod(mode)
    assert f"can be read by others (mode {mode:04o}); put it right with 'chmod 600" in complaint(key.path)


@pytest.mark.skipif(not ROOT, reason="only root can give a file away")
def test_key_of_another_user_is_refused(key: Key) -> None:
    os.chown(key.path, 12345, 12345)
    assert "belongs to another user (uid 12345)" in complaint(key.path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A directory, and a pipe that nobody writes to, which must not be waited for."""
    assert "Is a directory" in complaint(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "is not a file" in complaint(tmp_path / "pipe")


def test_large_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "key.yaml"
    path.touch(0o600)
    os.truncate(path, 1 << 40)
    assert "too large" in complaint(path)


def malformed(key: Key) -> dict[str, str]:
    secret, public = secret_of(key), key.public
    return {
        "nothing": "",
        "text": "x",
        "list": f"- {secret!r}",
        "no secret": f"public: '{public}'\n",
        "no public": f"secret: '{secret}'\n",
        "unquoted": f"public: {public}\nsecret: @{secret}\n",
        "unclosed": f"public: '{public}'\nsecret: '{secret}\n",
        "number": f"public: '{public}'\nsecret: 12\n",
        "short": f"public: '{public}'\nsecret: '{secret[1:]}'\n",
        "long": f"public: '{public}'\nsecret: '{secret}x'\n",
        "alphabet": f"public: '{public}'\nsecret: '{secret[1:]}~'\n",
        "no value": f"public: '{public}'\nsecret: '{'#' * 40}'\n",
        "exchanged": f"public: '{secret}'\nsecret: '{public}'\n",
        "bus": f"public: '{public}'\nsecret: '{secret}'\nbus: '{secret[1:]}'\n",
        "unknown": f"public: '{public}'\nsecret: '{secret}'\n'{secret}`': 1\n",
        "control character": f"public: '{public}'\nsecret: '{secret}'\n\x00",
        "tag": f"public: '{public}'\nsecret: !!python/object:{secret} x\n",
        "deep": "[" * 5000 + secret,
    }


@pytest.mark.parametrize("name", malformed(Key(public="p", secret=Secret("s"), bus="p", path=Path())))
def test_malformed_key_is_refused_without_being_quoted(key: Key, name: str) -> None:
    """In a line; neither that, nor a traceback, nor a log that shows it, has the secret."""
    key.path.write_text(malformed(key)[name])
    complaint(key.path)
    try:
        read_key(key.path)
    except KeyFileError as error:
        shown = "".join(traceback.format_exception(error)) + str(error) + repr(error)
        assert secret_of(key)[2:-2] not in shown


def test_bytes_are_no_key(key: Key) -> None:
    key.path.write_bytes(b"\xff\xfe")
    assert "is not YAML" in complaint(key.path)


# ---- where keys are looked for ----


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(KEY_FILE_VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_order_of_looking(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given, the environment's, the user's own."""
    assert find_key() is None
    own = write_new_key(default_key_file())
    assert own.path == home / ".config" / "phase-bus" / "key.yaml"
    assert find_key() == own
    environment = write_new_key(tmp_path / "environment.yaml")
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(environment.path))
    assert find_key() == environment
    given = write_new_key(home / "given.yaml")
    assert find_key(given.path) == find_key("~/given.yaml") == given
    assert find_key("") is None
    monkeypatch.setenv(KEY_FILE_VARIABLE, "")
    assert find_key() is None


def test_directory_for_configuration(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative one is left aside, as its specification demands."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert default_key_file() == tmp_path / "phase-bus" / "key.yaml"
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    assert default_key_file().is_relative_to(home)


@pytest.mark.usefixtures("home")
def test_named_file_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A typing error must not end as no key."""
    with pytest.raises(KeyFileError, match="does not exist; name another one, or make one with"):
        find_key(tmp_path / "missing.yaml")
    monkeypatch.setenv(KEY_FILE_VARIABLE, "/nowhere/at/all")
    with pytest.raises(KeyFileError, match="does not exist"):
        find_key()


@pytest.mark.usefixtures("home")
def test_own_key_that_is_not_fit_for_use_is_an_error() -> None:
    write_new_key(default_key_file()).path.chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        find_key()


# ---- who may connect ----


def test_authorized_clients_read_back(key: Key) -> None:
    """Nobody at first; several keys may have one name; another word on a key replaces the first."""
    path = authorized_file(key)
    assert read_authorized(path) == {}
    alice, laptop = client("alice", "publish"), client("alice", "publish", "consume")
    assert authorize(path, alice) is None
    assert authorize(path, laptop) is None
    assert read_authorized(path) == {alice.public: alice, laptop.public: laptop}
    changed = client("bob", "admin", public=alice.public)
    assert authorize(path, changed) == alice
    assert read_authorized(path) == {alice.public: changed, laptop.public: laptop}


def test_revoking(key: Key) -> None:
    """By name, with all keys of that name, or by one key."""
    path = authorized_file(key)
    first, second, other = client("alice"), client("alice"), client("bob")
    for each in (first, second, other):
        authorize(path, each)
    assert revoke(path, "nobody") == []
    assert revoke(path, other.public) == [other]
    assert revoke(path, "alice") == [first, second]
    assert read_authorized(path) == {}


def test_rewriting_keeps_mode_and_link(key: Key, tmp_path: Path) -> None:
    """A file that others may read stays so, and one that is kept elsewhere stays there."""
    kept = tmp_path / "elsewhere"
    kept.mkdir()
    path = authorized_file(key)
    path.symlink_to(kept / "clients.yaml")
    authorize(path, client("alice"))
    (kept / "clients.yaml").chmod(0o644)
    authorize(path, client("bob"))
    assert path.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [each.name for each in read_authorized(path).values()] == ["alice", "bob"]


def test_changes_at_once_are_all_kept(key: Key) -> None:
    path, clients = authorized_file(key), [client(f"c{n}") for n in range(24)]
    threads = [threading.Thread(target=authorize, args=(path, each)) for each in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_authorized(path) == {each.public: each for each in clients}


@pytest.mark.parametrize(
    "bad",
    [
        client("two words"),
        client("bus"),
        client(""),
        client("x" * 65),
        client("a\n- name: eve"),
        client("a'"),
        client("alice", public="short"),
        Authorized(name="alice", public=new_public(), roles=()),
    ],
)
def test_no_such_client(key: Key, bad: Authorized) -> None:
    """Neither is it written, nor believed of a file."""
    with pytest.raises(ConfigError):
        authorize(authorized_file(key), bad)
    assert not authorized_file(key).exists()
    authorized_file(key).write_bytes(msgspec.json.encode([bad]))
    with pytest.raises(KeyFileError):
        read_authorized(authorized_file(key))


@pytest.mark.parametrize(
    "content",
    ["x", "{}", "- x", "- name: x", "- [", "- {name: a, public: b, roles: [root]}", "\x00", "- &a [*a]"],
)
def test_malformed_list_is_refused(key: Key, content: str) -> None:
    authorized_file(key).write_text(content)
    authorized_file(key).chmod(0o600)
    with pytest.raises(KeyFileError) as caught:
        read_authorized(authorized_file(key))
    assert "\n" not in str(caught.value)


def test_key_twice_is_refused(key: Key) -> None:
    """Which of the two would hold?"""
    public = new_public()
    twice = [client("alice", public=public), client("bob", "admin", public=public)]
    authorized_file(key).write_bytes(msgspec.json.encode(twice))
    authorized_file(key).chmod(0o600)
    with pytest.raises(KeyFileError, match="twice"):
        read_authorized(authorized_file(key))


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_list_that_others_can_write_is_refused(key: Key, mode: int) -> None:
    path = authorized_file(key)
    authorize(path, client("alice", *ROLES))
    path.chmod(mode)
    for attempt in (lambda: read_authorized(path), lambda: revoke(path, "alice")):
        with pytest.raises(KeyFileError, match="chmod go-w"):
            attempt()


def test_public_key_is_checked_without_being_quoted(key: Key) -> None:
    """It may be the secret, given by mistake."""
    assert check_public(key.public) == key.public
    wrong = secret_of(key) + "x"
    with pytest.raises(ConfigError) as caught:
        check_public(wrong)
    assert wrong[:8] not in str(caught.value)


# ---- secrets ----


def test_secret_shows_nowhere(key: Key, caplog: pytest.LogCaptureFixture) -> None:
    """Not by printing it, the key, or an exception that has it; it is neither pickled nor copied."""
    secret = key.secret
    logging.getLogger("x").error("%s %r %s", secret, secret, key)
    shown = [
        f"{secret} {secret!r} {secret:>50} {key} {key!r}",
        str(PhaseBusError(secret, key)),
    ]
    shown += [str([secret]), caplog.text, str(secret), repr({"secret": secret})]
    assert secret_of(key) not in "".join(shown)
    for give_away in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="not to be copied or pickled"):
            give_away(key)
