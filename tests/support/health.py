"""What a process says of its health over HTTP."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from phase_bus.testing.waiting import wait_until

_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


class Answer(NamedTuple):
    """An answer over HTTP."""

    status: int
    text: str
    headers: Message


def ask(url: str, method: str = "GET", timeout_s: float = 5.0) -> Answer:
    """Return what a server answers."""
    request = urllib.request.Request(url, method=method)  # noqa: S310 - one of ours
    try:
        with _open(request, timeout=timeout_s) as reply:
            return Answer(reply.status, reply.read().decode(), reply.headers)
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read().decode(), error.headers)


def verdict(url: str) -> tuple[int, str]:
    """Return the code and the text of an answer."""
    answer = ask(url)
    return answer.status, answer.text


def values(url: str) -> dict[str, float]:
    """Return the metrics at a URL by name, with the values of their labels in brackets if there are any."""
    found = {}
    for family in text_string_to_metric_families(ask(f"{url}/metrics").text):
        assert family.documentation
        for sample in family.samples:
            labels = ", ".join(sample.labels[name] for name in sorted(sample.labels))
            name = f"{sample.name}[{labels}]" if labels else sample.name
            assert name not in found
            found[name] = sample.value
    return found


def health_urls(said: str) -> list[str]:
    """Return where processes say that they tell their health."""
    return re.findall(r"health at (http://\S+:\d+)$", said, re.MULTILINE)


def health_url(log: Path) -> str:
    """Wait until a process says in its log where it tells its health, and return that."""
    return wait_until(lambda: health_urls(log.read_text()))[-1]
