"""The rooms import one way, the façade is a table of contents, and importing has no side effect."""

import ast
import doctest
import importlib
import os
import pathlib
import re
import subprocess
import sys

import pytest

import tf_gossip_pga as pga
from tests.support import deadlines

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "tf_gossip_pga"
ROOMS = {  # "topology", and "simulate.problems" for a room of rooms
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
# One row a package: each may import the packages listed with it, and no other. Everything may
# import `errors`, `_log` and `_validate`, which import nothing but the standard library.
BELOW_ALL = {"__version__", "errors", "_log", "_validate"}
MAY_IMPORT = {
    "algorithm": {"tools"},
    "cluster": set(),
    "tools": set(),
    "coordination": {"cluster"},
    "exchange": {"algorithm", "cluster", "coordination"},
    "training": {"algorithm", "cluster", "coordination", "exchange"},
    "checkpoint": {"cluster", "coordination", "exchange", "training"},
    "observe": {"coordination", "exchange", "tools", "training"},
    "plan": {"algorithm", "exchange", "tools"},
    "simulate": {"algorithm", "tools"},
    "launch": {"cluster", "coordination", "tools"},
    "horovod": {"cluster", "exchange", "observe", "training"},
}
WITHOUT_TENSORFLOW = {"algorithm", "coordination", "tools", "launch", "plan"}


def imported(path):
    """Dotted names of all that a file imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "tf_gossip_pga." * bool(node.level) + (node.module or "")
            yield from (f"{base.strip('.')}.{alias.name}" for alias in node.names)


def outside():
    """Every file of the models, of train.py and of the benchmarks."""
    folders = ("models", "job", "benchmarks")
    return [*ROOT.glob("*.py"), *(file for name in folders for file in (ROOT / name).glob("*.py"))]


@pytest.mark.parametrize("room", [room for room in ROOMS if "." in room or room in MAY_IMPORT])
def test_a_package_imports_only_from_packages_above_it(room):
    names = [name.split(".") for name in imported(ROOMS[room])]
    packages = {name[1] for name in names if name[0] == "tf_gossip_pga"}
    own = room.partition(".")[0]
    assert packages <= MAY_IMPORT[own] | BELOW_ALL | {own}


@pytest.mark.parametrize("room", sorted(BELOW_ALL - {"__version__"}))
def test_what_is_below_all_imports_nothing_of_the_package(room):
    tree = ast.parse(ROOMS[room].read_text())
    typing_only = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in node.body
        if isinstance(child, ast.ImportFrom)
        for name in (f"{child.module}.{alias.name}" for alias in child.names)
    }
    names = set(imported(ROOMS[room])) - typing_only
    assert not {name for name in names if name.startswith("tf_gossip_pga")}


def imported_rooms(room):
    """The modules of the package that a module imports when it runs, not only for type checkers."""
    tree = ast.parse(ROOMS[room].read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tf_gossip_pga"):
            base = node.module.removeprefix("tf_gossip_pga").strip(".")
            for alias in node.names:
                name = f"{base}.{alias.name}".strip(".")
                yield name if name in ROOMS else base


def test_no_module_imports_itself_through_others():
    found = {room: set(imported_rooms(room)) & set(ROOMS) - {""} for room in ROOMS}
    assert sum(map(len, found.values())) > 100
    while found:
        free = {room for room, names in found.items() if not names & set(found)}
        assert free, f"a circle among {sorted(found)}"
        found = {room: names for room, names in found.items() if room not in free}


def test_every_package_has_a_row():
    assert set(MAY_IMPORT) == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def test_models_know_nothing_of_the_library():
    names = {name for path in (ROOT / "models").rglob("*.py") for name in imported(path)}
    assert not {name for name in names if name.startswith("tf_gossip_pga")}


# Imports from the right would close a circle: each of these may import those before it.
SIMULATION = ("mixing", "problem", "problems", "tensors", "steps", "simulation", "curves")
SIMULATION += ("figure", "report", "__main__")


def test_the_simulations_rooms_import_one_way():
    base = "tf_gossip_pga.simulate."
    for index, room in enumerate(SIMULATION):
        names = [n for n in imported(ROOMS[f"simulate.{room}"]) if n.startswith(base)]
        assert {name.split(".")[2] for name in names} <= set(SIMULATION[:index])
    assert {f"simulate.{room}" for room in SIMULATION} | {"simulate"} == {
        room for room in ROOMS if room.startswith("simulate")
    }


def test_only_runtime_knows_private_names():
    paths = [*ROOMS.values(), *outside()]
    names = [(path.stem, name) for path in paths for name in imported(path)]
    assert {stem for stem, name in names if name.startswith("tensorflow.python")} == {"runtime"}


def test_of_train_and_benchmarks_only_exchanges_knows_the_engine():
    names = [(path.stem, name) for path in outside() for name in imported(path)]
    found = {stem for stem, name in names if name.startswith("tf_gossip_pga.exchange")}
    assert found == {"exchanges"}


def test_public_names_resolve():
    expected = {"initialize", "Cluster", "GossipPGA", "AdaptivePeriod", "AutoPeriod", "WorkerLost"}
    expected |= {"PREEMPTED", "topology", "Topology", "Checkpoint", "Outer", "plan", "run"}
    expected |= {"simulate", "Report", "TensorBoard", "Timeline"}
    assert set(pga.__all__) == set(dir(pga)) == expected
    assert pga.PREEMPTED == 75
    for name in expected - {"PREEMPTED"}:
        assert getattr(pga, name).__name__.rpartition(".")[2] == name
    with pytest.raises(AttributeError, match="'tf_gossip_pga' has no attribute 'gossip'"):
        pga.gossip  # noqa: B018


def test_the_names_that_a_type_checker_sees_are_those_of_the_contents():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    guarded = {ast.unparse(node.test): node.body for node in tree.body if isinstance(node, ast.If)}
    assert set(guarded) == {"TYPE_CHECKING", "not TYPE_CHECKING"}
    assert [node.name for node in guarded["not TYPE_CHECKING"]] == ["__getattr__"]
    rooms = {alias.name: node.module for node in guarded["TYPE_CHECKING"] for alias in node.names}
    assert sorted(rooms) == sorted(pga.__all__) == sorted(pga._ROOM_OF)
    for name, room in rooms.items():
        assert getattr(importlib.import_module(room), name) is getattr(pga, name)


def test_importing_needs_no_tensorflow():
    rooms = {room for room in ROOMS if room.partition(".")[0] in WITHOUT_TENSORFLOW}
    rooms = {room for room in rooms if not room.endswith("__main__")}
    rooms |= {
        "cluster.detect",
        "cluster.sharding",
        "cluster.tf_config",
        "checkpoint.files",
        "checkpoint.ownership",
        "exchange.wire",
        "horovod",
        "training.preemption",
    }
    light = ", ".join(f"tf_gossip_pga.{room}" for room in sorted(rooms))
    code = f"import sys, {light}; print({{'tensorflow', 'keras'}} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=deadlines.long(),
    )
    assert (done.stdout, done.stderr) == ("set()\n", "")


def undocumented(name, node):
    """Public definitions without a docstring, from a module down to its classes' methods."""
    if not ast.get_docstring(node):
        yield name
    for child in [] if isinstance(node, ast.FunctionDef) else node.body:
        # Keras documents its own hooks, and a property's getter speaks for its setter.
        if (
            isinstance(child, ast.ClassDef | ast.FunctionDef)
            and not child.name.startswith(("_", "on_", "set_model"))
            and not any("setter" in ast.unparse(each) for each in child.decorator_list)
        ):
            yield from undocumented(child.name, child)


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_object_has_a_docstring(room):
    assert not list(undocumented(room, ast.parse(ROOMS[room].read_text())))


EXAMPLES = sorted(room for room, path in ROOMS.items() if ">>> " in path.read_text())
# Their examples connect this process to others or start processes.
IN_A_PROCESS_OF_THEIR_OWN = [
    room
    for room in EXAMPLES
    if re.search(r">>> .*(pga\.(initialize|run)|hvd\.init|initialize)\(", ROOMS[room].read_text())
]
RUN_EXAMPLES = """
import doctest, importlib, sys
for room in sys.argv[1:]:
    failed, attempted = doctest.testmod(importlib.import_module(f"tf_gossip_pga.{room}"))
    assert attempted > 0 and failed == 0, room
"""


@pytest.mark.parametrize("room", sorted({*EXAMPLES} - {*IN_A_PROCESS_OF_THEIR_OWN}))
def test_examples_in_docstrings_are_true(room):
    failed, attempted = doctest.testmod(importlib.import_module(f"tf_gossip_pga.{room}"))
    assert attempted > 0
    assert failed == 0


def test_examples_that_start_the_library_are_true(tmp_path):
    assert {"observe.report", "horovod.optimizer"} < {*IN_A_PROCESS_OF_THEIR_OWN} < {*EXAMPLES}
    ended = subprocess.run(
        [sys.executable, "-c", RUN_EXAMPLES, *IN_A_PROCESS_OF_THEIR_OWN],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=deadlines.long(),
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


# ---- Sizes --------------------------------------------------------------------------------------

MODULE_LINES, CLASS_LINES, FUNCTION_LINES = 450, 250, 60

LIMITED = [*ROOT.glob("*.py"), *ROOMS.values()]
LIMITED += [
    file for name in ("models", "job", "benchmarks") for file in (ROOT / name).rglob("*.py")
]


def lines_of(node) -> int:
    """Lines of a function, or of a class without its docstring."""
    lines = node.end_lineno - node.lineno + 1
    if isinstance(node, ast.ClassDef) and ast.get_docstring(node) is not None:
        lines -= node.body[0].end_lineno - node.body[0].lineno + 1
    return lines


def too_long(text: str):
    """What is longer in a module than it may be: name and lines."""
    if len(text.splitlines()) >= MODULE_LINES:
        yield "module", len(text.splitlines())
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            most = CLASS_LINES - 1
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            most = FUNCTION_LINES
        else:
            continue
        if lines_of(node) > most:
            yield node.name, lines_of(node)


@pytest.mark.parametrize("path", [str(path.relative_to(ROOT)) for path in LIMITED])
def test_modules_classes_and_functions_are_short(path):
    found = dict(too_long((ROOT / path).read_text()))
    assert not found


def test_what_is_too_long_is_found():
    docstring = '"""' + "\n" * 300 + '"""'
    lines = "\n".join(["    x = 1"] * 60)
    assert dict(too_long(f"def f():\n{lines}\n")) == {"f": 61}
    assert dict(too_long(f"async def f():\n{lines}\n    x = 1\n")) == {"f": 62}
    assert not dict(too_long(f"class C:\n    {docstring}\n{lines}\n"))
    assert dict(too_long("class C:\n" + "    x = 1\n" * 249)) == {"C": 250}
    assert dict(too_long("x = 1\n" * 450)) == {"module": 450}


def test_the_package_says_that_it_has_types():
    assert (PACKAGE / "py.typed").exists()
