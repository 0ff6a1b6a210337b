"""OpenSearch's interface, by a server that keeps everything in memory."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.support.servers.faults import FaultProxy
from tests.support.servers.process import HOST, ServerProcess, request


class OpenSearch(ServerProcess):
    """A server that forgets all when it is killed, and asks for no credentials.

    For a fault after which the data is still there, and for wrong credentials, put a proxy before it.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        found = find_spec("osmem_server")
        assert found is not None
        assert found.origin is not None
        self._program = Path(found.origin).with_name("bin") / "osmem-server"

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """Return the answer to a request, from JSON.

        Raises:
            AssertionError: it is an error.
        """
        data = None if body is None else json.dumps(body).encode()
        status, answer = request(method, self.url + path, data, {"Content-Type": "application/json"})
        assert status < 300, (status, answer)
        return answer

    def count(self, index: str) -> int:
        """Return how many documents an index or data stream has, 0 if there is none."""
        status, said = request("POST", f"{self.url}/{index}/_refresh")
        if status == 404:
            return 0
        assert status == 200, said
        return int(self.ask("GET", f"/{index}/_count")["count"])

    def documents(self, index: str, most: int = 10_000) -> list[dict[str, Any]]:
        """Return the documents with their ``_id`` and ``_source``."""
        self.ask("POST", f"/{index}/_refresh")
        found: list[dict[str, Any]] = self.ask("POST", f"/{index}/_search", {"size": most})["hits"]["hits"]
        return found

    def command(self) -> list[str]:
        return [str(self._program), "-addr", f"{HOST}:{self.port}", "-no-stdin-watch", "-no-ja"]

    def answers(self) -> bool:
        return request("GET", self.url)[0] == 200


class PlainIndexes(FaultProxy):
    """A proxy before a server without data streams, whose templates make plain indexes of them.

    So the options that users have by default can be tested, as far as the requests go.
    """

    async def forwarded(self, request: web.Request, body: bytes) -> bytes:
        if "/_index_template/" not in request.path or not body:
            return body
        template = json.loads(body)
        template.pop("data_stream", None)
        return json.dumps(template).encode()
