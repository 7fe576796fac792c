"""Who may write to a directory of checkpoints: one job at a time, and of it the newest view."""

import dataclasses
import json
import os
import re
import threading
import time

import pytest

from tests.support import deadlines
from tf_gossip_pga.checkpoint import files as files_lib
from tf_gossip_pga.checkpoint import ownership
from tf_gossip_pga.checkpoint.ownership import Ownership, Process
from tf_gossip_pga.errors import CheckpointError

HERE = Process.this(0)


def _alive(rank: int) -> Process:
    """A process of this machine that runs; told apart from this one by its rank."""
    return dataclasses.replace(HERE, rank=rank)


def _dead(rank: int) -> Process:
    """A process of this machine whose number another one has by now."""
    return dataclasses.replace(HERE, rank=rank, started=HERE.started + 1)


def _elsewhere(rank: int) -> Process:
    return dataclasses.replace(HERE, rank=rank, host="far", machine="another boot", pid=7)


def _take(owner: Ownership, run: str, view: int, *processes: Process):
    offers = [{"run": run, "process": dataclasses.asdict(each)} for each in processes]
    owner.take(offers, view, tuple(each.rank for each in processes))


@pytest.fixture(autouse=True)
def of_no_run(monkeypatch):
    """This process belongs to no run yet, and to none of these tests' afterwards."""
    monkeypatch.setattr(ownership, "_runs", {})


@pytest.fixture
def begun(tmp_path):
    """Makes an `Ownership` of the directory for a fit that begins."""
    made = []

    def begin() -> Ownership:
        made.append(Ownership(tmp_path))
        made[-1].begin(lambda: True)
        return made[-1]

    yield begin
    for each in made:
        each.release()


def _claims(folder) -> list[str]:
    return sorted(path.name for path in (folder / "owner").iterdir())


# ---- Two jobs -----------------------------------------------------------------------------------


def test_a_living_job_keeps_the_directory_until_its_fit_ends(tmp_path, begun):
    first, second = begun(), begun()
    _take(first, "a", 0, _alive(1), _dead(2))
    since = json.loads((tmp_path / "owner" / "000001.json").read_text())["since"]
    who = f"process {HERE.pid} on {HERE.host} \\(rank 1\\), since {since}"
    words = f"is in use by another job: {who}. Wait until that job has ended"
    with pytest.raises(CheckpointError, match=words):
        _take(second, "b", 0, _alive(3))
    with pytest.raises(CheckpointError, match="belongs to another job"):
        second.check()
    first.check()
    first.release()
    _take(second, "b", 0, _alive(3))
    assert _claims(tmp_path) == ["000002.json"]
    second.check()


def test_a_dead_job_keeps_nothing(tmp_path, begun):
    _take(begun(), "a", 0, _dead(0), _dead(1))
    second = begun()
    _take(second, "b", 0, _alive(0))
    second.check()


def test_a_job_that_was_overtaken_writes_no_more_even_after_the_other_has_ended(begun):
    first, second = begun(), begun()
    _take(first, "a", 0, _dead(0))  # as it looks from a machine that cannot see it
    _take(second, "b", 0, _dead(1))
    second.release()
    with pytest.raises(CheckpointError, match=r"now belongs to another job: .* no longer writes"):
        _take(first, "a", 0, _dead(0))
    with pytest.raises(CheckpointError, match="now belongs to another job"):
        first.check()
    first.begin(lambda: True)  # the next fit begins from scratch
    _take(first, "a", 0, _dead(0))
    first.check()


def test_elsewhere_a_sign_of_life_decides(tmp_path, begun, monkeypatch, capsys):
    first, second = begun(), begun()
    _take(first, "a", 0, _elsewhere(0))
    path = tmp_path / "owner" / "000001.json"
    sleep = time.sleep

    def renewing(seconds):
        sleep(0.01)
        path.touch()

    monkeypatch.setattr(time, "sleep", renewing)
    with pytest.raises(
        CheckpointError, match=r"in use by another job: process 7 on far \(rank 0\)"
    ):
        _take(second, "b", 0, _alive(1))
    monkeypatch.setattr(time, "sleep", sleep)
    said = capsys.readouterr().err
    assert re.search(r"Waiting up to \d+ s to find out whether the job that wrote to", said)
    monkeypatch.setattr(ownership, "LEASE_S", 0.3)
    _take(second, "b", 0, _alive(1))  # 0.3 s later
    second.check()


def test_a_sign_of_life_that_is_old_needs_no_wait(tmp_path, begun, capsys):
    _take(begun(), "a", 0, _elsewhere(0))
    os.utime(tmp_path / "owner" / "000001.json", (1e9, 1e9))
    _take(begun(), "b", 0, _alive(0))
    assert capsys.readouterr().err == ""


def test_the_sign_of_life_is_renewed_while_training_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(ownership, "BEAT_S", 0.01)
    runs, owner = threading.Event(), Ownership(tmp_path)
    runs.set()
    owner.begin(runs.is_set)
    _take(owner, "a", 0, _alive(0))
    path = tmp_path / "owner" / "000001.json"

    def becomes(renewed: bool):
        ends = time.monotonic() + deadlines.long()
        while (path.stat().st_mtime > 1e9) != renewed:
            assert time.monotonic() < ends
            time.sleep(0.01)

    os.utime(path, (1e9, 1e9))
    becomes(True)
    runs.clear()  # an exception has left fit
    becomes(False)
    assert path.stat().st_mtime == 0


def test_of_many_that_begin_at_once_one_gets_it(tmp_path, begun):
    owners, refused = [begun() for _ in range(12)], []

    def take(place: int):
        try:
            _take(owners[place], f"run {place}", 0, _alive(place + 1))
        except CheckpointError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=take, args=(place,)) for place in range(12)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(refused) == 11
    assert len(_claims(tmp_path)) == 1


@pytest.mark.parametrize("text", [b"", b"[]", b'{"run": "a"}', b"\xff"])
def test_a_claim_that_cannot_be_read_is_replaced_where_nobody_renews_it(
    tmp_path, begun, monkeypatch, text
):
    monkeypatch.setattr(ownership, "LEASE_S", 0.2)
    monkeypatch.setattr(ownership, "_WRITING_S", 0.1)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "000004.json").write_bytes(text)
    owner = begun()
    _take(owner, "a", 0, _alive(0))
    assert _claims(tmp_path) == ["000005.json"]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/etc/passwd")])
def test_a_claim_that_is_a_link_or_no_file_is_an_error_and_not_followed(tmp_path, begun, make):
    (tmp_path / "owner").mkdir()
    make(tmp_path / "owner" / "000001.json")
    with pytest.raises(OSError, match=r"not a regular file|links are not followed"):
        _take(begun(), "a", 0, _alive(0))


def test_a_folder_of_claims_that_is_a_link_is_not_followed(tmp_path, begun):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "owner").symlink_to("elsewhere")
    with pytest.raises(OSError, match="links are not followed"):
        _take(begun(), "a", 0, _alive(0))
    assert not list((tmp_path / "elsewhere").iterdir())


# ---- Views of one run ---------------------------------------------------------------------------


def test_all_members_of_a_view_make_one_claim(tmp_path, begun):
    owners = [begun() for _ in range(3)]
    for owner in owners:
        _take(owner, "a", 0, _alive(0), _alive(1), _alive(2))
    for owner in owners:
        owner.check()
        owner.release()
    assert _claims(tmp_path) == ["000001.json"]
    assert (tmp_path / "owner" / "000001.json").stat().st_mtime == 0


@pytest.mark.parametrize("number", [1, 2, 9])
def test_who_was_left_out_can_neither_write_nor_remove(tmp_path, begun, number):
    survivor, left_out = begun(), begun()
    for owner in (survivor, left_out):
        _take(owner, "a", 0, _alive(0), _alive(1), _alive(2))
    stores = [files_lib.CheckpointFiles(tmp_path, 1, each.check) for each in (survivor, left_out)]
    for epoch in (1, 2):
        entry = stores[1].write(epoch, "a", lambda path: path.write_text("a"))
        stores[1].finish(epoch, {"epoch": epoch}, {"a": entry})
    _take(survivor, "a", 1, _alive(0), _alive(1))
    survivor.release()  # they have finished and gone
    words = r"belongs to view 1 of this run, of which this worker is not a member: process \d+ on"
    for _ in range(2):
        with pytest.raises(CheckpointError, match=words):
            _take(left_out, "a", number, _alive(2))
        for write in (
            lambda store: store.write(3, "a", lambda path: path.write_text("b")),
            lambda store: store.write(2, "a", lambda path: path.write_text("b")),
            lambda store: store.finish(3, {}, {}),
            lambda store: store.prune(2),
            lambda store: store.discard(1),
            lambda store: store.forget("a", {}),
        ):
            with pytest.raises(
                CheckpointError, match=r"view 1 of this run|now belongs to another job"
            ):
                write(stores[1])
        assert stores[0].complete() == stores[0].numbers() == [2, 1]
        assert stores[0].checked(2, "a", stores[0].read(2)["files"]).read_text() == "a"
        left_out.begin(lambda: True)  # nor in the next fit


def test_a_chief_that_wakes_after_its_loss_is_stopped_in_the_middle_of_a_write(tmp_path, begun):
    chief, other = begun(), begun()
    for owner in (chief, other):
        _take(owner, "a", 0, _alive(0), _alive(1))
    store = files_lib.CheckpointFiles(tmp_path, 1, chief.check)

    def meanwhile(path):
        path.write_text("a")
        _take(other, "a", 1, _alive(1))

    with pytest.raises(CheckpointError, match="belongs to view 1 of this run"):
        store.write(1, "a", meanwhile)
    assert not (store.folder(1) / "a").exists()


def test_survivors_need_not_know_the_last_claim_of_their_chief(begun):
    chief, survivor = begun(), begun()
    for owner in (chief, survivor):
        _take(owner, "a", 0, _alive(0), _alive(1), _alive(2))
    _take(chief, "a", 1, _alive(0), _alive(1))  # and dies before it has told anybody
    _take(survivor, "a", 2, _alive(1))
    survivor.check()


def test_who_has_joined_goes_on_with_the_run_of_the_others(begun):
    survivor, joined = begun(), begun()
    _take(survivor, "a", 0, _alive(0), _alive(1), _alive(2))
    offers = [
        {"run": None, "process": dataclasses.asdict(_elsewhere(0))},  # it was started again
        {"run": "a", "process": dataclasses.asdict(_alive(1))},
    ]
    for owner in (joined, survivor):
        owner.take(offers, 2, (0, 1))
        owner.check()
        assert owner.described() == {"run": "a", "view": 2}


def test_a_directory_that_vanishes_is_claimed_again(tmp_path, begun):
    owner = begun()
    _take(owner, "a", 0, _alive(0))
    (tmp_path / "owner" / "000001.json").unlink()
    with pytest.raises(CheckpointError, match="no longer contains this job's claim"):
        owner.check()
    _take(owner, "a", 0, _alive(0))
    owner.check()
    assert _claims(tmp_path) == ["000002.json"]


# ---- Processes ----------------------------------------------------------------------------------


def test_whether_a_process_lives():
    assert Process.this(0).lives
    assert _alive(3).lives
    assert _dead(0).lives is False
    assert _elsewhere(0).lives is None
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert dataclasses.replace(HERE, pid=child).lives is False  # nobody has waited for it yet
    os.waitpid(child, 0)


def test_a_forked_child_is_another_run(tmp_path):
    _take(Ownership(tmp_path), "a", 0, _alive(0))
    assert Ownership(tmp_path).offer(0)["run"] == "a"
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, json.dumps(Ownership(tmp_path).offer(0)["run"]).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 100) == b"null"
