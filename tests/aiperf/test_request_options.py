"""What of AIPerf's configuration goes into the start of a run: what shapes the requests, and no secret."""

from __future__ import annotations

from enum import Enum
from types import SimpleNamespace
from typing import Any

from phase_bus.aiperf.request_options import request_options


class Kind(Enum):
    """As AIPerf's enumerations of strings."""

    CHAT = "chat"


class Model(SimpleNamespace):
    """As AIPerf's models, in what is used of them."""

    def model_dump(self, **_how: Any) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if v is not None and k != "type"}


def config(**endpoint: Any) -> SimpleNamespace:
    """Return a configuration."""
    return SimpleNamespace(
        endpoint=SimpleNamespace(urls=["http://x"], api_key="SECRET", headers={"a": "SECRET"}, **endpoint),
        datasets=[Model(type="synthetic", random_seed=7, prompts={"osl": {"mean": 16}}, records=["long"])],
        tokenizer=SimpleNamespace(name="tok"),
        phases=[
            SimpleNamespace(name="p", type="poisson", rate=2.5),
            SimpleNamespace(name="q", smoothness=2),
        ],
    )


def test_by_full_name_and_what_is_set() -> None:
    assert request_options(config(type=Kind.CHAT, streaming=False, transport=None)) == {
        "endpoint.type": "chat",
        "endpoint.streaming": False,
        "dataset.type": "synthetic",
        "dataset.prompts.osl.mean": 16,
        "tokenizer": "tok",
        "phase.p.type": "poisson",
        "phase.q.smoothness": 2,
    }


def test_no_secrets_among_what_is_free() -> None:
    extra = {
        "max_tokens": 5,
        "reasoning_effort": "low",
        "stop": ["a", "b"],
        "user_token": "SECRET",
        "nested": {"apiKey": "SECRET", "enable_thinking": True},
        "prompt": "x" * 500,
    }
    told = request_options(config(type="chat", extra=extra))
    assert {name: value for name, value in told.items() if name.startswith("endpoint.extra")} == {
        "endpoint.extra.max_tokens": 5,
        "endpoint.extra.reasoning_effort": "low",
        "endpoint.extra.stop.0": "a",
        "endpoint.extra.stop.1": "b",
        "endpoint.extra.nested.enable_thinking": True,
    }
    assert "SECRET" not in str(told)


def test_as_much_as_fits() -> None:
    told = request_options(config(extra={str(number): number for number in range(10_000)}))
    assert len(told) == 200
