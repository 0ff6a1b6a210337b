"""The command line of a process as it may be shown to others: what may be a secret is left out.

Nobody can tell every secret from other words, so what only looks like one goes as well. A command line that
lacks a harmless value can still be read; a key that has come into a report cannot be called back.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from phase_bus.core.values import as_text

LEFT_OUT = "***"
_MOST, _LONGEST = 100, 400  # arguments of a command, and characters of each
_SHORTEST_VALUE = 6  # of a secret in the environment: a shorter one may be any word

# Parts of names that mean a secret wherever they are; and words that do if no harmless one ends the name,
# and what they name is no number (as in time_to_first_token:100).
_STRONG = re.compile(
    r"secret|passw|passphrase|credential|bearer|authoriz|cookie|api[-_ ]?key|private[-_ ]?key|signature"
    r"|(access|auth|session|refresh|csrf|xsrf|id|sas)[-_ ]?token",
    re.IGNORECASE,
)
_WEAK = frozenset(("key", "keys", "token", "auth", "pass", "pwd", "pw", "psw", "sig", "jwt", "sas", "pat"))
_HARMLESS = frozenset(
    ("count", "counts", "number", "limit", "rate", "mean", "stddev", "size", "length", "ms", "file", "path")
)
_PLAIN_VALUE = re.compile(r"-?\d[\d.]{0,8}(ms|s|%)?|true|false|yes|no|none|null", re.IGNORECASE)
_HEADER = re.compile(r"-H|--?(http-?)?headers?", re.IGNORECASE)
_USER = re.compile(r"-u|--?(proxy-?)?user", re.IGNORECASE)
_USER_AND_PASSWORD = re.compile(r"[^:/\s]+:(?!\d+$|\d+/|//).+")

_NAME = r"(?<![\w.$-])[\w.$-]++"  # possessive, as all that is long here: the time is to be linear
# key=value, "key": "value", ?key=value, --key=value; and --key value within one argument, as of sh -c.
_ASSIGNED = re.compile(rf"(?P<name>{_NAME})[\"'\\]*\s*[:=]\s*[\"'\\]*(?P<value>(?!//)[^\s,;&\"'}}\])\\]+)?")
_OPTION = re.compile(r"(?P<name>(?<!\S)--?[\w.-]++)\s+[\"']?(?P<value>(?!-)[^\s\"']+)")
_HEADER_IN_TEXT = re.compile(
    r"((?:-H|--?headers?)(?:\s+|=)?(?P<quote>[\"'])[^:\"']+:\s*).*?(?P=quote)", re.IGNORECASE
)
_USER_INFO = re.compile(r"(?P<before>(^|[\s\"'=,(])([A-Za-z][\w+.-]*+://)?)[^\s/?#\"'=,]+@(?=[\w.\[*-])")
# Of an address of another kind than these, as of a chat, each part may be a key.
_ADDRESS = re.compile(r"(?P<scheme>(?<![\w+.-])[A-Za-z][\w+.-]*+)://(?!\*\*\*)(?P<rest>[^\s\"',]+)")
_KNOWN_SCHEMES = frozenset(
    ("http", "https", "ws", "wss", "tcp", "ipc", "group+ipc", "direct+tcp", "direct+ipc", "grpc", "grpcs")
) | {"unix", "file", "s3", "gs", "az", "hf", "nats", "tls"}
_WEB_HOOK = re.compile(
    r"(?P<host>://(hooks\.slack\.com|discord(app)?\.com/api|[\w.-]*webhook[\w.-]*)/)[^\s\"',]+"
)
_SCHEME = re.compile(
    r"\b(?P<scheme>bearer|basic|digest|negotiate|token)(?P<space>\s+)[\w~+/.=-]{6,}", re.IGNORECASE
)
# Keys of well-known services, and JSON web tokens, by how they begin.
_SHAPES = re.compile(
    r"\b(sk-|pk-|rk-|sk_|hf_|gh[opsur]_|github_pat_|glpat-|xox[abeoprs]-|nvapi-|gsk_|AKIA|ASIA|AIza|ya29\.|"
    r"eyJ[\w-]+\.)[\w.-]{8,}"
)


def command_line(arguments: Sequence[str] | None = None) -> str:
    """Return a command, by default that of this process, as one would type it in a shell.

    Secrets are left out, and the program is named without its directory.
    """
    given = [as_text(word) for word in (getattr(sys, "argv", ()) if arguments is None else arguments)]
    if not given:
        return ""
    program = PurePath(given[0])
    as_module = program.name == "__main__.py"
    words = ["python", "-m", program.parent.name] if as_module else [program.name]
    words += without_secrets(given[1 : _MOST + 1], os.environ)
    return " ".join(map(_quoted, words)) + (" ..." if len(given) > _MOST + 1 else "")


def this_process() -> dict[str, Any]:
    """Return what a run's start says of the process that publishes it."""
    version = sys.modules["phase_bus"].__version__  # not imported: imports go down only
    return {"command": command_line(), "host": as_text(os.uname().nodename), "version": version}


def without_secrets(arguments: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """Return the arguments of a command without secrets, nor values that are secrets of the environment."""
    known = sorted((v for n, v in environ.items() if len(v) >= _SHORTEST_VALUE and is_secret(n)), key=len)
    return list(_cleaned(arguments, list(reversed(known))))


def text_without_secrets(text: str) -> str:
    """Return a text, such as a URL, without what in it looks like a secret."""
    text = _USER_INFO.sub(rf"\g<before>{LEFT_OUT}@", text)
    text = _WEB_HOOK.sub(rf"\g<host>{LEFT_OUT}", text)
    text = _ADDRESS.sub(_of_address, text)
    text = _HEADER_IN_TEXT.sub(rf"\1{LEFT_OUT}\g<quote>", text)
    text = _SCHEME.sub(rf"\g<scheme>\g<space>{LEFT_OUT}", text)
    text = _without_named(_OPTION, text)
    text = _without_named(_ASSIGNED, text)
    return _SHAPES.sub(LEFT_OUT, text)


def is_secret(name: str, value: str = "") -> bool:
    """Return whether the value of this name may be a secret: of an option, variable, header or key."""
    if _STRONG.search(name):
        return not _PLAIN_VALUE.fullmatch(value) or value.isdigit()
    words = re.findall(r"[a-z]+|[0-9]+", re.sub(r"([a-z])([A-Z])", r"\1-\2", name).lower())
    if not words or words[-1] in _HARMLESS or _WEAK.isdisjoint(words):
        return False
    return not _PLAIN_VALUE.fullmatch(value)


def _cleaned(arguments: Sequence[str], known: Sequence[str]) -> Iterator[str]:
    option = ""  # the one that the next argument may be the value of
    for argument in arguments:
        for value in known:
            argument = argument.replace(value, LEFT_OUT)
        if len(argument) > _LONGEST:  # it is for people, and no benchmark is to wait for it
            argument = f"{argument[:_LONGEST]}..."
        if _is_option(argument) and not (_is_value(argument) and is_secret(option)):
            option, sign, value = argument.partition("=")
            yield option + sign + _value(option, value) if sign else _glued(argument)
        else:
            yield _value(option, argument)
            if not _HEADER.fullmatch(option):  # which may have several
                option = argument if _STRONG.fullmatch(argument) else ""


def _is_option(argument: str) -> bool:
    return argument.startswith("-") and len(argument) > 1 and not argument[1].isdigit()


def _is_value(argument: str) -> bool:
    """Return whether what looks like an option may be the value of one: a key may begin with a dash."""
    return len(argument) > 2 and argument[1] != "-"


def _value(option: str, value: str) -> str:
    """Return what may be told of an option's value."""
    if not value:
        return value
    if is_secret(option, value):
        return LEFT_OUT
    if _HEADER.fullmatch(option):
        name, sign, _ = value.partition(":")
        if not value.startswith("{"):
            return f"{name}: {LEFT_OUT}" if sign else LEFT_OUT
        return re.sub(r":\s*(\"[^\"]*\"|'[^']*'|[^,}]+)", f": {LEFT_OUT}", value)
    if _USER.fullmatch(option) and _USER_AND_PASSWORD.fullmatch(value) and "//" not in value:
        return LEFT_OUT
    return text_without_secrets(value)


def _glued(argument: str) -> str:
    """Return an option; with a header glued to it, as in ``-HName:value``, without that."""
    if re.match(r"-H.+", argument):
        return "-H" + _value("-H", argument[2:])
    return text_without_secrets(argument)


def _without_named(pattern: re.Pattern[str], text: str) -> str:
    """Return a text without the values whose names say that they are secrets."""
    parts, at = [], 0
    while (match := pattern.search(text, at)) is not None:
        value = match["value"] or ""
        if value and is_secret(match["name"], value):
            parts += [text[at : match.start("value")], LEFT_OUT]
            at = match.end("value")
        else:  # what follows the sign may be a name itself, as in alerting:webhook_secret=...
            end = match.start("value") if value else match.end()
            parts.append(text[at:end])
            at = end
    return "".join([*parts, text[at:]])


def _of_address(match: re.Match[str]) -> str:
    if match["scheme"].lower() in _KNOWN_SCHEMES or LEFT_OUT in match["rest"]:
        return match[0]
    return f"{match['scheme']}://{LEFT_OUT}"


def _quoted(word: str) -> str:
    return word if LEFT_OUT in word and not re.search(r"[\s\"'`$\\;&|<>(){}]", word) else shlex.quote(word)
