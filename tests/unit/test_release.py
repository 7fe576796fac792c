"""What is released agrees with itself: requirements, extras, the image."""

import fnmatch
import pathlib
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def _pins(name: str) -> dict[str, str]:
    """Return the versions that a file of requirements installs, by package."""
    found = re.findall(r"(?m)^([\w.-]+)(?:\[\w+\])?==([\w.]+)", (ROOT / name).read_text())
    return {canonicalize_name(package): version for package, version in found}


def _limits(requirements: list[str]) -> dict[str, Requirement]:
    """Return requirements by package, without those of this package on its own extras."""
    found = {canonicalize_name(each.name): each for each in map(Requirement, requirements)}
    found.pop("tf-gossip-pga", None)
    return found


PINS = _pins("requirements.txt")
REQUIRED = _limits(PROJECT["dependencies"])


@pytest.mark.parametrize("extra", ["notebook", "plot", "train", "test", "docs"])
def test_the_pinned_environment_satisfies_an_extra(extra):
    pins = PINS | _pins("docs/requirements.txt")
    for name, requirement in _limits(EXTRAS[extra]).items():
        assert requirement.specifier.contains(pins[name]), requirement


def test_the_pinned_environment_has_only_what_the_package_or_an_extra_needs():
    needed = set(REQUIRED).union(*(_limits(each) for each in EXTRAS.values()))
    assert needed >= set(PINS)
    assert all(each.specifier.contains(PINS[name]) for name, each in REQUIRED.items())


def test_every_requirement_has_a_lower_limit():
    everything = [*PROJECT["dependencies"], *(each for extra in EXTRAS.values() for each in extra)]
    for requirement in _limits(everything).values():
        assert any(each.operator == ">=" for each in requirement.specifier), requirement


def test_every_extra_is_in_the_reference():
    page = (ROOT / "docs" / "reference" / "versions.md").read_text()
    assert re.findall(r"(?m)^\| `(\w+)` \|", page) == sorted(EXTRAS)


# ---- The image ----------------------------------------------------------------------------------

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def _instructions(name: str) -> list[str]:
    return re.findall(rf"(?m)^{name} (.+)$", DOCKERFILE)


def test_what_the_image_copies_exists_and_is_sent_to_the_builder():
    copies = [line.split()[:-1] for line in _instructions("COPY") if "--from=" not in line]
    sources = [source for line in copies for source in line]
    rules = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert rules[0] == "*"
    assert sorted(sources) == sorted(rule[1:] for rule in rules if rule.startswith("!"))
    for source in sources:
        assert (ROOT / source).exists()
        assert not any(fnmatch.fnmatch(source, rule) for rule in rules[1:] if rule[0] != "!")


def test_the_image_builds_with_all_files_that_pyproject_names():
    named = {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml", "tf_gossip_pga"}
    assert named == {
        source
        for line in _instructions("COPY")
        if "--from=" not in line
        for source in line.split()[:-1]
    }


def test_the_image_has_the_pinned_versions():
    installed = dict(re.findall(r"([\w-]+)==([\w.]+)", DOCKERFILE))
    assert installed == {name: PINS[name] for name in REQUIRED}


def test_the_image_has_a_supported_python_and_no_root():
    bases = {line.partition(" AS ")[0] for line in _instructions("FROM")}
    assert bases == {"python:3.11-slim"}  # the Python of requirements.txt
    assert "Programming Language :: Python :: 3.11" in PROJECT["classifiers"]
    last = DOCKERFILE.rpartition("FROM ")[2]
    assert re.search(r"(?m)^USER (?!root)\w+$", last)
    assert last.index("useradd") < last.index("\nUSER ") < last.index("\nCMD ")
