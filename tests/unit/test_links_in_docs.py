"""What the pages point to is there: links and their anchors, files of the tree, classes and their methods."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob(".github/**/*.md"), *ROOT.glob("docs/**/*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
PRESENT = [name for name in NAMES if name != "CHANGELOG.md" and not name.startswith("docs/decisions/")]
"""Pages that speak of the tree as it is; the others keep what was true on their day."""

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
SOURCE = re.compile(r"(?<![\w/])(?:protocol|node|bootstrap|benchmarks|tests|unit|sim|swarm)/[\w./-]*\w\.(?:py|toml)\b")
METHOD = re.compile(r"`([A-Z]\w*)\.(\w+)`")


@cache
def prose(page: Path) -> str:
    """The text without its fenced blocks: what stands there is no link and no heading."""
    return re.sub(r"^( *)```.*?^\1```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@cache
def anchors(page: Path) -> frozenset[str]:
    """Of its headings, as GitHub makes them: a heading that comes twice gets a number."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in HEADING.findall(prose(page)):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return frozenset(found)


@cache
def members() -> dict[str, set[str]]:
    """Class -> its methods, fields and attributes, in the whole tree."""
    found: dict[str, set[str]] = defaultdict(set)
    for package in ("protocol", "node", "bootstrap", "benchmarks", "tests"):
        for path in (ROOT / package).rglob("*.py"):
            for part in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(part, ast.ClassDef):
                    found[part.name] |= set(named_within(part))
    return found


def named_within(part: ast.ClassDef) -> list[str]:
    names = []
    for inner in ast.walk(part):
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
            names.append(inner.name)
        elif isinstance(inner, ast.Name | ast.Attribute) and isinstance(inner.ctx, ast.Store):
            names.append(inner.id if isinstance(inner, ast.Name) else inner.attr)
    return names


def test_there_are_pages_and_links() -> None:
    assert {"README.md", "docs/architecture.md", "docs/reference/events.md"} <= set(NAMES)
    assert sum(len(LINK.findall(prose(page))) for page in PAGES) > 100


@pytest.mark.parametrize("name", NAMES)
def test_every_relative_link_leads_somewhere(name: str) -> None:
    page = ROOT / name
    dead = []
    for target in LINK.findall(prose(page)):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            dead.append(target)
    assert dead == []


@pytest.mark.parametrize("name", PRESENT)
def test_every_source_file_that_a_page_names_is_there(name: str) -> None:
    """From the root of the tree, or, of tests, from their folder."""
    named = set(SOURCE.findall((ROOT / name).read_text(encoding="utf-8")))
    assert {path for path in named if not (ROOT / path).exists() and not (ROOT / "tests" / path).exists()} == set()


@pytest.mark.parametrize("name", PRESENT)
def test_every_method_of_ours_that_a_page_names_is_there(name: str) -> None:
    """Of classes that are ours: others' (`P2P.create`) are theirs to rename."""
    named = set(METHOD.findall((ROOT / name).read_text(encoding="utf-8")))
    assert {f"{owner}.{what}" for owner, what in named if owner in members() and what not in members()[owner]} == set()
