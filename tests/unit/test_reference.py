"""docs/reference is complete and true: every event, setting and option of the code is there, and nothing else."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from typer.core import TyperOption

from understudy.bootstrap.__main__ import app
from understudy.bootstrap.same_run import ENTERED_AT_FOUNDING
from understudy.protocol.manifest import RunManifest
from understudy.protocol.presets import PRESETS, preset
from understudy.protocol.run_toml import parse_run_toml

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def rows(text: str) -> list[list[str]]:
    """The cells of every row of every Markdown table, the rules between head and body left out."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in cells if set("".join(row)) != {"-"}]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def section(text: str, heading: str) -> str:
    """What stands under a heading of the second rank."""
    return text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


# --- events ------------------------------------------------------------------------------------

EMITTERS = {"emit", "emit_about", "Emit", "_emit", "_emit_origin", "_say", "_note_own"}
"""The functions of the code that are given an event's name."""
STANDING = {"peer", "step", "stage", "incarnation"}
"""Fields that every line may have: they stand above the table."""


def emitted() -> dict[str, set[str]]:
    """Every event that the code can write -> the fields that it is given by name where it is written."""
    found: dict[str, set[str]] = defaultdict(set)
    for package in ("protocol", "node", "bootstrap"):
        for path in (ROOT / package).rglob("*.py"):
            for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2] in EMITTERS:
                    fields = {word.arg for word in call.keywords if word.arg is not None}
                    for name in event_names(call):
                        found[name] |= fields - STANDING
    return found


def event_names(call: ast.Call) -> set[str]:
    constants = [part.value for argument in call.args for part in ast.walk(argument) if isinstance(part, ast.Constant)]
    return {value for value in constants if isinstance(value, str) and re.fullmatch(r"[a-z]+\.[a-z_]+", value)}


def documented_events() -> dict[str, set[str]]:
    text = (REFERENCE / "events.md").read_text(encoding="utf-8")
    return {name: set(quoted(row[1])) for row in rows(text) for name in quoted(row[0])}


def test_every_event_of_the_code_is_documented_and_no_other() -> None:
    assert len(emitted()) > 30, "the functions that write events have new names"
    assert set(emitted()) == set(documented_events())


def test_every_field_of_an_event_is_documented() -> None:
    told = documented_events()
    assert {name: fields - told[name] for name, fields in emitted().items() if fields - told[name]} == {}


# --- run.toml ----------------------------------------------------------------------------------

EXAMPLES = {"source", "dataset", "revision", "tokenizer", "tokenizer_revision", "end_of_text"}
"""Keys that a streamed text must name: the reference shows them with a value that is no default."""


def flat(tables: dict[str, Any]) -> dict[str, Any]:
    """Every setting by its dotted name."""
    found: dict[str, Any] = {}
    for name, value in tables.items():
        found |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    return found


def settings_of(manifest: RunManifest) -> dict[str, Any]:
    """Those that a person may write."""
    entered = ENTERED_AT_FOUNDING - {"data.digest"}
    found = flat(msgspec.json.decode(manifest.encode()))
    return {name: value for name, value in found.items() if name not in entered and not name.startswith("initial.")}


def run_toml_blocks() -> list[dict[str, Any]]:
    text = (REFERENCE / "run-toml.md").read_text(encoding="utf-8")
    return [tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL)]


def test_every_setting_is_documented_with_its_default() -> None:
    plain, streamed = run_toml_blocks()
    shown = flat(plain)
    assert shown.pop("data.paths") == [], "the founder's own files: a run.toml names them, a manifest does not"
    for key, value in streamed["data"].items():
        shown.setdefault(f"data.{key}", "" if key in EXAMPLES else value)
    assert shown == settings_of(RunManifest(name=plain["name"]))


def test_the_run_toml_of_the_readme_is_one() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert parse_run_toml(block, "README").files.texts


def test_every_preset_is_documented_as_it_is() -> None:
    head, *body = rows(section((REFERENCE / "run-toml.md").read_text(encoding="utf-8"), "Presets"))
    assert tuple(quoted(" ".join(head))) == PRESETS
    known = [{**settings_of(preset(name)), "name": ""} for name in PRESETS]
    differing = {name for name, value in known[0].items() if any(other[name] != value for other in known)}
    told = {quoted(row[0])[0]: [float(value) for value in row[1:]] for row in body}
    assert told == {name: [float(settings[name]) for settings in known] for name in differing}


# --- commands ----------------------------------------------------------------------------------


def documented_options(heading: str) -> dict[str, tuple[str, str]]:
    """Option -> its default and its variable, as the table says."""
    _, *body = rows(section((REFERENCE / "commands.md").read_text(encoding="utf-8"), heading))
    return {row[0].strip("`").split()[0]: (row[1].strip("`").strip(), row[2].strip("`")) for row in body}


def default_of(option: TyperOption) -> str:
    """What happens if it is left out, where that is a value and not a word."""
    return "" if option.is_flag or option.default is None else str(option.default).strip()


def test_every_command_is_documented() -> None:
    headings = re.findall(
        r"^## understudy (\w+)$", (REFERENCE / "commands.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert set(headings) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_documented_with_its_default_and_its_variable(command: str) -> None:
    options = [option for option in COMMANDS[command].params if isinstance(option, TyperOption) and not option.hidden]
    assert documented_options(f"understudy {command}") == {
        option.opts[0]: (default_of(option), str(option.envvar or "")) for option in options
    }


def test_every_option_of_the_command_itself_is_documented() -> None:
    assert set(documented_options("understudy")) == {
        option for parameter in typer.main.get_command(app).params for option in parameter.opts
    }
