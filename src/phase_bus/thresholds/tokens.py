"""The words of a threshold's text, each with its place, and what is said of one that is wrong."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, NoReturn, TypeAlias, cast

from phase_bus.errors import ConfigError

LONGEST = 2000  # characters
_SHOWN = 100
_SHOWN_WORD = 60

TokenKind: TypeAlias = Literal["word", "name", "number", "symbol", "end"]
_TOKEN = re.compile(
    r"""\s* (?:
        (?P<word>   /?[^\W\d](?:[\w./-]*\w)? )       # also tokens/s, /s, ramp-2, p99.9
      | (?P<name>   "[^"]*" | '[^']*' )
      | (?P<number> (?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+) (?:[eE][+-]?[0-9]+)? )
      | (?P<symbol> [<>]=? | [≤≥%(),+-] )
      | (?P<end>    \Z )
    )""",
    re.VERBOSE,
)
_WORD = re.compile(r"[^\W\d](?:[\w.-]*\w)?")


class Token(NamedTuple):
    """A word of the text.

    Attributes:
        kind: a ``word``, a ``name`` in quotes, a ``number``, a ``symbol``, or the ``end`` of the text.
        text: what it says, without quotes.
        place: where it begins, in characters from 1.
    """

    kind: TokenKind
    text: str
    place: int

    @property
    def folded(self) -> str:
        """What it says where case means nothing; nothing for a name in quotes."""
        return "" if self.kind == "name" else self.text.casefold()

    def __str__(self) -> str:
        """Return it with its place, for a message."""
        if self.kind == "end":
            return f"the end (character {self.place})"
        return f"{_shown(self.text, _SHOWN_WORD)} (character {self.place})"


def tokenize(text: str) -> list[Token]:
    """Return the words of a text, the last of them its ``end``.

    Raises:
        ConfigError: if it is too long, or something in it is no word.
    """
    if len(text) > LONGEST:
        fail(text, f"has {len(text):,} characters; at most {LONGEST:,} are read")
    for place, character in enumerate(text, 1):
        if not (character.isprintable() or character in "\t\r\n"):
            fail(text, f"character {place} ({character!a}) is not printable; leave it out")
    tokens: list[Token] = []
    place = 0
    while not tokens or tokens[-1].kind != "end":
        found = _TOKEN.match(text, place)
        if found is None:
            place += len(text[place:]) - len(text[place:].lstrip())
            _refuse(text, place)
        kind = cast("TokenKind", found.lastgroup)
        said = found[kind]
        tokens.append(Token(kind, said[1:-1] if kind == "name" else said, found.start(kind) + 1))
        place = found.end()
    return tokens


def is_word(text: str) -> bool:
    """Return whether a name is one word of the text without quotes."""
    return _WORD.fullmatch(text) is not None


def fail(text: str, reason: str) -> NoReturn:
    """Raise the error of a text that is no threshold."""
    raise ConfigError(f"threshold {_shown(text, _SHOWN)}: {reason}")


def _shown(text: str, most: int) -> str:
    """Return a text in quotes, on one line, and no more of it than fits there."""
    return repr(text) if len(text) <= most else f"{text[:most]!r}..."


def _refuse(text: str, place: int) -> NoReturn:
    character = text[place]
    if character in "\"'":
        fail(text, f"the quote at character {place + 1} is not closed; close it with {character}")
    hint = "; compare with <, <=, > or >=" if character in "=!" else ""
    fail(text, f"{character!r} (character {place + 1}) means nothing here{hint}")
