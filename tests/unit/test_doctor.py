"""What the doctor concludes from measurements, and how it shows both."""

import json

import pytest

from tf_gossip_pga.launch.doctor import examination, findings, measurements
from tf_gossip_pga.launch.doctor.measurements import Attempt, Facts, Folder, Host, Link, Trouble
from tf_gossip_pga.launch.doctor.report import report

PORTS = [61440, 61441]
ADDRESSES = {"a": ["10.0.0.1"], "b": ["10.0.0.2"], "c": ["10.0.0.3"]}
VERSIONS = {"python": "3.11.7", "tensorflow": "2.21.0", "keras": "3.15.1", "numpy": "2.4.6"}


def healthy(names="abc"):
    """Measurements without findings."""
    hosts = [
        Host(
            name,
            prefix=f"ssh {name}",
            facts=Facts(
                host_name=name,
                machine=f"machine of {name}",
                python="/opt/bin/python",
                versions={**VERSIONS, "tf_gossip_pga": "0.1.0"},
                cores=8,
                memory_bytes=2**34,
                gpus=0,
                addresses={each: ADDRESSES[each] for each in names},
                unresolved={},
            ),
            clock_s=0.01,
            clock_error_s=0.02,
            ports=list(PORTS),
        )
        for name in names
    ]
    links = [
        Link(
            source,
            target,
            [Attempt(port, "open", "", ADDRESSES[source][0], "eth0") for port in PORTS],
            0.2,
            940.0,
        )
        for source in names
        for target in names
        if source != target
    ]
    return measurements.Measurements(hosts, list(PORTS), links=links)


def facts(found, name):
    return next(host.facts for host in found.hosts if host.name == name)


def link(found, source, target):
    return next(each for each in found.links if (each.source, each.target) == (source, target))


def only(found):
    """The only finding."""
    (finding,) = findings(found)
    return finding


def shown(found):
    """The only finding, as kind, hosts, sentence and remedy."""
    finding = only(found)
    return finding.kind, finding.hosts, finding.seen, finding.remedy.splitlines()[0]


def test_healthy_hosts_have_no_findings_but_a_plan():
    found = healthy()
    assert findings(found) == []
    assert report(found, []).splitlines()[-1] == (
        "No findings. Plan: gossip-pga plan --nodes=3 --mbit=940 --latency_ms=0.1 --parameters=… "
        "--compute_ms=…"
    )


def test_another_version():
    found = healthy()
    facts(found, "b").versions["tensorflow"] = "2.20.0"
    assert shown(found) == (
        "version",
        ["b"],
        "b has tensorflow 2.20.0, but a and c have 2.21.0.",
        "ssh b '/opt/bin/python -m pip install tensorflow==2.21.0'",
    )


def test_a_package_that_is_missing():
    found = healthy("ab")
    facts(found, "b").versions["keras"] = None
    assert only(found).seen == "keras is missing on b, but a has 3.15.1."
    facts(found, "a").versions["keras"] = None
    assert only(found).seen == "keras is missing on a and b."
    assert only(found).remedy.splitlines() == [
        "ssh a '/opt/bin/python -m pip install keras'",
        "ssh b '/opt/bin/python -m pip install keras'",
    ]


def test_minor_versions_of_python_must_agree():
    found = healthy("ab")
    facts(found, "b").versions["python"] = "3.11.2"
    assert findings(found) == []
    facts(found, "b").versions["python"] = "3.12.1"
    assert only(found).seen == "b has python 3.12, but a has 3.11."


@pytest.mark.parametrize(
    ("ahead_s", "words"),
    [(60.02, "60.0 s ahead of"), (-1.5, "1.5 s behind"), (0.9, ""), (-0.9, "")],
)
def test_clocks(ahead_s, words):
    found = healthy()
    found.hosts[1].clock_s = ahead_s
    if not words:
        assert findings(found) == []
        return
    assert shown(found) == (
        "clock",
        ["b"],
        f"The clock of b is {words} this machine's.",
        "ssh b 'sudo timedatectl set-ntp true'",
    )


def test_a_clock_that_could_not_be_read_exactly_is_no_finding():
    found = healthy()
    found.hosts[1].clock_s, found.hosts[1].clock_error_s = 3.0, 4.0
    assert findings(found) == []


def test_a_closed_channel_port():
    found = healthy()
    for source in "ac":
        link(found, source, "b").attempts[1] = Attempt(61441, "no answer", "timed out")
    assert shown(found) == (
        "port",
        ["a", "c", "b"],
        "Port 61441 (control channel) of b does not answer a and c: a firewall drops the packets.",
        "ssh b 'sudo firewall-cmd --add-port=61440-65535/tcp'",
    )
    assert "export TF_GOSSIP_PGA_CHANNEL_PORT=PORT" in only(found).remedy


def test_both_ports_are_closed_and_were_chosen():
    found = healthy()
    found.ports = [2222, 2223]
    link(found, "a", "b").attempts = [
        Attempt(port, "unreachable", "No route to host") for port in found.ports
    ]
    kind, hosts, seen, remedy = shown(found)
    assert (kind, hosts) == ("port", ["a", "b"])
    assert seen == (
        "Ports 2222 (server) and 2223 (control channel) of b cannot be reached from a (No route to "
        "host): a firewall or a router rejects the packets."
    )
    assert remedy == "ssh b 'sudo firewall-cmd --add-port=2222/tcp --add-port=2223/tcp'"


def test_a_refusing_port_and_another_program():
    found = healthy()
    link(found, "a", "b").attempts[0] = Attempt(61440, "refused", "Connection refused")
    assert "refuses connections from a although the examiner listens" in only(found).seen
    link(found, "a", "b").attempts[0] = Attempt(61440, "another program", "it does not answer")
    assert "is answered by another program when a connects" in only(found).seen


def test_the_port_of_an_examiner_that_had_to_choose_another_is_not_judged():
    found = healthy()
    found.hosts[1].taken = {61440: "Address already in use"}
    found.hosts[1].ports[0] = 40000
    for source in "ac":
        link(found, source, "b").attempts[0] = Attempt(40000, "no answer", "timed out")
    assert shown(found) == (
        "port",
        ["b"],
        "Port 61440 of b cannot be used: Address already in use.",
        "See which program has it: ssh b 'ss -ltnp sport = :61440'",
    )


def test_a_name_that_leads_back():
    found = healthy()
    facts(found, "a").addresses["b"] = ["127.0.1.1"]
    link(found, "a", "b").attempts = [Attempt(port, "another host", "a") for port in PORTS]
    assert shown(found) == (
        "name",
        ["a", "b"],
        "On a, the name b resolves to 127.0.1.1, which leads back to the same host.",
        r"""ssh a 'sudo sed -i "s/^127\.0\.1\.1\b/10.0.0.2/" /etc/hosts'""",
    )


def test_an_own_name_that_leads_back():
    found = healthy()
    facts(found, "b").addresses["b"] = ["127.0.1.1"]
    kind, hosts, seen, remedy = shown(found)
    assert (kind, hosts) == ("name", ["b"])
    assert "On b, its own name resolves to 127.0.1.1." in seen
    assert remedy == r"""ssh b 'sudo sed -i "s/^127\.0\.1\.1\b/10.0.0.2/" /etc/hosts'"""


def test_one_host_may_call_itself_what_it_likes():
    found = healthy("a")
    facts(found, "a").addresses["a"] = ["127.0.1.1"]
    assert findings(found) == []
    assert "No findings." in report(found, [])


def test_a_name_that_does_not_resolve():
    found = healthy()
    facts(found, "a").addresses["b"] = []
    facts(found, "a").unresolved["b"] = "Name or service not known"
    link(found, "a", "b").attempts = [Attempt(port, "unresolved", "…") for port in PORTS]
    assert shown(found) == (
        "name",
        ["a", "b"],
        "On a, the name b does not resolve: Name or service not known.",
        """ssh a 'sudo sed -i "1i 10.0.0.2 b" /etc/hosts'""",
    )
    facts(found, "c").addresses["b"] = []
    facts(found, "c").unresolved["b"] = "Name or service not known"
    assert only(found).seen.startswith("On a and c, the name b does not resolve")
    assert len(only(found).remedy.splitlines()) == 2


def test_a_name_that_leads_to_a_third_host():
    found = healthy()
    link(found, "a", "b").attempts = [Attempt(port, "another host", "c") for port in PORTS]
    assert shown(found) == (
        "name",
        ["a", "b"],
        "On a, the name b leads to c instead.",
        "ssh a 'getent hosts b'",
    )


def test_a_folder_that_is_not_shared():
    found = healthy()
    found.folder = Folder("/data/run", "a", {}, {"b": "No such file or directory"})
    kind, hosts, seen, _ = shown(found)
    assert (kind, hosts) == ("folder", ["a", "b"])
    assert seen == (
        "b does not see a file that a has written to /data/run (No such file or directory): the "
        "folder is not shared."
    )
    assert "ssh b 'findmnt -T /data/run'" in only(found).remedy


def test_a_folder_that_cannot_be_written():
    found = healthy()
    found.folder = Folder("/data/run", "a", {"b": "Permission denied"})
    assert shown(found) == (
        "folder",
        ["b"],
        "b cannot write to /data/run: Permission denied.",
        "ssh b 'ls -ld /data/run; id'",
    )


def test_a_folder_that_is_missing_is_one_finding():
    found = healthy()
    missing = {"b": "No such file or directory"}
    found.folder = Folder("/data/run", "a", missing, missing)
    assert shown(found)[2:] == (
        "b cannot write to /data/run: No such file or directory.",
        "ssh b 'mkdir -p /data/run'",
    )


def test_one_slow_link():
    found = healthy()
    link(found, "a", "b").mbit = 94.0
    assert shown(found) == (
        "rate",
        ["a", "b"],
        "a sends to b at only 94 Mbit/s; a usual link carries 940 Mbit/s.",
        "Compare its interface with that of another host: ssh a 'sudo ethtool eth0; tc qdisc show "
        "dev eth0'",
    )


@pytest.mark.parametrize("names", ["abc", "ab"])
def test_a_host_that_sends_slowly(names):
    found = healthy(names)
    for each in found.links:
        if each.source == "b":
            each.mbit = 94.0
    assert only(found).hosts[0] == "b"
    assert only(found).seen.startswith(f"b sends to {' and '.join(names.replace('b', ''))} at only")


def test_a_host_that_is_slow_in_both_directions():
    found = healthy()
    for each in found.links:
        if "b" in (each.source, each.target):
            each.mbit = 94.0
    assert [each.hosts for each in findings(found)] == [["b"], ["b"]]


def test_a_quarter_of_the_usual_rate_is_enough():
    found = healthy()
    link(found, "a", "b").mbit = 236.0
    assert findings(found) == []


def test_a_link_that_breaks_under_load():
    found = healthy()
    link(found, "a", "b").failure = "timed out"
    kind, hosts, seen, remedy = shown(found)
    assert (kind, hosts) == ("link", ["a", "b"])
    assert "opens but fails when it carries data (timed out)" in seen
    assert remedy == "Try smaller packets: ssh a 'sudo ip link set dev eth0 mtu 1400'"
    found.hosts[1].trouble = Trouble("silent", "measure", "")
    assert only(found).kind == "host"


def test_one_machine_with_two_names():
    found = healthy()
    for host in found.hosts[:2]:
        found.hosts[found.hosts.index(host)].facts = Facts(**{**vars(host.facts), "machine": "m"})
    found.hosts[1].taken = {61440: "Address already in use"}
    assert shown(found) == (
        "machine",
        ["a", "b"],
        "a and b are the same machine, so their workers would use the same ports.",
        "List it once, with all of its workers: -H a:2",
    )


def test_different_numbers_of_gpus():
    found = healthy()
    for host, gpus, slots in zip(found.hosts, (8, 4, 4), (2, 1, 1), strict=True):
        host.facts = Facts(**{**vars(host.facts), "gpus": gpus})
        host.slots = slots
    assert findings(found) == []
    found.hosts[2].facts = Facts(**{**vars(found.hosts[2].facts), "gpus": 0})
    kind, _, seen, remedy = shown(found)
    assert (kind, remedy) == (
        "gpus",
        "See which GPUs the driver has found: ssh c 'nvidia-smi -L'",
    )
    assert "4 on a and b; 0 on c" in seen


@pytest.mark.parametrize(
    ("trouble", "seen", "remedy"),
    [
        (
            Trouble("ended", "describe", "ssh: connect to host b port 22: No route to host", 255),
            "b cannot be reached: ssh: connect to host b port 22: No route to host",
            "Make this command succeed without a password: ssh b true",
        ),
        (
            Trouble("ended", "describe", "There is no Python at /x on this host. …", 127),
            "No examiner could be started on b (exit code 127): There is no Python at "
            "/x on this host. …",
            "Make what is missing available at the same path on all hosts, e.g. on a shared file "
            "system.",
        ),
        (
            Trouble("ended", "describe", "No module named tf_gossip_pga", 1),
            "The Python on b lacks a package: No module named tf_gossip_pga",
            "Install this machine's Python environment at the same path on that host.",
        ),
        (
            Trouble("silent", "describe", ""),
            "b does not answer in time when asked to describe itself.",
            "Find out why: ssh b true",
        ),
        (
            Trouble("silent", "write", ""),
            "b does not answer in time when asked to write to the checkpoint folder.",
            "Find out why: ssh b true",
        ),
        (
            Trouble("failed", "listen", "no ports"),
            "b reports an error when asked to listen on its ports: no ports",
            "Find out why: ssh b true",
        ),
        (
            Trouble("ended", "measure", "", 137),
            "The examiner on b ended during the examination.",
            "Find out why: ssh b true",
        ),
    ],
)
def test_a_host_without_an_examiner(trouble, seen, remedy):
    found = healthy()
    found.hosts[1].trouble = trouble
    if trouble.request == "describe":
        found.hosts[1].facts = None
    assert shown(found) == ("host", ["b"], seen, remedy)
    report(found, findings(found))


def test_commands_for_slurm_and_for_this_machine():
    found = healthy("a")
    for prefix in ("srun --overlap -N1 -n1 -w a", ""):
        found.hosts[0].prefix = prefix
        found.hosts[0].clock_s = 5.0
        assert only(found).remedy == f"{prefix} sudo timedatectl set-ntp true".strip()


def test_the_report_shows_hosts_links_and_findings():
    found = healthy("ab")
    link(found, "a", "b").attempts[1] = Attempt(61441, "no answer", "timed out")
    text = report(found, findings(found))
    assert text.splitlines()[:6] == [
        "host  python  tensorflow  keras   numpy  tf_gossip_pga  cores  memory    GPUs  clock    "
        "ports",
        "a     3.11.7  2.21.0      3.15.1  2.4.6  0.1.0          8      16.0 GiB  0     +0.01 s  "
        "61440, 61441",
        "b     3.11.7  2.21.0      3.15.1  2.4.6  0.1.0          8      16.0 GiB  0     +0.01 s  "
        "61440, 61441",
        "",
        "from  to  interface      server  channel    round trip  rate",
        "a     b   10.0.0.1 eth0  open    no answer  0.20 ms     940 Mbit/s",
    ]
    assert "\n\n1 finding:\n\n1. Port 61441" in text


def test_many_hosts_show_only_the_slowest_links():
    found = healthy()
    found.links = [
        Link(f"n{i}", f"n{i + 1}", found.links[0].attempts, 0.2, 900.0 + i) for i in range(30)
    ]
    found.hosts *= 3
    lines = report(found, []).splitlines()
    start = lines.index("30 links. The slowest 10:")
    assert [line.split()[0] for line in lines[start + 2 : start + 12]] == [
        f"n{i}" for i in range(10)
    ]


def test_measurements_are_json():
    assert json.loads(json.dumps(healthy().as_dict()))["hosts"][0]["facts"]["cores"] == 8


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8])
def test_each_pair_is_in_one_round_and_each_host_once_in_a_round(count):
    names = [f"n{i}" for i in range(count)]
    rounds = list(examination.rounds(names))
    pairs = [pair for each in rounds for pair in each]
    assert sorted(pairs) == sorted((a, b) for a in names for b in names if a != b)
    for each in rounds:
        flat = [name for pair in each for name in pair]
        assert len(flat) == len(set(flat))


def test_ports():
    given = {"TF_GOSSIP_PGA_PORT": "2222"}
    assert examination.wanted_ports(given, 4) == [2222, 2223]
    given["TF_GOSSIP_PGA_CHANNEL_PORT"] = "3000"
    assert examination.wanted_ports(given, 1) == [2222, 3000]
    first, second = examination.wanted_ports({}, 1)
    assert 61440 <= first == second - 1 < 65535
    assert examination.wanted_ports({"SLURM_JOB_ID": "3"}, 1) == [61440 + 2 * 3 * 16, 61537]
    with pytest.raises(ValueError, match="4 workers on one host need 8 ports"):
        examination.wanted_ports({"TF_GOSSIP_PGA_PORT": "65530"}, 4)
