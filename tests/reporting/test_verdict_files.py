"""The files with verdicts: checked before there is anything to write, and then written whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from phase_bus.errors import ConfigError
from phase_bus.events import Verdict
from phase_bus.reporting.verdict_files import VerdictFiles

VERDICT = Verdict(run_id="r", producer="t", threshold="a < 1", state="unknown", final=True, reason="\u202e")


def test_each_file_has_its_form(tmp_path: Path) -> None:
    files = VerdictFiles(junit=tmp_path / "v.xml", markdown=tmp_path / "v.md", json=tmp_path / "v.json")
    assert files
    assert not VerdictFiles()
    files.check()
    assert not list(tmp_path.iterdir())
    assert files.write([VERDICT], [VERDICT]) == []
    assert "<testsuite " in (tmp_path / "v.xml").read_text()
    assert "| **unknown** |" in (tmp_path / "v.md").read_text()
    document = json.loads((tmp_path / "v.json").read_text())
    assert (len(document["verdicts"]), len(document["changes"])) == (1, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.json", "v.md", "v.xml"]


def test_a_place_that_cannot_be_written_is_named_before(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--junit.*cannot be written"):
        VerdictFiles(junit=tmp_path).check()
    same = VerdictFiles(junit=tmp_path / "v", json=tmp_path / "." / "v")
    with pytest.raises(ConfigError, match=r"--json.* is the file of --junit too"):
        same.check()


def test_one_that_cannot_be_written_in_the_end_spoils_no_other(tmp_path: Path) -> None:
    """Its old content stays, or there is none."""
    files = VerdictFiles(junit=tmp_path / "gone" / "v.xml", markdown=tmp_path / "v.md")
    files.check()
    shutil.rmtree(tmp_path / "gone")
    (problem,) = files.write([VERDICT])
    assert "--junit" in problem
    assert (tmp_path / "v.md").exists()
