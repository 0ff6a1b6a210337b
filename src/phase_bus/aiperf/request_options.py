"""What of AIPerf's configuration shapes the requests, so that runs can be told to be alike or not.

By name, flat: ``endpoint.streaming``, ``dataset.prompts.osl.mean``, ``phase.profiling.type``. No secrets:
the endpoint's options are named here one by one, and of free ones those are left out that a secret is
likely in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_OF_ENDPOINT = (
    "type",
    "streaming",
    "transport",
    "connection_reuse",
    "use_legacy_max_tokens",
    "use_server_token_count",
    "per_chunk_usage",
    "request_content_type",
)
# How the requests are spread over time; what bounds a phase is in its plan.
_OF_PHASE = ("type", "smoothness", "users", "prefill_concurrency", "concurrency_ramp", "rate_ramp")
_NOT_OF_DATASET = {"name", "random_seed", "records"}  # other prompts of the same kind are no other load
_SECRET = re.compile("key|secret|token$|password|passwd|auth|credential|cookie|bearer", re.IGNORECASE)
_LONGEST_TEXT = 200
_MOST = 200  # options


def request_options(cfg: Any) -> dict[str, Any]:
    """Return them of a run's configuration (``run.cfg``); what is not set is left out."""
    endpoint = cfg.endpoint
    known: dict[str, Any] = {name: getattr(endpoint, name, None) for name in _OF_ENDPOINT}
    known["extra"] = getattr(endpoint, "extra", None)
    found: dict[str, Any] = {"endpoint": known}
    datasets = list(getattr(cfg, "datasets", None) or ())
    for number, dataset in enumerate(datasets):
        found["dataset" if len(datasets) == 1 else f"dataset.{number}"] = _of_dataset(dataset)
    found["tokenizer"] = getattr(getattr(cfg, "tokenizer", None), "name", None)
    for phase in cfg.phases:
        found[f"phase.{phase.name}"] = {name: getattr(phase, name, None) for name in _OF_PHASE}
    options = {}
    for name, value in _flat("", found):
        options[name] = value
        if len(options) == _MOST:
            break
    return options


def _of_dataset(dataset: Any) -> dict[str, Any]:
    said = _plain(dataset)
    if not isinstance(said, Mapping):
        return {}
    return {name: value for name, value in said.items() if name not in _NOT_OF_DATASET}


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what is inside by its full name, without what may be a secret, or is long."""
    value = _plain(value)
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(f"{prefix}.{name}" if prefix else str(name), inner)
    elif isinstance(value, bool | int | float):
        yield prefix, value
    elif isinstance(value, str):
        if not _SECRET.search(prefix.rpartition(".")[2]) and len(value) <= _LONGEST_TEXT:
            yield prefix, value
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _flat(f"{prefix}.{number}", inner)


def _plain(value: Any) -> Any:
    """Return an object of AIPerf's configuration as what JSON has, without defaults; others as they are."""
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return {**dump(mode="json", exclude_none=True, exclude_defaults=True), **_type_of(value)}
    return getattr(value, "value", value)  # an enum's


def _type_of(value: Any) -> dict[str, Any]:
    kind = getattr(value, "type", None)
    return {} if kind is None else {"type": getattr(kind, "value", kind)}
