"""The HTTP proxy that makes faults, the server that writes down, and the mail server."""

from __future__ import annotations

import smtplib
import time
from collections.abc import Callable

import pytest

from tests.support.servers.faults import CUT, LOSE_ANSWER, PASS, FaultProxy, answer, delay
from tests.support.servers.hec import Hec
from tests.support.servers.mail import PASSWORD, USER, MailServer
from tests.support.servers.otlp import OtlpReceiver
from tests.support.servers.process import request
from tests.support.servers.tcp_faults import TcpProxy
from tests.support.servers.webhook import Webhook


@pytest.fixture
def proxy(webhook: Webhook, fault_proxy: Callable[..., FaultProxy]) -> FaultProxy:
    return fault_proxy(webhook.url)


def post(server: FaultProxy, path: str = "/a?b=c%2Fd") -> int:
    return request("POST", server.url + path, b"\x1f\x8b", {"Content-Encoding": "gzip"})[0]


def test_a_request_passes_as_it_is(webhook: Webhook, proxy: FaultProxy) -> None:
    webhook.status, webhook.body = 201, '{"x": 1}'
    headers = {"Content-Encoding": "snappy", "X-Key": "k"}
    assert request("PUT", f"{proxy.url}/a?b=c%2Fd", b"body", headers) == (201, {"x": 1})
    (got,) = webhook.received
    assert (got.method, got.path, got.query, got.body) == ("PUT", "/a", {"b": "c/d"}, b"body")
    assert (got.headers["content-encoding"], got.headers["x-key"]) == ("snappy", "k")


def test_an_answer_is_lost_after_the_request_was_applied(webhook: Webhook, proxy: FaultProxy) -> None:
    proxy.next(LOSE_ANSWER, times=2)
    for _ in range(2):
        with pytest.raises(OSError, match=r"reset|closed"):
            request("POST", proxy.url)
    assert request("POST", proxy.url)[0] == 200
    assert len(webhook.received) == 3
    assert proxy.counts == {"lost": 2, "passed": 1}
    assert proxy.statuses == {200: 3}


def test_a_request_is_cut_or_answered_before_the_server(webhook: Webhook, proxy: FaultProxy) -> None:
    proxy.script = [CUT, answer(429, "slow down", Retry_After="2"), answer(503)]
    with pytest.raises(OSError, match=r"reset|closed"):
        request("POST", proxy.url)
    assert request("POST", proxy.url) == (429, "slow down")
    assert request("POST", proxy.url)[0] == 503
    assert not webhook.received
    assert proxy.counts == {"cut": 1, "429": 1, "503": 1}


def test_a_request_waits(proxy: FaultProxy) -> None:
    proxy.always = delay(0.1)
    began_s = time.monotonic()
    assert request("POST", proxy.url)[0] == 200
    assert time.monotonic() - began_s >= 0.1
    proxy.always = PASS
    assert request("POST", proxy.url)[0] == 200
    assert proxy.counts == {"delayed": 1, "passed": 1}


def test_connections_are_refused_until_it_is_back(proxy: FaultProxy) -> None:
    proxy.kill()
    with pytest.raises(OSError, match="refused"):
        request("POST", proxy.url)
    proxy.start()
    assert request("POST", proxy.url)[0] == 200


def test_some_paths_only_and_who_may(webhook: Webhook, fault_proxy: Callable[..., FaultProxy]) -> None:
    proxy = fault_proxy(webhook.url, only="/_bulk", authorization="ApiKey k")
    proxy.always = answer(400)
    key = {"Authorization": "ApiKey k"}
    assert request("POST", f"{proxy.url}/_bulk", b"", key)[0] == 400
    assert request("POST", f"{proxy.url}/other", b"", key)[0] == 200
    assert request("POST", f"{proxy.url}/other")[0] == 401


def test_a_killed_server_is_there_again(webhook: Webhook, proxy: FaultProxy) -> None:
    webhook.kill()
    with pytest.raises(OSError, match=r"reset|closed"):
        request("POST", proxy.url)
    webhook.start()
    assert request("POST", proxy.url)[0] == 200
    assert proxy.counts == {"unreachable": 1, "passed": 1}


def test_mail_arrives_and_outlives_a_kill(mail_server: MailServer) -> None:
    message = "Subject: An alert\r\n\r\nIt fires.\r\n"
    with smtplib.SMTP("127.0.0.1", mail_server.port, timeout=20) as client:
        client.sendmail("a@example.com", ["b@example.com"], message)
    mail_server.kill()
    with pytest.raises(OSError, match="refused"):
        smtplib.SMTP("127.0.0.1", mail_server.port)
    mail_server.start()
    mail_server.refuse = "451 try later"
    client = smtplib.SMTP("127.0.0.1", mail_server.port, timeout=20)
    with client, pytest.raises(smtplib.SMTPDataError, match="later"):
        client.sendmail("a@example.com", ["b@example.com"], message)
    (got,) = mail_server.messages
    assert (got["Subject"], got.get_content().strip()) == ("An alert", "It fires.")
    assert mail_server.recipients == [["b@example.com"]]


def test_servers_and_proxies_leave_nothing_behind(no_leaks: None) -> None:
    with Webhook() as hook, FaultProxy(hook.url) as proxy, MailServer() as mail, Hec(), OtlpReceiver():
        assert request("POST", proxy.url)[0] == 200
        with TcpProxy(mail.port) as tcp:
            smtplib.SMTP("127.0.0.1", tcp.port, timeout=20).quit()


def test_a_mail_server_may_want_a_password() -> None:
    with MailServer(auth=True) as server:
        with smtplib.SMTP("127.0.0.1", server.port, timeout=20) as client:
            client.login(USER, PASSWORD)
        for name, word in ((USER, "wrong"), ("other", PASSWORD)):
            with smtplib.SMTP("127.0.0.1", server.port, timeout=20) as client:
                with pytest.raises(smtplib.SMTPAuthenticationError):
                    client.login(name, word)
                with pytest.raises(smtplib.SMTPSenderRefused):
                    client.sendmail("a@example.com", ["b@example.com"], "")
