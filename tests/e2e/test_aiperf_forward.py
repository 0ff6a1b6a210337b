"""Real AIPerf while its bus forwards into a stream: it feels nothing of it, and the stream has all."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.e2e.agreement import assert_same_numbers, phase_of
from tests.support.servers.nats import NatsServer
from tests.support.workplace import Workplace

pytestmark = [pytest.mark.aiperf, pytest.mark.slow, pytest.mark.timeout(300)]


def test_a_run_is_in_the_stream(
    workplace: Workplace, mock_llm: Callable[..., str], aiperf: Callable[..., list[str]], nats: NatsServer
) -> None:
    """AIPerf's numbers, by the bus's aggregator and by the stream alone, when all else has ended."""
    command = aiperf(mock_llm("--tokens", "32"), "--benchmark-duration", "3")
    aggregator = ("--with", "aggregator:output=summary.json")
    done = workplace.run("exec", "--forward", nats.url, *aggregator, "--", *command)
    assert done.returncode == 0, done.stderr
    export = workplace.json("aiperf-out/profile_export_aiperf.json")
    (run,) = workplace.json("summary.json")["runs"].values()
    assert_same_numbers(phase_of(run), export)

    reported = workplace.run("report", "latest", "--address", nats.url, "--json")
    assert reported.returncode == 0, reported.stderr
    here = workplace.run("report", "latest", "--json")
    assert reported.stdout == here.stdout
    assert_same_numbers(phase_of(json.loads(reported.stdout)), export)
