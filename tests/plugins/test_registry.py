"""Finding consumers by name."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
import yaml

import phase_bus_consumers
from phase_bus.cli.consumers import consumers
from phase_bus.consumer.consumer import Consumer
from phase_bus.consumer.options import options_of
from phase_bus.errors import ConfigError, ConsumerNotFoundError
from phase_bus.harness.config import load_config
from phase_bus.plugins import registry
from phase_bus.plugins.registry import Registry

Plugin = Callable[..., str]

CONSUMER = '''
from phase_bus.consumer.consumer import Consumer

class Shout(Consumer):
    """Be loud."""
    async def on_phase_complete(self, event): ...

class Plain: ...
'''


@pytest.fixture(autouse=True)
def _fresh_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let each test change where modules come from, and forget them afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in [n for n in sys.modules if n.startswith(("acme_", "next_to_me", "bad_syntax"))]:
        del sys.modules[name]


@pytest.fixture
def points() -> list[EntryPoint]:
    """The entry points that there are."""
    return []


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, points: list[EntryPoint]) -> Plugin:
    """Make plugin packages, and the entry points they would be installed with."""
    monkeypatch.setattr(registry, "entry_points", lambda group: EntryPoints(points).select(group=group))
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name: str, content: str, init: str = "") -> str:
        package = tmp_path / name
        package.mkdir()
        (package / "__init__.py").write_text(init)
        (package / "loud.py").write_text(CONSUMER)
        (package / "registry.yaml").write_text(content)
        points.append(EntryPoint(name, f"{name}:registry.yaml", registry.GROUP))
        return name

    return make


def yaml_for(package: str, consumer: str = "shout", extra: str = "") -> str:
    return f"""
plugin: {{name: {package}, version: 1.0.0, description: x, author: y, enabled: true}}
consumers:
  {consumer}:
    class: {package}.loud:Shout
    description: Be loud
    priority: 5
    tags: [noise]
    auto_load: false
    config_params: []
{extra}
"""


def test_our_own_consumers_are_found_without_an_installation(plugin: Plugin) -> None:
    """With no entry point at all the built-in consumers are there, with what the file says of them."""
    found = Registry.load()
    assert list(found.consumers)[:5] == ["logging", "metrics", "aggregator", "thresholds", "alerting"]
    entry = found.consumers["logging"]
    assert entry.target == "phase_bus_consumers.logging:PhaseLogger"
    assert entry.plugin == "phase-bus-consumers"
    assert entry.description
    assert entry.tags == ("logging",)


@pytest.mark.parametrize("name", ["logging", "metrics", "aggregator", "alerting"])
def test_every_built_in_name_resolves(name: str) -> None:
    """Each name of our registry leads to a consumer class."""
    assert issubclass(Registry.load().class_of("consumer", name), Consumer)


def test_our_registry_lists_the_options_that_there_are() -> None:
    """``config_params`` of our registry is what the classes take."""
    rows = yaml.safe_load(Path(phase_bus_consumers.__path__[0], "registry.yaml").read_text())
    for name, row in rows["consumers"].items():
        options = options_of(Registry.load().class_of("consumer", name))
        assert row["config_params"] == list(options), name


def test_a_single_one_with_its_options(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phase_bus.cli.consumers.configure_logging", lambda: None)
    assert consumers("splunk", json=True) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert shown["name"] == "splunk"
    token = shown["options"][0]
    assert (token["name"], token["type"], token["required"]) == ("token", "secret", True)
    assert token["means"].startswith("the token of an HTTP event collector")
    assert [each["name"] for each in shown["options"]][-2:] == ["retry_times", "retry_wait_s"]
    consumers("metrics")
    text = capsys.readouterr().out
    assert "keep_runs" in text
    assert "(integer, default 100)" in text
    assert "metrics:option=value,option=value" in text
    with pytest.raises(ConfigError, match=r"there is no consumer 'show'; known: .*sql"):
        consumers("show", "splunk")


def test_a_plugins_consumer(plugin: Plugin) -> None:
    """A plugin's consumer is found and imported by name, in its place by priority."""
    plugin("acme_loud", yaml_for("acme_loud"))
    found = Registry.load()
    assert next(iter(found.consumers)) == "shout"
    assert found.consumers["shout"].plugin == "acme_loud"
    assert "acme_loud" not in sys.modules  # listing imports nothing
    assert found.class_of("consumer", "shout").__name__ == "Shout"


@pytest.mark.parametrize(
    "content",
    [
        "consumers: [",
        "",
        "just text",
        "consumers: {shout: {class: acme_broken.loud:Shout}}",
        "plugin: {name: x}\nconsumers: {shout: {description: no class}}",
        "plugin: {name: x}\nconsumers: {shout: {class: x, priority: high}}",
    ],
)
def test_a_broken_file_is_reported_and_left_out(
    content: str, plugin: Plugin, caplog: pytest.LogCaptureFixture
) -> None:
    """One plugin that is wrong does not take the others with it."""
    plugin("acme_broken", content)
    plugin("acme_fine", yaml_for("acme_fine", "whisper"))
    with caplog.at_level(logging.WARNING):
        found = Registry.load()
    assert "whisper" in found.consumers
    assert "logging" in found.consumers
    assert "shout" not in found.consumers
    assert "acme_broken:registry.yaml" in caplog.text


def test_a_package_or_file_that_is_gone_is_reported(
    plugin: Plugin, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An entry point may outlive what it points to."""
    name = plugin("acme_gone", yaml_for("acme_gone"))
    (tmp_path / name / "registry.yaml").unlink()
    other = plugin("acme_away", yaml_for("acme_away"))
    for file in (tmp_path / other).iterdir():
        file.unlink()
    (tmp_path / other).rmdir()
    with caplog.at_level(logging.WARNING):
        assert "logging" in Registry.load().consumers
    assert "acme_gone" in caplog.text
    assert "acme_away" in caplog.text


def test_a_plugin_that_fails_to_import_hurts_only_who_uses_it(plugin: Plugin) -> None:
    """It is listed; using it says in one line what is wrong."""
    plugin("acme_bad", yaml_for("acme_bad"), init="raise RuntimeError('two\\nlines')")
    found = Registry.load()
    assert "shout" in found.consumers
    with pytest.raises(ConsumerNotFoundError, match="RuntimeError: two lines") as caught:
        found.class_of("consumer", "shout")
    assert "\n" not in str(caught.value)


def test_a_disabled_plugin_is_left_out(plugin: Plugin) -> None:
    """``enabled: false`` switches a plugin off."""
    plugin("acme_off", yaml_for("acme_off").replace("enabled: true", "enabled: false"))
    assert "shout" not in Registry.load().consumers


def test_no_plugin_takes_our_names(plugin: Plugin, caplog: pytest.LogCaptureFixture) -> None:
    """Of two consumers with one name ours stays, and the other is reported with a way to use it."""
    plugin("acme_loud", yaml_for("acme_loud", "logging"))
    with caplog.at_level(logging.WARNING):
        found = Registry.load()
    assert found.consumers["logging"].plugin == "phase-bus-consumers"
    assert "acme_loud.loud:Shout" in caplog.text


def test_of_two_plugins_with_one_name_the_first_counts(
    plugin: Plugin, caplog: pytest.LogCaptureFixture
) -> None:
    """In the order of their packages' names; the other one is reported."""
    plugin("acme_two", yaml_for("acme_two", "second").replace("name: acme_two", "name: acme"))
    plugin("acme_one", yaml_for("acme_one", "first").replace("name: acme_one", "name: acme"))
    with caplog.at_level(logging.WARNING):
        found = Registry.load()
    assert "first" in found.consumers
    assert "second" not in found.consumers
    assert "plugin 'acme' (acme_two:registry.yaml) is left out: acme_one:registry.yaml" in caplog.text


HOOKS = """
phase_hooks:
  second: {class: acme_hooks.loud:Plain, priority: 60, tags: [logging]}
  first: {class: acme_hooks.loud:Plain, priority: 40, auto_load: false, config_params: [a]}
post_processors:
  first: {class: acme_hooks.loud:Plain}
"""


@pytest.mark.parametrize(
    ("group", "value"),
    [
        (registry.GROUP, "acme_hooks:registry.yaml"),
        (registry.GROUP, "acme_hooks : registry.yaml"),
        (registry.GROUP, "acme_hooks"),
        (registry.AIPERF_GROUP, "acme_hooks:registry.yaml"),
        (registry.AIPERF_GROUP, "acme_hooks"),
    ],
)
def test_hooks_and_processors(group: str, value: str, plugin: Plugin, points: list[EntryPoint]) -> None:
    """They are found by whichever entry point, in the order of priority; what is not said has a default."""
    name = plugin("acme_hooks", yaml_for("acme_hooks", extra=HOOKS))
    points[:] = [EntryPoint(name, value, group), EntryPoint("x", "aiperf.plugin:plugins.yaml", group)]
    if group == registry.GROUP:
        del points[1]
    found = Registry.load()
    assert [n for n, entry in found.hooks.items() if entry.plugin == name] == ["first", "second"]
    first, second, processor = found.hooks["first"], found.hooks["second"], found.processors["first"]
    assert (first.kind, first.use, first.auto_load, first.config_params) == (
        "hook", "hook:first", False, ("a",),
    )  # fmt: skip
    assert (second.auto_load, second.tags, second.priority) == (True, ("logging",), 60)
    assert (processor.use, processor.priority, processor.auto_load) == ("processor:first", 50, True)
    assert found.consumers["shout"].use == "shout"
    assert "acme_hooks" not in sys.modules


def test_all_that_load_without_being_named(plugin: Plugin) -> None:
    """``consumers`` stands for them, each in a process of its own."""
    with pytest.raises(ConfigError, match="no consumer is loaded without being named"):
        load_config(None, ["consumers"], [])
    plugin("acme_loud", yaml_for("acme_loud").replace("auto_load: false", "auto_load: true"))
    config = load_config(None, ["consumers", "logging"], [])
    assert [consumer.title for consumer in config.consumers] == ["shout", "logging"]
    with pytest.raises(ConfigError, match="stands for several"):
        load_config(None, ["consumers:a=b"], [])


def test_an_unknown_name_gets_a_suggestion() -> None:
    """A typing error is answered with the name that was meant."""
    with pytest.raises(ConsumerNotFoundError, match="did you mean 'alerting'"):
        Registry.load().class_of("consumer", "alertin")


def test_module_and_class_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class in a file next to the user needs no installation."""
    (tmp_path / "next_to_me.py").write_text(CONSUMER)
    monkeypatch.chdir(tmp_path)
    assert Registry({}).class_of("consumer", "next_to_me:Shout").__name__ == "Shout"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("next_to_me:Shuot", "has no 'Shuot'; did you mean 'Shout'"),
        ("next_to_me:Plain", "not a subclass of phase_bus.Consumer"),
        ("next_to_me:", "write it as module:Class"),
        (":Shout", "write it as module:Class"),
        ("no_such_module:Shout", "No module named 'no_such_module'"),
        ("bad_syntax:Shout", "SyntaxError"),
    ],
)
def test_a_class_that_cannot_be_used(
    name: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says what is wrong with a ``module:Class``."""
    (tmp_path / "next_to_me.py").write_text(CONSUMER)
    (tmp_path / "bad_syntax.py").write_text("def (:")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConsumerNotFoundError, match=reason) as caught:
        Registry({}).class_of("consumer", name)
    assert caught.value.name == name


def test_importing_the_consumers_package_is_cheap() -> None:
    """The package loads nothing until a class is asked for, and then it is there."""
    code = """
import sys, phase_bus_consumers as c
assert not {"zmq", "numpy", "structlog", "msgspec", "asyncio"} & set(sys.modules), "loads too much"
for name in c.__all__:
    getattr(c, name)
assert c.ExampleLoggingHook.__name__ == "ExampleLoggingHook"
try:
    c.Nothing
except AttributeError:
    print("fine")
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert ran.stdout == "fine\n", ran.stderr


def test_a_consumer_whose_extra_is_missing_does_not_hide_the_others() -> None:
    """`phase-bus consumers` lists all of them, and says what one of them is missing."""
    code = (
        "import sys; sys.modules['sqlalchemy'] = None; from phase_bus.cli import main; main(['consumers'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "aggregator" in done.stdout
    assert "phase-bus[sql]" in " ".join(done.stdout.split())
