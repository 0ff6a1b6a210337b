"""A mail server that delivers nothing."""

from __future__ import annotations

import asyncio
import email
import email.policy
from email.message import EmailMessage
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from tests.support.servers.app import Threaded
from tests.support.servers.process import HOST

USER, PASSWORD = "tester", "s3cret-of-the-tests"


class MailServer(Threaded):
    """An SMTP server that keeps what it is given, over ``kill()``.

    Args:
        auth: whether clients must log in, as USER with PASSWORD.

    Attributes:
        messages: all accepted mails, in order.
        recipients: those of each.
        refuse: an answer such as "451 try later" that all mails get instead.
    """

    def __init__(self, auth: bool = False) -> None:
        super().__init__()
        self._auth = auth
        self._connections: list[SMTP] = []
        self.messages: list[EmailMessage] = []
        self.recipients: list[list[str]] = []
        self.refuse = ""

    @property
    def url(self) -> str:
        """Where it is."""
        return f"smtp://{HOST}:{self.port}"

    async def handle_MAIL(  # noqa: N802 - aiosmtpd's
        self, _server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self._auth and not session.authenticated:
            return "530 5.7.0 Authentication required"
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 OK"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's
        if self.refuse:
            return self.refuse
        content = envelope.content
        assert isinstance(content, bytes)
        self.messages.append(email.message_from_bytes(content, policy=email.policy.default))
        self.recipients.append([str(each) for each in envelope.rcpt_tos])
        return "250 OK"

    async def open(self) -> None:
        self._server = await asyncio.get_running_loop().create_server(self._connection, HOST, self.port)

    async def close(self) -> None:
        self._server.close()
        for connection in self._connections:
            if isinstance(connection.transport, asyncio.WriteTransport):
                connection.transport.abort()
        self._connections.clear()

    def _connection(self) -> SMTP:
        loop = asyncio.get_running_loop()
        options: dict[str, Any] = {}
        if self._auth:
            options = {
                "authenticator": _authenticate,
                "auth_require_tls": False,
                "auth_exclude_mechanism": ["LOGIN"],
            }
        connection = SMTP(self, hostname="localhost", loop=loop, **options)
        self._connections.append(connection)
        return connection


def _authenticate(*arguments: Any) -> AuthResult:
    given = arguments[-1]
    assert isinstance(given, LoginPassword)
    return AuthResult(
        success=(given.login, given.password) == (USER.encode(), PASSWORD.encode()), handled=False
    )
