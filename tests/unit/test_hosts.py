"""Lists of hosts: the forms of Horovod and mpirun, and what is refused."""

import pytest

from tf_gossip_pga.launch import hosts
from tf_gossip_pga.launch.hosts import Host


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:2,b:2", [Host("a", 2), Host("b", 2)]),
        ("a, b", [Host("a"), Host("b")]),
        ("me@node-1.example.org:3", [Host("me@node-1.example.org", 3)]),
        ("10.0.0.1:4", [Host("10.0.0.1", 4)]),
        ("me@[fe80::1]:3,[::2]", [Host("me@fe80::1", 3), Host("::2")]),
        ("a:2,b,a", [Host("a", 3), Host("b")]),
        ("localhost:2", [Host("localhost", 2)]),
        ("localhost-rack2,b", [Host("localhost-rack2"), Host("b")]),
    ],
)
def test_lists_of_hosts(text, expected):
    assert hosts.parse(text) == expected


@pytest.mark.parametrize(
    ("name", "address"), [("me@a", "a"), ("me@fe80::1", "[fe80::1]"), ("10.0.0.1", "10.0.0.1")]
)
def test_the_address_of_a_host_has_no_user(name, address):
    assert Host(name).address == address


@pytest.mark.parametrize("entry", ["", "a:0", "a:-1", "a:x", "a:2:3", "a b", "-oProxyCommand=x"])
def test_an_entry_of_another_form_is_refused(entry):
    with pytest.raises(ValueError, match=f"-H must list hosts such as .*; received {entry!r}"):
        hosts.parse(f"b,{entry}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("localhost,b", "localhost is a different machine on each host. Give the name"),
        ("localhost6.localdomain6,b", "localhost6.localdomain6 is a different machine on each"),
        ("b,[::1]", r"\[::1\] is a different machine on each host"),
        ("b,me@127.0.0.1", r"127\.0\.0\.1 is a different machine on each host"),
        ("me@a,you@a", "a is listed for several users"),
    ],
)
def test_names_that_mean_no_single_host_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        hosts.parse(text)


def test_a_file_of_hosts(tmp_path):
    file = tmp_path / "hosts"
    file.write_text(
        "# the first rack\na slots=2  # two\n\nme@b:2\nc\nd slots = 3 max_slots=4\na slots=1\n"
    )
    assert hosts.read(str(file)) == [Host("a", 3), Host("me@b", 2), Host("c"), Host("d", 3)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: .*No such file"),
        ("# none\n", "must have a host on each line, such as `a slots=2` or `a:2`; the file lists"),
        ("a:2 slots=2\n", "received 'a:2 slots=2'"),
        ("a slots=0\n", "received 'a slots=0'"),
        ("a cpus=2\n", "received 'a cpus=2'"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, content, message):
    file = tmp_path / "hosts"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=message):
        hosts.read(str(file))


def test_a_message_says_how_many_workers_each_host_gets():
    assert hosts.listed([Host("me@a", 2), Host("b")]) == "2 on a, 1 on b"
