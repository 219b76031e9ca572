"""Walk through the built site: ``python docs/walk.py docs/_build/html``.

Links, pictures and fragments are checked by reading the pages. Where Chromium is installed, every
page is opened in it as well: none may write anything to the console, and the search has to
find each estimator.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import skvdd

ESTIMATORS = sorted(name for name in skvdd.__all__ if name[0].isupper())
# Chromium writes all that pages say with one level. The theme tells what it does.
CONSOLE = re.compile(r":CONSOLE:\d+\] (?!\"\[PST\]|\"Got invalid theme mode: \.)(.*)")


class Page(HTMLParser):
    """What a page has (``names``) and what it asks for (``references``)."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.references: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Note identifiers, and whatever is loaded or linked to."""
        for key, value in attributes:
            if value and (key == "id" or (tag, key) == ("a", "name")):
                self.names.add(value)
            elif value and key in {"href", "src"}:
                self.references.append(value)


def pages_of(site: Path) -> list[Path]:
    """Return the pages of a site; those in ``_static`` are templates of the theme."""
    return [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]


def broken_links(site: Path) -> Iterator[str]:
    """Say which files and fragments a page refers to that are not there."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in pages_of(site)}
    for path, page in pages.items():
        for reference in page.references:
            url = urlsplit(reference)
            if url.scheme or url.netloc:
                continue
            target = path if not url.path else (path.parent / unquote(url.path)).resolve()
            name = path.relative_to(site)
            if not target.exists():
                yield f"{name}: {reference} does not exist"
            elif (
                url.fragment
                and target in pages
                and unquote(url.fragment) not in pages[target].names
            ):
                yield f"{name}: {reference} has no such fragment"


def chromium() -> str | None:
    """Return the path of Chromium, if it is installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


def opened(browser: str, url: str) -> tuple[str, list[str]]:
    """Open a page; return what it has become, and what it wrote to the console."""
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--allow-file-access-from-files",
            f"--user-data-dir={profile}",
            "--virtual-time-budget=5000",
            "--enable-logging=stderr",
            "--dump-dom",
            url,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, CONSOLE.findall(done.stderr)


def complaints(site: Path, browser: str) -> Iterator[str]:
    """Open every page; say what the console said, and what the search does not find."""
    pages = pages_of(site)
    with ThreadPoolExecutor(2) as pool:
        for path, (_, said) in zip(
            pages, pool.map(lambda page: opened(browser, page.as_uri()), pages), strict=True
        ):
            yield from (f"{path.relative_to(site)}: {line}" for line in said)
        searches = [f"{(site / 'search.html').as_uri()}?q={name}" for name in ESTIMATORS]
        for name, (html, _) in zip(
            ESTIMATORS, pool.map(lambda url: opened(browser, url), searches), strict=True
        ):
            if not re.search(rf"generated/skvdd\.(\w+\.)*{name}\.html", html):
                yield f"search: {name} is not found"


def main() -> int:
    """Print what is wrong; return 1 if anything is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("site", type=Path, help="folder of the built site")
    site = parser.parse_args().site.resolve()
    wrong = list(broken_links(site))
    browser = chromium()
    if browser is None:
        print("Chromium is not installed: the pages were read, but not opened.")
    else:
        wrong += complaints(site, browser)
    print(*wrong, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
