"""deploy/ for a fleet: NATS starts on the configuration and is durable, Kubernetes takes the manifests."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import kubernetes_validate
import nats.errors
import pytest
import yaml

from phase_bus.core.address import StreamAddress
from phase_bus.errors import ConfigError
from phase_bus.jetstream.connection import Connection, connect, connected
from phase_bus.jetstream.cursor import Cursor
from phase_bus.jetstream.durability import MONITOR_VARIABLE, durability_of
from phase_bus.jetstream.keys import open_keys
from phase_bus.jetstream.message import subjects
from phase_bus.jetstream.stream import open_stream
from tests.e2e.pages import ROOT, moved
from tests.support.health import ask
from tests.support.servers.nats import NatsServer
from tests.support.servers.process import HOST, free_port, request
from tests.support.servers.webhook import Webhook
from tests.support.workplace import Workplace, wait_for

DEPLOY = ROOT / "deploy"
CONFIGURATION = DEPLOY / "nats" / "nats.conf"
VALUES = DEPLOY / "nats" / "values.yaml"
MANIFESTS = sorted((DEPLOY / "kubernetes").iterdir())
OLDEST, NEWEST = "1.29", "1.37"  # the first with sidecars that needs no setting for them


class Configured(NatsServer):
    """A NATS server on a configuration that is given."""

    def __init__(self, directory: Path, place: dict[str, str], text: str) -> None:
        super().__init__(directory)
        self._text = text
        self._place = place

    def command(self) -> list[str]:
        return ["env", f"NATS_NAME={self.name}", *super().command()]

    def answers(self) -> bool:
        return request("GET", f"{self.monitor_url}/healthz?js-server-only=true")[0] == 200

    def _configuration(self) -> str:
        own = {
            "0.0.0.0:4222": f"{HOST}:{self.port}",
            "127.0.0.1:8222": f"{HOST}:{self.monitor_port}",
            "/var/lib/nats": str(self.directory / "data"),
        }
        return moved(self._text, own | self._place)


@pytest.fixture
def users(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The passwords, by user; the servers have them in their environment."""
    given = {"forward": "p12e34", "consume": "p9abc"}
    for user, password in given.items():
        monkeypatch.setenv(f"NATS_{user.upper()}_PASSWORD", password)
    return given


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A directory as /etc/nats: a CA, and a certificate of it for this machine."""
    directory = tmp_path / "etc"
    directory.mkdir()
    for command in (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.crt",
        "openssl req -newkey rsa:2048 -nodes -subj /CN=nats -keyout tls.key -out tls.csr "
        f"-addext subjectAltName=IP:{HOST}",
        "openssl x509 -req -days 2 -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out tls.crt "
        "-copy_extensions copy",
    ):
        subprocess.run(command.split(), cwd=directory, capture_output=True, check=True)
    return directory


@pytest.mark.slow
async def test_three_servers_on_the_configuration(
    tmp_path: Path,
    users: dict[str, str],
    certificates: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_leaks: None,
) -> None:
    """They are one cluster, let in whom they know, and keep a stream three times, on their disks."""
    routes = {f"nats-{n}:6222": f"{HOST}:{free_port()}" for n in (1, 2, 3)}
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                Configured(
                    tmp_path / f"n{n}",
                    {"0.0.0.0:6222": own, "/etc/nats": str(certificates), **routes},
                    CONFIGURATION.read_text(),
                )
            )
            for n, own in enumerate(routes.values())
        ]
        address = StreamAddress.parse("tls://" + ",".join(f"{HOST}:{server.port}" for server in servers))
        monkeypatch.setenv("NATS_CA", str(certificates / "ca.crt"))
        monkeypatch.setenv("NATS_USER", "forward")
        monkeypatch.setenv("NATS_PASSWORD", "wrong")
        with pytest.raises(ConfigError, match="does not let us in"):
            await connect(address, "test")
        monkeypatch.setenv(MONITOR_VARIABLE, ",".join(server.monitor_url for server in servers))
        for user, password in users.items():
            monkeypatch.setenv("NATS_USER", user)
            monkeypatch.setenv("NATS_PASSWORD", password)
            async with connected(address, "test") as connection:
                stream = await open_stream(connection, make=user == "forward")
                found = await durability_of(connection)
                assert (found.replicas, found.weaknesses, found.unseen) == (3, [], "")
                assert await may_publish(connection, "phase-bus.x.run_start.r") == (user == "forward")
                assert not await may_publish(connection, f"$JS.API.STREAM.DELETE.{stream.name}")
                assert await may_publish(connection, "phase-bus.x.receipt.r")


async def may_publish(connection: Connection, subject: str) -> bool:
    """Return whether the server takes a message on a subject and answers."""
    try:
        await connection.client.request(subject, b"", timeout=0.5)
    except nats.errors.Error:
        return False
    return True


def chart_configuration(values: dict[str, Any]) -> dict[str, Any]:
    """Return what NATS's chart makes of values, but for what it has in any case."""
    config = values["config"]
    store = config["jetstream"]["fileStore"]
    memory = config["jetstream"].get("memoryStore", {})
    return {
        "jetstream": {
            "store_dir": "/var/lib/nats",
            "max_file_store": f"<< {store['pvc']['size']} >>",
            "max_memory_store": f"<< {memory['maxSize']} >>" if memory.get("enabled") else 0,
            **config["jetstream"]["merge"],
        },
        **config["merge"],
    }


def as_configuration(values: dict[str, Any]) -> str:
    """Return values as the chart writes them for the server."""
    return re.sub(r'"<< (.*?) >>"', r"\1", json.dumps(values, indent=2))[1:-2]


async def test_a_server_on_the_charts_values(
    tmp_path: Path, users: dict[str, str], monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    """What the chart makes of them is a configuration; a stream on it is durable, and can be read."""
    values = yaml.safe_load(VALUES.read_text())
    assert values["config"]["cluster"] == {"enabled": True, "replicas": 3}
    text = as_configuration(chart_configuration(values))
    head = 'server_name: one\nlisten: "0.0.0.0:4222"\nhttp: "127.0.0.1:8222"\n'
    with Configured(tmp_path / "nats", {}, head + text) as server:
        monkeypatch.setenv(MONITOR_VARIABLE, server.monitor_url)
        address = StreamAddress.parse(server.url)
        monkeypatch.setenv("NATS_USER", "forward")
        monkeypatch.setenv("NATS_PASSWORD", users["forward"])
        async with connected(address, "test") as connection:
            stream = await open_stream(connection, make=True)
        monkeypatch.setenv("NATS_USER", "consume")
        monkeypatch.setenv("NATS_PASSWORD", users["consume"])
        async with connected(address, "test") as connection:
            assert (await durability_of(connection)).sync_s == 0
            cursor = Cursor(connection, stream.name, [subjects(stream.name, records=True)], 0)
            assert await cursor.take() == []
            await cursor.close()
            keys = await open_keys(connection, stream)
            large = bytes(3 << 20)  # which goes to the object store
            revision = await keys.create("checkpoint.large", large)
            assert await keys.get("checkpoint.large") == (large, revision)
            assert await keys.delete("checkpoint.large", revision or 0)


def test_both_let_users_do_the_same() -> None:
    """The configuration, and the values of the chart."""
    written = CONFIGURATION.read_text().partition("authorization {")[2]
    users = yaml.safe_load(VALUES.read_text())["config"]["merge"]["authorization"]["users"]
    may = [user["permissions"] for user in users]
    of_chart = [(*each["publish"]["allow"], *each["publish"]["deny"], *each["subscribe"]) for each in may]
    assert re.findall(r'"(.*?)"', written) == [subject for each in of_chart for subject in each]


def documents(path: Path) -> list[dict[str, Any]]:
    """Return what a manifest makes."""
    return list(yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_kubernetes_takes_the_manifests(path: Path) -> None:
    """Each is what the schema of its kind allows, without a key that nobody knows."""
    for document in documents(path):
        for version in (OLDEST, NEWEST):
            kubernetes_validate.validate(document, version, strict=True)
        assert "phase-bus" in (document["metadata"].get("namespace"), document["metadata"]["name"])


def containers() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return each container of the manifests, with its pod."""
    pods = [
        document["spec"]["template"]
        for path in MANIFESTS
        for document in documents(path)
        if "template" in document["spec" if "spec" in document else "metadata"]
    ]
    return [
        (container, pod)
        for pod in pods
        for container in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"])
    ]


def test_what_the_schemas_do_not_know() -> None:
    """A selector selects its pods, and probes, mounts and secrets name what there is."""
    secrets = {"nats-users": {"forward", "consume"}, "sinks": {"database"}}
    text = "".join(path.read_text() for path in (VALUES, *MANIFESTS))
    for name, keys in secrets.items():
        (made,) = re.findall(rf"create secret generic {name} ((?:.*\\\n)*.*)", text)
        assert set(re.findall(r"--from-literal=(\w+)=", made)) == keys
    for path in MANIFESTS:
        for document in documents(path):
            if selector := document.get("spec", {}).get("selector"):
                assert selector["matchLabels"] == document["spec"]["template"]["metadata"]["labels"]
    found = containers()
    assert len(found) == 5
    for container, pod in found:
        ports = {port["name"] for port in container.get("ports", ())}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert probe not in container or container[probe]["httpGet"]["port"] in ports
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes
        for variable in container["env"]:
            if source := variable.get("valueFrom"):
                assert source["secretKeyRef"]["key"] in secrets[source["secretKeyRef"]["name"]]


class Pods:
    """What the manifests' containers run, run here: with their arguments, environment and probes.

    Args:
        place: what is somewhere else here.
        secrets: by name and key.
    """

    def __init__(
        self, workplace: Workplace, place: dict[str, str], secrets: dict[str, dict[str, str]]
    ) -> None:
        self._workplace = workplace
        self._place = place
        self._secrets = secrets

    def start(self, name: str, **changed: str) -> subprocess.Popen[str]:
        """Start the container of a name, and wait until it is as its probe wants it.

        Args:
            changed: arguments that are others here, by the option's name.
        """
        (container,) = [container for container, _ in containers() if container["name"] == name]
        health = f"{HOST}:{free_port()}"
        place = {"*:9464": health, "*:9465": health, **self._place}
        arguments = [moved(argument, place) for argument in container["args"]]
        for option, value in changed.items():
            arguments = [re.sub(rf"^--{option}=.*", f"--{option}={value}", each) for each in arguments]
        environment = {each["name"]: self._value(each) for each in container["env"]}
        process = self._workplace.phase_bus(*arguments, **environment)
        for probe in ("startupProbe", "readinessProbe"):
            if probe in container:
                url = f"http://{health}{container[probe]['httpGet']['path']}"
                wait_for(lambda: answers(url), f"{name} at {url}")  # noqa: B023
        return process

    def _value(self, variable: dict[str, Any]) -> str:
        if "value" in variable:
            return moved(variable["value"], self._place)
        source = variable["valueFrom"]["secretKeyRef"]
        return self._secrets[source["name"]][source["key"]]


def answers(url: str) -> bool:
    """Whether an address answers with 200."""
    with suppress(OSError):
        return ask(url).status == 200
    return False


@pytest.mark.slow
def test_the_pods_work_together(workplace: Workplace, users: dict[str, str]) -> None:
    """A benchmark with its sidecar, workers and sinks; the sidecar is ended right after the benchmark."""
    directory = workplace.directory
    options = as_configuration(yaml.safe_load(VALUES.read_text())["config"]["merge"])
    database = f"sqlite:///{directory}/fleet.db"
    with NatsServer(directory / "nats", options=options) as nats, Webhook() as prometheus:
        place = {
            "tcp://127.0.0.1:5670": f"tcp://{HOST}:{free_port()}",
            "nats://nats:4222": nats.url,
            "http://prometheus.monitoring:9090": prometheus.url,
            "http://nats-0.nats-headless:8222,http://nats-1.nats-headless:8222,"
            "http://nats-2.nats-headless:8222": nats.monitor_url,
            "/var/lib/phase-bus": str(directory),
            "/tmp/": f"{directory}/",
        }
        pods = Pods(workplace, place, {"nats-users": users, "sinks": {"database": database}})
        bus = pods.start("bus")
        consumers = [pods.start(name) for name in ("worker", "worker", "sql", "remote-write")]
        benchmark = pods.start("benchmark", requests="3000", rate="0")
        assert workplace.finish(benchmark).returncode == 0
        bus.terminate()
        ended = workplace.finish(bus)
        assert ended.returncode == 0, ended.stderr
        who: Any = {"NATS_USER": "consume", "NATS_PASSWORD": users["consume"]}
        report = ("report", "nightly", "--format", "json", "--address", nats.url)
        done = workplace.run(*report, **who)
        assert done.returncode == 0, done.stderr
        receipts = ("receipts", "nightly", "--json", "--address", nats.url)
        names = {"fleet", "sql", "remote_write"}
        wait_for(
            lambda: (
                names
                <= set(
                    re.findall(
                        r'"consumer":"(\w+)"', workplace.run(*receipts, **who).stdout.replace(" ", "")
                    )
                )
            ),
            "the receipts",
        )
        with closing(sqlite3.connect(directory / "fleet.db")) as rows:
            ((count,),) = rows.execute("select count(*) from phase_bus_records")
        assert count == 3050
        assert prometheus.received
        for process in consumers:
            process.terminate()
            ended = workplace.finish(process)
            assert ended.returncode == 0, ended.stderr
