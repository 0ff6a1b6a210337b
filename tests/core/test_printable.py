"""Text from elsewhere: harmless where people look at it, and still what it was."""

from __future__ import annotations

import json
import unicodedata
from ast import literal_eval
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from phase_bus.core.console import PlainConsole
from phase_bus.core.printable import printable, printable_json, printable_lines

ANYTHING = st.text(
    st.one_of(
        st.characters(exclude_categories=()),
        st.sampled_from(
            "\x00\x07\x08\t\n\r\x0b\x0c\x1b\x1c\x7f\x85\x9b\xad\u061c\u2028\u202e\u2066\ufeff\U000e0041\udcff[]"
        ),
    )
)
JOINERS = "\u200c\u200d"


def harmful(text: str) -> set[str]:
    """Return the characters that a terminal must not be sent, by what Unicode says of them."""
    invisible = {"Cc", "Cs", "Zl", "Zp"}
    turning = {"BN", "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return {
        each
        for each in text
        if each not in JOINERS
        and (unicodedata.category(each) in invisible or unicodedata.bidirectional(each) in turning)
        and unicodedata.category(each) != "Cn"  # no character is there yet
    }


@given(ANYTHING)
def test_nothing_harmful_is_left_and_nothing_else_is_changed(text: str) -> None:
    shown = printable(text)
    assert not harmful(shown)
    assert shown == text or harmful(text) or any(unicodedata.category(each) == "Cf" for each in text)
    shown.encode()
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    assert literal_eval(f"'{printable(escaped)}'") == text


@given(ANYTHING)
def test_lines_stay_lines(text: str) -> None:
    shown = printable_lines(text)
    assert harmful(shown) <= {"\n", "\t"}
    assert shown.count("\n") == text.count("\n")


@given(st.recursive(ANYTHING, lambda inner: st.lists(inner) | st.dictionaries(ANYTHING, inner)))
def test_json_means_the_same(document: object) -> None:
    shown = printable_json(json.dumps(document, ensure_ascii=False, indent=1))
    assert harmful(shown) <= {"\n"}
    assert json.loads(shown) == document


@pytest.mark.parametrize(
    "text",
    ["Llama 3.1 \U0001f999", "é ü \N{HEBREW LETTER ALEF}", "a\N{ZERO WIDTH JOINER}b", "[red]", ":warning:"],
)
def test_names_are_shown_as_they_are(text: str) -> None:
    assert printable(text) == text


@given(ANYTHING)
def test_a_console_shows_strings_as_they_are(text: str) -> None:
    """In a line and in a cell, whatever markup they look like."""
    out = StringIO()
    console = PlainConsole(file=out, width=100_000)
    console.print(text)
    table = Table(box=None, pad_edge=False)
    table.add_column()
    table.add_row(text)
    console.print(table)
    line, *_, cell = out.getvalue().split("\n")[:-1]
    assert line == printable(text)
    assert cell.strip() == printable(text).strip()
