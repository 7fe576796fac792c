"""What the benchmarks compute from their times, worked by hand."""

import math
import os
import pathlib

import numpy as np
import pytest

from benchmarks import graphs, memory, network_report, paper, report, scale, time_to_loss_report
from tests.support import deadlines
from tf_gossip_pga.algorithm import topology
from tf_gossip_pga.simulate import curves

ROOT = pathlib.Path(__file__).parents[2]


def test_memory_is_what_stays_and_what_an_action_needs(monkeypatch):
    kept, samples, sysconf = [], [], os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: samples.append(name) or sysconf(name))

    def build():
        kept.append(np.ones(2 << 20))  # 16 MiB

        def action():
            needed, before = np.ones(8 << 20), len(samples)  # 64 MiB
            if len(kept) > 1:  # after the warm-up, when somebody takes samples
                deadlines.Deadline(60).until(lambda: len(samples) > before + 1)
            kept.append(None)
            return needed

        return action

    assert 76 <= memory.peak_of(build, warm_up=1) / 2**20 < 90


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


def test_times_to_a_loss_are_worked_by_hand():
    def run(losses, second):
        seconds = [second * (index + 1) for index in range(4)]
        return {"seconds": seconds, "losses": losses, "accuracies": [0.5, 0.6, 0.7, 0.8]}

    # The mean of the baseline's seeds falls by 1 each 10 steps, from 4 to 1.
    baseline = [run([4.5, 3.5, 2.5, 1.5], 10.0), run([3.5, 2.5, 1.5, 0.5], 12.0)]
    targets = time_to_loss_report.targets_of(baseline, [10, 20, 30, 40])
    assert targets == pytest.approx({"to 90%": 1.4, "to 100%": 1})  # 36 and 40 steps
    twice_as_fast = [run([4, 3, 2, 1], 5.5)]
    never = [run([4, 3, 2, 1.2], 5.5)]
    names = (time_to_loss_report.BASELINE, "PGA", "AGA")
    rows = [
        time_to_loss_report.row(name, measured, targets)
        for name, measured in zip(names, (baseline, twice_as_fast, never), strict=True)
    ]
    of_baseline, of_fast, of_never = rows
    # 11 s between validations; 1.4 is six tenths of the way from 2 at 33 s to 1 at 44 s.
    assert of_baseline["to 90%"] == pytest.approx(33 + 0.6 * 11)
    assert of_baseline["to 100%, each seed"] == [None, pytest.approx(36 + 0.5 * 12)]
    assert of_baseline["loss_std"] == pytest.approx(0.5 * 2**0.5)
    assert of_fast["to 100%"] == pytest.approx(22)
    # From 2 to 1.2: 1.4 is three quarters of the way.
    assert of_never["to 90%"] == pytest.approx(16.5 + 0.75 * 5.5)
    assert of_never["to 100%"] is None
    found = time_to_loss_report.speedups(rows)
    assert found["PGA"] == pytest.approx({"": 2, " to 90%": 2, " to 100%": 2})
    assert found["AGA"][" to 100%"] is None
    lines = time_to_loss_report.table(rows, found).splitlines()
    assert lines[2].split()[-4:] == ["19.8", "2.00", "22.0", "2.00"]
    assert lines[3].split()[-2:] == ["-", "-"]
    first = np.array([1.0, 2.0])
    assert time_to_loss_report.crossing(first, np.array([0.5, 0.4]), 0.6) == 1


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
    assert "100% of bootstraps" in paper.growth_line(growth["late"])
    assert paper.growth_line(growth["never"]).endswith("-")


def test_looks_of_the_papers_experiment_are_at_all_phases_of_a_period():
    every = paper.parser().parse_args([]).every
    assert {step % paper.H for step in range(every, 5000, every)} == set(range(paper.H))


@pytest.mark.slow
def test_scale_continues_where_it_measured_last():
    ring = topology.ring(100)
    # 15 gossips of two messages and an all-reduce of 2 * 99/100, of 10 float32, in 16 steps.
    sent = 40 * (15 * 2 + 2 * 0.99) / 16
    assert scale.sent_bytes(100, len(ring.cycle[0].receivers)) == pytest.approx(sent)
    shared = {"ns_a_node": 50.0, "cpu_ns_a_node": 60.0}
    rows = [{"nodes": 10, "kib": 100, **shared}, {"nodes": 20, "kib": 120, **shared}]
    found = scale.beyond(rows, 100)
    assert found == {"nodes": 100, "kib": 280, "sent": pytest.approx(sent), **shared}
    with pytest.raises(
        SystemExit, match=r"(?s)nodes must be a whole number >= 1.*0 nodes: the process ended"
    ):
        scale.in_a_process(0, 4)
    line = scale.table([found]).splitlines()[1]
    assert line.split() == ["100", "5.0", "50.0", "60.0", "0", "80.0"]


def test_errors_of_gossip_alone():
    assert graphs.errors(topology.disconnected(4), 2) == [1, 1, 1]
    assert graphs.errors(topology.base_2(6), 4)[4] < 1e-12 < graphs.errors(topology.base_2(6), 3)[3]
    # (1 + z) / 2 at the third roots of one other than 1 has the absolute value 1/2.
    one_peer = graphs.errors(topology.one_peer_exponential(3), 3)
    assert one_peer == pytest.approx([1, 1 / 2, 1 / 4, 1 / 8])
    found = graphs.gossip_alone(12)
    assert (found["nodes"], found["rounds"]) == (12, 5)
    assert {name: len(left) for name, left in found["errors"].items()} == dict.fromkeys(
        graphs.GRAPHS, 16
    )


def test_what_graphs_reports_of_training(capsys):
    steps = np.array([10, 20, 30, 40])

    def curve(excess, distance):
        excess, distance = (np.repeat(np.array([each]).T, 2, axis=1) for each in (excess, distance))
        return curves.Curve(steps, excess, distance, np.zeros(2))

    found = {
        "parallel": curve([4.0, 3.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]),
        "pga, base_2": curve([8.0, 3.0, 2.0, 1.0], [0.5, 0.3, 0.2, 0.2]),
        "gossip, base_2": curve([8.0, 6.0, 4.0, 2.0], [1.0, 1.0, 1.0, 1.0]),
    }
    rows = graphs.training_rows(5, found)
    assert rows == [
        {"nodes": 5, "algorithm": "pga", "graph": "base_2", "distance": pytest.approx(0.3)}
        | {"loss": 1.0, "transient": 20},
        {"nodes": 5, "algorithm": "gossip", "graph": "base_2", "distance": 1.0}
        | {"loss": 2.0, "transient": None},
    ]
    alone = [{"nodes": 5, "rounds": 2, "errors": {"base_2": [1.0, 0.005, 0.0]}}]
    graphs.publish(alone, rows)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["5", "2", "base_2:", "1,", "2"] in lines
    assert ["n", "=", "5", "gossip", "base_2", "1.00e+00", "2.000", "-"] in lines


def test_graphs_measures_all_positions_in_a_period_and_in_a_cycle():
    options = graphs.parser().parse_args([])
    lengths = {topology.BY_NAME[name](n).rounds for name in graphs.GRAPHS for n in options.nodes}
    for length in {*lengths, graphs.PERIODS["pga"]}:
        assert math.gcd(options.every, length) == 1, length
