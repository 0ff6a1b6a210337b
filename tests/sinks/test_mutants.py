"""The contract finds what they are for: sinks that are wrong in one way, beside one that is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.sinks import scenarios
from tests.sinks.cases import ReferenceCase
from tests.sinks.scenarios import Wrong
from tests.sinks.world import a_world

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

FOUND: list[tuple[Callable[..., Wrong], tuple[Any, ...], dict[str, str], dict[str, str]]] = [
    (
        scenarios.its_server_is_killed,
        (2.0, 3000, 500),
        {"max_rows_per_s": "3000", "batch_rows": "500"},
        {"DropsOnError": "are missing", "Unbounded": "rows within"},
    ),
    (scenarios.answers_are_lost, (8000, 4000), {}, {"NewKeysEachTime": "there twice"}),
    (
        scenarios.it_is_told_to_wait,
        (8000, 4000),
        {},
        {"Impatient": "asked to wait", "DropsOnError": "are missing"},
    ),
    (scenarios.its_server_is_slow, (100_000, 40.0, 10.0), {}, {"Greedy": "MiB more than before"}),
    (
        scenarios.it_is_killed,
        (12_000, 2000),
        {},
        {"AnswersEarly": "are missing", "NewKeys": "there twice"},
    ),
    (scenarios.everybody_else_is_killed, (8000, 4000), {}, {"OneStream": "are missing"}),
    (scenarios.a_row_is_refused, (8000, 4000), {}, {"Forgiving": "others are missing"}),
    (
        scenarios.its_secret_is_wrong,
        (8.0,),
        {},
        {"Talkative": "says what the secret is", "Stubborn": "does not end"},
    ),
]


@pytest.mark.parametrize(
    ("scenario", "arguments", "settings", "mutants"), FOUND, ids=[found[0].__name__ for found in FOUND]
)
def test_what_is_wrong_is_found(
    tmp_path: Path,
    ipc_dir: Path,
    scenario: Callable[..., Wrong],
    arguments: tuple[Any, ...],
    settings: dict[str, str],
    mutants: dict[str, str],
) -> None:
    kinds = ("Reference", *mutants)
    cases = [ReferenceCase(tmp_path / kind, kind) for kind in kinds]
    with a_world(tmp_path, ipc_dir, cases, **settings) as world:
        wrong = scenario(world, "a-run", *arguments)
    assert set(wrong) == {kind.lower() for kind in mutants}, wrong
    for kind, said in mutants.items():
        assert said in " ".join(wrong[kind.lower()]), wrong
