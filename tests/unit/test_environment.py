"""The environment that the launcher gives to its workers."""

import pytest

from tf_gossip_pga.cluster import detect
from tf_gossip_pga.cluster.place import Place
from tf_gossip_pga.launch import environment

MADE = "0123456789abcdef"


@pytest.mark.parametrize(
    ("users", "secret", "file"),
    [
        ({}, MADE, None),
        ({"TF_GOSSIP_PGA_SECRET": "the user's own secret"}, "the user's own secret", None),
        ({"TF_GOSSIP_PGA_SECRET_FILE": "/run/secrets/gossip"}, None, "/run/secrets/gossip"),
    ],
)
def test_workers_share_the_secret_of_the_user_or_one_that_is_made(users, secret, file, monkeypatch):
    for name in ("TF_GOSSIP_PGA_SECRET", "TF_GOSSIP_PGA_SECRET_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in users.items():
        monkeypatch.setenv(name, value)
    for rank in (0, 1):
        given = environment.of_worker(
            ["a:1", "b:1"], rank, environment.Shared(False, {}, MADE), joins=False
        )
        assert given.get("TF_GOSSIP_PGA_SECRET") == secret
        assert given.get("TF_GOSSIP_PGA_SECRET_FILE") == file


def test_this_packages_variables_come_from_the_launcher_only(monkeypatch):
    monkeypatch.setenv("TF_GOSSIP_PGA_SECRET_FILE", "/of/this/host")
    monkeypatch.setenv("TF_GOSSIP_PGA_JOIN", "1")
    monkeypatch.setenv("SOME_SETTING", "of this host")
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    given = environment.on_this_host({"TF_GOSSIP_PGA_SECRET": MADE}, 1000, ["GPU-a", "GPU-b"])
    own = {name: value for name, value in given.items() if name.startswith("TF_GOSSIP_PGA_")}
    assert own == {"TF_GOSSIP_PGA_SECRET": MADE}
    assert given["SOME_SETTING"] == "of this host"
    assert given["TF_NUM_INTRAOP_THREADS"] == "1"
    assert given["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"


def test_the_users_choices_are_kept_except_for_the_place_in_the_cluster(monkeypatch):
    for name in ("CLUSTER", "RANK", "JOIN"):
        monkeypatch.setenv(f"TF_GOSSIP_PGA_{name}", "1")
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    shared = environment.Shared(False, {"CHOSEN": "x", "TF_GOSSIP_PGA_JOIN": "1"}, MADE)
    given = environment.of_worker(["a:1", "b:1"], 1, shared, joins=False)
    assert detect.find(given) == Place(1, 2, "TF_CONFIG", ("a:1", "b:1"))
    assert given["CHOSEN"] == "x" and given["TF_CPP_MIN_LOG_LEVEL"] == "0"
    assert not {"TF_GOSSIP_PGA_RANK", "TF_GOSSIP_PGA_JOIN"} & set(given)
    assert environment.of_worker([], 0, shared, joins=True)["TF_GOSSIP_PGA_JOIN"] == "1"
