"""Write ``schemas/``: a JSON Schema for each kind of event, from the types themselves.

``python scripts/make_schemas.py`` writes, ``--check`` says whether the files are as they should be.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from phase_bus.events import KINDS, EventBase

SCHEMAS = Path(__file__).resolve().parent.parent / "schemas"


def schema_of(kind: type[EventBase]) -> dict[str, Any]:
    """Return the JSON Schema of one kind of event."""
    schema = msgspec.json.schema(kind)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def files() -> dict[Path, str]:
    """Return what each file of ``schemas/`` should hold."""
    return {
        SCHEMAS / f"{name}.json": json.dumps(schema_of(kind), indent=2) + "\n"
        for name, kind in KINDS.items()
    }


def main(arguments: list[str]) -> int:
    """Write the files, or check them; return the exit code."""
    wanted = files()
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    surplus = sorted(set(SCHEMAS.glob("*.json")) - set(wanted))
    if arguments == ["--check"]:
        for path in (*stale, *surplus):
            print(f"{path.name} is stale; run 'make schemas'", file=sys.stderr)
        return int(bool(stale or surplus))
    SCHEMAS.mkdir(exist_ok=True)
    for path in stale:
        path.write_text(wanted[path])
    for path in surplus:
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
