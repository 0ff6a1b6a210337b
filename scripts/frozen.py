"""Which fields every message has, written down at a release, so that no later version breaks a reader.

``schemas/frozen.json`` holds what :func:`fields` returned at the last release; :func:`problems` says what
of it does not hold any more. Another wire version makes it void: its readers refuse each other anyway.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import msgspec

from phase_bus.core.control import Reply, Request
from phase_bus.core.wire import HEADER, TOPIC_END, WIRE_VERSION
from phase_bus.events import Event

Fields = dict[str, dict[str, Any]]


def fields() -> dict[str, Any]:
    """Return the fields of all messages as they are now."""
    messages: dict[str, dict[str, Any]] = {}
    for union in (Event, Request, Reply):
        for kind in get_args(union):
            _describe(kind, messages)
    return {
        "wire_version": WIRE_VERSION,
        "header": HEADER.format,
        "topic_end": TOPIC_END,
        "messages": dict(sorted(messages.items())),
    }


def problems(frozen: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return what readers or writers of the frozen fields would trip over, in words."""
    if frozen["wire_version"] != now["wire_version"]:
        return []
    found = []
    if now["header"] != frozen["header"]:
        found.append("the header's layout: its length tells bundles; it needs a new wire version")
    if now["topic_end"] != frozen["topic_end"]:
        found.append("the topic's end: subscriptions of earlier readers no longer match; keep it")
    for name, message in frozen["messages"].items():
        if name not in now["messages"]:
            found.append(
                f"{name} is gone: earlier readers wait for it, and earlier journals hold it; keep it"
            )
        else:
            found += _compare(name, message, now["messages"][name])
    return found


def _compare(name: str, frozen: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    if (frozen["tag"], frozen["form"]) != (now["tag"], now["form"]):
        yield f"{name}: its tag, or whether it is a map or an array, may not change; add another message"
    old: Fields = frozen["fields"]
    new: Fields = now["fields"]
    for field, was in old.items():
        where = f"{name}.{field}"
        if field not in new:
            yield f"{where} is gone: earlier readers rely on it; keep it, and fill it in"
            continue
        is_now = new[field]
        if is_now["type"] != was["type"]:
            yield (
                f"{where} was of type {was['type']} and is of type {is_now['type']}: earlier readers "
                "refuse it, or misread it; keep it, and add a field of another name"
            )
        if is_now.get("default") != was.get("default"):
            yield (
                f"{where} had {_default(was)} and has {_default(is_now)}: a message that lacks it would be "
                "refused, or mean something else; keep it"
            )
    for field, is_now in new.items():
        if field not in old and "default" not in is_now:
            yield f"{name}.{field} is new and has no default: earlier writers do not send it; give it one"
    if now["form"] == "array" and list(new)[: len(old)] != list(old):
        yield f"{name} is an array: its elements have their meaning by place; add new ones at the end only"


def _default(field: dict[str, Any]) -> str:
    return f"the default {field['default']}" if "default" in field else "no default"


def _describe(kind: Any, messages: dict[str, dict[str, Any]]) -> None:
    """Put the fields of a type, and of those inside it, among the messages."""
    if kind.__name__ in messages:
        return
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    hints = get_type_hints(kind)
    messages[kind.__name__] = {
        "tag": None if info.tag is None else f"{info.tag_field}={info.tag}",
        "form": "array" if info.array_like else "map",
        "fields": {field.encode_name: _field(field, hints[field.name]) for field in info.fields},
    }
    for hint in hints.values():
        for part in _structs(hint):
            _describe(part, messages)


def _field(field: msgspec.inspect.Field, hint: Any) -> dict[str, Any]:
    text = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
    described: dict[str, Any] = {"type": re.sub(r"\b(?:\w+\.)+(?=\w)", "", text)}
    if not field.required:
        described["default"] = _default_of(field)
    return described


def _default_of(field: msgspec.inspect.Field) -> str:
    if field.default_factory in (dict, list):
        return repr(field.default_factory())
    if field.default_factory is not msgspec.NODEFAULT:
        return f"{field.default_factory.__name__}()"
    default = field.default
    return repr(default.tobytes()) if isinstance(default, memoryview) else repr(default)


def _structs(hint: Any) -> Iterator[type[msgspec.Struct]]:
    if isinstance(hint, type) and not get_args(hint):
        if issubclass(hint, msgspec.Struct):
            yield hint
        return
    for part in get_args(hint):
        yield from _structs(part)
