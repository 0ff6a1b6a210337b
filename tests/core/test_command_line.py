"""A command line that may be shown to others."""

from __future__ import annotations

import sys
import time

import pytest

from phase_bus.core.command_line import command_line, text_without_secrets, this_process, without_secrets

S = "TOPSECRETVALUE1"
SECRET = [
    ["--api-key", S],
    [f"--api-key={S}"],
    ["--apikey", S],
    [f"--API_KEY={S}"],
    ["--openaiApiKey", S],
    ["--api-key", f"-{S}"],  # a key may begin with a dash
    ["--api-key-value", S],
    ["--key", S],
    ["--token", S],
    [f"--hf-token={S}"],
    [f"--accessToken={S}"],
    ["--password", S],
    [f"--passwd={S}"],
    ["--db-pass", S],
    ["--jwt", S],
    ["--private-key", S],
    [f"--cookie=a={S}; b={S}"],
    [f"--bearer={S}"],
    ["-H", f"Authorization: Bearer {S}"],
    ["--header", f"X-Whatever:{S}"],
    [f"--header=Authorization:Basic {S}"],
    [f"-HX-Key:{S}"],
    ["--header", f"A:1{S}", f"B:2{S}"],
    ["--header", "Authorization", S],
    ["--headers", f'{{"X-A": "{S}", "b": "{S}"}}'],
    ["--url", f"http://user:{S}@host:80/x"],
    ["--url", f"http://u:p@{S}@h/"],
    ["--url", f"https://{S}@host/v1"],
    ["--proxy", f"u:{S}@host:80"],
    ["--dsn", f"postgresql://u:{S}@h/d"],
    ["--dsn", f"host=h password={S} user=u"],
    ["--dsn", f"Server=h;Pwd={S};Uid=u"],
    [f"http://h/x?api_key={S}&b=1"],
    [f"http://h/x?sig={S}"],
    [f"http://h/x?a=1&access_token={S}#x"],
    ["--notify", f"slack://{S}/B/C"],
    ["--webhook", f"https://hooks.slack.com/services/T/{S}"],
    [f"OPENAI_API_KEY={S}"],
    ["env", f"HF_TOKEN={S}", "x"],
    [f"AWS_SECRET_ACCESS_KEY={S}"],
    ["-e", f"DB_PASSWORD={S}"],
    ["--extra-inputs", f"api_key:{S}"],
    ["--extra-inputs", f"auth.token:{S}", "max_tokens:10"],
    ["--extra-inputs", f'{{"api_key": "{S}"}}'],
    ["--json", f"{{'password':'{S}'}}"],
    ["--json", f'{{\\"token\\":\\"{S}\\"}}'],
    ["--with", f"alerting:webhook_secret={S},x=1"],
    ["--set", f"headers.Authorization={S}"],
    ["-u", f"me:{S}"],
    [f"--user=me:{S}"],
    ["-c", f"aiperf profile --api-key {S} -H 'Authorization: Bearer {S}' --url http://a:{S}@b"],
    ["-c", f'curl -H "X-K: {S} more{S}" x'],
    ["-c", f"export TOKEN='{S}'; x"],
    ["--anything", f"sk-{S}"],
    ["--anything", f"Bearer {S}"],
]
HARMLESS = (
    "profile -m my-model --url http://localhost:8000 -u localhost:8000/v1 --endpoint-type chat --streaming "
    "--concurrency 8 --request-rate 2.5 --tokenizer builtin --output-tokens-mean 128 -n 200 --key-file x "
    "--use-server-token-count --extra-inputs max_tokens:5 ignore_eos:true --random-seed 3 --rate -1 "
    "--ttft-ms=30 --variation concurrency=8 --address ipc:///tmp/x http://h:80/x?a=1 tcp://h:5 "
    "--forward nats://h:4222,i/team --goodput time_to_first_token:100 inter_token_latency:10 "
    "--threshold time_to_first_token<500"
)


@pytest.mark.parametrize("arguments", SECRET, ids=" ".join)
def test_a_secret_is_left_out(arguments: list[str]) -> None:
    assert S not in " ".join(without_secrets(arguments, {}))


def test_what_is_none_stays() -> None:
    """Metrics have tokens in their names, too."""
    assert without_secrets(HARMLESS.split(), {}) == HARMLESS.split()


def test_values_of_the_environment_are_known() -> None:
    """As $MY_TOKEN has become its value before the command sees it."""
    environ = {"MY_TOKEN": S, "HOME": "/home/me"}
    assert without_secrets(["--odd", f"x{S}y", "/home/me"], environ) == ["--odd", "x***y", "/home/me"]


def test_the_rest_can_be_read() -> None:
    line = command_line(
        ["/x/bin/aiperf", "profile", "--api-key", S, "--model", "my model", "--url", f"http://{S}@h"]
    )
    assert line == "aiperf profile --api-key *** --model 'my model' --url http://***@h"
    assert command_line(["/x/tool/__main__.py", "a"]) == "python -m tool a"


def test_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with a name that is no text, and without arguments at all."""
    monkeypatch.setattr(sys, "argv", ["x", "\udcff"])
    told = this_process()
    assert told["command"].startswith("x ")
    told["command"].encode()
    assert told["host"]
    monkeypatch.delattr(sys, "argv")
    assert this_process()["command"] == ""


@pytest.mark.parametrize(
    "part", ["a", "a-", ":", "x=:", "://", "a:b@", "a.", "--a ", "-H'a:", "'\\", " ", "key="]
)
def test_no_command_line_takes_long(part: str) -> None:
    """It is made before the benchmark begins."""
    began_s = time.monotonic()
    assert len(command_line(["x"] + [part * 20_000] * 1000)) < 200_000
    assert time.monotonic() - began_s < 5.0


def test_texts() -> None:
    assert text_without_secrets("http://user:pw@h:1/v1") == "http://***@h:1/v1"
    assert text_without_secrets("http://h:1/v1") == "http://h:1/v1"
