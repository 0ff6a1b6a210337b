"""The files of the sink ``parquet``: their names, what they say is there, and how they get into place."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import msgspec
import pyarrow as pa
from msgspec import Struct

from phase_bus import ConfigError, DeniedError, Position, UnavailableError
from phase_bus_consumers.extras import needs
from phase_bus_consumers.parquet_tables import sources_in

with needs("parquet"):
    import fsspec

_MARK = "_phase_bus.json"  # readers of datasets leave out what begins with _
_ASIDE = ".tmp"
_NAME = re.compile(r"(records|events|verdicts)-(.+)-(\d{12,})-(\d{12,})\.parquet")
_LONGEST = 200  # bytes of the name of a directory; most file systems take 255


class _Mark(Struct):
    """Whose the dataset is, and up to which offset each stream is in it."""

    consumer: str
    positions: dict[str, int] = {}


class Part(Struct):
    """What is there of one run and kind: the last offset of each stream, the last number of each source."""

    offsets: dict[str, int] = {}
    sources: dict[str, int] = {}

    def copy(self) -> Part:
        """Return another one that says the same."""
        return Part(dict(self.offsets), dict(self.sources))

    def add(self, at: Position, source: str, sequence: int) -> bool:
        """Note an event; return whether it is new."""
        stream = _short(at.stream)
        if at.offset <= self.offsets.get(stream, 0):
            return False
        self.offsets[stream] = at.offset
        if sequence and sequence <= self.sources.get(source, 0):
            return False
        if sequence:
            self.sources[source] = sequence
        return True


class _Place(Protocol):
    def names(self, folder: str) -> list[str]: ...
    def read(self, name: str) -> bytes | None: ...
    def put(self, name: str, data: Any) -> None: ...
    def remove(self, name: str) -> None: ...


class Files:
    """A dataset.

    Args:
        place: where it is.
        consumer: whose it is.
    """

    def __init__(self, place: _Place, consumer: str) -> None:
        self._place = place
        text = place.read(_MARK)
        self._mark = msgspec.json.decode(text, type=_Mark) if text else _Mark(consumer)
        if not text:
            self._keep()

    @classmethod
    def open(cls, path: str, consumer: str) -> Files:
        """Return the dataset at a path or URL, made if there is none.

        Raises:
            ConfigError: if it cannot be used, or is another consumer's.
            DeniedError, UnavailableError: if its server does not let us, or is not there.
        """
        try:
            files = cls(_place(path), consumer)
        except ConfigError:
            raise
        except PermissionError as error:
            raise DeniedError(f"path: {path!r}: {error}") from None
        except (ImportError, ValueError, msgspec.MsgspecError) as error:
            raise ConfigError(f"path: {path!r} cannot be used: {error}") from None
        except OSError as error:
            if "://" in path:
                raise UnavailableError(f"path: {path!r}: {error}") from None
            reason = error.strerror or error
            raise ConfigError(
                f"path: {path!r} cannot be used ({reason}); give another with path=..."
            ) from None
        owner = files._mark.consumer
        if owner != consumer:
            raise ConfigError(
                f"path: consumer {owner!r} already writes to {path!r}; use that name, or give another path"
            )
        return files

    def position(self, streams: Sequence[str]) -> Position:
        """Return up to where all is there."""
        known = [stream for stream in streams if stream in self._mark.positions]
        return Position(known[-1], self._mark.positions[known[-1]]) if known else Position(streams[0], 0)

    def keep_position(self, at: Position) -> None:
        """Keep that all is there up to a place."""
        self._mark.positions[at.stream] = max(at.offset, self._mark.positions.get(at.stream, 0))
        self._keep()

    def _keep(self) -> None:
        self._place.put(_MARK, msgspec.json.encode(self._mark))

    def part(self, folder: str, kind: str) -> Part:
        """Return what is there of a run; remove what a killed process has left half done."""
        part = Part()
        newest: dict[str, list[tuple[int, str]]] = {}
        for name in self._place.names(folder):
            found = _NAME.fullmatch(name)
            if name.endswith(_ASIDE):
                self._place.remove(f"{folder}/{name}")
            elif found and found[1] == kind:
                newest.setdefault(found[2], []).append((int(found[4]), name))
        for stream, files in newest.items():
            while files:
                last, name = max(files)
                sources = self._sources(f"{folder}/{name}")
                if sources is not None:
                    part.offsets[stream] = last
                    for source, sequence in sources.items():
                        part.sources[source] = max(sequence, part.sources.get(source, 0))
                    break
                self._place.remove(f"{folder}/{name}")
                files.remove((last, name))
        return part

    def _sources(self, name: str) -> dict[str, int] | None:
        data = self._place.read(name)
        try:
            return sources_in(data or b"")
        except pa.ArrowInvalid:  # a part of one, where files do not appear whole
            return None

    def put(self, folder: str, kind: str, stream: str, offsets: tuple[int, int], data: Any) -> None:
        """Put a file into place."""
        first, last = offsets
        self._place.put(f"{folder}/{kind}-{_short(stream)}-{first:012}-{last:012}.parquet", data)


class _Directory:
    """A local directory: a file appears whole under its name, and is on the disk then."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.mkdir(exist_ok=True)

    def names(self, folder: str) -> list[str]:
        path = self._path / folder
        return [each.name for each in path.iterdir()] if path.is_dir() else []

    def read(self, name: str) -> bytes | None:
        path = self._path / name
        return path.read_bytes() if path.exists() else None

    def put(self, name: str, data: Any) -> None:
        path = self._path / name
        if not path.parent.is_dir():
            path.parent.mkdir()
            _sync(self._path)
        aside = path.with_name(f".{path.name}{_ASIDE}")
        try:
            with aside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except OSError:
            aside.unlink(missing_ok=True)
            raise
        _sync(path.parent)

    def remove(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)


class _Remote:
    """A place that fsspec reaches: a file is put at once, which object stores do whole or not at all."""

    def __init__(self, url: str) -> None:
        self._files, self._path = fsspec.core.url_to_fs(url)
        self._files.makedirs(self._path, exist_ok=True)

    def names(self, folder: str) -> list[str]:
        self._files.invalidate_cache()
        path = f"{self._path}/{folder}"
        if not self._files.exists(path):
            return []
        return [str(each).rsplit("/", 1)[-1] for each in self._files.ls(path, detail=False)]

    def read(self, name: str) -> bytes | None:
        path = f"{self._path}/{name}"
        return self._files.cat_file(path) if self._files.exists(path) else None

    def put(self, name: str, data: Any) -> None:
        path = f"{self._path}/{name}"
        self._files.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        self._files.pipe_file(path, bytes(data))

    def remove(self, name: str) -> None:
        self._files.rm_file(f"{self._path}/{name}")


def _place(path: str) -> _Place:
    parts = urlsplit(path)
    if "://" not in path or parts.scheme == "file":
        return _Directory(Path(path if "://" not in path else parts.path))
    if parts.password is not None:
        raise ConfigError(
            "path: a password is not given in clear; fsspec takes it from its configuration files or "
            "the environment"
        )
    return _Remote(path)


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _short(stream: str) -> str:
    return re.sub(r"[^0-9A-Za-z]", "_", stream)[:8]


def folder_of(run_id: str) -> str:
    """Return the name of a run's folder, as Hive writes it.

    Raises:
        ValueError: if it is too long for one.
    """
    folder = f"run_id={quote(run_id, safe='')}"
    if len(folder) > _LONGEST:
        raise ValueError("the run's id is too long for the name of a directory")
    return folder
