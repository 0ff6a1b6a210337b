"""The verdicts on the runs of one ``exec``: what they interrupt, and what is shown and written of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from phase_bus.consumer.consumer import named
from phase_bus.errors import ConfigError
from phase_bus.events import Verdict
from phase_bus.harness.config import Config
from phase_bus.harness.verdicts import VerdictWatch, are_final, final_verdicts
from phase_bus.reporting.verdict_files import VerdictFiles
from phase_bus.reporting.verdicts import (
    all_passed,
    by_run,
    quoted,
    run_title,
    verdict_table,
    verdicts_in_brief,
)

if TYPE_CHECKING:
    from rich.console import Console

    from phase_bus.harness.rig import Rig

PATIENCE_S = 30.0  # a command that was interrupted may write out its results
_GRACE_S = 2.0  # for final verdicts that are still under way
_LOOK_S = 0.05
_SHOWN_RUNS = 10


class ExecVerdicts:
    """Follows the verdicts on the runs of a command.

    Attributes:
        onlookers: what is to see the events on the bus.
        aborted: whether the command was interrupted for one.
        passed: whether each threshold passed in each run, or there is none.
        written: whether all files are.

    Raises:
        ConfigError: if there are files to write but no thresholds, or a file cannot be written.
    """

    def __init__(self, config: Config, files: VerdictFiles) -> None:
        self._judged = {each.title: each.thresholds for each in config.consumers if each.judges}
        if files and not self._judged:
            raise ConfigError(
                f"{', '.join(files.options)}: there are no thresholds, and so no verdicts; "
                "give --threshold, or list them as 'thresholds' in the YAML file (-c)"
            )
        files.check()
        self._files = files
        self._watch = named(VerdictWatch(self._judged), "verdicts")
        self.onlookers = [self._watch] if self._judged else []
        self.aborted = False
        self.passed = self.written = not self._judged

    @contextmanager
    def aborting(self, rig: Rig) -> Iterator[asyncio.Event]:
        """Give what is set when the command, which runs meanwhile, is to be interrupted; say so then."""
        self._watch.begin(rig.earlier)
        telling = asyncio.create_task(self._tell(rig))
        try:
            yield self._watch.aborting
        finally:
            telling.cancel()
            self.aborted = self._watch.end()

    async def conclude(self, rig: Rig, console: Console, *, quiet: bool) -> None:
        """Show the final verdicts, if quiet those only that are no pass, and write the files."""
        if not self._judged:
            return
        found = await self._found(rig)
        verdicts = final_verdicts(found, rig.runs, self._judged)
        self.passed = all_passed(verdicts)
        if not quiet or not self.passed:
            _show(verdicts, console)
        problems = self._files.write(verdicts, [verdict for verdict in found if not verdict.final])
        for problem in problems:
            rig.progress.note((problem, "red"))
        self.written = not problems

    async def _found(self, rig: Rig) -> list[Verdict]:
        """Return the verdicts that there are, when all are final or nothing more is to be expected."""
        deadline_s = time.monotonic() + _GRACE_S
        while True:
            found = await rig.verdicts(self._judged)
            if found is None:
                found = [v for v in self._watch.verdicts.values() if v.run_id in rig.runs]
            if are_final(found, rig.runs, self._judged) or time.monotonic() > deadline_s:
                return found
            await asyncio.sleep(_LOOK_S)

    async def _tell(self, rig: Rig) -> None:
        await self._watch.aborting.wait()
        cause = self._watch.cause
        assert cause is not None
        rig.progress.note(
            ("threshold failed", "red"),
            f", aborting run {cause.run_id}: {quoted(cause.threshold)}; ",
            ("the command is interrupted by SIGINT", "red"),
        )
        await asyncio.sleep(PATIENCE_S)
        rig.progress.note(
            (f"the command goes on {PATIENCE_S:g} s after it was interrupted", "yellow"),
            "; it is left alone, and Ctrl-C reaches it",
        )


def _show(verdicts: Sequence[Verdict], console: Console) -> None:
    """Show the verdicts on the last runs, those first to be left out that passed in everything."""
    runs = by_run(verdicts)
    failed = {run_id: of_run for run_id, of_run in runs.items() if not all_passed(of_run)}
    shown = list((failed if len(runs) > _SHOWN_RUNS and failed else runs).items())[-_SHOWN_RUNS:]
    for run_id, of_run in shown:
        console.print()
        console.print(run_title(run_id), soft_wrap=True)
        console.print(verdict_table(of_run))
    in_all = f" in {len(runs)} runs" if len(runs) > 1 else ""
    console.print(
        f"{verdicts_in_brief(verdicts)}{in_all}",
        style="green" if all_passed(verdicts) else "bold red",
        soft_wrap=True,
    )
