"""The files in ``schemas/`` are those that the types make, and AsyncAPI understands its document."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from phase_bus.core.wire import HEADER, parse_topic, topic_of
from scripts import asyncapi, make_schemas, samples

# From npm, where the AsyncAPI project publishes the schema of its documents.
SPECS = "@asyncapi/specs@6.11.1"


def test_no_schema_is_stale() -> None:
    """Each file is as `make schemas` would write it, and there is no other."""
    assert make_schemas.found_files() == make_schemas.files(), "run 'make schemas'"


def test_check_names_what_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--check` fails for a file that was changed, is missing, or is too many; writing mends all three."""
    monkeypatch.setattr(make_schemas, "SCHEMAS", tmp_path)
    monkeypatch.setattr(make_schemas, "FROZEN", tmp_path / "frozen.json")
    assert make_schemas.main([]) == make_schemas.main(["--check"]) == 0
    (tmp_path / "drop.json").unlink()
    (tmp_path / "vectors" / "control.json").write_text("{}")
    (tmp_path / "gone.json").write_text("{}")
    assert make_schemas.main(["--check"]) == 1
    told = capsys.readouterr().err
    assert [line.split()[0] for line in told.splitlines()] == [
        "drop.json",
        "vectors/control.json",
        "gone.json",
    ]
    assert make_schemas.main([]) == make_schemas.main(["--check"]) == 0


# ---- the AsyncAPI document ----


def test_asyncapi_topics_are_those_of_events() -> None:
    """Each sample event's topic is its channel's address with the parameters filled in."""
    channels = asyncapi.document()["channels"]
    for event in (event for _, _, event in samples.STREAM):
        address = channels[event.kind]["address"]
        pattern = re.escape(address).replace(r"\{partition\}", r"\d\d+").replace(r"\{run_id\}", ".+")
        topic = topic_of(event)
        assert re.fullmatch(pattern, topic.decode()), address
        assert set(channels[event.kind].get("parameters", {})) == set(re.findall(r"{(\w+)}", address))
        assert parse_topic(topic).run_id == event.run_id


def test_asyncapi_header_is_the_header() -> None:
    """The places in the document are those of the struct: nothing overlaps, nothing is left out."""
    properties = asyncapi.document()["components"]["schemas"]["Header"]["properties"]
    sizes = {"u1": 1, "u4": 4, "u8": 8, "3 bytes": 3, "16 bytes": 16}
    end = 0
    for name, described in properties.items():
        place = described["x-zeromq"]
        assert place["at"] == end, name
        end = place["at"] + sizes[place["size"]]
    assert end == HEADER.size


def test_asyncapi_references_lead_somewhere() -> None:
    """Every ``$ref`` names something in the document."""
    document = asyncapi.document()
    references = set(_references(document))
    assert len(references) > 50
    for reference in references:
        part: Any = document
        for key in reference.removeprefix("#/").split("/"):
            part = part[key]


@pytest.mark.slow
def test_asyncapi_document_is_valid(tmp_path: Path) -> None:
    """AsyncAPI's own JSON Schema for documents of version 3.0.0 accepts it."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    done = subprocess.run(
        ["npm", "pack", "--silent", "--cache", str(tmp_path / "cache"), SPECS],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    (package,) = tmp_path.glob("*.tgz")
    with tarfile.open(package) as archive:
        member = archive.extractfile("package/schemas/3.0.0.json")
        assert member is not None
        schema = json.load(member)
    validator = jsonschema.Draft7Validator(schema)
    document = json.loads((make_schemas.SCHEMAS / "asyncapi.json").read_text())
    assert [error.message for error in validator.iter_errors(document)] == []
    document["channels"]["records"]["adress"] = document["channels"]["records"].pop("address")
    assert list(validator.iter_errors(document)), "it accepts anything"


def _references(part: Any) -> list[str]:
    if isinstance(part, list):
        return [found for each in part for found in _references(each)]
    if not isinstance(part, dict):
        return []
    own = [part["$ref"]] if "$ref" in part else []
    return own + [found for each in part.values() for found in _references(each)]
