"""The rooms import one way, the façade is a table of contents, and importing has no side effect."""

import ast
import doctest
import importlib
import pathlib
import subprocess
import sys

import pytest

import tf_gossip_pga as pga

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "tf_gossip_pga"
ROOMS = {  # "topology", and "simulate.problems" for a room of rooms
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
LEFT = {"topology", "schedule", "cluster"}
PLAIN = LEFT | {
    "channel",
    "launch",
    "memory",
    "output",
    "plan",
    "preemption",
    "screen",
    "store",
    "wire",
}  # without TensorFlow
MAY_IMPORT = {  # a room that is not named here: no other room
    "topology": {"memory"},
    "launch": {"cluster", "screen"},
    "agreement": {"__version__"},
    "watch": {"channel"},
    "membership": {"channel", "watch"},
    "guest": {"channel", "watch"},
    "collectives": LEFT | {"channel", "devices", "guest", "membership", "watch"},
    "averaging": LEFT | {"bucket", "collectives", "wire"},
    "own": {"store"},
    "cost": {"topology"},
    "probe": {"averaging", "collectives", "topology"},
    "plan": {"collectives", "cost", "output", "probe", "schedule", "topology", "wire"},
    "checkpoint": {
        "agreement",
        "callback",
        "collectives",
        "own",
        "preemption",
        "store",
        "watch",
    },
    "callback": LEFT
    | {"collectives", "averaging", "agreement", "membership", "preemption", "wire"},
    "simulate": {"memory", "output", "simulate", "topology", "schedule"},
}


def imported(path):
    """Dotted names of all that a file imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "tf_gossip_pga." * bool(node.level) + (node.module or "")
            yield from (f"{base.strip('.')}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_its_left(room):
    names = [name.split(".") for name in imported(ROOMS[room])]
    rooms = {".".join(name[1:2]) for name in names if name[0] == "tf_gossip_pga"}
    assert rooms <= MAY_IMPORT.get(room.partition(".")[0], set())


def test_models_know_nothing_of_the_library():
    names = {name for path in (ROOT / "models").rglob("*.py") for name in imported(path)}
    assert not {name for name in names if name.startswith("tf_gossip_pga")}


# Imports from the right would close a circle: each of these may import those before it.
SIMULATION = ("mixing", "problems", "simulation", "curves", "figure", "__main__")


def test_the_simulations_rooms_import_one_way():
    base = "tf_gossip_pga.simulate."
    for index, room in enumerate(SIMULATION):
        names = [n for n in imported(ROOMS[f"simulate.{room}"]) if n.startswith(base)]
        assert {name.split(".")[2] for name in names} <= set(SIMULATION[:index])
    assert {f"simulate.{room}" for room in SIMULATION} | {"simulate"} == {
        room for room in ROOMS if room.startswith("simulate")
    }


def test_only_collectives_knows_private_names():
    outside = [path for folder in ("models", "benchmarks") for path in (ROOT / folder).glob("*.py")]
    paths = [*ROOMS.values(), *outside, *ROOT.glob("*.py")]
    names = [(path.stem, name) for path in paths for name in imported(path)]
    assert {stem for stem, name in names if name.startswith("tensorflow.python")} == {"collectives"}


def test_public_names_resolve():
    expected = {"initialize", "Cluster", "GossipPGA", "AdaptivePeriod", "WorkerLost"}
    expected |= {"topology", "Topology", "Checkpoint", "plan", "simulate"}
    assert set(pga.__all__) == set(dir(pga)) == expected
    for name in pga.__all__:
        assert getattr(pga, name).__name__.removeprefix("tf_gossip_pga.") == name
    with pytest.raises(AttributeError, match="'tf_gossip_pga' has no attribute 'gossip'"):
        pga.gossip  # noqa: B018


def test_importing_needs_no_tensorflow():
    light = ", ".join(f"tf_gossip_pga.{room}" for room in sorted(PLAIN))
    code = f"import sys, {light}; print({{'tensorflow', 'keras'}} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
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


@pytest.mark.parametrize(
    "room", sorted(LEFT | {"plan", "store", "simulate.problems", "simulate.curves"})
)
def test_examples_in_docstrings_are_true(room):
    failed, attempted = doctest.testmod(importlib.import_module(f"tf_gossip_pga.{room}"))
    assert attempted > 0
    assert failed == 0
