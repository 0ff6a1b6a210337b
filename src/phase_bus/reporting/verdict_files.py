"""The files that verdicts are written to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from phase_bus.core.files import check_writable, write_whole
from phase_bus.core.printable import printable_json
from phase_bus.errors import ConfigError
from phase_bus.events import Verdict
from phase_bus.reporting.verdicts import verdicts_document, verdicts_junit, verdicts_markdown


class VerdictFiles(Struct, frozen=True, kw_only=True):
    """Where verdicts are to be written, None for nowhere; each file is written whole or not at all."""

    junit: Path | None = None
    markdown: Path | None = None
    json: Path | None = None

    def check(self) -> None:
        """Check, before there is anything to write, that they can be written.

        Raises:
            ConfigError: if one cannot, or two are the same.
        """
        taken: dict[Path, str] = {}
        for option, path in self._given():
            check_writable(path, option)
            other = taken.setdefault(path.resolve(), option)
            if other != option:
                raise ConfigError(f"{option}: {str(path)!r} is the file of {other} too; give another one")

    @property
    def options(self) -> list[str]:
        """The options by which files were given."""
        return [option for option, _ in self._given()]

    def __bool__(self) -> bool:
        return bool(self.options)

    def write(self, verdicts: Sequence[Verdict], changes: Sequence[Verdict] = ()) -> list[str]:
        """Write them; return what could not be written, in words.

        Args:
            verdicts: the final ones.
            changes: those that came before, for JSON.
        """
        problems = []
        for option, path in self._given():
            match option:
                case "--junit":
                    text = verdicts_junit(verdicts)
                case "--markdown":
                    text = verdicts_markdown(verdicts)
                case _:
                    document = msgspec.json.encode(verdicts_document(verdicts, changes))
                    text = printable_json(msgspec.json.format(document, indent=2).decode()) + "\n"
            try:
                write_whole(path, text)
            except OSError as error:
                problems.append(f"{option}: {str(path)!r} cannot be written ({error.strerror or error})")
        return problems

    def _given(self) -> Iterator[tuple[str, Path]]:
        for option, path in (
            ("--junit", self.junit),
            ("--markdown", self.markdown),
            ("--json", self.json),
        ):
            if path is not None:
                yield option, path
