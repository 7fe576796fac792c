"""Checkpoints on disk: complete or not there, whatever kills the writer or touches the files."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import hypothesis
import pytest
from hypothesis import strategies

from tests.support import deadlines
from tf_gossip_pga.checkpoint import files as files_lib

CONTENT = {"epoch": 3, "state": {"step": 12, "period": None}}


def _checkpoint(store, **files) -> int:
    """Writes a checkpoint of these files; its number."""
    number = store.unused_number()
    entries = {
        name: store.write(number, name, lambda path, data=data: path.write_bytes(data))
        for name, data in files.items()
    }
    store.finish(number, CONTENT, entries)
    store.prune(number)
    return number


def _read(store, number: int) -> dict[str, bytes]:
    """All files of a checkpoint, held against the manifest."""
    files = store.read(number)["files"]
    return {name: store.checked(number, name, files).read_bytes() for name in files}


@pytest.fixture
def store(tmp_path):
    return files_lib.CheckpointFiles(tmp_path / "new" / "checkpoints", keep=3)


def test_what_was_written_is_read(store):
    number = _checkpoint(store, a=b"one", b=b"")
    assert store.complete() == [number] == [1]
    assert _read(store, number) == {"a": b"one", "b": b""}
    manifest = store.read(number)
    assert {name: manifest[name] for name in CONTENT} == CONTENT
    assert sorted(path.name for path in store.folder(number).iterdir()) == [
        "a",
        "b",
        "manifest.json",
    ]
    # What `sha256sum` says of it.
    ours = manifest["files"]["a"]
    assert ours["bytes"] == 3
    assert ours["sha256"].startswith("7692c3ad3540bb803c020b3aee66cd88")


def test_the_newest_stay(store):
    for _ in range(5):
        _checkpoint(store, a=b"x")
    assert store.complete() == store.numbers() == [5, 4, 3]


def test_a_file_of_the_run_is_replaced_and_stays(store):
    for text in ("old", "new"):
        store.write_of_run("cluster.json", text)
    for _ in range(5):
        _checkpoint(store, a=b"x")
    store.forget("cluster.json", kept=())
    store.discard(5)
    assert (store.directory / "cluster.json").read_text() == "new"
    assert store.complete() == [4, 3]


def test_a_file_of_the_run_replaces_a_link_and_does_not_follow_it(store, tmp_path):
    other = tmp_path / "other"
    other.write_text("other")
    for name in ("cluster.json", ".partial-cluster.json"):
        (store.directory / name).symlink_to(other)
    store.write_of_run("cluster.json", "new")
    assert (store.directory / "cluster.json").read_text() == "new"
    assert [path.name for path in store.directory.iterdir()] == ["cluster.json"]
    assert other.read_text() == "other"


def test_an_unfinished_one_is_no_checkpoint_and_takes_no_place(store):
    for _ in range(3):
        _checkpoint(store, a=b"x")
    number = store.unused_number()
    store.write(number, "a", lambda path: path.write_bytes(b"y"))
    assert store.complete() == [3, 2, 1]
    with pytest.raises(files_lib.CheckpointError, match=r"000004/manifest.json cannot be read"):
        store.read(number)
    assert _checkpoint(store, a=b"z") == 5  # a number is not used again
    assert store.numbers() == [5, 3, 2]


def test_a_write_that_fails_leaves_what_is_complete(store):
    number = _checkpoint(store, a=b"old")

    def fail(path):
        path.write_bytes(b"ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.write(store.unused_number(), "a", fail)
    assert store.complete() == [number]
    assert _read(store, number) == {"a": b"old"}


def test_a_rank_with_a_disk_of_its_own_forgets_its_own_files(store):
    for number in (1, 2, 3):
        store.write(number, "rank-1.npz", lambda path: path.write_bytes(b"1"))
    store.write(2, "rank-0.npz", lambda path: path.write_bytes(b"0"))
    store.forget("rank-1.npz", {3})
    assert store.numbers() == [3, 2]
    assert [path.name for path in store.folder(2).iterdir()] == ["rank-0.npz"]


def test_a_directory_that_vanishes_is_made_again(store):
    _checkpoint(store, a=b"x")
    shutil.rmtree(store.directory)
    assert store.complete() == []
    assert _read(store, _checkpoint(store, a=b"y")) == {"a": b"y"}


def test_a_directory_that_cannot_be_written_to_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        files_lib.CheckpointFiles(tmp_path / "file", keep=1)


# ---- Links, and what is no file ------------------------------------------------------------------


def test_what_a_link_points_to_is_neither_read_nor_removed(store, tmp_path):
    for _ in range(3):
        _checkpoint(store, a=b"x")
    elsewhere = store.folder(1).rename(tmp_path / "elsewhere")
    store.folder(1).symlink_to(elsewhere)
    _checkpoint(store, a=b"y")
    store.discard(1)
    store.forget("a", {2, 3, 4})
    assert sorted(path.name for path in elsewhere.iterdir()) == ["a", "manifest.json"]
    assert store.complete() == [4, 3, 2, 1]  # a link takes no other's place
    with pytest.raises(files_lib.CheckpointError, match="it is a link, and links are not followed"):
        store.read(1)
    assert store.unused_number() == 5


@pytest.mark.parametrize("name", ["a", "manifest.json"])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.symlink_to(path.parent / "other"), "it is a link, and links are not"),
        (lambda path: path.symlink_to(path), "it is a link, and links are not followed"),
        (os.mkfifo, "it is not a regular file"),
        (lambda path: path.mkdir(), "it is not a regular file"),
    ],
)
def test_only_regular_files_are_opened(store, name, make, words):
    number = _checkpoint(store, a=b"x", other=b"x")
    files = store.read(number)["files"]
    path = store.folder(number) / name
    path.unlink()
    make(path)
    assert store.complete() == [number]
    with pytest.raises(files_lib.CheckpointError, match=rf"{name} cannot be read: {words}"):
        store.read(number)
        store.checked(number, name, files)


def test_a_partial_file_that_is_a_link_is_not_written_through(store, tmp_path):
    (tmp_path / "precious").write_text("x")
    store.folder(1).mkdir(parents=True)
    (store.folder(1) / ".partial-a").symlink_to(tmp_path / "precious")
    store.write(1, "a", lambda path: path.write_bytes(b"a"))
    assert (tmp_path / "precious").read_text() == "x"
    assert not (store.folder(1) / "a").is_symlink()


@pytest.mark.parametrize("name", ["../checkpoint-000001/a", "/etc/passwd", "b/a"])
def test_a_file_that_lies_elsewhere_is_an_error(store, name):
    number = _checkpoint(store, a=b"x")
    entry = store.read(number)["files"]["a"]
    with pytest.raises(files_lib.CheckpointError, match="which is a path and not a file name"):
        store.checked(number, name, {name: entry})


def test_huge_numbers_are_counted_on(store):
    (store.directory / "checkpoint-999999999999999999").mkdir(parents=True)
    assert _checkpoint(store, a=b"x") == 10**18
    assert store.complete() == [10**18]


# ---- Damage -------------------------------------------------------------------------------------


def test_every_flipped_bit_and_every_truncation_is_an_error_that_names_the_file(store):
    number = _checkpoint(store, weights=bytes(range(64)), own=b"\x00" * 16)
    tried = 0
    for path in store.folder(number).iterdir():
        intact = path.read_bytes()
        damaged = [intact[:length] for length in range(len(intact))]
        damaged += [intact + b"\x00", intact + b"\n"]
        for place, byte in enumerate(intact):
            for bit in range(8):
                flipped = bytes([byte ^ (1 << bit)])
                damaged.append(intact[:place] + flipped + intact[place + 1 :])
        for data in damaged:
            path.write_bytes(data)
            with pytest.raises(files_lib.CheckpointError) as error:
                _read(store, number)
            assert str(path) in str(error.value)
            assert "is damaged: " in str(error.value)
        tried += len(damaged)
        path.write_bytes(intact)
    assert tried > 4000
    _read(store, number)


@pytest.mark.parametrize("name", ["weights", "manifest.json"])
def test_a_missing_file_is_an_error_that_names_it(store, name):
    number = _checkpoint(store, weights=b"x")
    (store.folder(number) / name).unlink()
    with pytest.raises(files_lib.CheckpointError, match=rf"{name} cannot be read: No such file"):
        _read(store, number)


def test_a_file_that_the_manifest_does_not_name_is_an_error(store):
    number = _checkpoint(store, weights=b"x")
    with pytest.raises(files_lib.CheckpointError, match="is not listed in its manifest"):
        store.checked(number, "other", store.read(number)["files"])


def test_another_format_is_an_error(store, monkeypatch):
    monkeypatch.setattr(files_lib, "_FORMAT", 2)
    number = _checkpoint(store, weights=b"x")
    monkeypatch.undo()
    with pytest.raises(
        files_lib.CheckpointError, match="but this version of the package reads format 1"
    ):
        store.read(number)


SCALARS = (
    strategies.none()
    | strategies.booleans()
    | strategies.floats()
    | strategies.integers()
    # Not surrogates: no file holds them.
    | strategies.text(strategies.characters(codec="utf-8"), max_size=20)
)
NAMES = strategies.sampled_from(["a", "bytes", "sha256"]) | strategies.text(max_size=8)
INNER = SCALARS | strategies.lists(SCALARS, max_size=4) | strategies.dictionaries(NAMES, SCALARS)
JSON = INNER | strategies.lists(INNER, max_size=4) | strategies.dictionaries(NAMES, INNER)


@hypothesis.settings(max_examples=300)
@hypothesis.given(
    strategies.binary(max_size=200)
    | JSON.map(lambda value: json.dumps(value).encode())
    | strategies.integers(1, 30_000).map(lambda depth: b"[" * depth)
    | strategies.dictionaries(
        strategies.sampled_from(["format", "files", "epoch", "sha256"]), JSON
    ).map(lambda content: files_lib._manifest({"format": 1, **content}))
)
@hypothesis.example(b'{"format": 1, "files": {}, "sha256": "' + b"0" * 64 + b'"}')
@hypothesis.example(b"\xff\xfe")
@hypothesis.example(b"9" * 5000)
def test_no_manifest_is_worse_than_an_error(tmp_path_factory, text):
    store = files_lib.CheckpointFiles(tmp_path_factory.mktemp("store", numbered=True), keep=1)
    folder = store.folder(1)
    folder.mkdir()
    (folder / "manifest.json").write_bytes(text)
    (folder / "a").write_bytes(b"a")
    with pytest.raises(files_lib.CheckpointError, match="checkpoint-000001"):
        # Those with a digest of their own may be read, but no file is as they say.
        store.checked(1, "a", store.read(1).get("files"))


# ---- Killed writers -----------------------------------------------------------------------------

# Children write checkpoints in a loop and are killed at random moments; whatever they leave behind,
# the newest complete one must be whole, and no older than what a child had completed.
KILLS = """
import os, random, signal, sys, time
from tf_gossip_pga.checkpoint import files as files_lib

kills, directory = int(sys.argv[1]), sys.argv[2]
random = random.Random(0)

def data(number, name):
    return f"{name} of {number};".encode() * 5000

def write(store):
    number = store.unused_number()
    def save(path):
        with path.open("wb") as file:
            for part in range(8):
                file.write(data(number, path.name[-1])[part::8])
                os.write(progress, b".")
    files = {name: store.write(number, name, save) for name in ("a", "b")}
    store.finish(number, {"number": number}, files)
    store.prune(number)

def check(store, number):
    manifest = store.read(number)
    assert manifest["number"] == number
    for name in ("a", "b"):
        path = store.checked(number, name, manifest["files"])
        assert path.read_bytes() == b"".join(data(number, name)[part::8] for part in range(8))

store = files_lib.CheckpointFiles(directory, keep=2)
progress = os.open(os.devnull, os.O_WRONLY)
write(store)
unfinished, completed = 0, [store.complete()[0]]
for _ in range(kills):
    seen, progress = os.pipe()
    child = os.fork()
    if not child:
        while True:
            write(store)
    for _ in range(random.randrange(40)):  # parts, of which a checkpoint has 16
        os.read(seen, 1)
    time.sleep(random.uniform(0, 0.005))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(seen)
    os.close(progress)
    complete = store.complete()
    assert complete[0] >= completed[-1]
    for number in complete:
        check(store, number)
    unfinished += complete != store.numbers()
    completed.append(complete[0])
progress = os.open(os.devnull, os.O_WRONLY)
write(store)
assert len(store.numbers()) == 2  # what the dead have left is gone
print(unfinished, completed[-1])
"""


def test_a_writer_that_is_killed_a_hundred_times_always_leaves_a_whole_checkpoint(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", KILLS, "100", str(tmp_path)],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=deadlines.long(),
    )
    assert ended.returncode == 0, ended.stderr
    unfinished, last = map(int, ended.stdout.split())
    # Kills did come in the middle of a write, and between them some were completed.
    assert unfinished > 20, ended.stdout
    assert last > 50, ended.stdout
