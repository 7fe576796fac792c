"""The benchmarks at a small size: what they write, not how fast."""

import json
import math
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks import memory, network_report, paper, report, scale
from tests.support import workers
from tf_gossip_pga.algorithm import topology
from tf_gossip_pga.simulate import curves

ROOT = pathlib.Path(__file__).parents[2]


def _run(name: str, flags, output, deadline_s=workers.DEADLINE_S) -> subprocess.CompletedProcess:
    """A benchmark that must end well."""
    script = str(ROOT / "benchmarks" / f"{name}.py")
    ended = subprocess.run(
        [sys.executable, script, *flags, f"--output={output}"],
        capture_output=True,
        text=True,
        timeout=deadline_s,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended


@pytest.mark.multiprocess
def test_exchange_writes_its_rows_and_ratios(tmp_path):
    output = tmp_path / "new" / "exchange.json"
    flags = ["--workers=2", "--megabytes=1", "--repetitions=3"]
    ended = _run("exchange", flags, output)
    content = json.loads(output.read_text())
    assert set(content) == {"command", "machine", "rows", "ratios"}
    medians = {row["name"]: row["median_ms"] for row in content["rows"]}
    assert min(medians.values()) > 0
    mwms = medians["MultiWorkerMirrored all-reduce"]
    assert content["ratios"]["gossip_over_mwms"] == pytest.approx(
        medians["one_peer_exponential gossip"] / mwms
    )
    assert content["ratios"]["global_over_mwms"] == pytest.approx(medians["global average"] / mwms)
    assert content["ratios"]["small_step_over_bare_allreduce"] > 0
    assert "functions traced again after the warm-up: 0" in ended.stdout


@pytest.mark.multiprocess
def test_network_writes_its_rows_and_ratios(tmp_path):
    output = tmp_path / "network.json"
    flags = ["--hosts=2", "--mbit=2000", "--megabytes=1", "--repetitions=2", "--fits=1"]
    _run("network", flags, output)
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    content = json.loads(output.read_text())
    medians = {row["name"]: row["median_ms"] for row in content["rows"]}
    assert min(medians.values()) > 0
    gossip = medians["one-peer gossip"]
    expected = {
        "gossip_share_of_limit": medians["TCP"] / gossip,
        "global_share_of_limit": medians["TCP"] / medians["global average"],  # 2 (n-1)/n = 1
        "gossip_over_mwms": gossip / medians["MWMS all-reduce"],
        "bfloat16_over_float32": medians["one-peer gossip, bfloat16"] / gossip,
        "int8_over_float32": medians["one-peer gossip, int8"] / gossip,
        "overlap_step_over_compute": medians["step, compute 1.2x: gossip, overlap"]
        / medians["step, compute 1.2x: compute alone"],
    }
    foreseen = {row["name"]: row.get("predicted_ms") for row in content["rows"]}
    assert foreseen["one-peer gossip"] == pytest.approx(medians["TCP"])
    assert foreseen["TCP"] is None
    found = content["ratios"]
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    for row in content["rows"]:
        if "share_of_limit" in row:
            assert row["cpu_seconds"] > 0
    weighed = {row["name"] for row in content["rows"] if row.get("memory_copies")}
    assert weighed == {
        *("one-peer gossip", "one-peer gossip, bfloat16", "one-peer gossip, int8"),
        *("one-peer gossip during a step", "global average"),
    }


def test_memory_is_what_stays_and_what_an_action_needs():
    kept = []

    def build():
        kept.append(np.ones(2 << 20))  # 16 MiB

        def action():
            needed = np.ones(8 << 20)  # 64 MiB
            time.sleep(0.2)
            return needed

        return action

    assert 76 <= memory.peak_of(build, warm_up=1) / 2**20 < 90


def test_hosts_end_with_the_process_that_made_them():
    code = """
import sys
from benchmarks import links
try:
    with links.hosts(2, 1000) as hosts:
        print(hosts.flag, flush=True)
        sys.stdin.read()
except links.NoHostsError as reason:
    print("none:", reason, flush=True)
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes) as process:
        try:
            said = process.stdout.readline().decode().strip()
            if said.startswith("none:"):
                pytest.skip(f"no hosts of their own here, {said}")
            holders = said.split(",")
            assert len(holders) == 2
            own = os.readlink("/proc/self/ns/net")
            assert own not in {os.readlink(f"/proc/{holder}/ns/net") for holder in holders}
        finally:
            process.kill()  # which nothing can clean up after
    ends = time.monotonic() + workers.DEADLINE_S
    while any(pathlib.Path("/proc", holder).exists() for holder in holders):
        assert time.monotonic() < ends
        time.sleep(0.1)


def test_input_writes_a_row_for_each_pipeline(tmp_path):
    output = tmp_path / "input.json"
    flags = ["--seconds=0.1", "--repetitions=2", "--images=40"]
    ended = _run("input", flags, output)
    rows = json.loads(output.read_text())["rows"]
    assert {row["name"].partition(",")[0] for row in rows} == {
        *("imagenet2012", "cifar10", "digits", "python_docs", "lm1b")
    }
    assert {row["unit"] for row in rows} == {"images", "tokens"}
    for row in rows:
        assert min(row["per_core_second"], row["per_second"]) > 0
        assert f"{row['name']:26}" in ended.stdout


@pytest.mark.multiprocess
def test_compare_sets_the_algorithms_side_by_side(tmp_path):
    output = tmp_path / "compare.json"
    flags = ["--seeds=2", "--workers=4", "--topology=ring", "--model=mlp", "--epochs=2"]
    flags += ["--steps_per_epoch=9"]
    ended = _run("compare", flags, output, deadline_s=2 * workers.DEADLINE_S)
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    rows = {row["name"]: row for row in json.loads(output.read_text())["rows"]}
    algorithms = {"parallel", "pga", "pga, H = 4", "aga", "local", "gossip"}
    assert set(rows) == algorithms | {"one worker", "gossip, not averaged"}
    for name, row in rows.items():
        assert row["val_loss_std"] > 0  # seeds differ
        assert f"{name}  " in ended.stdout
    assert len({rows[name]["val_loss_mean"] for name in rows}) == len(rows)
    # 18 steps.
    shares = {name: rows[name]["global_share"] for name in algorithms}
    assert (shares["parallel"], shares["pga"], shares["gossip"]) == (1, 3 / 18, 0)
    assert shares["pga, H = 4"] == 4 / 18
    # Four ranks with a quarter of the batch each, against one with all: the same but for the
    # draw of examples.
    assert rows["one worker"]["val_loss_mean"] == pytest.approx(
        rows["parallel"]["val_loss_mean"], rel=0.2
    )


def test_network_ratios_are_worked_by_hand():
    exchanges = {
        network_report.LIMIT: 100,
        network_report.GOSSIP: 200,
        network_report.MWMS: 400,
        network_report.GLOBAL: 250,
        network_report.BFLOAT16: 120,
        network_report.INT8: 50,
    }
    steps = {
        "step, compute 1.2x: gossip, overlap": 330,
        "step, compute 1.2x: compute alone": 300,
        "step, compute 1.0x: Parallel SGD, MWMS": 900,
        "step, compute 1.0x: PGA, overlap": 400,
    }
    expected = {  # of 4 workers: an all-reduce sends 2 * 3/4 = 1.5 times the parameters
        "gossip_share_of_limit": 0.5,
        "global_share_of_limit": 0.6,
        "gossip_over_mwms": 0.5,
        "bfloat16_over_float32": 0.6,
        "int8_over_float32": 0.25,
    }
    assert network_report.ratios(exchanges, 4) == pytest.approx(expected)
    of_steps = {"overlap_step_over_compute": 1.1, "fit_speedup_over_mwms": 2.25}
    assert network_report.ratios({**exchanges, **steps}, 4) == pytest.approx(
        {**expected, **of_steps}
    )


def test_network_predicts_from_the_limit_and_the_computation_alone():
    medians = {network_report.LIMIT: 1000, "step, compute 1.0x: compute alone": 500}
    found = network_report.predicted(medians, 4_000_000, 4)
    steps = {name: ms for name, ms in found.items() if name.startswith("step")}
    assert steps == pytest.approx(
        {
            "step, compute 1.0x: PGA": 500 + (5 * 1000 + 1500) / 6,
            "step, compute 1.0x: PGA, overlap": (2 * 500 + 4 * 1000 + 1500) / 6,
            "step, compute 1.0x: gossip, overlap": 1000,
            "step, compute 1.0x: Parallel SGD, MWMS": 500 + 1500,
        }
    )
    assert found[network_report.GOSSIP] == pytest.approx(1000)
    assert found[network_report.BFLOAT16] == pytest.approx(500)
    assert found[network_report.RING] == pytest.approx(2000)
    assert found[network_report.MWMS] == found[network_report.GLOBAL] == pytest.approx(1500)


@pytest.mark.multiprocess
def test_predict_sets_measured_beside_predicted(tmp_path):
    output = tmp_path / "predict.json"
    flags = ["--workers=2", "--width=32", "--batch_size=8", "--repetitions=1"]
    ended = _run("predict", flags, output)
    content = json.loads(output.read_text())
    names = {"computation alone", "Parallel SGD", "Local SGD", "Gossip SGD", "PGA"}
    names |= {"Gossip SGD, ring", "Gossip SGD, overlap", "PGA, overlap"}
    assert {row["name"] for row in content["rows"]} == names
    for row in content["rows"]:
        assert min(row["predicted_ms"], row["median_ms"]) > 0
        assert content["ratios"][row["name"]] == row["predicted_ms"] / row["median_ms"]
    assert "Measured: mbit " in ended.stdout


def test_a_table_has_the_columns_that_a_row_has():
    times = {"median_ms": 2.0, "min_ms": 1.0, "max_ms": 3.0}
    rows = [
        {"name": "a", **times, "memory_copies": None},
        {"name": "bb", **times, "cpu_seconds": 0.5},
    ]
    head, first, second = report.table(rows).splitlines()
    assert head.split() == ["median", "ms", "min", "max", "CPU", "s"]
    assert first.split() == ["a", "2.0", "1.0", "3.0"]
    assert second.split() == ["bb", "2.0", "1.0", "3.0", "0.50"]


def test_orders_of_the_transient_stage():
    # beta = 1/2, so C = (1 - 1/2^16) / (1/2) = 2 - 1/2^15 and D = 2, n^3 beta^4 = 512 / 16 = 32.
    found = paper.orders(topology.static_exponential(8), heterogeneous=True)
    assert (found["beta"], found["C"], found["D"]) == pytest.approx((0.5, 2 - 2**-15, 2))
    assert found["gossip"] == pytest.approx(32 * 16)
    assert found["pga"] == pytest.approx(32 * found["C"] ** 2 * 4)
    assert found["local"] == 512 * 16**4
    iid = paper.orders(topology.static_exponential(8), heterogeneous=False)
    assert iid["gossip"] == pytest.approx(32 * 4)
    assert iid["pga"] == pytest.approx(32 * iid["C"] ** 2)
    assert iid["local"] == 512 * 16**2


def test_transients_and_their_growth():
    steps = np.arange(100, 5100, 100)

    def joins_at(step):
        """In all trials alike, so that bootstraps find the same."""
        mean = np.where(steps < step, 2.0, 1.0)
        excess = np.repeat(mean[:, np.newaxis], 3, axis=1)
        return curves.Curve(steps, excess, excess, np.zeros(3))

    sizes = [10, 20, 40]
    methods = {"square": lambda n: 2 * n * n, "late": lambda n: 100 * n, "never": lambda n: 9999}
    found = {
        (data, n): {"parallel": joins_at(0)}
        | {name: joins_at(step(n)) for name, step in methods.items()}
        for data in paper.DATA
        for n in sizes
    }
    measured = paper.transients(found, 1.1, trials=3)
    assert set(measured["iid", 20]["late"]) == {2000}
    assert set(measured["iid", 20]["square"]) == {800}
    assert set(measured["iid", 40]["never"]) == {math.inf}
    assert paper.interval(measured["iid", 20]["late"]) == (2000, 2000)
    theory = {key: dict.fromkeys(methods, key[1] ** 3) for key in found}
    growth = {
        each["method"]: each
        for each in paper.exponents(sizes, measured, theory, every=100)
        if each["data"] == "iid"
    }
    assert growth["late"]["measured"] == pytest.approx(1)
    assert growth["late"]["predicted"] == pytest.approx(3)
    # 200, 800, 3200
    assert growth["square"]["measured"] == growth["square"]["low"] == pytest.approx(2)
    assert growth["never"]["measured"] is None
    assert "100% of them" in paper.growth_line(growth["late"])
    assert paper.growth_line(growth["never"]).endswith("-")


def test_looks_of_the_papers_experiment_are_at_all_phases_of_a_period():
    every = paper.parser().parse_args([]).every
    assert {step % paper.H for step in range(every, 5000, every)} == set(range(paper.H))


def test_scale_goes_on_where_it_measured_last():
    ring = topology.ring(100)
    # 15 gossips of two messages and an all-reduce of 2 * 99/100, of 10 float32, in 16 steps.
    sent = 40 * (15 * 2 + 2 * 0.99) / 16
    assert scale.sent_bytes(100, len(ring.cycle[0].receivers)) == pytest.approx(sent)
    shared = {"ns_a_node": 50.0, "cpu_ns_a_node": 60.0}
    rows = [{"nodes": 10, "kib": 100, **shared}, {"nodes": 20, "kib": 120, **shared}]
    found = scale.beyond(rows, 100)
    assert found == {"nodes": 100, "kib": 280, "sent": pytest.approx(sent), **shared}
    with pytest.raises(SystemExit, match=r"(?s)nodes must be a whole number >= 1.*0 nodes ended"):
        scale.in_a_process(0, 4)
    line = scale.table([found]).splitlines()[1]
    assert line.split() == ["100", "5.0", "50.0", "60.0", "0", "80.0"]
