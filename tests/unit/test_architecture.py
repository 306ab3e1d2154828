"""The shape of the code: who imports whom, and what nobody does."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
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
    "config", "data/training_data", "links/framing", "links/link", "links/network",
    "export/generation", "export/shards",
}  # fmt: skip
"""Who names torch's types outside of node/compute, which computes with them. Nobody else knows of it."""

HUB = {"datasets", "huggingface_hub", "pyarrow", "fsspec"}
"""The packages of the extra `hf`, which a node may lack."""

COMMAND_LINES = {"bootstrap/__main__.py", "bootstrap/invite_commands.py", "node/__main__.py", "node/process.py"}


LINES_MAX = 300
"""Of a module: beyond it there are two ideas in one file."""


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
    "printable": set(),
    "manifest_reader": {"errors", "manifest", "printable"},
    "run_toml": {"errors", "manifest", "manifest_reader"},
    "presets": {"errors", "manifest", "manifest_reader"},
    "wire": {"errors", "ids", "manifest"},
    # Who may take part: asked by the shell before anything comes to the core.
    "admission": {"errors", "ids", "wire"},
    "jobs": {"ids", "wire"},
    "events": {"ids", "jobs", "wire"},
    # How peers get to each other: the shell asks it, the rest of the core knows nothing of addresses.
    "reach": {"events", "ids", "wire"},
    "actions": {"ids", "jobs", "wire"},
    "pace": {"events", "ids", "jobs"},
    "seal": {"ids"},
    # Whom the view of the swarm consists of, and what follows from it: pure, so the shared board may hold it.
    "membership/placement": {"ids", "wire"},
    "membership/seats": {"ids", "membership/placement", "wire"},
    "membership/titles": {"ids"},
    "membership/credit": {"ids"},
    "membership/groups": {"ids", "membership/placement", "membership/seats", "membership/titles"},
    "membership/view": {
        "ids", "manifest", "membership/credit", "membership/groups", "membership/placement", "membership/seats",
    },
    # The shared board of one node: all parts below read and write it.
    "node_state": {
        "actions", "errors", "ids", "jobs", "manifest", "membership/seats", "membership/view", "pace", "routing",
        "seal", "text_check", "wire",
    },
    "membership": {
        "actions", "errors", "ids", "membership/groups", "membership/placement", "membership/seats", "node_state",
        "wire",
    },
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
    # What is held of stages: like an export it observes steps, and knows nothing of hosts or claims.
    "standby": {
        "actions", "events", "ids", "jobs", "manifest", "membership/placement", "node_state", "pipeline/observer",
        "pipeline/queue", "wire",
    },
    # Builds a stage, so it knows the hosts, and who observes their steps: exports are one of them.
    "recovery": {
        "actions", "errors", "events", "export", "ids", "jobs", "manifest", "membership", "membership/placement",
        "membership/seats", "node_state", "pipeline", "pipeline/observer", "pipeline/queue", "routing", "standby",
        "wire",
    },
    # Asserted after every event: it looks into all parts, and no part knows of it.
    "invariants": {
        "actions", "errors", "export", "ids", "jobs", "node_state", "pipeline", "pipeline/queue", "recovery", "standby",
        "wire",
    },
    # For people: it looks at everything, and of protocol/ only the core looks at it.
    "observe": {
        "events", "ids", "manifest", "membership", "membership/placement", "membership/seats", "node_state", "recovery",
        "wire",
    },
    "core": {
        "actions", "errors", "events", "ids", "invariants", "jobs", "manifest", "membership", "membership/view",
        "node_state", "observe", "pipeline", "recovery", "seal", "wire",
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
    is_carrier = name in {f"node/{module}.py" for module in CARRIERS}
    assert name.startswith("node/compute/") or is_carrier == ("torch" in packages(name))


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
        "node/compute/thread.py",
        "node/compute/worker.py",
        "node/data/prefetch.py",
        "node/data/streamed.py",
    }


@pytest.mark.parametrize("name", NAMES)
def test_uvloop_is_chosen_in_one_place(name: str) -> None:
    assert "uvloop" not in packages(name) or name == "node/cli.py"


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


# --- who imports whom in node/ and bootstrap/ ----------------------------------------------------

NODE_IMPORTS = {
    # Below: they know of nothing else here.
    "files": set(),
    "process": {"files"},
    # Carriers: bytes, not what they mean.
    "p2p": {"files"},
    # Who is let in: handed to those who open the network.
    "admission": {"p2p"},
    "dht": {"admission", "p2p"},
    "links": {"p2p", "compute"},
        # Work: knows of no carrier.
    "data": {"files"},
    "compute": {"data"},
    # For people. The picture shows what the links counted.
    "ui": {"links", "data"},
    # Carriers again: how this peer is opened, said to whoever sits in front of it.
    "reach": {"p2p", "dht", "ui"},
    "doctor": {"files", "p2p", "dht", "joining", "reach"},
    # The machine's own settings, and the way into a run.
    "config": {"p2p", "data"},
    "join_file": {"files", "p2p"},
    "joining": {"p2p", "dht", "ui"},
    "health": {"p2p"},
    # Who joins carriers and work: the runtime, the command lines, and the export, which is a program of its own.
    "runtime": {"config", "dht", "links", "compute", "data", "reach", "ui"},
    "cli": {"files", "process", "p2p"},
    "__main__": {
        "admission", "cli", "process", "config", "join_file", "joining", "p2p", "dht", "compute", "data", "reach", "ui",
        "runtime",
    },
    "export": {
        "admission", "files", "p2p", "dht", "links", "compute", "data", "ui", "cli", "process", "config", "join_file",
        "joining",
    },
}  # fmt: skip
"""Of each package and module of node/ the others that it imports: no more, and no fewer. No need is no permission."""

LINKS_KNOW_OF_COMPUTE = {"tensors", "weights", "weights_buffer", "parts", "standby", "thread"}
"""Bytes go from the line into tensors and back without a copy between, so links/ names those that hold them, what a
stage's part must hold, what a difference that came is added to, and the thread that digests it. Nothing else that
computes."""

ABOVE_EXPORT = {"command", "generate_command"}
"""The command lines of the export, which alone of it know of command lines."""

BOOTSTRAP_IMPORTS = {
    "swarm_view": set(),
    "same_run": set(),
    "founding": set(),
    "doctor": set(),
    "seed": {"founding"},
    "invites": set(),
    "inviting": {"founding", "invites", "seed"},
    "invite_commands": {"inviting"},
    "begin": {"founding", "same_run"},
    "status": {"swarm_view"},
    "local": {"founding", "swarm_view"},
    "__main__": {"begin", "doctor", "founding", "invite_commands", "inviting", "local", "seed", "status"},
}
"""The same for bootstrap/: what is about processes on this machine, local/, is known to the command line alone."""


def unit_of(name: str) -> str:
    """The package within its folder at the top, or the module that stands there alone."""
    return name.split("/")[1].removesuffix(".py")


def units_imported(top: str) -> dict[str, set[str]]:
    """Of each package and module in a folder at the top the others there that it imports, also for types alone."""
    found: dict[str, set[str]] = {unit_of(name): set() for name in of(top)}
    for name in of(top):
        others = {unit_of(other) for other in ours_among(imported(tree_of(name))) if other.startswith(f"{top}/")}
        found[unit_of(name)] |= others - {unit_of(name)}
    del found["__init__"]
    return found


def test_the_packages_of_a_node_import_what_they_should() -> None:
    assert units_imported("node") == NODE_IMPORTS


def test_the_modules_of_bootstrap_import_what_they_should() -> None:
    assert units_imported("bootstrap") == BOOTSTRAP_IMPORTS


def test_the_links_know_of_tensors_and_not_of_what_is_computed() -> None:
    named = {other for name in of("node") if unit_of(name) == "links" for other in import_graph()[name]}
    assert {name for name in named if unit_of(name) == "compute"} == {
        f"node/compute/{module}.py" for module in LINKS_KNOW_OF_COMPUTE
    }


@pytest.mark.parametrize("name", [name for name in of("node") if unit_of(name) == "export"])
def test_only_a_command_line_knows_of_command_lines(name: str) -> None:
    knows = {unit_of(other) for other in import_graph()[name]} & {"cli", "process", "join_file"}
    assert not knows or name in {f"node/export/{module}.py" for module in ABOVE_EXPORT}


# --- no cycles -----------------------------------------------------------------------------------


def run_time_imports(part: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """At whatever depth: a function that imports only postpones. What only a type checker reads does not count."""
    if isinstance(part, ast.Import | ast.ImportFrom):
        yield part
    is_for_types = isinstance(part, ast.If) and ast.unparse(part.test) == "TYPE_CHECKING"
    for child in part.orelse if is_for_types else ast.iter_child_nodes(part):  # type: ignore[attr-defined]
        yield from run_time_imports(child)


def ours_among(modules: Collection[str]) -> set[str]:
    """The files of ours that these modules are."""
    paths = {module.removeprefix("understudy.").replace(".", "/") for module in modules}
    return {name for path in paths for name in (f"{path}.py", f"{path}/__init__.py") if name in NAMES}


def import_graph() -> dict[str, set[str]]:
    """Of each file the files that it imports."""
    return {name: ours_among(imported(ast.Module(list(run_time_imports(tree_of(name))), []))) for name in NAMES}


def find_cycle(graph: Mapping[str, Collection[str]]) -> list[str]:
    """Names of which each imports the next, and the last is the first again; empty if there is no such thing."""
    done: set[str] = set()

    def search(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph[name]):
            if cycle := search(other, [*way, name]):
                return cycle
        done.add(name)
        return []

    return next(filter(None, (search(name, []) for name in sorted(graph))), [])


def test_no_module_imports_itself_by_a_detour() -> None:
    assert find_cycle(import_graph()) == []


def test_a_detour_is_found() -> None:
    assert find_cycle({"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": []}) == []
    assert find_cycle({"a": ["b"], "b": ["c", "d"], "c": [], "d": ["b"]}) == ["b", "d", "b"]
    assert find_cycle({"a": ["a"]}) == ["a", "a"]


def test_an_import_within_a_function_counts_and_one_for_types_does_not() -> None:
    text = """
if TYPE_CHECKING:
    import one
else:
    import two
def late():
    with suppress():
        from three import four
"""
    assert imported(ast.Module(list(run_time_imports(ast.parse(text))), [])) == {"two", "three", "three.four"}
    assert ours_among({"understudy.node.dht", "understudy.node.dht.store", "node.dht.no_such_module"}) == {
        "node/dht/__init__.py",
        "node/dht/store.py",
    }


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
def test_a_module_can_be_read_in_one_go(name: str) -> None:
    """Or says at its top why not."""
    reason = "above 300 lines, because"
    is_short = len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= LINES_MAX
    assert is_short or reason in " ".join((ast.get_docstring(tree_of(name)) or "").split())


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
