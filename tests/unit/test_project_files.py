"""The files around the code: decision records, versions, the Makefile's help."""

import csv
import pathlib
import re
import subprocess

import pytest

import tf_gossip_pga as pga
from tests.support import deadlines

ROOT = pathlib.Path(__file__).parents[2]
RECORDS = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_a_decision_record_is_short_and_complete(record):
    lines = record.read_text().splitlines()
    assert len(lines) <= 25
    assert re.fullmatch(rf"# {record.stem[:4]}\. .+", lines[0])
    assert re.fullmatch(r"Date: 20\d\d-\d\d-\d\d", lines[2])
    labels = [match[1] for line in lines if (match := re.match(r"\*\*(\w+)\.\*\* ", line))]
    assert labels in (
        ["Context", "Decision", "Consequences"],
        ["Context", "Decision", "Consequences", "Refused"],
    )


def test_the_build_notes_list_every_record_once_by_its_title():
    line = r"^- \[(\d{4})\]\(docs/decisions/(.+?\.md)\) (.+)$"
    listed = re.findall(line, (ROOT / "BUILD_NOTES.md").read_text(), re.M)
    titles = [path.read_text().partition("\n")[0] for path in RECORDS]
    assert [name for _, name, _ in listed] == [path.name for path in RECORDS]
    assert [f"# {number}. {title}" for number, _, title in listed] == titles


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_raw_results_are_tables():
    tables = sorted((ROOT / "docs" / "results").glob("*.csv"))
    assert tables
    for path in tables:
        with path.open(newline="") as file:
            header, *rows = csv.reader(file)
        assert len(set(header)) == len(header) and rows, path
        assert {len(row) for row in rows} == {len(header)}, path


@pytest.mark.parametrize("name", ["CHANGELOG.md", "CITATION.cff"])
def test_files_name_the_version(name):
    newest = re.search(
        r"^(?:## \[|version: )(\d.*?)\]?(?: - .*)?$", (ROOT / name).read_text(), re.M
    )
    assert newest and newest[1] == pga.__version__


def test_make_help_lists_every_target():
    phony = re.search(r"^\.PHONY: (.*(?:\\\n.*)*)", (ROOT / "Makefile").read_text(), re.M)
    assert phony
    done = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=deadlines.long(),
        check=True,
    )
    listed = [line.split()[0] for line in done.stdout.splitlines()]
    assert sorted(listed) == sorted(phony[1].replace("\\\n", " ").split())
