"""The documents agree with the code: names, environment variables, links; without Sphinx."""

import ast
import pathlib
import pkgutil
import re

import numpy as np
import pytest

import tf_gossip_pga as pga
from docs.extension import contents, docstrings, facts, links, packages, topologies
from tf_gossip_pga import errors, horovod, plan, simulate
from tf_gossip_pga.algorithm import topology

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
REFERENCE = "\n".join(page.read_text() for page in sorted((DOCS / "reference").glob("*.md")))

# ---- The reference ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", pga.__all__)
def test_every_public_name_is_in_the_reference(name):
    assert re.search(rf"auto\w+:: tf_gossip_pga\.{name}\b", REFERENCE)


@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        ("topology", set(topology.__all__) - {"Topology"}),
        ("plan", set(plan.__all__)),
        ("simulate", set(simulate.__all__)),
        ("horovod", set(horovod.__all__) - {"Average", "Max", "Min", "Sum"}),  # in the text
    ],
)
def test_every_name_of_a_public_module_is_in_the_reference(prefix, names):
    found = set(re.findall(rf":: tf_gossip_pga\.{prefix}\.(\w+)", REFERENCE))
    assert names <= found


def test_the_reference_names_nothing_that_does_not_exist():
    for path in set(re.findall(r"auto\w+:: (tf_gossip_pga[.\w]+)", REFERENCE)):
        assert pkgutil.resolve_name(path) is not None


# ---- Environment variables ----------------------------------------------------------------------

_VARIABLE = re.compile(r"[A-Z][A-Z0-9]+(_[A-Z0-9]+)*|no(_grpc)?_proxy|OMPI_MCA_orte_hnp_uri")
_SOURCES = [ROOT / "train.py", ROOT / "tests" / "conftest.py"]
_SOURCES += [
    file
    for folder in ("tf_gossip_pga", "job", "models", "benchmarks", "tests/support")
    for file in (ROOT / folder).rglob("*.py")
]
TREES = {file: ast.parse(file.read_text()) for file in _SOURCES}


def constants(tree):
    """Names of a module that stand for a text, or for a dict whose keys are texts."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            value = node.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield ast.unparse(target), [value.value]
            elif isinstance(value, ast.Dict):
                keys = [key.value for key in value.keys if isinstance(key, ast.Constant)]
                yield ast.unparse(target), keys


CONSTANTS = {name: texts for tree in TREES.values() for name, texts in constants(tree)}


def keys_of_environment(tree):
    """The expressions with which a module looks into the environment, or adds to it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and is_environment(node.value):
            yield node.slice
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            looks_up = node.func.attr in ("get", "setdefault", "pop")
            if (looks_up and is_environment(node.func.value)) or node.func.attr == "getenv":
                yield from node.args[:1]
        elif isinstance(node, ast.Call) and node.args and is_environment(node.args[0]):
            # A function that takes the environment and names: whole(environment, "RANK", size).
            yield from (key for arg in node.args[1:] for key in variables_in(arg))
        elif isinstance(node, ast.Compare) and is_environment(node.comparators[0]):
            yield node.left
        elif isinstance(node, ast.Dict) and any(
            key is None and is_environment(value)
            for key, value in zip(node.keys, node.values, strict=True)
        ):
            yield from (key for key in node.keys if key is not None)


def variables_in(node):
    """The names of variables, or constants with them, among a function's argument."""
    for each in node.elts if isinstance(node, ast.Tuple) else [node]:
        is_text = isinstance(each, ast.Constant) and isinstance(each.value, str)
        is_constant = ast.unparse(each).rpartition(".")[2].isupper()
        if is_constant or (is_text and _VARIABLE.fullmatch(each.value)):
            yield each


def is_environment(node):
    return ast.unparse(node).rpartition(".")[2] in ("environ", "environment")


def names_in(tree):
    """The environment variables of one module."""
    own = dict(constants(tree))
    for key in keys_of_environment(tree):
        text = ast.unparse(key)
        if isinstance(key, ast.Constant):
            yield key.value
        elif text.rpartition(".")[2].isupper():  # a constant, of this module or of another
            yield from own.get(text) or CONSTANTS[text.rpartition(".")[2]]
        else:  # a loop over the keys of a dict of this module
            found = [each for texts in own.values() for each in texts if _VARIABLE.fullmatch(each)]
            assert found, f"which environment variable is {text}?"
            yield from found


def test_every_environment_variable_is_in_the_reference():
    page = (DOCS / "reference" / "environment.md").read_text()
    documented = set(re.findall(r"`([A-Za-z0-9_]+)`", page))
    documented = {name for name in documented if _VARIABLE.fullmatch(name)}
    known = {name for tree in TREES.values() for name in names_in(tree)}
    assert len(known) > 20
    assert documented == known


# ---- Links --------------------------------------------------------------------------------------

_IGNORED = {".venv", "build", "output", "node_modules", links.GENERATED, ".pytest_cache"}
PAGES = [
    path
    for path in ROOT.rglob("*.md")
    if not any(part in _IGNORED or part.startswith(".") for part in path.relative_to(ROOT).parts)
]
_FENCE = re.compile(r"(?ms)^ *(```+|:::+).*?^ *\1 *$")
_LINK = re.compile(r"\]\(<?([^()\s>]*)>?\)")


def prose(text):
    """A page without its code."""
    return re.sub(r"`[^`\n]+`", "code", _FENCE.sub("", text))


def anchors(text):
    """The anchors of a page's headings, as GitHub and MyST make them."""
    for heading in re.findall(r"(?m)^#+ (.*)$", _FENCE.sub("", text)):
        plain = re.sub(r"[^\w\- ]", "", heading.strip().lower())
        yield plain.replace(" ", "-")


@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in PAGES])
def test_relative_links_lead_somewhere(page):
    path = ROOT / page
    for target in _LINK.findall(prose(path.read_text())):
        if re.match(r"[a-z]+:", target):  # another host
            continue
        file, _, anchor = target.partition("#")
        found = path.parent / file if file else path
        assert found.exists(), f"{page} links to {target}"
        if anchor and found.suffix == ".md":
            assert anchor in set(anchors(found.read_text())), f"{page} links to {target}"


def test_pages_were_found():
    names = {page.relative_to(ROOT).as_posix() for page in PAGES}
    assert {"README.md", "docs/index.md", "docs/protocol.md"} <= names


# ---- The site's own code ------------------------------------------------------------------------


def converted(text):
    return docstrings.to_rst(text).splitlines()


def test_sections_of_docstrings_are_kept_but_for_what_napoleon_misreads():
    text = "Args:\n  n: ranks, of which\n    there are several.\n\nReturns:\n  The `Cluster`: it."
    assert converted(text) == [
        *("Args:", "  n: ranks, of which", "    there are several.", ""),
        ":returns: The `Cluster`: it.",
    ]


def test_blocks_of_code_in_docstrings_are_marked():
    assert converted("So:\n\n    x_i <- x_i * 2\n\n    x_j <- 0") == [
        *("So:", "", ".. code-block:: text", ""),
        *("    x_i <- x_i * 2", "", "    x_j <- 0"),
    ]
    assert converted("So::\n\n  x = 1\n\nEnd.") == [
        *("So:", "", ".. code-block:: python", "", "    x = 1", "", "End.")
    ]


def test_examples_and_tables_in_docstrings_are_kept():
    example = ["Example:", "  The `sum`:", "", "  >>> x_ = 1 | 2  # `one`", "  >>> x_", "  3"]
    assert converted("\n".join(example)) == example
    table = ["====  ====", "`x`   (a)", "y     (1)", "====  ===="]
    assert converted("\n".join(table)) == [*table[:2], "y     \\(1)", table[-1]]


def test_names_in_docstrings_are_marked():
    assert converted("Mix `x_i`s with `W[i, j] * x`.") == ["Mix `x_i`\\ s with ``W[i, j] * x``."]
    assert converted("See `pga.topology.ring()`.") == [
        "See :py:obj:`pga.topology.ring() <tf_gossip_pga.topology.ring>`."
    ]


def test_documents_in_docstrings_are_links():
    assert converted("See docs/protocol.md, SECURITY.md.") == [
        "See :doc:`/protocol`, :doc:`/_generated/pages/security`."
    ]


def test_text_in_docstrings_means_itself():
    assert converted("Of |x| and x_ and *args, **bold**.") == [
        "Of \\|x\\| and x\\_ and \\*args, **bold**."
    ]


def test_lists_in_docstrings_are_kept():
    bullets = ["- one,", "  and more.", "- two: three.", "  four."]
    assert converted("\n".join(bullets)) == bullets
    assert converted("\n".join(["These:", *bullets])) == ["These:", "", *bullets]


def test_a_list_after_text_in_a_docstring_becomes_a_list():
    assert converted("Added are\n  first: one,\n    and more.\n  second: two.") == [
        *("Added are", "", "- ``first``: one,", "  and more.", "- ``second``: two.")
    ]


def test_the_map_of_packages_shows_the_imports():
    imports = packages.imports_of(ROOT)
    assert imports["simulate"] == {"algorithm", "tools"}
    assert packages.levels(imports)["cluster"] == 0
    assert packages.direct({"a": {"b", "c"}, "b": {"c"}, "c": set()})["a"] == {"b"}
    for name in imports:
        assert f">{name}</text>" in packages.picture(imports)


def test_packages_in_a_circle_have_no_map():
    with pytest.raises(ValueError, match=r"import one another: \['a', 'b'\]"):
        packages.levels({"a": {"b"}, "b": {"a"}, "c": set()})


def test_the_disagreement_left_is_that_of_the_mixing_matrices():
    # A ring of 4: beta = 1/3. One-peer exponential: |1 + i| / 2, then the exact average.
    assert np.allclose(list(topologies.left_over(topology.ring(4), 2)), [1, 1 / 3, 1 / 9])
    one_peer = list(topologies.left_over(topology.one_peer_exponential(4), 3))
    assert np.allclose(one_peer, [1, 0.5**0.5, 0, 0])


def test_every_topology_has_a_picture_on_the_page():
    page = (DOCS / "concepts" / "algorithm.md").read_text()
    assert set(topology.BY_NAME) <= set(re.findall(r"\{picture\} (\w+)", page))


def test_facts_come_from_the_code():
    assert facts.tree(errors.GossipError).splitlines()[0] == "GossipError"
    assert "WorkerLost (RuntimeError)" in facts.tree(errors.GossipError)
    assert "ExchangeBroken" not in facts.tree(errors.GossipError)
    assert "| `silent_s` | 15 s |" in facts.timing()
    assert "| Python | >=3.11 |" in facts.requires(ROOT)


def test_every_page_is_in_the_contents():
    found = dict(contents.parts(ROOT))["contents.md"]
    pages = {
        path.relative_to(DOCS).with_suffix("").as_posix() for path in PAGES if DOCS in path.parents
    }
    missing = {page for page in pages if f"/{page}\n" not in found}
    assert {page for page in missing if not page.startswith("decisions/")} == {"index"}


def test_links_to_files_outside_of_the_site():
    text = "[s](../../SECURITY.md#x), [t](../../train.py), [p](../protocol.md), [n](none.md)"
    assert links.rewritten(text, DOCS / "concepts", DOCS) == (
        "[s](/_generated/pages/security.md#x), `t`, [p](../protocol.md), [n](none.md)"
    )
    assert links.rewritten("[p](docs/protocol.md)", ROOT, DOCS) == "[p](/protocol.md)"
