"""Files that one consumer writes: who has one keeps it while it lives, and its successor takes it over."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from phase_bus import ConfigError, OutputFile
from phase_bus.testing.waiting import DEADLINE_S

pytestmark = pytest.mark.usefixtures("no_leaks")

OTHER = textwrap.dedent("""
    import sys
    from pathlib import Path
    from phase_bus import OutputFile, PhaseBusError

    try:
        file = OutputFile(Path(sys.argv[1]), "output", sys.argv[2], sys.argv[3])
        print("mine", flush=True)
        for line in sys.stdin:
            file.replace(line.strip())
            print("written", flush=True)
        file.close()
    except PhaseBusError as error:
        print(error, flush=True)
""")


class Other:
    """A process that writes a file."""

    def __init__(self, path: Path, consumer: str, claim: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OTHER, str(path), consumer, claim],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdin is not None
        self._said, self._told = self.process.stdout, self.process.stdin

    def says(self) -> str:
        """Its next line."""
        return self._said.readline().strip()

    def write(self, text: str) -> str:
        """Have it write; return what it says."""
        self._told.write(text + "\n")
        self._told.flush()
        return self.says()

    def end(self) -> None:
        """Have it close the file."""
        self._told.close()
        self.process.wait(DEADLINE_S)


@contextmanager
def another(path: Path, consumer: str = "other", claim: str = "") -> Iterator[Other]:
    """A process that has tried to get a file."""
    other = Other(path, consumer, claim)
    try:
        yield other
    finally:
        other.process.kill()
        other.process.__exit__(None, None, None)  # waits, and closes the pipes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file to be written."""
    return tmp_path / "new" / "summary.json"


def test_two_processes_do_not_write_one_file(path: Path) -> None:
    """The second is told who has it, and what to do; nothing is left behind when the first is done."""
    file = OutputFile(path, "output", "first")
    file.replace("of the first")
    with another(path) as other:
        line = other.says()
        assert f"consumer 'first' (pid {os.getpid()} on " in line
        assert line.startswith(f"output: '{path}'")
        assert "output=..." in line
    assert path.read_text() == "of the first"
    file.close()
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    with another(path) as other:
        assert other.says() == "mine"
        with pytest.raises(ConfigError, match=f"consumer 'other' .pid {other.process.pid} on "):
            OutputFile(path, "output", "first")
        assert other.write("of the other") == "written"
        other.end()
    assert path.read_text() == "of the other"
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_killed_process_keeps_nobody_out(path: Path) -> None:
    with another(path) as other:
        assert other.says() == "mine"
    assert path.with_name(f".{path.name}.lock").exists()
    file = OutputFile(path, "output", "next")
    file.append("one\n")
    file.append("two\n")
    file.close()
    assert path.read_text() == "one\ntwo\n"
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_successor_takes_over_a_file_and_its_predecessor_writes_no_more(path: Path) -> None:
    """The claim makes the successor: with another one, or none, a process is refused."""
    with another(path, "one", "bus one") as first:
        assert first.says() == "mine"
        assert first.write("first") == "written"
        for claim in ("another bus one", ""):
            with pytest.raises(ConfigError, match=f"pid {first.process.pid}"):
                OutputFile(path, "output", "one", claim)
        successor = OutputFile(path, "output", "one", "bus one")
        successor.replace("successor")
        assert f"(pid {os.getpid()} on " in first.write("late")
        assert path.read_text() == "successor"
        successor.replace("again")
        successor.close()
    assert path.read_text() == "again"
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_lock_that_somebody_removed_is_made_again(path: Path) -> None:
    """By whoever has the file; who comes in between has it from then on."""
    lock = path.with_name(f".{path.name}.lock")
    file = OutputFile(path, "output", "first")
    lock.unlink()
    file.replace("still mine")
    assert lock.exists()
    lock.unlink()
    with another(path) as other:
        assert other.says() == "mine"
        with pytest.raises(ConfigError, match=f"pid {other.process.pid}"):
            file.replace("not mine any more")
        other.end()
    assert path.read_text() == "still mine"
    file.close()


def test_in_one_process(path: Path) -> None:
    """Two consumers that write one file are told; one that was forgotten keeps nobody out."""
    first = OutputFile(path, "output", "metrics", "bus metrics")
    with pytest.raises(ConfigError, match=r"text: .* by this process already, consumer 'metrics'"):
        OutputFile(path, "text", "aggregator", "bus aggregator")
    link = path.with_name("link.json")
    link.symlink_to(path)
    with pytest.raises(ConfigError, match=r"link\.json"):
        OutputFile(link, "output", "aggregator")
    del first
    assert OutputFile.of_process(path, "output_file") is OutputFile.of_process(link, "output_file")
    OutputFile.of_process(path, "output_file").close()


def test_what_is_no_regular_file_is_nobodys(tmp_path: Path) -> None:
    for _ in range(2):
        OutputFile(Path("/dev/null"), "output", "one").replace("x")
    assert not Path("/dev/.null.lock").exists()
    with pytest.raises(ConfigError, match="cannot be written"):
        OutputFile(tmp_path, "output", "one")
    with pytest.raises(ConfigError, match="cannot be written"):
        OutputFile(Path("/proc/nothing/x"), "output", "one")


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    """By the next one that has the file; nothing else that is beside it."""
    left = tmp_path / ".result.json.0123abcd"
    others = {".result.json.notes", ".other.json.0123abcd", ".0123abcd", "result.json.0123abcd"}
    for name in (left.name, *others):
        (tmp_path / name).touch()
    OutputFile(tmp_path / "result.json", "output").close()
    assert {path.name for path in tmp_path.iterdir()} == others


# ---- lines, and files that are renamed ----


def names(path: Path) -> dict[str, str]:
    """Return what is in a file and in those that it was renamed to."""
    return {each.name: each.read_text() for each in path.parent.iterdir() if each.name[0] != "."}


def test_renamed_files_move_on(path: Path) -> None:
    file = OutputFile(path, "log_file", "one")
    for number in range(5):
        file.append(f"{number}\n")
        assert file.size == 2
        file.rotate(keep=3)
        assert file.size == 0
    assert names(path) == {f"{path.name}.1": "4\n", f"{path.name}.2": "3\n", f"{path.name}.3": "2\n"}
    file.rotate(keep=3)  # there is nothing to rename
    file.append("5\n")
    file.rotate(keep=1)
    assert names(path)[f"{path.name}.1"] == "5\n"
    file.close()


def test_a_gap_that_a_kill_left_is_filled_and_nothing_replaced(path: Path) -> None:
    file = OutputFile(path, "log_file", "one")
    file.append("new\n")
    for number in (2, 3):
        path.with_name(f"{path.name}.{number}").write_text(f"{number}\n")
    file.rotate(keep=3)
    assert [*sorted(names(path).values())] == ["2\n", "3\n", "new\n"]
    file.close()


def test_only_who_has_the_file_renames_it(path: Path) -> None:
    with another(path, "one", "bus one") as first:
        assert first.says() == "mine"
        successor = OutputFile(path, "log_file", "one", "bus one")
        successor.append("line\n")
        first.write("late")
        successor.rotate(keep=2)
        assert names(path) == {f"{path.name}.1": "line\n"}
        successor.close()
    file = OutputFile(path, "log_file", "one", "bus one")
    file.append("line\n")
    with another(path, "two", "bus two") as second:
        assert "is written by" in second.says()
    successor = OutputFile(path, "log_file", "one", "bus one")
    with pytest.raises(ConfigError, match="is written by"):
        file.rotate(keep=2)
    successor.close()
    file.close()


def test_a_file_that_is_anothers_is_not_replaced(path: Path) -> None:
    file = OutputFile(path, "log_file", "one")
    file.append("line\n")
    with another(path.with_name(f"{path.name}.2"), "two") as other:
        assert other.says() == "mine"
        assert other.write("of the other") == "written"
        with pytest.raises(ConfigError, match=r"\.2' is written by consumer 'two'"):
            file.rotate(keep=2)
        file.append("more\n")
        file.rotate(keep=1)
        other.end()
    assert names(path) == {f"{path.name}.1": "line\nmore\n", f"{path.name}.2": "of the other"}
    file.close()


def test_a_link_stays_where_it_leads(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.log"
    path.parent.mkdir()
    link.symlink_to(path)
    file = OutputFile(link, "log_file", "one")
    file.append("one\n")
    file.rotate(keep=1)
    file.append("two\n")
    assert names(path) == {path.name: "two\n", f"{path.name}.1": "one\n"}
    file.close()


def test_lines_begin_lines(path: Path) -> None:
    """Whatever a killed process, or somebody else, has left before them."""
    path.parent.mkdir()
    path.write_text("whole\nhal")
    for _ in range(2):
        file = OutputFile(path, "log_file", "one")
        file.append("line\n")
        file.close()
    assert path.read_text() == "whole\nhal\nline\nline\n"


def test_who_renames_the_file_gets_no_more_lines(path: Path) -> None:
    """As logrotate does."""
    file = OutputFile(path, "log_file", "one")
    file.append("one\n")
    path.rename(path.with_name("old"))
    file.append("two\n")
    assert names(path) == {path.name: "two\n", "old": "one\n"}
    file.close()


def test_of_a_line_that_cannot_be_written_nothing_is_there(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = OutputFile(path, "log_file", "one")
    file.append("one\n")
    write = os.write

    def full(descriptor: int, text: bytes) -> int:
        if len(text) < 3:
            raise OSError(28, "No space left on device")
        return write(descriptor, text[:-2])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            file.append("two\n")
    assert path.read_text() == "one\n"
    file.append("two\n")
    assert path.read_text() == "one\ntwo\n"
    file.close()


def test_what_is_no_file_stays(tmp_path: Path) -> None:
    file = OutputFile(Path("/dev/null"), "log_file", "one")
    file.append("x\n")
    assert file.size == 0
    file.rotate(keep=1)
    assert Path("/dev/null").exists()
    file.close()
