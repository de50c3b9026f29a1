"""What a built site must keep: links and anchors lead somewhere, nothing comes from the network, every public name is
there.

    python docs/_site/check.py docs/_build/html
"""

import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The ids, the links, and what the browser fetches by itself, of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids |= {value for key in ("id", "name") if (value := given.get(key))}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"] or "")
        if tag in ("script", "img", "iframe", "source", "video") and given.get("src"):
            self.fetched.append(given["src"] or "")
        if tag == "link" and given.get("href") and given.get("rel") != "canonical":
            self.fetched.append(given["href"] or "")


def faults(site: Path, names: set[str]) -> list[str]:
    """Everything that is wrong with the site, a sentence each."""
    pages = {path: Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        here = path.relative_to(site)
        found += [
            f"{here} fetches {src} from the network"
            for src in page.fetched
            if src.startswith(("http:", "https:", "//"))
        ]
        local = [src for src in page.fetched if not urlsplit(src).scheme and not src.startswith("//")]
        for link in page.links + local:
            found += [f"{here}: {why}" for why in _broken(link, path, pages, site)]
    missing = sorted(names - objects(site))
    return found + [f"{name} has no page in the reference" for name in missing]


def _broken(link: str, path: Path, pages: dict[Path, Page], site: Path) -> list[str]:
    """Why a link of a page leads nowhere, if it does."""
    parts = urlsplit(link)
    if parts.scheme or link.startswith("//"):
        return []
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not target.exists():
        return [f"{link} leads to no file"]
    anchor = unquote(parts.fragment)
    if anchor and target in pages and anchor not in pages[target].ids:
        return [f"{link}: there is no such anchor"]
    return []


def objects(site: Path) -> set[str]:
    """The names that the site's inventory lists."""
    data = (site / "objects.inv").read_bytes()
    body = data.split(b"\n", 4)[4]
    return {line.split(" ")[0] for line in zlib.decompress(body).decode().splitlines() if " py:" in line}


def public_names() -> set[str]:
    """Every public name of the front door and of its rooms, by the place it is known at first."""
    import importlib
    import inspect

    import reference

    seen, names = set(), set()
    for place in ("sdegen", *(f"sdegen.{room}" for room in reference.ROOMS)):
        module = importlib.import_module(place)
        for name in reference.public(module):
            thing = getattr(module, name)
            if not inspect.ismodule(thing) and id(thing) not in seen:
                seen.add(id(thing))
                names.add(f"{place}.{name}")
    return names


def main(arguments: list[str]) -> int:
    site = Path(arguments[0]).resolve()
    found = faults(site, public_names())
    print(*found, sep="\n")
    print(f"{site}: {len(list(site.rglob('*.html')))} pages, {len(found)} faults")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
