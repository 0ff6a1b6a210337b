"""Passwords and tokens are named by where they are, and never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from phase_bus import ConfigError, Consumer, OptionError, RunStart, Secret
from phase_bus.consumer.options import build_consumer


class Keyed(Consumer):
    """Has a token."""

    def __init__(self, token: Secret | None = None) -> None:
        self.token = token

    async def on_run_start(self, event: RunStart) -> None: ...


def test_where_a_secret_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "token"
    path.write_text("s3cret\n")
    monkeypatch.setenv("TOKEN", "pa:ss")
    for text, value in ((f"file:{path}", "s3cret"), ("env:TOKEN", "pa:ss")):
        keyed = build_consumer(Keyed, "k", {"token": text})
        assert isinstance(keyed, Keyed)
        assert keyed.token is not None
        assert keyed.token.value() == value
        assert value not in f"{keyed.token} {keyed.token!r}"


def test_a_secret_in_clear_is_refused_and_not_repeated() -> None:
    for text in ("hunter2", "env:", "vault:hunter2"):
        with pytest.raises(
            OptionError, match="'token': a secret is not given in clear; write env:NAME"
        ) as told:
            build_consumer(Keyed, "k", {"token": text})
        assert "hunter2" not in str(told.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("env:NOWHERE", "not set"), ("file:nowhere", "No such file"), ("file:empty", "is empty")],
)
def test_a_secret_that_is_not_there(
    text: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").touch()
    with pytest.raises(ConfigError, match=reason):
        Secret(text).value()
