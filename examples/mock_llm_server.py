"""A small mock of an OpenAI server, for trying phase-bus and AIPerf without a model.

It answers ``/v1/chat/completions`` (streaming and plain), ``/v1/models`` and ``/health`` with
made-up words at a chosen pace, and can fail or hang on purpose:

    python examples/mock_llm_server.py --port 8000 --ttft-ms 15 --itl-ms 1.5 --fail-every 10

The first line it prints is its address, so ``--port 0`` (a free port) is easy to use from scripts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

# The tokenizer of make_tokenizer.py has a token for each of these, so that an answer of N words
# has N tokens, and AIPerf has nothing to remark upon.
TEXT = (
    "a bus carries phases and records to every process that asks while the benchmark runs on "
    "undisturbed measuring throughput and latency token by token and nothing is lost uncounted"
)
WORDS = TEXT.split()

#: Seconds that open connections get to end by themselves when the server is stopped.
SHUTDOWN_TIMEOUT_S = 0.5


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """How the server answers.

    Attributes:
        ttft_ms: Mean time to the first token, in milliseconds.
        itl_ms: Mean time between tokens, in milliseconds.
        tokens: Words in an answer, unless the request's own limit is lower.
        jitter: Sigma of the lognormal factor on every delay; 0 for a steady pace.
        seed: Makes delays and words repeatable, as far as the order of requests is.
        fail_every: Every Nth request is answered with HTTP 500; 0 for never.
        hang_after: Requests after the Nth are not answered until shutdown; None for never.
        hang_every: Every Nth request is not answered until shutdown; 0 for never.
        tokenizer: Directory of the tokenizer that usage is counted with; None counts words.
    """

    ttft_ms: float = 15.0
    itl_ms: float = 1.5
    tokens: int = 16
    jitter: float = 0.2
    seed: int | None = None
    fail_every: int = 0
    hang_after: int | None = None
    hang_every: int = 0
    tokenizer: Path | None = None


class MockServer:
    """The request handlers and what they share."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.requests = self.failed = self.hung = 0
        self._count = _token_counter(options.tokenizer)
        self._random = random.Random(options.seed)
        self._stopping = asyncio.Event()

    def app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/health", self.health)
        app.on_shutdown.append(self._release_hanging)
        return app

    async def _release_hanging(self, _app: web.Application) -> None:
        self._stopping.set()

    async def health(self, _request: web.Request) -> web.Response:
        """Say that the server is up, and how many chat requests came, failed and hung."""
        counts = {"requests": self.requests, "failed": self.failed, "hung": self.hung}
        return web.json_response({"status": "ok", **counts})

    async def models(self, _request: web.Request) -> web.Response:
        """List the one model; chat requests may name any other all the same."""
        model = {"id": "mock", "object": "model", "created": 0, "owned_by": "phase-bus"}
        return web.json_response({"object": "list", "data": [model]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Answer a chat completion, or fail or hang if it is this request's turn."""
        self.requests += 1
        number = self.requests
        if self._hangs(number):
            self.hung += 1
            await self._stopping.wait()
            return _error(503, "the server is shutting down")
        if self.options.fail_every and number % self.options.fail_every == 0:
            self.failed += 1
            # The same text each time, since AIPerf sums errors up by their text.
            return _error(500, "this request fails on purpose")
        try:
            body = json.loads(await request.read())
            answer = self._answer(number, body)
        except (ValueError, TypeError, AttributeError, KeyError) as exc:
            return _error(400, f"not a chat request: {exc!r}")
        if body.get("stream"):
            with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
            return await self._stream(request, answer, with_usage)
        async for _ in self._paced(answer.words):
            pass
        message = {"role": "assistant", "content": "".join(answer.words)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return web.json_response(answer.envelope("chat.completion", choices=[choice], usage=answer.usage))

    def _hangs(self, number: int) -> bool:
        after, every = self.options.hang_after, self.options.hang_every
        return (after is not None and number > after) or bool(every and number % every == 0)

    def _answer(self, number: int, body: dict[str, Any]) -> _Answer:
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        count = min(self.options.tokens, int(limit or self.options.tokens))
        words = [f" {self._random.choice(WORDS)}" for _ in range(count)]
        prompt = sum(self._count(str(message.get("content"))) for message in body["messages"])
        completion = self._count("".join(words))
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
        return _Answer(f"chatcmpl-{number}", str(body.get("model", "mock")), words, usage)

    async def _paced(self, words: list[str]) -> AsyncIterator[str]:
        """Yield the words, each at its time: late ones do not push back those that follow."""
        loop = asyncio.get_running_loop()
        delays_ms = itertools.chain([self.options.ttft_ms], itertools.repeat(self.options.itl_ms))
        due = loop.time()
        for word, delay_ms in zip(words, delays_ms, strict=False):
            due += self._jittered(delay_ms) / 1e3
            await asyncio.sleep(max(0.0, due - loop.time()))
            yield word

    def _jittered(self, mean: float) -> float:
        sigma = self.options.jitter
        # A lognormal's mean is exp(mu + sigma^2 / 2): this mu keeps the mean at what was asked for.
        return mean * self._random.lognormvariate(-sigma * sigma / 2, sigma) if sigma else mean

    async def _stream(self, request: web.Request, answer: _Answer, with_usage: bool) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        # A client that has gone away is no fault of the server.
        with contextlib.suppress(ConnectionResetError):
            await response.prepare(request)
            async for word in self._paced(answer.words):
                await response.write(_sse(answer.chunk({"content": word})))
            await response.write(_sse(answer.chunk({}, finish_reason="stop")))
            if with_usage:
                usage = answer.envelope("chat.completion.chunk", choices=[], usage=answer.usage)
                await response.write(_sse(usage))
            await response.write(b"data: [DONE]\n\n")
            await response.write_eof()
        return response


@dataclasses.dataclass(frozen=True, slots=True)
class _Answer:
    id: str
    model: str
    words: list[str]
    usage: dict[str, int]

    def envelope(self, kind: str, **fields: object) -> dict[str, object]:
        created = int(time.time())
        return {
            "id": self.id,
            "object": kind,
            "created": created,
            "model": self.model,
            **fields,
        }

    def chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, object]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return self.envelope("chat.completion.chunk", choices=[choice])


def _token_counter(tokenizer: Path | None) -> Callable[[str], int]:
    if tokenizer is None:
        return lambda text: len(text.split())
    from tokenizers import Tokenizer  # only needed here, and only AIPerf brings it

    try:
        encode = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).encode
    except Exception as exc:  # the library raises nothing more special than this
        raise OSError(f"no tokenizer in {tokenizer}: {exc}") from exc
    return lambda text: len(encode(text).ids)


def _sse(data: object) -> bytes:
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


def _error(status: int, message: str) -> web.Response:
    error = {"message": message, "type": "mock_error", "code": status}
    return web.json_response({"error": error}, status=status)


def create_app(options: Options | None = None) -> web.Application:
    """The server as an aiohttp application, for tests that run it in their own process."""
    return MockServer(options or Options()).app()


async def serve(
    options: Options,
    host: str = "127.0.0.1",
    port: int = 0,
    port_file: Path | None = None,
    exit_with_parent: bool = False,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        options: How to answer.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        port_file: Where to write the port once the server listens; appears whole or not at all.
        exit_with_parent: Also stop when the process that started this one is gone.

    Raises:
        OSError: The address cannot be listened on, or the port file cannot be written.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    # Without handler_cancellation, requests whose client gave up would hang on to the end.
    runner = web.AppRunner(
        create_app(options),
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=1024).start()
        bound: int = runner.addresses[0][1]
        print(f"listening on http://{f'[{host}]' if ':' in host else host}:{bound}", flush=True)
        if port_file is not None:
            _write_whole(port_file, f"{bound}\n")
        if exit_with_parent:
            await _parent_gone_or(stop)
        await stop.wait()
    finally:
        await runner.cleanup()


async def _parent_gone_or(stop: asyncio.Event) -> None:
    """Set ``stop`` when the parent is gone; return when it is set by whomever."""
    parent = os.getppid()
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), timeout=1.0)
        if os.getppid() != parent:
            stop.set()


def _write_whole(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text)
    aside.replace(path)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="A mock OpenAI server with a chosen pace, failures and hangs.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=int, default=0, help="port to listen on; 0 takes a free one and prints it")
    add("--port-file", type=Path, help="write the port to this file once listening")
    add("--exit-with-parent", action="store_true", help="stop when the starting process is gone")
    add("--ttft-ms", type=_not_negative, default=15.0, help="mean time to the first token")
    add("--itl-ms", type=_not_negative, default=1.5, help="mean time between tokens")
    add("--tokens", type=_count, default=16, help="words in an answer, at most")
    add("--jitter", type=_not_negative, default=0.2, help="sigma of the lognormal delay factor")
    add("--seed", type=int, help="make delays and words repeatable")
    add("--fail-every", type=_count, default=0, metavar="N", help="HTTP 500 for every Nth request")
    add("--hang-after", type=_count, metavar="N", help="never answer requests after the Nth")
    add("--hang-every", type=_count, default=0, metavar="N", help="never answer every Nth request")
    add("--tokenizer", type=Path, metavar="DIR", help="count usage with this; default: words")
    return parser.parse_args(argv)


def _not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {text}")
    return value


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    args = _parse(argv)
    names = [field.name for field in dataclasses.fields(Options)]
    options = Options(**{name: getattr(args, name) for name in names})
    try:
        asyncio.run(serve(options, args.host, args.port, args.port_file, args.exit_with_parent))
    except (OSError, OverflowError) as exc:  # OverflowError: no such port number
        print(f"mock_llm_server: cannot serve: {exc}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
