"""Keys as users have them: the command, buses that ask for them, `exec` and `up` that make their own."""

from __future__ import annotations

import json
import logging
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from phase_bus import Publisher
from phase_bus.aiperf.options import read_options
from phase_bus.bus.server import Bus
from phase_bus.cli import doctor, main
from phase_bus.core.address import Address
from phase_bus.core.keys import KEY_FILE_VARIABLE, default_key_file, find_key, write_new_key
from phase_bus.errors import AddressError, KeyFileError
from phase_bus.harness.config import load_config
from phase_bus.harness.rig import Rig
from phase_bus.testing.process import BusProcess
from phase_bus.testing.waiting import wait_until
from tests.support.commands import run_here
from tests.support.workplace import Workplace, wait_for

PROGRAM = f"{shlex.quote(sys.executable)} -m phase_bus"
OTHERS = "tcp://*:0"  # others than this machine can connect to it


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's configuration, which is empty."""
    monkeypatch.delenv(KEY_FILE_VARIABLE)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "phase-bus"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run ``phase-bus keys``; return exit code, output and remarks."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code, out, err = run_here(capsys, "keys", *arguments)
        assert all(line.startswith("phase-bus: ") for line in err.splitlines())
        return code, out, err

    return run


Run = Callable[..., tuple[int, str, str]]

# ---- the command ----


def test_one_user(config: Path, run: Run) -> None:
    """A key is made once, shown, and says what to do with it; its secret is in the file alone."""
    code, out, err = run("new")
    key = find_key()
    assert code == 0
    assert key is not None
    assert out == f"{key.public}\n"
    assert "copy that file to the same place on your other machines; nothing else" in err
    assert f"keys new --bus {shlex.quote(key.public)}" in err
    assert KEY_FILE_VARIABLE not in err
    shown = run("show")
    assert shown[:2] == (0, f"{key.public}\n")
    as_json = json.loads(run("show", "--json")[1])
    assert as_json == {"file": str(key.path), "public": key.public, "bus": key.public, "of_bus": True}
    refused = run("new")
    assert refused[0] == 2
    assert "exists already, and is not overwritten" in refused[2]
    assert find_key() == key
    secret = key.secret.encode().decode()
    assert secret not in "".join([out, err, *map(str, shown), str(as_json), *map(str, refused)])


def test_a_team(config: Path, run: Run, tmp_path: Path) -> None:
    """The client's key names the bus; the owner lets it in, sees it, changes it, and lets it in no more."""
    bus_key = run("new")[1].strip()
    assert run("list")[1] == f"nobody except those who have {config / 'key.yaml'}\n"
    _, public, said = run("new", str(tmp_path / "alice.yaml"), "--bus", bus_key)
    public = public.strip()
    assert f"{KEY_FILE_VARIABLE}={tmp_path / 'alice.yaml'}" in said
    assert f"keys authorize {shlex.quote(public)} --name NAME --role publish" in said
    assert run("authorize", public, "--name", "alice", "--role", "publish")[0] == 0
    _, _, said = run("authorize", public, "--name", "alice", "--role", "consume", "--role", "publish")
    assert "'alice' may publish and consume" in said
    assert "before, it belonged to 'alice', who could publish" in said
    alice = {"name": "alice", "public": public, "roles": ["publish", "consume"]}
    assert json.loads(run("list", "--json")[1]) == [alice]
    assert public in run("list")[1]
    code, _, said = run("revoke", "alcie")
    assert (code, "did you mean 'alice'?" in said) == (2, True)
    assert "1 key of 'alice' revoked" in run("revoke", "alice")[2]
    assert json.loads(run("list", "--json")[1]) == []
    assert "nobody is" in run("revoke", "alice")[2]


def test_what_cannot_be(config: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is one line that says what to do instead."""
    role = ["--name", "x", "--role", "publish"]
    for command in (["show"], ["list"], ["revoke", "x"], ["authorize", "x", *role]):
        code, _, said = run(*command)
        assert (code, "there is no key file; make one" in said) == (2, True)
    public = run("new")[1].strip()
    key = find_key()
    assert key is not None
    secret = key.secret.encode().decode()
    wrong = {
        "the bus's own key": ["authorize", public, *role],
        "40 characters": ["authorize", public[:-1], *role],
        "nobody else should have": ["authorize", secret, *role],
        "in single quotes": ["new", str(tmp_path / "x"), "--bus", secret + "x"],
        "the length of this is 39": ["authorize", "-" + secret[2:], *role],
        "quotes for a shell, and the length": ["new", str(tmp_path / "x"), "--bus", "-" + secret[2:]],
        "the length of this is 0": ["new", str(tmp_path / "x"), "--bus", ""],
        "letters, digits": ["authorize", public[::-1], "--name", "two words", "--role", "publish"],
        "does not exist": ["show", "/nowhere/key.yaml"],
        "Choose from": ["authorize", public, "--name", "x", "--role", "root"],
    }
    for reason, command in wrong.items():
        code, _, said = run(*command)
        assert (code, said.count("\n")) == (2, 1), said
        assert reason in said or "stands for no key" in said
        assert secret[2:-1] not in said
        assert secret not in said
    assert not (tmp_path / "x").exists()
    (config / "key.yaml").chmod(0o644)
    assert run("new", str(tmp_path / "client.yaml"), "--bus", public)[0] == 0  # has nothing to do with it
    (config / "key.yaml").chmod(0o600)
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(tmp_path / "client.yaml"))
    assert "for a client of another bus" in run("list")[2]
    assert run("list", "--key-file", str(key.path))[0] == 0


def test_doctor_says_which_key_is_used(config: Path, run: Run, tmp_path: Path) -> None:
    """And whether it is fit for use."""
    assert doctor._key().verdict == "ok"
    public = run("new")[1].strip()
    run("authorize", write_new_key(tmp_path / "x.yaml", public).public, "--name", "x", "--role", "publish")
    found = doctor._key()
    assert f"that of a bus, which lets in 1 key of others; public key {public}" in found.text
    (config / "key.yaml").chmod(0o644)
    assert (doctor._key().verdict, "chmod 600" in doctor._key().text) == ("fail", True)


# ---- who may come in ----


@pytest.mark.parametrize(
    "address", [OTHERS, "tcp://0.0.0.0:0", "tcp://[::]:0", "tcp://example.org:0", "tcp://10.1.2.3:0"]
)
def test_no_bus_for_strangers(workplace: Workplace, address: str) -> None:
    """Not without a key: one line, which shows the two commands; nothing is left behind."""
    done = workplace.run("bus", "--address", address)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "'phase-bus keys new'" in done.stderr
    assert "'phase-bus keys authorize PUBLIC --name NAME --role publish'" in done.stderr
    assert "--insecure" in done.stderr
    assert not (workplace.directory / "state").exists()
    with pytest.raises(AddressError, match="keys new"):
        bind(Address.parse(address))


def bind(address: Address, **options: Any) -> None:
    bus = Bus([address], **options)
    try:
        bus.bind()
    finally:
        bus.close()


def test_client_key_is_for_no_bus(tmp_path: Path, workplace: Workplace) -> None:
    """Also where no key would be needed: its owner believes that there is one."""
    key = write_new_key(tmp_path / "client.yaml", write_new_key(tmp_path / "bus.yaml").public)
    with pytest.raises(KeyFileError, match="is for a client of another bus"):
        bind(Address.parse("tcp://127.0.0.1:0"), key=key)
    done = workplace.run("bus", "--address", "tcp://127.0.0.1:0", PHASE_BUS_KEY_FILE=str(key.path))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "is for a client of another bus" in done.stderr


def test_insecure_is_said_out_loud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are not used then, even if there are some."""
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(write_new_key(tmp_path / "key.yaml").path))
    with BusProcess(tmp_path / "log", OTHERS, options=("--no-journal", "--insecure")) as bus:
        assert "; insecure: whoever can connect may do everything; " in bus.log.read_text()
        assert publishes(bus.address, "")
        assert not publishes(bus.address, tmp_path / "key.yaml")


def test_bus_with_a_key_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And lets in who has it, whoever else is authorized, and nobody else."""
    key = write_new_key(tmp_path / "bus.yaml")
    client = write_new_key(tmp_path / "client.yaml", key.public)
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(key.path))
    with BusProcess(tmp_path / "log", OTHERS, options=("--no-journal",)) as bus:
        assert f"; key of {key.path}; " in bus.log.read_text()
        assert publishes(bus.address)
        assert not publishes(bus.address, client.path)
        assert not publishes(bus.address, "")
        with pytest.raises(SystemExit):
            main(["keys", "authorize", client.public, "--name", "alice", "--role", "publish"])
        wait_until(lambda: publishes(bus.address, client.path))
        with pytest.raises(SystemExit):
            main(["keys", "revoke", "alice"])
        wait_until(lambda: not publishes(bus.address, client.path))


def publishes(address: str, key_file: str | Path | None = None) -> bool:
    """Return whether a publisher with this key gets through."""
    with Publisher(address, key_file=key_file) as publisher:
        try:
            wait_until(lambda: publisher.connected, 1.5)
        except AssertionError:
            return False
    return True


def test_publisher_without_a_bus_lets_no_strangers_in() -> None:
    """Direct mode has no keys."""
    for options in ({"bind": OTHERS}, {"address": f"direct+{OTHERS}"}):
        with pytest.raises(AddressError, match="direct mode has none: use a bus") as caught:
            Publisher(**options)  # type: ignore[arg-type]
        assert "keys new" not in str(caught.value)
    Publisher(bind=OTHERS, insecure=True).close()
    Publisher(bind="tcp://127.0.0.1:0").close()


def test_publisher_with_a_key_file_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told at once; where no key is needed, nobody looks for one."""
    with pytest.raises(KeyFileError, match="does not exist"):
        Publisher("tcp://127.0.0.1:1", key_file=tmp_path / "missing")
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(tmp_path / "missing"))
    with pytest.raises(KeyFileError, match="does not exist"):
        Publisher("tcp://127.0.0.1:1")
    Publisher(f"ipc://{tmp_path}").close(0.0)
    Publisher("tcp://127.0.0.1:1", key_file="").close(0.0)


def test_plugin_with_a_key_file_that_is_none(caplog: pytest.LogCaptureFixture) -> None:
    """AIPerf goes on without the plugin, and a line says why; the environment goes before the YAML."""
    from phase_bus.aiperf.exporter import _publisher

    variables = {"phase_bus": {"address": "tcp://127.0.0.1:1", "key_file": "/nowhere"}}
    assert read_options(variables, {KEY_FILE_VARIABLE: ""}).key_file == ""
    assert read_options(variables, {KEY_FILE_VARIABLE: "/x"}).key_file == "/x"
    with caplog.at_level(logging.WARNING), pytest.raises(Exception, match="does not exist"):
        _publisher(read_options(variables, {}))
    assert "phase-bus is off for this run: key file '/nowhere': does not exist" in caplog.text


# ---- exec and up ----


@pytest.mark.slow
def test_exec_with_tcp_makes_its_own_key(workplace: Workplace) -> None:
    """Its user notices nothing; the secret is in one file, which is gone, and nowhere else."""
    broken = "sed s/^secret:/secret:x/ key > broken; chmod 600 broken"
    script = "; ".join(
        (
            'cp "$PHASE_BUS_KEY_FILE" key; echo "$PHASE_BUS_KEY_FILE" > where',
            f"{broken}; PHASE_BUS_KEY_FILE=broken {PROGRAM} simulate",
            f"PHASE_BUS_KEY_FILE= {PROGRAM} status --address $PHASE_BUS_ADDRESS",
            "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ > processes 2> /dev/null",
            f"{PROGRAM} simulate --requests 200 --rate 1000 && {PROGRAM} status",
        )
    )
    options = (
        "--address",
        OTHERS,
        "--with",
        "logging:log_file=x.log",
        "--with",
        "aggregator:output=x.json",
    )
    done = workplace.run("exec", *options, "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert "completed: 250 records" in done.stderr
    assert "simulate" in done.stdout
    assert "/broken': is not" in done.stderr
    assert "wants a key" in done.stderr
    assert not Path((workplace.directory / "where").read_text().strip()).parent.exists()
    secret = yaml.safe_load((workplace.directory / "key").read_text())["secret"].encode()
    assert secret
    files = [path for path in workplace.directory.rglob("*") if path.is_file()]
    assert any(path.suffix == ".sqlite" for path in files)
    having = {path.name for path in files if secret in path.read_bytes()}
    assert having == {"key", "broken"}


@pytest.mark.slow
def test_up_with_tcp_says_which_key_it_needs(workplace: Workplace) -> None:
    """Who has it is let in, and nobody else."""
    up = workplace.phase_bus("up", "--address", "tcp://127.0.0.1:0", "--with", "logging")
    wait_for(lambda: f"needs {KEY_FILE_VARIABLE}=" in workplace.stderr(up), "the bus")
    said = workplace.stderr(up)
    address = said.partition("bus ready at ")[2].partition(";")[0]
    file = said.partition(f"{KEY_FILE_VARIABLE}=")[2].partition(",")[0]
    assert workplace.run("simulate", "--requests", "9", "--address", address).returncode == 2
    simulated = workplace.run("simulate", "--requests", "9", "--address", address, PHASE_BUS_KEY_FILE=file)
    assert simulated.returncode == 0, simulated.stderr
    up.send_signal(signal.SIGTERM)
    assert workplace.finish(up).returncode == 0
    assert not Path(file).exists()


def rig(tmp_path: Path, text: str) -> Rig:
    from rich.console import Console

    (tmp_path / "bus.yaml").write_text(text)
    made = Rig(load_config(tmp_path / "bus.yaml", [], []), Console(quiet=True))
    made._directory.remove()
    made._client.close()
    return made


def test_which_key_exec_and_up_use(config: Path, tmp_path: Path) -> None:
    """The one that the YAML names, the user's own if it is for a bus, or one of its own; none for ipc."""
    tcp = f"address: {OTHERS}\n"
    assert rig(tmp_path, f"address: ipc://{tmp_path}/b\n").key_file is None
    assert rig(tmp_path, tcp).has_own_key
    client = write_new_key(config / "key.yaml", write_new_key(tmp_path / "other.yaml").public)
    assert rig(tmp_path, tcp).has_own_key
    client.path.unlink()
    own = write_new_key(default_key_file())
    made = rig(tmp_path, tcp)
    assert (made.key_file, made.has_own_key) == (own.path, False)
    assert made.environment[KEY_FILE_VARIABLE] == str(own.path)
    made = rig(tmp_path, f"{tcp}key_file: {tmp_path / 'other.yaml'}\n")
    assert made.environment[KEY_FILE_VARIABLE] == str(tmp_path / "other.yaml")
    made = rig(tmp_path, f"{tcp}insecure: true\n")
    assert made.is_insecure
    assert (made.key_file, made.environment[KEY_FILE_VARIABLE]) == (None, "")
    assert KEY_FILE_VARIABLE not in rig(tmp_path, f"address: ipc://{tmp_path}/b\n").environment


def test_key_file_in_yaml_that_is_no_use(config: Path, tmp_path: Path) -> None:
    """What is named is meant."""
    client = write_new_key(tmp_path / "client.yaml", write_new_key(tmp_path / "other.yaml").public)
    with pytest.raises(KeyFileError, match="is for a client of another bus"):
        rig(tmp_path, f"address: {OTHERS}\nkey_file: {client.path}\n")
    with pytest.raises(KeyFileError, match="does not exist"):
        rig(tmp_path, f"address: ipc://{tmp_path}/b\nkey_file: missing.yaml\n")
