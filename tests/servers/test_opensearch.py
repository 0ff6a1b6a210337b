"""The OpenSearch that tests use, and what a proxy before it does."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.servers.faults import FaultProxy
from tests.support.servers.opensearch import OpenSearch
from tests.support.servers.process import request

BULK = b'{"create":{"_index":"i","_id":"1"}}\n{"n":1}\n'
NDJSON = {"Content-Type": "application/x-ndjson"}


def test_a_repetition_is_told_item_by_item(opensearch: OpenSearch) -> None:
    for status in (201, 409):
        _, answer = request("POST", f"{opensearch.url}/_bulk", BULK, NDJSON)
        assert answer["items"][0]["create"]["status"] == status
    assert opensearch.count("i") == 1
    assert opensearch.documents("i")[0]["_source"] == {"n": 1}


def test_a_kill_empties_it_and_a_proxy_does_not(
    opensearch: OpenSearch, fault_proxy: Callable[..., FaultProxy]
) -> None:
    proxy = fault_proxy(opensearch.url)
    assert request("POST", f"{proxy.url}/_bulk", BULK, NDJSON)[0] == 200
    proxy.reset()
    assert request("GET", f"{proxy.url}/i/_count")[1]["count"] == 1
    opensearch.kill()
    opensearch.start()
    assert opensearch.count("i") == 0
