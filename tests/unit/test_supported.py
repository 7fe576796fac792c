"""An untested version of TensorFlow is refused before any private name of it is used."""

import importlib.util
import pathlib
import sys
import tomllib

import pytest
import tensorflow as tf
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tf_gossip_pga.exchange import runtime, supported

ROOT = pathlib.Path(__file__).parents[2]


def _version(minor: tuple[int, int]) -> str:
    return f"{minor[0]}.{minor[1]}"


def _load_runtime():
    """Execute the module again, without replacing the one that other tests use."""
    spec = importlib.util.spec_from_file_location("runtime_again", runtime.__file__)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize("ending", [".0", ".7", ".1-rc2", ".0-dev20270101", ".0+nv26.1"])
def test_every_release_of_a_tested_minor_version_is_accepted(ending):
    supported.check(_version(supported.OLDEST) + ending)
    supported.check(_version(supported.NEWEST) + ending)


@pytest.mark.parametrize("version", ["1.15.5", "2.9.3", "2.15.1", "2.22.0", "2.22.0-rc0", "3.0.0"])
def test_other_versions_are_refused_with_the_versions_that_are_accepted(version):
    with pytest.raises(ImportError) as caught:
        supported.check(version)
    oldest, newest = _version(supported.OLDEST), _version(supported.NEWEST)
    said = str(caught.value)
    assert f"cannot use TensorFlow {version}: " in said
    assert f"tested with versions {oldest} to {newest} only" in said
    assert f"pip install 'tensorflow>={oldest},<2.22'" in said


def test_an_untested_version_is_refused_before_its_private_names_are_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow.python.eager", None)  # importing it fails
    with pytest.raises(ImportError, match=r"tensorflow\.python\.eager"):
        _load_runtime()
    monkeypatch.setattr(tf, "__version__", "2.22.0")
    with pytest.raises(ImportError, match=r"cannot use TensorFlow 2\.22\.0"):
        _load_runtime()


def test_the_package_requires_the_versions_that_it_accepts():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = {each.name: each.specifier for each in map(Requirement, project["dependencies"])}
    above = (supported.NEWEST[0], supported.NEWEST[1] + 1)
    limits = f">={_version(supported.OLDEST)},<{_version(above)}"
    assert found["tensorflow"] == SpecifierSet(limits)
