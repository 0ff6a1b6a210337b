"""The Prometheus that tests use."""

from __future__ import annotations

import struct
import subprocess
import time

import cramjam
import pytest

from phase_bus.testing.waiting import wait_until
from tests.support.servers.process import request
from tests.support.servers.prometheus import Prometheus


def write(server: Prometheus, name: str, value: float, at_s: float) -> int:
    """Send one sample, as short as the protocol allows; return the status."""

    def field(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data)]) + data

    def varint(number: int) -> bytes:
        low, rest = number & 0x7F, number >> 7
        return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])

    label = field(1, field(1, b"__name__") + field(2, name.encode()))
    sample = field(2, b"\x09" + struct.pack("<d", value) + b"\x10" + varint(round(at_s * 1000)))
    body = bytes(cramjam.snappy.compress_raw(field(1, label + sample)))
    headers = {
        "Content-Encoding": "snappy",
        "Content-Type": "application/x-protobuf",
        "X-Prometheus-Remote-Write-Version": "0.1.0",
    }
    return request("POST", server.write_url, body, headers)[0]


def test_what_was_written_survives_a_kill(prometheus: Prometheus) -> None:
    now_s = time.time()
    assert write(prometheus, "written", 42.0, now_s) == 204
    prometheus.kill()
    assert not prometheus.runs
    prometheus.start()
    assert prometheus.value("written", now_s) == 42.0
    assert prometheus.series("written") == [{"__name__": "written"}]
    (found,) = prometheus.query_range("written", now_s, now_s + 1)
    assert [value for _, value in found["values"]] == ["42", "42"]
    ((at_s, value),) = prometheus.samples("written", at_s=now_s + 1)[0]["values"]
    assert (round(at_s, 3), value) == (round(now_s, 3), "42")


@pytest.mark.slow
def test_it_scrapes(prometheus: Prometheus) -> None:
    prometheus.scrape(f"127.0.0.1:{prometheus.port}")
    wait_until(lambda: prometheus.query("prometheus_build_info{job='test'}"))
    assert prometheus.value("up") == 1.0


def test_promtool_judges_metrics(promtool: str) -> None:
    bad = b"# HELP requests Requests.\n# TYPE requests counter\nrequests 1\n"
    done = subprocess.run([promtool, "check", "metrics"], input=bad, capture_output=True)
    assert done.returncode != 0
    assert b"_total" in done.stdout + done.stderr
