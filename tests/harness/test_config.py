"""The thresholds of a configuration, and the consumer that judges them; and the one that forwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from phase_bus.errors import AddressError, ConfigError
from phase_bus.harness.config import Config, ConsumerConfig, load_config

LATENCY = "profiling request_latency p99 < 500 ms"
ERRORS = "profiling error_rate < 1 %"


def loaded(directory: Path, text: str, **more: Any) -> Config:
    """Return the configuration of a YAML file and the command line."""
    path = directory / "bus.yaml"
    path.write_text(text)
    given = {"extra": (), "addresses": ()} | more
    return load_config(path, **given)


def judge(config: Config) -> ConsumerConfig:
    """Return the only consumer that judges, which judges all."""
    (consumer,) = [each for each in config.consumers if each.use == "thresholds"]
    assert consumer.set["thresholds"] == list(config.thresholds)
    return consumer


def test_thresholds_of_the_file_and_of_the_command_line_add_up(tmp_path: Path) -> None:
    """Each once, in the canonical spelling; one consumer judges all, with the workers it is given."""
    text = "thresholds: [request_latency p99<0.5s, {threshold: error_rate < 1%, abort: true}]"
    config = loaded(tmp_path, text, thresholds=["request_latency p99 < 500 ms"], workers=["thresholds=4"])
    assert config.thresholds == (LATENCY, f"{ERRORS}, abort")
    assert judge(config).workers == 4
    assert loaded(tmp_path, "").consumers == ()


def test_all_are_to_end_the_run(tmp_path: Path) -> None:
    config = loaded(tmp_path, f"thresholds: ['{LATENCY}', '{LATENCY} abort']", abort=True)
    assert config.thresholds == (f"{LATENCY}, abort",)


def test_the_consumer_may_have_options_in_the_file(tmp_path: Path) -> None:
    text = (
        f"thresholds: ['{ERRORS}']\nconsumers: [{{use: thresholds, workers: 2, health: 9999}}, logging]\n"
    )
    config = loaded(tmp_path, text)
    assert [each.use for each in config.consumers] == ["thresholds", "logging"]
    assert (judge(config).workers, judge(config).health) == (2, 9999)


def test_what_a_consumer_is_to_judge_is_known_by_its_verdicts_names(tmp_path: Path) -> None:
    """Also with options of its own, and under a name of its own."""
    text = f"""
thresholds: ['{ERRORS}']
consumers:
  - {{use: thresholds, set: {{abort_on_failure: true}}}}
  - {{use: thresholds, name: mine, set: {{thresholds: [request_latency p99<0.5s]}}}}
  - logging
"""
    config = loaded(tmp_path, text)
    assert {each.title: each.thresholds for each in config.consumers if each.judges} == {
        "thresholds": (f"{ERRORS}, abort",),
        "mine": (LATENCY,),
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("thresholds: [error_rat < 1 %]", ("bus.yaml", "error_rat")),
        ("thresholds: {a: b}", ("bus.yaml", "list")),
        ("thresholds: [{threshold: error_rate < 1 %, abrot: true}]", ("bus.yaml", "abrot")),
        ("threshold: [error_rate < 1 %]", ("bus.yaml", "did you mean 'thresholds'")),
        (
            "thresholds: [error_rate < 1 %]\nconsumers: [{use: thresholds, set: {thresholds: [x]}}]",
            ("two consumers are called 'thresholds'",),
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text)
    for word in words:
        assert word in str(caught.value)


def test_the_consumer_that_forwards_is_started_for_an_address(tmp_path: Path) -> None:
    """That of the command line counts; YAML and command line say it alike."""
    for config in (
        loaded(tmp_path, "forward: nats://a,b:1/team"),
        loaded(tmp_path, "forward: nats://c", forward="nats://a,b:1/team"),
    ):
        assert config.consumers == (ConsumerConfig("forward", set={"to": "nats://a:4222,b:1/team"}),)


def test_what_is_wrong_with_forwarding_is_said_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(AddressError, match="'tcp://a:1': not an address of NATS; write nats://"):
        loaded(tmp_path, "forward: tcp://a:1")
    with pytest.raises(
        AddressError, match="has a user in it; leave that out, and give NATS_CREDS"
    ) as error:
        loaded(tmp_path, "", forward="nats://me:secret@a")
    assert "secret" not in str(error.value)
    with pytest.raises(ConfigError, match="'forward' needs the bus's journal"):
        loaded(tmp_path, "{forward: nats://a, journal: false}")
    with pytest.raises(ConfigError, match="two consumers are called 'forward'"):
        loaded(tmp_path, "{forward: nats://a, consumers: ['forward:to=nats://b']}")
