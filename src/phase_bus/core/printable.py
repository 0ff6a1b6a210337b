"""Text from elsewhere, made harmless for terminals, log lines and text files.

Names of runs, models, metrics, errors and consumers come from others. Written as they are, a control
character in one of them moves the cursor, colours what follows, begins a line that looks like ours, or
turns the order of letters round.
"""

from __future__ import annotations

import re

# Control characters (C0, DEL, C1), line and paragraph separators, what changes the direction of writing,
# what is invisible and means something (soft hyphen, byte order mark, annotations, tags), and lone
# surrogates, which cannot be encoded. Joiners stay: words of several languages, and emoji, need them.
_HARMFUL = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_HARMFUL_IN_JSON = re.compile(_HARMFUL.pattern.replace("\x00-\x1f", ""))


def printable(text: str) -> str:
    r"""Return a text as one line: what is no visible character is written as in Python: ``\x1b``."""
    return _HARMFUL.sub(_as_python, text)


def printable_lines(text: str) -> str:
    """Return a text as :func:`printable` does, but for its tabs and ends of lines."""
    return _HARMFUL.sub(lambda match: match[0] if match[0] in "\n\t" else _as_python(match), text)


def printable_json(document: str) -> str:
    r"""Return a JSON document that means the same, with such characters as ``\u202e``.

    JSON itself demands that only of those below U+0020; outside of strings none occurs but line breaks.
    """
    return _HARMFUL_IN_JSON.sub(_as_json, document)


def _as_python(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def _as_json(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
