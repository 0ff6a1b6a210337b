"""The documentation as `make docs` builds it: complete, every link leads somewhere, no network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.support.browser import browse

ROOT = Path(__file__).resolve().parents[2]
# What a browser fetches by itself, as opposed to where a reader may go.
FETCHED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}


class Html(HTMLParser):
    """What a page of HTML refers to.

    Attributes:
        anchors: the places in it that can be gone to.
        links: what it refers to, and whether a browser fetches that by itself.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors = {"", "__top"}
        self.links: list[tuple[str, bool]] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name in ("id", "name"):
                self.anchors.add(value)
            elif name in ("href", "src"):
                self.links.append((value, (tag, name) in FETCHED))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors."""
    directory = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(directory)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return directory


@pytest.mark.slow
def test_every_link_leads_somewhere(site: Path) -> None:
    """Pages, places in pages, pictures, styles, scripts; and nothing is fetched from elsewhere."""
    pages = {path: Html(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 20
    followed = 0
    for path, page in pages.items():
        for link, fetched in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                assert not fetched, (path, link)
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), (path, link)
            if target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, (path, link)
            followed += 1
        assert not re.search(r"&amp;(lt|gt|amp|#124);|\\\|", path.read_text("utf-8")), path  # escaped twice
    assert followed > 1000
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", style.read_text("utf-8")), style


@pytest.mark.slow
def test_it_is_read_from_disk(site: Path, tmp_path: Path, no_leaks: None) -> None:
    """A page opened as a file finds what is searched for, complains of nothing, and asks no network."""
    found = "document.querySelectorAll('.md-search-result__item').length > 3"
    seen = browse(site / "operating.html", tmp_path / "profile", query="q=journal", until=found)
    assert seen.complaints == []
    assert [url for url in seen.requests if not url.startswith("file:")] == []
    assert (
        "the journal, and how a consumer goes without holes"
        in re.sub("</?mark[^>]*>", "", seen.dom).lower()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["index", "operating", "reference/commands", "reference/api"])
def test_it_fits_a_narrow_window(site: Path, tmp_path: Path, name: str) -> None:
    """What is wide scrolls in itself."""
    seen = browse(site / f"{name}.html", tmp_path / "profile", width=420)
    assert seen.width <= 420
