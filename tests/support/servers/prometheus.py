"""A real Prometheus, which can be scraped into, written to, and asked."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.support.servers.process import HOST, ServerProcess, request


class Prometheus(ServerProcess):
    """A server that takes remote writes and native histograms.

    It survives ``kill()`` with all that it had accepted. Targets, also those of its start, are first
    scraped after up to 5 s, and no setting changes that.

    Args:
        directory: where its data is.
        targets: what it scrapes, as "host:port"; the job is named "test".
        interval_s: how often.
        native: whether it knows native histograms.
        options: more of the command line.
    """

    def __init__(
        self,
        directory: Path,
        *targets: str,
        interval_s: float = 0.1,
        native: bool = True,
        options: tuple[str, ...] = (),
    ) -> None:
        super().__init__(directory)
        self._program = program("prometheus")
        self._interval_ms = round(interval_s * 1000)
        self._targets = targets
        self._options = (*(["--enable-feature=native-histograms"] if native else []), *options)

    @property
    def write_url(self) -> str:
        """Where remote writes go."""
        return f"{self.url}/api/v1/write"

    def scrape(self, *targets: str, interval_s: float | None = None) -> None:
        """Scrape these from now on; an answer has as much time as lies between two scrapes."""
        self._targets = targets
        if interval_s is not None:
            self._interval_ms = round(interval_s * 1000)
        self._configure()
        status, said = request("POST", f"{self.url}/-/reload")
        assert status == 200, said

    def query(self, expression: str, at_s: float | None = None) -> list[dict[str, Any]]:
        """Return the series of an instant query; native histograms stand under "histogram"."""
        return self._result("query", query=expression, **({} if at_s is None else {"time": at_s}))

    def value(self, expression: str, at_s: float | None = None) -> float:
        """Return the only value of an instant query."""
        (found,) = self.query(expression, at_s)
        return float(found["value"][1])

    def query_range(
        self, expression: str, start_s: float, end_s: float, step_s: float = 1.0
    ) -> list[dict[str, Any]]:
        """Return the series of a range query; each has "values", or "histograms"."""
        return self._result("query_range", query=expression, start=start_s, end=end_s, step=step_s)

    def series(self, *selectors: str) -> list[dict[str, str]]:
        """Return the labels of all series that match one of the selectors."""
        found = self._ask("series", [("match[]", selector) for selector in selectors])
        assert isinstance(found, list)
        return found

    def samples(self, selector: str, window: str = "1h", at_s: float | None = None) -> list[dict[str, Any]]:
        """Return the stored samples of series as they are, each with its own time."""
        return self.query(f"{selector}[{window}]", at_s)

    def command(self) -> list[str]:
        self._configure()
        return [
            self._program,
            f"--config.file={self.directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={self.directory / 'data'}",
            f"--web.listen-address={HOST}:{self.port}",
            "--web.enable-remote-write-receiver",
            "--web.enable-lifecycle",
            *self._options,
        ]

    def answers(self) -> bool:
        return request("GET", f"{self.url}/-/ready")[0] == 200

    def _configure(self) -> None:
        every = f"{self._interval_ms}ms"
        jobs = [
            {
                "job_name": "test",
                "scrape_interval": every,
                "scrape_timeout": every,
                "static_configs": [{"targets": list(self._targets)}],
            }
        ]
        # JSON is YAML.
        (self.directory / "prometheus.yml").write_text(json.dumps({"scrape_configs": jobs}))

    def _result(self, path: str, **parameters: Any) -> list[dict[str, Any]]:
        found = self._ask(path, list(parameters.items()))
        result = found["result"]
        if found["resultType"] == "scalar":
            return [{"metric": {}, "value": result}]
        assert isinstance(result, list)
        return result

    def _ask(self, path: str, parameters: list[tuple[str, Any]]) -> Any:
        status, answer = request("GET", f"{self.url}/api/v1/{path}?{urlencode(parameters)}")
        assert status == 200, answer
        return answer["data"]


def program(name: str) -> str:
    """Return the path of ``prometheus`` or ``promtool``, or skip the test; in CI that is a failure."""
    found = shutil.which(name)
    if found is None:
        reason = f"no {name}: install Debian's package prometheus"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found
