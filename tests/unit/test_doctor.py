"""What the doctor concludes from measurements, and how it shows both."""

import dataclasses
import json
import shlex

import pytest

from tf_gossip_pga import __version__
from tf_gossip_pga.launch import ssh
from tf_gossip_pga.launch.doctor import command, examination, measurements
from tf_gossip_pga.launch.doctor.checks import findings
from tf_gossip_pga.launch.doctor.measurements import (
    Attempt,
    Facts,
    Folder,
    Host,
    Link,
    Ports,
    Trouble,
)
from tf_gossip_pga.launch.doctor.report import report
from tf_gossip_pga.launch.doctor.starting import Target

PORTS = [61440, 61441]
SERVER, CHANNEL = "TF_GOSSIP_PGA_PORT", "TF_GOSSIP_PGA_CHANNEL_PORT"
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
    ports = Ports(*PORTS, variables=(SERVER, SERVER))
    return measurements.Measurements(hosts, ports, links=links)


def facts(found, name):
    return next(host.facts for host in found.hosts if host.name == name)


def link(found, source, target):
    return next(each for each in found.links if (each.source, each.target) == (source, target))


def only(found):
    """The only finding."""
    (finding,) = findings(found)
    return finding


def shown(found, *, stops=True):
    """The only finding, as kind, hosts, sentence and remedy, after a look at `stops_training`."""
    finding = only(found)
    assert finding.stops_training is stops
    return finding.kind, finding.hosts, finding.seen, finding.remedy.splitlines()[0]


def test_healthy_hosts_have_no_findings_but_a_plan():
    found = healthy()
    assert findings(found) == []
    assert report(found, []).splitlines()[-1] == (
        "No problems. Plan: gossip-pga plan --nodes=3 --mbit=940 --latency_ms=0.1 --parameters=… "
        "--compute_ms=…"
    )


def test_the_rate_of_a_long_link_is_a_lower_bound():
    found = healthy("ab")
    found.links[0].round_trip_ms = 9.0
    assert "lower bound" not in report(found, [])
    found.links[0].mbit, found.links[0].round_trip_ms = 300.0, 80.0
    assert report(found, []).splitlines()[-1] == (
        "With round trips of 80 ms, the measured rate is a lower bound: a longer transfer may be "
        "faster."
    )


def test_another_version_of_this_package():
    found = healthy()
    found.hosts[1].facts = None
    for words, version in (("0.0.9", "0.0.9"), ("", "another version")):
        found.hosts[1].trouble = Trouble("other version", "describe", words)
        assert shown(found) == (
            "version",
            ["b"],
            f"b has {version} of tf_gossip_pga, but this machine has {__version__}.",
            "Install the same version of tf_gossip_pga on all hosts.",
        )
    report(found, findings(found))


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
    assert shown(found, stops=False) == (
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
    # `gossip-pga run -H` removes TF_GOSSIP_PGA_CHANNEL_PORT.
    assert only(found).remedy.endswith(f"choose open ports: export {SERVER}=PORT")
    found.ports = Ports(*PORTS)
    assert only(found).remedy.endswith(f"choose open ports: export {CHANNEL}=PORT")


def test_a_chosen_port_may_be_one_of_those_of_random_jobs():
    found = healthy()
    found.ports = Ports(*PORTS, chosen=(SERVER,))
    link(found, "a", "b").attempts[1] = Attempt(61441, "no answer", "timed out")
    assert "--add-port=61441/tcp" in only(found).remedy
    found.ports = Ports(*PORTS, chosen=(CHANNEL,))
    link(found, "a", "b").attempts[0] = Attempt(61440, "no answer", "timed out")
    assert "--add-port=61440-65535/tcp --add-port=61441/tcp" in only(found).remedy


def test_both_ports_are_closed_and_were_chosen():
    found = healthy()
    found.ports = Ports(2222, 2223, chosen=(SERVER,))
    link(found, "a", "b").attempts = [
        Attempt(port, "unreachable", "No route to host") for port in found.ports.numbers
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
    assert shown(found, stops=False) == (
        "port",
        ["b"],
        "Port 61440 of b cannot be used: Address already in use. Training works, because another "
        "port is used.",
        "See which program has it: ssh b 'ss -ltnp sport = :61440'",
    )


@pytest.mark.parametrize(
    ("port", "chosen", "variables", "stops"),
    [
        (2222, (), (SERVER, SERVER), False),  # another job has another port
        (2222, (SERVER,), (SERVER, SERVER), True),
        (2223, (SERVER,), (SERVER, SERVER), False),  # the channel uses another port
        (2223, (SERVER,), (SERVER, CHANNEL), False),
        (2222, (CHANNEL,), (SERVER, CHANNEL), False),
        (2223, (CHANNEL,), (SERVER, CHANNEL), True),
    ],
)
def test_a_taken_port_stops_training_if_it_was_chosen(port, chosen, variables, stops):
    found = healthy()
    found.ports = Ports(2222, 2223, chosen, variables)
    found.hosts[1].taken = {port: "Address already in use"}
    assert shown(found, stops=stops)[0] == "port"
    variable = variables[port - 2222]
    assert only(found).remedy.endswith(f"Or choose another port: export {variable}=PORT")


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
    kind, hosts, seen, remedy = shown(found, stops=False)
    assert (kind, hosts) == ("name", ["b"])
    assert "On b, its own name resolves to 127.0.1.1." in seen
    assert remedy == r"""ssh b 'sudo sed -i "s/^127\.0\.1\.1\b/10.0.0.2/" /etc/hosts'"""
    # As long as the other hosts know the name.
    facts(found, "a").addresses["b"] = ["127.0.1.1"]
    assert [each.stops_training for each in findings(found)] == [True, False]
    facts(found, "a").addresses["b"] = []
    facts(found, "a").unresolved["b"] = "Name or service not known"
    assert [each.stops_training for each in findings(found)] == [True, False]


def test_one_host_may_call_itself_what_it_likes():
    found = healthy("a")
    facts(found, "a").addresses["a"] = ["127.0.1.1"]
    assert findings(found) == []
    assert "No problems." in report(found, [])


def test_a_name_that_does_not_resolve():
    found = healthy()
    facts(found, "a").addresses["b"] = []
    facts(found, "a").unresolved["b"] = "Name or service not known"
    found.links.remove(link(found, "a", "b"))
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
    kind, hosts, seen, _ = shown(found, stops=False)
    assert (kind, hosts) == ("folder", ["a", "b"])
    assert seen == (
        "b does not see a file that a has written to /data/run (No such file or directory): the "
        "folder is not shared. Each rank may have a folder of its own, but then the job cannot "
        "resume if rank 0's machine is lost."
    )
    assert "ssh b 'findmnt -T /data/run'" in only(found).remedy


@pytest.mark.parametrize(
    "why", ["Permission denied", "No space left on device", "Read-only file system"]
)
def test_a_folder_that_cannot_be_written(why):
    found = healthy()
    found.folder = Folder("/data/run", "a", {"b": why}, {"b": why})
    kind, hosts, seen, _ = shown(found)
    assert (kind, hosts, seen) == ("folder", ["b"], f"b cannot write to /data/run: {why}.")
    assert only(found).remedy.splitlines()[1] == (
        "ssh b 'namei -l /data/run; findmnt -o TARGET,SOURCE,OPTIONS,AVAIL -T /data/run'"
    )


def test_the_name_of_a_folder_is_quoted_for_the_shell():
    found = healthy()
    found.folder = Folder("/my run", "a", {}, {"b": "No such file or directory"})
    command = "ssh b " + shlex.quote("findmnt -T '/my run'")
    assert command in only(found).remedy.splitlines()


def test_one_slow_link():
    found = healthy()
    link(found, "a", "b").mbit = 94.0
    assert shown(found, stops=False) == (
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


def test_hosts_on_which_not_each_worker_gets_a_gpu():
    found = healthy()
    for host, gpus, slots in zip(found.hosts, (8, 4, 1), (2, 1, 1), strict=True):
        host.facts = dataclasses.replace(host.facts, gpus=gpus)
        host.slots = slots
    assert findings(found) == []  # each worker gets its GPU, so how many exist does not matter
    found.hosts[2].slots = 2
    kind, hosts, seen, remedy = shown(found, stops=False)
    assert (kind, hosts, remedy) == (
        "gpus",
        ["c"],
        "See which GPUs the driver has found: ssh c 'nvidia-smi -L'",
    )
    assert "Each worker gets a GPU of its own on a and b, but not on c." in seen


@pytest.mark.parametrize(
    ("trouble", "seen", "remedy"),
    [
        (
            Trouble("ended", "describe", "ssh: connect to host b port 22: No route to host", 255),
            "b cannot be reached: ssh: connect to host b port 22: No route to host",
            "Make this command succeed without a password: ssh b true",
        ),
        (
            Trouble("ended", "describe", "There is no Python at /x on this host. …", ssh.NO_PYTHON),
            "No examiner could be started on b (exit code 254): There is no Python at "
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
    assert "\n\n1 problem would stop training:\n\n1. Port 61441" in text
    assert "No problems" not in text


def test_the_report_shows_first_what_stops_training():
    found = healthy()
    found.hosts[2].clock_s = 60.0
    text = report(found, findings(found))
    assert "\n\nWorth knowing:\n\n1. The clock of c" in text
    assert "\n\nNo problems. Plan: " in text
    facts(found, "b").versions["keras"] = "3.0"
    link(found, "a", "b").mbit = 9.0
    link(found, "a", "c").failure = "timed out"
    text = report(found, findings(found))
    parts = ["2 problems would stop training:", "1. The connection", "2. b has keras"]
    parts += ["Worth knowing:", "3. a sends to b", "4. The clock of c"]
    places = [text.index(f"\n\n{part}") for part in parts]
    assert places == sorted(places)
    assert "Plan:" not in text


def test_the_start_says_how_long_many_hosts_take():
    targets = [Target(f"n{index}", 1, "", ()) for index in range(64)]
    assert command._description(targets[:2]) == "2 hosts (n0, n1)"
    assert command._description(targets) == (
        "64 hosts (n0, n1, n2, n3, n4, n5, n6, n7, …), whose links take about 76 s to measure"
    )


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
    one, four = ([Target("a", slots, "srun", ())] for slots in (1, 4))
    given = {SERVER: "2222"}
    expected = Ports(2222, 2223, (SERVER,), (SERVER, CHANNEL))
    assert examination.wanted_ports(four, given) == expected
    given[CHANNEL] = "3000"
    expected = Ports(2222, 3000, (SERVER, CHANNEL), (SERVER, CHANNEL))
    assert examination.wanted_ports(one, given) == expected
    over_ssh = [Target("a", 1, "ssh a", ())]  # the launcher removes the port of the channel
    expected = Ports(2222, 2223, (SERVER,), (SERVER, SERVER))
    assert examination.wanted_ports(over_ssh, given) == expected
    with pytest.raises(ValueError, match="4 workers on one host need 8 ports"):
        examination.wanted_ports(four, {SERVER: "65530"})


def test_ports_that_nobody_has_chosen_are_random():
    # In Slurm, they also depend on the step, which does not exist yet.
    found = {
        examination.wanted_ports([Target("a", 1, "srun", ())], {"SLURM_JOB_ID": "3"})
        for _ in range(5)
    }
    assert len(found) > 1
    for ports in found:
        assert 61440 <= ports.server == ports.channel - 1 < 65535
        assert ports.chosen == ()
