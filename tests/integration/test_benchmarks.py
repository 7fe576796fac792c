"""The benchmarks at a small size: what they write, not how fast."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks import graphs
from tests.support import deadlines

pytestmark = pytest.mark.multiprocess

ROOT = pathlib.Path(__file__).parents[2]


def _run(name: str, flags, output) -> subprocess.CompletedProcess:
    """A benchmark that must end well."""
    script = str(ROOT / "benchmarks" / f"{name}.py")
    ended = subprocess.run(
        [sys.executable, script, *flags, f"--output={output}"],
        capture_output=True,
        text=True,
        timeout=3 * deadlines.long(),
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended


@pytest.mark.slow  # its exchanges: test_exactness; its report: tests/unit/test_benchmarks.py
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


@pytest.mark.slow  # what it computes from its times is tested below, and `links` too
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
    command = [sys.executable, "-c", code]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        try:
            said = process.stdout.readline().decode().strip()
            if said.startswith("none:"):
                pytest.skip(f"no hosts of their own here, {said}")
            holders = [each.partition("@")[0] for each in said.split(",")]
            assert len(holders) == 2
            own = os.readlink("/proc/self/ns/net")
            assert own not in {os.readlink(f"/proc/{holder}/ns/net") for holder in holders}
        finally:
            process.kill()  # which nothing can clean up after
    paths = [pathlib.Path("/proc", holder) for holder in holders]
    deadlines.Deadline(60).until(lambda: not any(path.exists() for path in paths))


@pytest.mark.slow
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


@pytest.mark.slow  # each algorithm by itself: test_train
def test_compare_sets_the_algorithms_side_by_side(tmp_path):
    output = tmp_path / "compare.json"
    flags = ["--seeds=2", "--workers=4", "--topology=ring", "--model=mlp", "--epochs=2"]
    flags += ["--steps_per_epoch=9", f"--output_dir={tmp_path / 'workers'}"]
    ended = _run("compare", flags, output)
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    rows = {row["name"]: row for row in json.loads(output.read_text())["rows"]}
    algorithms = {"parallel", "pga", "pga, H = 4", "aga", "auto", "local", "gossip"}
    assert set(rows) == algorithms | {"one worker", "gossip, not averaged"}
    for name, row in rows.items():
        assert row["val_loss_std"] > 0  # seeds differ
        assert f"{name}  " in ended.stdout
    # In 18 steps, auto is still warming up, with the H of pga.
    losses = {name: rows[name]["val_loss_mean"] for name in rows}
    assert losses["auto"] == losses["pga"]
    assert len({*losses.values()}) == len(losses) - 1
    # 18 steps.
    shares = {name: rows[name]["global_share"] for name in algorithms}
    assert (shares["parallel"], shares["pga"], shares["gossip"]) == (1, 3 / 18, 0)
    assert shares["pga, H = 4"] == 4 / 18
    # Four ranks with a quarter of the batch each, against one with all: the same but for the
    # draw of examples.
    assert rows["one worker"]["val_loss_mean"] == pytest.approx(
        rows["parallel"]["val_loss_mean"], rel=0.2
    )


@pytest.mark.slow  # its report: tests/unit/test_benchmarks.py
@pytest.mark.skipif(not importlib.util.find_spec("tf_keras"), reason="the baseline needs tf_keras")
@pytest.mark.parametrize("model", ["mlp", "resnet20"])
def test_time_to_loss_trains_the_same_model_with_mwms(tmp_path, model):
    output = tmp_path / "time_to_loss.json"
    flags = ["--workers=2", "--mbit=2000", f"--model={model}", "--batch_size=8", "--noaugment"]
    flags += ["--learning_rate=0.1", "--reference_batch=0", "--epochs=3", "--steps_per_epoch=6"]
    flags += [
        "--seeds=2",
        "--rows=Parallel SGD,PGA overlap",
        f"--output_dir={tmp_path / 'workers'}",
    ]
    ended = _run("time_to_loss", flags, output)
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    content = json.loads(output.read_text())
    rows = {row["name"]: row for row in content["rows"]}
    assert content["steps"] == [6, 12, 18]
    mwms, parallel, pga = rows.values()
    for name, row in rows.items():
        assert f"{name}  " in ended.stdout
        assert row["loss_std"] > 0  # seeds differ
        for seconds in row["seconds"]:
            assert seconds == sorted(seconds)
            assert seconds[0] >= 0
    # The same initial weights, batches and optimizer: with SGD, averaging gradients is the same as
    # averaging parameters.
    for own, other in zip(parallel["losses"], mwms["losses"], strict=True):
        assert own == pytest.approx(other, rel=2e-3)
    assert pga["losses"] != parallel["losses"]
    assert content["ratios"]["compute_over_all_reduce"] == pytest.approx(
        content["costs"]["compute_ms"] / content["costs"]["all_reduce_ms"]
    )


@pytest.mark.slow  # test_simulate holds its replicas against real processes
def test_optimizers_writes_a_row_for_each_kind_of_run(tmp_path):
    output = tmp_path / "optimizers.json"
    flags = ["--optimizers", "adam", "adamw", "--rates=1e-3", "--steps=7", "--seeds=2"]
    ended = _run("optimizers", flags, output)
    rows = json.loads(output.read_text())["rows"]
    tasks = ("digits", "text", "regression")
    assert {row["name"] for row in rows} == {
        f"{optimizer} on {task}" for optimizer in ("adam", "adamw") for task in tasks
    }
    assert len(rows) == 6 * (4 + 6)  # the grid's one line, and the comparison's
    for row in rows:
        assert len(row["val_loss"]) == 2
        assert row["val_loss_std"] > 0  # seeds differ
        assert f"{row['val_loss_mean']:.4f} ± {row['val_loss_std']:.4f}" in ended.stdout


@pytest.mark.slow  # what it reports: tests/unit/test_benchmarks.py
def test_graphs_writes_its_rows_and_a_picture(tmp_path):
    output = tmp_path / "graphs.json"
    _run("graphs", ["--nodes", "3", "6", "--iterations=60", "--trials=2"], output)
    content = json.loads(output.read_text())
    found = {(row["nodes"], row["algorithm"], row["graph"]) for row in content["rows"]}
    kinds = [(algorithm, graph) for algorithm in graphs.PERIODS for graph in graphs.GRAPHS]
    assert found == {(n, *kind) for n in (3, 6) for kind in kinds}
    for row in content["rows"]:
        assert row["distance"] > 0
        assert 0.5 < row["loss"] < 2
    assert [each["nodes"] for each in content["alone"]] == [3, 6]
    assert output.with_suffix(".png").stat().st_size > 1000


@pytest.mark.slow  # test_plan measures and predicts too
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
