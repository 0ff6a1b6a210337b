"""The server of the tests' own sink: it takes each row once, by its key, and survives with what it has.

python -m tests.sinks.reference_server PORT FILE TOKEN
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Store:
    """The rows, each with its key; in a file, one a line."""

    def __init__(self, path: Path) -> None:
        self._keys: set[str] = set()
        self._ids: Counter[str] = Counter()
        if path.exists():
            *whole, _torn = path.read_text().split("\n")
            for line in whole:
                self._note(*line.split("\t"))
            path.write_text("".join(f"{line}\n" for line in whole))
        self._file = path.open("a")
        self._lock = threading.Lock()

    def take(self, rows: list[tuple[str, str]]) -> None:
        """Keep the rows that are new."""
        with self._lock:
            new = [(key, row) for key, row in rows if self._note(key, row)]
            self._file.write("".join(f"{key}\t{row}\n" for key, row in new))
            self._file.flush()

    def ids(self, run_id: str) -> dict[str, int]:
        """Return how often each row of a run is there."""
        with self._lock:
            return {row: times for row, times in self._ids.items() if row.startswith(f"{run_id}.")}

    def _note(self, key: str, row: str) -> bool:
        if key in self._keys:
            return False
        self._keys.add(key)
        self._ids[row] += 1
        return True


def main(port: int, path: Path, token: str) -> None:
    """Serve for ever."""
    store = Store(path)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            if self.headers["Authorization"] != f"Token {token}":
                return self._answer(401, f"not with {self.headers['Authorization']}")
            store.take([tuple(pair) for pair in json.loads(body or b"[]")])
            return self._answer(200, "taken")

        def do_GET(self) -> None:
            self._answer(200, json.dumps(store.ids(self.path.removeprefix("/"))))

        def log_message(self, *_arguments: object) -> None: ...

        def _answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
