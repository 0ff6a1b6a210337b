"""The server of MongoDB's protocol that tests use."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pymongo import MongoClient
from pymongo.errors import AutoReconnect, OperationFailure

from tests.support.servers.mongodb import MongoDB
from tests.support.servers.tcp_faults import TcpProxy

Documents = MongoClient[dict[str, int]]


def test_documents_survive_a_kill(mongodb: MongoDB) -> None:
    database = mongodb.new_database()
    with mongodb.client() as client:
        client[database].c.insert_many([{"_id": number} for number in range(1000)])
    mongodb.kill()
    mongodb.start()
    assert mongodb.count(database, "c") == 1000
    assert mongodb.documents(database, "c")[-1] == {"_id": 999}


def test_an_answer_is_lost_after_the_insert(mongodb: MongoDB, tcp_proxy: Callable[[int], TcpProxy]) -> None:
    database, proxy = mongodb.new_database(), tcp_proxy(mongodb.port)
    url = proxy.through(mongodb.url)
    client: Documents = MongoClient(url, retryWrites=False, directConnection=True)
    with client:
        client[database].c.insert_one({"_id": 1})
        proxy.lose_answers(1, when=b"insert")
        with pytest.raises(AutoReconnect):
            client[database].c.insert_one({"_id": 2})
        client[database].c.insert_one({"_id": 3})
    assert proxy.counts["lost"] == 1
    assert mongodb.count(database, "c") == 3


def test_a_wrong_password_is_refused(mongodb_auth: MongoDB) -> None:
    assert mongodb_auth.count("nothing", "c") == 0
    client: Documents = MongoClient(mongodb_auth.url_with("wrong"))
    with client, pytest.raises(OperationFailure, match=r"[Aa]uth"):
        client.test.c.insert_one({"_id": 1})
