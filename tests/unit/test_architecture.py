"""The shape of the code: who imports whom, and what nobody does."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for package in ("protocol", "node", "bootstrap") for path in (ROOT / package).rglob("*.py"))
TESTS = sorted(path for folder in ("unit", "sim") for path in (ROOT / "tests" / folder).rglob("*.py"))

NAMES = [str(path.relative_to(ROOT)) for path in SOURCES]

IMPURE = {
    "torch", "numpy", "hivemind", "asyncio", "time", "datetime", "random", "secrets", "threading", "multiprocessing",
    "socket", "subprocess", "logging", "os", "pathlib", "node", "bootstrap", "tests",
}  # fmt: skip
"""What protocol/ must not know of: everything that has a clock, a thread, a file or a mind of its own."""

CARRIERS = {
    "runtime", "config", "data/corpus", "data/streamed", "links/framing", "links/link", "links/network",
    "links/transfer", "export/folder", "export/generation", "export/initial_weights", "export/shards",
}  # fmt: skip
"""Who names torch's types outside of node/compute, which computes with them. Nobody else knows of it."""

HUB = {"datasets", "huggingface_hub", "pyarrow", "fsspec"}
"""The packages of the extra `hf`, which a node may lack."""

COMMAND_LINES = {"bootstrap/__main__.py", "node/__main__.py", "node/process.py"}


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(encoding="utf-8"), name)


def imported(tree: ast.Module) -> set[str]:
    """Every module that is imported, at whatever depth of the file."""
    found: set[str] = set()
    for part in ast.walk(tree):
        if isinstance(part, ast.Import):
            found |= {alias.name for alias in part.names}
        elif isinstance(part, ast.ImportFrom):
            assert part.level == 0, "imports are absolute"
            found |= {part.module or "", *(f"{part.module}.{alias.name}" for alias in part.names)}
    return found


def packages(name: str) -> set[str]:
    """The packages that are imported; ours by the names of their folders."""
    return {module.removeprefix("understudy.").partition(".")[0] for module in imported(tree_of(name))}


def calls(name: str) -> Iterator[str]:
    """The dotted name of everything that is called."""
    for part in ast.walk(tree_of(name)):
        if isinstance(part, ast.Call):
            yield ast.unparse(part.func)


def of(package: str) -> list[str]:
    return [name for name in NAMES if name.startswith(f"{package}/")]


def test_there_is_something_to_look_at() -> None:
    assert of("protocol")
    assert of("node")


@pytest.mark.parametrize("name", of("protocol"))
def test_the_core_is_pure(name: str) -> None:
    assert not packages(name) & IMPURE


# --- the layers of protocol/ ---

LAYERS: dict[str, set[str]] = {
    "ids": set(),
    "errors": set(),
    "text_check": set(),
    "routing": {"ids"},
    "manifest": {"ids"},
    "manifest_reader": {"errors", "manifest"},
    "presets": {"errors", "manifest", "manifest_reader"},
    "wire": {"errors", "ids", "manifest"},
    "jobs": {"ids", "wire"},
    "events": {"ids", "jobs", "wire"},
    "actions": {"ids", "jobs", "wire"},
    "pace": {"events", "ids", "jobs"},
    # Whom the view of the swarm consists of, and what follows from it: pure, so the shared board may hold it.
    "membership/placement": {"ids", "wire"},
    "membership/seats": {"ids", "membership/placement", "wire"},
    "membership/view": {"ids", "manifest", "membership/placement", "membership/seats"},
    # The shared board of one node: all parts below read and write it.
    "node_state": {
        "actions", "errors", "ids", "jobs", "manifest", "membership/seats", "membership/view", "pace", "routing",
        "text_check", "wire",
    },
    "membership": {"actions", "errors", "ids", "membership/placement", "membership/seats", "node_state", "wire"},
    # A stage's jobs and the steps that others may follow: all that an export has to know of training.
    "pipeline/observer": set(),
    "pipeline/queue": {"ids", "jobs"},
    "pipeline": {
        "actions", "errors", "events", "ids", "jobs", "manifest", "node_state", "pipeline/observer", "pipeline/queue",
        "routing", "wire",
    },
    "export": {
        "actions", "errors", "events", "ids", "jobs", "manifest", "membership/placement", "node_state",
        "pipeline/observer", "pipeline/queue", "wire",
    },
    # Builds a stage, so it knows the hosts, and who observes their steps: exports are one of them.
    "recovery": {
        "actions", "events", "export", "ids", "jobs", "manifest", "membership", "membership/placement",
        "membership/seats", "node_state", "pipeline", "pipeline/observer", "pipeline/queue", "routing", "wire",
    },
    # For people: it looks at everything, and of protocol/ only the core looks at it.
    "observe": {
        "ids", "manifest", "membership", "membership/placement", "membership/seats", "node_state", "recovery", "wire",
    },
    "core": {
        "actions", "errors", "events", "ids", "jobs", "manifest", "membership", "membership/view", "node_state",
        "observe", "pipeline", "recovery", "wire",
    },
}  # fmt: skip
"""What each part of protocol/ imports of the others: all that it may, and all above it. The most exact name counts."""


def layer(module: str) -> str | None:
    """The part of protocol/ that a file or an imported name belongs to; None if to none, as the packages themselves."""
    path = module.removesuffix(".py").removeprefix("understudy.").replace(".", "/")
    parts = path.removeprefix("protocol/").split("/")
    if not path.startswith("protocol/") or parts[-1] == "__init__":
        return None
    return next((name for name in ("/".join(parts[:2]), parts[0]) if name in LAYERS), None)


def layers_imported(name: str) -> set[str]:
    return {found for module in imported(tree_of(name)) if (found := layer(module)) is not None}


@pytest.mark.parametrize("name", of("protocol"))
def test_each_part_of_the_core_imports_what_its_layer_may(name: str) -> None:
    own = layer(name)
    assert own is not None or name.endswith("__init__.py"), "a part of protocol/ that no layer is known of"
    assert layers_imported(name) <= (LAYERS[own] | {own} if own is not None else set())


def test_a_layer_imports_only_those_above_it() -> None:
    """So there is no circle, and a part can be read with those above it alone."""
    known: set[str] = set()
    for name, above in LAYERS.items():
        assert above <= known, f"{name} imports {above - known}, which is not above it"
        known.add(name)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_may_import_no_more_than_it_does(name: str) -> None:
    used = {found for path in of("protocol") if layer(path) == name for found in layers_imported(path)}
    assert used - {name} == LAYERS[name]


@pytest.mark.parametrize("name", NAMES)
def test_hivemind_stands_behind_one_boundary(name: str) -> None:
    assert "hivemind" not in packages(name) or name == "node/dht/hivemind_dht.py"


@pytest.mark.parametrize("name", NAMES)
def test_torch_stays_with_the_weights(name: str) -> None:
    is_compute = name.startswith("node/compute/")
    assert "torch" not in packages(name) or is_compute or name in {f"node/{module}.py" for module in CARRIERS}


@pytest.mark.parametrize("name", NAMES)
def test_what_may_be_missing_is_imported_where_it_is_needed(name: str) -> None:
    readers = {f"node/data/{module}.py" for module in ("hf_dataset", "rows", "streamed_file", "tokenizer")}
    assert not packages(name) & HUB or name in readers
    at_once = [part for part in tree_of(name).body if isinstance(part, ast.Import | ast.ImportFrom)]
    assert not {module.partition(".")[0] for module in imported(ast.Module(list(at_once), []))} & HUB


@pytest.mark.parametrize("name", NAMES)
def test_threads_are_for_computing_and_for_reading(name: str) -> None:
    threads = {"threading", "concurrent", "multiprocessing", "queue"}
    assert not packages(name) & threads or name in {
        "node/compute/worker.py",
        "node/data/prefetch.py",
        "node/data/streamed.py",
    }


@pytest.mark.parametrize("name", NAMES)
def test_uvloop_is_chosen_in_one_place(name: str) -> None:
    assert "uvloop" not in packages(name) or name == "node/__main__.py"


@pytest.mark.parametrize("name", of("protocol") + of("node"))
def test_nothing_imports_bootstrap(name: str) -> None:
    assert "bootstrap" not in packages(name)


@pytest.mark.parametrize("name", NAMES)
def test_we_are_imported_by_our_installed_names(name: str) -> None:
    """A folder ./node in the current directory must not be mistaken for ours."""
    assert not {module.partition(".")[0] for module in imported(tree_of(name))} & {"protocol", "node", "bootstrap"}


@pytest.mark.parametrize("name", NAMES)
def test_nothing_imports_tests(name: str) -> None:
    assert "tests" not in packages(name)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_from_the_network_is_unpickled(name: str) -> None:
    assert not packages(name) & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}


@pytest.mark.parametrize("name", NAMES)
def test_nobody_evaluates_text_or_kills_at_large(name: str) -> None:
    forbidden = {"eval", "exec", "os.kill", "os.killpg", "os.system", "torch.load"}
    assert not forbidden & set(calls(name))


@pytest.mark.parametrize("name", NAMES)
def test_only_a_command_line_prints_and_exits(name: str) -> None:
    assert name in COMMAND_LINES or not {"print", "sys.exit", "exit", "quit"} & set(calls(name))


@pytest.mark.parametrize("name", NAMES)
def test_no_exception_is_caught_blindly(name: str) -> None:
    for part in ast.walk(tree_of(name)):
        if isinstance(part, ast.ExceptHandler):
            assert part.type is not None, f"{name}:{part.lineno} catches everything"
            is_passed_on = isinstance(part.body[-1], ast.Raise)
            assert is_passed_on or ast.unparse(part.type) != "BaseException", f"{name}:{part.lineno} ends it all"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_global(name: str) -> None:
    assert not [part for part in ast.walk(tree_of(name)) if isinstance(part, ast.Global)]


OWNERS = {"node/dht/hivemind_dht.py": 1}
"""How many tasks belong to an object instead of a TaskGroup: hivemind's start must outlive a cancelled caller."""


@pytest.mark.parametrize("name", NAMES)
def test_every_task_has_an_owner(name: str) -> None:
    ownerless = {"asyncio.create_task", "asyncio.ensure_future", "loop.create_task"}
    assert sum(call in ownerless for call in calls(name)) == OWNERS.get(name, 0)


@pytest.mark.parametrize("name", NAMES)
def test_every_module_says_what_it_is(name: str) -> None:
    assert ast.get_docstring(tree_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_text_files_are_not_in_whatever_encoding_this_machine_has(name: str) -> None:
    for part in ast.walk(tree_of(name)):
        if isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute):
            is_text = part.func.attr in {"read_text", "write_text"}
            assert not is_text or "encoding" in {word.arg for word in part.keywords}, f"{name}:{part.lineno}"


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_tests_do_not_sleep_or_skip(path: Path) -> None:
    called = set(calls(str(path.relative_to(ROOT))))
    assert not {"time.sleep", "pytest.skip", "pytest.mark.skip", "pytest.mark.skipif", "pytest.importorskip"} & called
