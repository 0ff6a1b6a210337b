"""The options by which ``exec`` runs a command several times, and calls its runs something."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from phase_bus.errors import ConfigError
from phase_bus.harness.foreground import check_command
from phase_bus.harness.label import check_label

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from phase_bus.harness.config import Config
    from phase_bus.harness.repeat import Ran, Turn

BASE, CANDIDATE = "base", "candidate"


def _at_least_one(_type: Any, value: int) -> None:
    if value < 1:
        raise ValueError("Must be at least 1.")


@Parameter(name="*")
@dataclass(frozen=True)
class Repetition:
    """How often to run a command, in turns with which other, and what to call the runs."""

    label: Annotated[
        str,
        Parameter(
            help="What to call the runs that COMMAND publishes, whatever it calls them itself: the runs of "
            "one label are one side of 'phase-bus compare'. Default with --interleave: 'candidate'."
        ),
    ] = ""
    repeat: Annotated[
        int,
        Parameter(
            validator=_at_least_one,
            help="How often to run COMMAND. One that fails, or does not complete its run, is the last one.",
        ),
    ] = 1
    interleave: Annotated[
        str | None,
        Parameter(
            help="A command, in quotes, that is run as often, in turns with COMMAND: the base that its "
            "runs are compared with at the end; the exit code is 1 if they are worse. The turns are base, "
            "candidate, candidate, base ..., so that what drifts evenly adds the same to both."
        ),
    ] = None
    base_label: Annotated[str, Parameter(help="What to call the runs of that one.")] = BASE

    def turns(self, command: tuple[str, ...]) -> list[Turn]:
        """Return what is to be run, one after the other.

        Raises:
            ConfigError: if a command cannot be run, or a label is none.
        """
        from phase_bus.harness.repeat import Turn, command_line, interleaved, repeated

        check_command(command)
        check_label(self.label)
        check_label(self.base_label, "--base-label")
        if self.interleave is None:
            return repeated(command, self.repeat, self.label)
        base = Turn(command_line(self.interleave, "--interleave"), self.base_label or BASE)
        candidate = Turn(command, self.label or CANDIDATE)
        check_command(base.command)
        if base.label == candidate.label:
            raise ConfigError(f"--label {self.label!r}: the base is called so; choose another --base-label")
        return interleaved(base, candidate, self.repeat)

    def check_journal(self, config: Config) -> None:
        """Raise a ConfigError if there will be nothing to compare by."""
        if self.interleave is not None and not config.journal:
            raise ConfigError(
                "--interleave: compares by the journal, which the file's 'journal: false' omits"
            )


def show_comparison(journal: Path, ran: Ran, console: Console) -> bool:
    """Show what the runs of two commands come to; return whether those of the second one regressed.

    Raises:
        PhaseBusError: if they cannot be compared.
    """
    from rich.text import Text

    from phase_bus.cli.compare import measure_side
    from phase_bus.cli.journals import Found
    from phase_bus.cli.output import text_width
    from phase_bus.cli.sides import SideRuns
    from phase_bus.comparison import DEFAULT_MEASURES, compare
    from phase_bus.journal.reader import JournalReader
    from phase_bus.reporting.comparison_text import comparison_text

    with JournalReader(journal) as reader:
        rows = {row.run_id: row for row in reader.runs()}
        found = {
            label: [Found(reader.path, rows[run_id]) for run_id in runs] for label, runs in ran.runs.items()
        }
    if silent := [label for label, runs in found.items() if not runs]:
        raise ConfigError(f"the command of {silent[0]!r} published no run; there is nothing to compare")
    single = all(len(runs) == 1 for runs in found.values())
    base, candidate = (
        measure_side(SideRuns(label, runs), DEFAULT_MEASURES, blocks=single)
        for label, runs in found.items()
    )
    comparison = compare(base, candidate, DEFAULT_MEASURES)
    console.print()
    console.print(Text(comparison_text(comparison, text_width(console))), soft_wrap=True)
    return comparison.verdict == "regressed"
