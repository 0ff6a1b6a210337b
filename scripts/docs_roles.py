"""Sphinx's roles in docstrings, as plain code: the pages are Markdown.

An extension of griffe, by which mkdocstrings reads the code (`extensions:` in mkdocs.yml).
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:meth|class|func|mod|data|attr|exc):`~?(?:[\w.]+\.)?(\w+)`")


class PlainRoles(griffe.Extension):
    """Replaces ``:class:`~package.Name``` by the name alone."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite an object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(r"`\1`", obj.docstring.value)
