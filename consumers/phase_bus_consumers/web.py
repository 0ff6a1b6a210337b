"""What the web servers of consumers have in common."""

from __future__ import annotations

import errno
import logging

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from phase_bus import ConfigError


class _OwnFaults(logging.Filter):
    """Leaves out what somebody has sent that is no request: a scanner would fill the terminal with that."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, HttpProcessingError)


_LOG = logging.getLogger(__name__)
_LOG.addFilter(_OwnFaults())


async def listen(
    app: web.Application, who: str, host: str, port: int, shutdown_s: float
) -> tuple[web.AppRunner, str, int]:
    """Serve an application; return what runs it, and the address and port where it can be reached.

    Args:
        who: whose it is, for an error.
        port: 0 for any that is free.
        shutdown_s: how long an answer that is under way is waited for at the end, in seconds.

    Raises:
        ConfigError: if it cannot listen there.
    """
    runner = web.AppRunner(app, access_log=None, logger=_LOG, shutdown_timeout=shutdown_s)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        reason = "it is taken" if error.errno == errno.EADDRINUSE else error.strerror or error
        raise ConfigError(
            f"{who}: cannot listen at {host}:{port}: {reason}; give another port=..., or port=0 for any"
        ) from error
    host, port = runner.addresses[0][:2]
    return runner, host, port


def url_of(host: str, port: int) -> str:
    """Return the address of what is served, without a path."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
