"""Alerts of real processes: over a crash, and from dead letters; no secret is to be seen."""

from __future__ import annotations

import os
import signal
import sys

import psutil
import pytest

from phase_bus.journal.reader import JournalReader
from tests.support.servers.webhook import Webhook
from tests.support.workplace import Workplace, wait_for

KEY = "0123456789abcdef0123456789abcdef"
PLACE = "s3cret-place"

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def secrets(webhook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGERDUTY_KEY", KEY)
    monkeypatch.setenv("NOTIFY_URL", f"json://127.0.0.1:{webhook.port}/{PLACE}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def actions(webhook: Webhook) -> list[str]:
    """Return what PagerDuty was sent about slow phases, in order."""
    events = [each.json for each in webhook.received if each.path == "/pagerduty"]
    return [each["event_action"] for each in events if each["dedup_key"] == "r/profiling/slow_phase"]


def titles(webhook: Webhook) -> list[str]:
    """Return the messages that Apprise sent, in order."""
    return [each.json["title"] for each in webhook.received if each.path == f"/{PLACE}"]


def check_that_nothing_shows(workplace: Workplace) -> None:
    """Look for secrets in all that is written: journals, logs, dead letters."""
    for path in workplace.directory.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert KEY.encode() not in content, path
            assert PLACE.encode() not in content, path


def test_an_incident_is_resolved_by_the_next_process(workplace: Workplace, webhook: Webhook) -> None:
    """Killed after it told: the next one repeats nothing, and says that it is over."""
    address = f"ipc://{workplace.directory}/b"
    options = (
        "threshold_s=1", "group_s=0", "notify=env:NOTIFY_URL", "pagerduty=env:PAGERDUTY_KEY",
        f"pagerduty_url={webhook.url}/pagerduty",
    )  # fmt: skip
    settings = [part for option in options for part in ("--set", option)]
    consume = ("consume", "alerting", "--address", address, *settings)
    bus = workplace.phase_bus("bus", "--address", address, "--data", "journal")
    first = workplace.phase_bus(*consume)
    run = workplace.phase_bus("simulate", "-n", "400", "-r", "60", "--run-id", "r", "--address", address)
    wait_for(lambda: actions(webhook) and titles(webhook), "the incident and the message")
    assert PLACE not in " ".join(psutil.Process(first.pid).cmdline())

    def is_kept() -> bool:
        with JournalReader(workplace.directory / "journal") as reader:
            kept = reader.checkpoint("alerting")
        return kept is not None and b"slow_phase" in (kept.state or b"")

    wait_for(is_kept, "the checkpoint")
    os.kill(first.pid, signal.SIGKILL)
    assert workplace.finish(first).returncode == -signal.SIGKILL
    second = workplace.phase_bus(*consume)
    assert workplace.finish(run).returncode == 0
    wait_for(lambda: len(actions(webhook)) > 1 and len(titles(webhook)) > 1, "its end")
    for process in (second, bus):
        os.kill(process.pid, signal.SIGTERM)
        assert workplace.finish(process).returncode == 0
    assert actions(webhook) == ["trigger", "resolve"]
    assert titles(webhook) == ["[FIRING] run r: slow phase", "[RESOLVED] run r: slow phase"]
    check_that_nothing_shows(workplace)


def test_what_was_given_up_is_told_by_a_retry(workplace: Workplace, webhook: Webhook) -> None:
    """Nobody is there: dead letters. Without the options a retry is none; with them it tells both."""
    webhook.kill()
    use = (
        "alerting:threshold_s=0.1,retry_s=0,group_s=0,notify=env:NOTIFY_URL,pagerduty=env:PAGERDUTY_KEY,"
        f"pagerduty_url={webhook.url}/pagerduty"
    )
    simulate = (sys.executable, "-m", "phase_bus", "simulate", "--warmup", "0", "-n", "40", "-r", "50")
    done = workplace.run("exec", "--with", use, "--", *simulate, "--run-id", "r")
    assert done.returncode == 3, done.stderr
    assert "it is a dead letter now" in done.stderr
    webhook.start()
    retry = ("dead-letters", "retry", "--all")
    done = workplace.run(*retry, "--with", "alerting")
    assert "give the options that it was started with" in done.stderr
    assert not webhook.received
    done = workplace.run(*retry, "--with", use)
    assert "0 failed again" in done.stdout + done.stderr
    assert actions(webhook) == ["trigger", "resolve"]
    assert titles(webhook) == ["[FIRING] run r: slow phase", "[RESOLVED] run r: slow phase"]
    check_that_nothing_shows(workplace)
