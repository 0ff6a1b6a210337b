"""The user's mistakes: one line that names the thing and the remedy, exit code 2."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.support.workplace import Workplace, assert_one_line, wait_for

CASES = {
    "no command": (["exec"], ["no command", "'--'"]),
    "command not found": (["exec", "--", "no-such-program"], ["no-such-program", "not found"]),
    "unknown command": (["exce"], ["no command 'exce'", "did you mean 'exec'"]),
    "unknown option": (["exec", "--wiht", "x", "--", "true"], ["--wiht", "--with"]),
    "unknown consumer": (
        ["exec", "--with", "loging", "--", "true"],
        ["'loging'", "did you mean 'logging'"],
    ),
    "unknown module": (["consume", "no_module:Class"], ["no_module"]),
    "unknown consumer option": (
        ["exec", "--with", "metrics:outptu=x", "--", "true"],
        ["'metrics'", "'outptu'", "did you mean 'output'"],
    ),
    "wrong type": (
        ["exec", "--with", "alerting:threshold_s=soon", "--", "true"],
        ["'alerting'", "'threshold_s'", "must be a number, not 'soon'"],
    ),
    "no number": (["simulate", "--rate", "nan"], ["--rate", "not a finite number"]),
    "an endless time": (["bus", "--silent-after-s", "inf"], ["--silent-after-s", "not a finite number"]),
    "option without =": (["consume", "metrics", "--set", "output"], ["'output'", "key=value"]),
    "workers of nobody": (
        ["exec", "--with", "metrics", "--workers", "metric=2", "--", "true"],
        ["no consumer is called 'metric'", "did you mean 'metrics'"],
    ),
    "workers of one that is not to run": (
        ["exec", "--workers", "aggregator=4", "--", "true"],
        ["'aggregator' is not among the consumers", "add --with aggregator"],
    ),
    "something required": (["journal", "prune"], ["--data is required", "journal prune --help"]),
    "no number of workers": (
        ["exec", "--with", "aggregator", "--workers", "aggregator=some", "--", "true"],
        ["'some'", "write aggregator=4"],
    ),
    "nothing to share": (
        ["exec", "--with", "alerting", "--workers", "alerting=2", "--", "true"],
        ["'alerting'", "takes no records", "without a group"],
    ),
    "a group from now on": (
        ["consume", "aggregator", "--group", "g", "--from", "now"],
        ["--from now", "another --group"],
    ),
    "a group and a name": (
        ["consume", "aggregator", "--group", "g", "--name", "n"],
        ["--name and --group", "leave --name out"],
    ),
    "two of one name": (["exec", "--with", "metrics", "--with", "metrics", "--", "true"], ["'metrics'"]),
    "no port for events": (["bus", "--events-port", "70000"], ["events_port", "at most 65535"]),
    "malformed address": (["bus", "--address", "tcp:/x"], ["'tcp:/x'", "tcp://host:port"]),
    "no such port": (["status", "--address", "tcp://127.0.0.1:99999"], ["99999"]),
    "no IPv6 address": (["bus", "--address", "tcp://[::1:5"], ["'tcp://[::1:5'", "in brackets"]),
    "any port": (["simulate", "--address", "tcp://*:0"], ["'tcp://*:0'", "port of the bus"]),
    "nobody at any": (["status", "--address", "tcp://*:1"], ["no bus answers", "127.0.0.1:1"]),
    "half an address of AIPerf": (["attach", "--tcp", "[::1"], ["'[::1'", "[::1]:5664"]),
    "no port of AIPerf": (["attach", "--tcp", "host:0"], ["'host:0'", "HOST:PORT"]),
    "sockets of AIPerf too deep": (["attach", "--ipc-path", "/tmp/" + "x" * 90], ["too long"]),
    "a tree of directories": (
        ["consume", "logging", "--set", "log_file=a/b/x.log"],
        ["'a/b/x.log'", "make its directory first"],
    ),
    "path too long": (["bus", "--address", "ipc:///tmp/" + "x" * 120], ["too long"]),
    "no such host": (["bus", "--address", "tcp://192.0.2.1:5670"], ["tcp://192.0.2.1:5670"]),
    "no bus": (["status", "--address", "ipc:///tmp/no-bus-is-here"], ["no bus answers", "phase-bus bus"]),
    "unwritable file": (
        ["exec", "--with", "metrics:output=/proc/nothing/m.json", "--", "true"],
        ["/proc/nothing/m.json", "output"],
    ),
    "a directory": (["exec", "--with", "metrics:output=/tmp", "--", "true"], ["/tmp", "output"]),
    "attach to nothing": (["attach"], ["--ipc-path", "--tcp"]),
    "no such file": (["up", "-c", "missing.yaml"], ["missing.yaml"]),
}


@pytest.mark.parametrize("name", CASES)
def test_one_clear_line(workplace: Workplace, name: str) -> None:
    """The message is one line without a traceback, and says what is needed."""
    arguments, words = CASES[name]
    done = workplace.run(*arguments)
    assert_one_line(done.returncode, done.stderr, *words)


YAML_CASES = {
    "unknown key": ("consumer: []", ["'consumer'", "did you mean 'consumers'"]),
    "no workers": ("consumers: [{use: aggregator, workers: 0}]", ["consumers[0].workers", ">= 1"]),
    "unknown key below": ("consumers: [{use: metrics, sett: {}}]", ["'sett'", "consumers[0]", "'set'"]),
    "wrong type": ("drain_timeout_s: soon", ["drain_timeout_s must be a number, not text"]),
    "not YAML": ("consumers: [", ["bus.yaml", "not YAML"]),
    "a list": ("[1, 2]", ["bus.yaml"]),
    "unknown bus option": ("bus: {hwm: 3}", ["'hwm'", "high_water_mark"]),
}


@pytest.mark.parametrize("name", YAML_CASES)
def test_a_wrong_yaml_file(workplace: Workplace, name: str) -> None:
    """The message names the file and the key."""
    text, words = YAML_CASES[name]
    (workplace.directory / "bus.yaml").write_text(text)
    done = workplace.run("exec", "-c", "bus.yaml", "--", "true")
    assert_one_line(done.returncode, done.stderr, "bus.yaml", *words)


def test_a_port_in_use(workplace: Workplace) -> None:
    """A port that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        done = workplace.run("exec", "--address", address, "--", "true")
    assert_one_line(done.returncode, done.stderr, address, "in use", "another port")


def test_a_directory_in_use(workplace: Workplace, tmp_path: Path) -> None:
    """An ipc directory that another bus holds; the first bus is not disturbed."""
    address = f"ipc://{tmp_path}/bus"
    bus = workplace.phase_bus("bus", "--address", address)
    wait_for(lambda: "bus ready" in workplace.stdout(bus), "the bus")
    done = workplace.run("bus", "--address", address)
    assert_one_line(done.returncode, done.stderr, str(tmp_path), "in use by another bus")
    assert workplace.run("status", "--address", address).returncode == 0
    bus.terminate()
    assert workplace.finish(bus).returncode == 0
