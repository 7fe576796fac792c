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
            ["a:1", "b:1"], rank, [], verbose=False, joins=False, secret=MADE
        )
        assert given.get("TF_GOSSIP_PGA_SECRET") == secret
        assert given.get("TF_GOSSIP_PGA_SECRET_FILE") == file


def test_workers_belong_to_the_launchers_cluster_only(monkeypatch):
    for name in ("CLUSTER", "RANK", "JOIN"):
        monkeypatch.setenv(f"TF_GOSSIP_PGA_{name}", "1")
    given = environment.of_worker(["a:1", "b:1"], 1, [], verbose=False, joins=False, secret=MADE)
    assert detect.find(given) == Place(1, 2, "TF_CONFIG", ("a:1", "b:1"))
    assert not {"TF_GOSSIP_PGA_RANK", "TF_GOSSIP_PGA_JOIN"} & set(given)
