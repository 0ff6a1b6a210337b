"""Write ``schemas/``: JSON Schemas, the AsyncAPI document and the test vectors, from the types themselves.

``python -m scripts.make_schemas`` writes, ``--check`` says whether the files are as they should be.
``--freeze`` does what belongs to a release: it writes down which fields there are, and no later version
may take any of them away (``schemas/frozen.json``, :mod:`scripts.frozen`).
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from phase_bus.events import KINDS, EventBase
from scripts import asyncapi, frozen, vectors

SCHEMAS = Path(__file__).resolve().parent.parent / "schemas"
FROZEN = SCHEMAS / "frozen.json"


def schema_of(kind: type[EventBase]) -> dict[str, Any]:
    """Return the JSON Schema of one kind of event."""
    schema = msgspec.json.schema(kind)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def files() -> dict[Path, str]:
    """Return what each file of ``schemas/`` should hold, but for the frozen one."""
    documents = {f"{name}.json": schema_of(kind) for name, kind in KINDS.items()}
    documents["asyncapi.json"] = asyncapi.document()
    documents |= {f"vectors/{name}": found for name, found in vectors.files().items()}
    return {SCHEMAS / name: _text(document) for name, document in documents.items()}


def found_files() -> dict[Path, str]:
    """Return what the files of ``schemas/`` hold, but for the frozen one."""
    return {path: path.read_text() for path in SCHEMAS.rglob("*.json") if path != FROZEN}


def main(arguments: list[str]) -> int:
    """Write the files, or check them; return the exit code."""
    wanted, there = files(), found_files()
    stale = [path for path, text in wanted.items() if there.get(path) != text]
    surplus = sorted(set(there) - set(wanted))
    if arguments == ["--check"]:
        for path in (*stale, *surplus):
            print(f"{path.relative_to(SCHEMAS)} is stale; run 'make schemas'", file=sys.stderr)
        return int(bool(stale or surplus))
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(wanted[path])
    for path in surplus:
        path.unlink()
    if arguments == ["--freeze"]:
        FROZEN.write_text(_text(frozen.fields()))
    return 0


def _text(document: dict[str, Any]) -> str:
    return json.dumps(_cleaned(document), indent=2, ensure_ascii=False) + "\n"


def _cleaned(part: Any) -> Any:
    """Take the indentation out of descriptions, which are docstrings; Python does so from 3.13 on."""
    if isinstance(part, dict):
        clean = {name: _cleaned(value) for name, value in part.items()}
        if isinstance(about := part.get("description"), str):
            clean["description"] = inspect.cleandoc(about)
        return clean
    return [_cleaned(value) for value in part] if isinstance(part, list) else part


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
