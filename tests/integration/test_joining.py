"""Workers that are lost and started again, in real processes: the others take them in."""

import concurrent.futures
import contextlib
import json
import socket
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest

import tf_gossip_pga
from tests.support import addresses, deadlines, nursery
from tf_gossip_pga import launch
from tf_gossip_pga.coordination import greetings, joining, secret
from tf_gossip_pga.coordination.timing import Timing
from tf_gossip_pga.errors import WorkerLost

pytestmark = pytest.mark.multiprocess

# Some ranks kill themselves in the third epoch of their first life. In the fourth the others wait
# until these have come back, so that what follows does not hang on how fast they are.
PROGRAM = """
import json, os, pathlib, signal, sys, threading, time
folder = pathlib.Path(sys.argv[1])
settings, dying = map(json.loads, sys.argv[2:])
first_life = "TF_GOSSIP_PGA_JOIN" not in os.environ
if settings.pop("nobody says so", False):
    os.environ.pop("TF_GOSSIP_PGA_JOIN", None)
if settings.pop("in a new step", False) and not first_life:  # where Slurm says 0 of 1
    rank = json.loads(os.environ.pop("TF_CONFIG"))["task"]["index"]
    os.environ.update(SLURM_PROCID="0", SLURM_STEP_NUM_TASKS="1", TF_GOSSIP_PGA_RANK=str(rank),
                      TF_GOSSIP_PGA_CLUSTER=str(folder / "checkpoints" / "cluster.json"))
import tf_gossip_pga as pga
cluster = pga.initialize()
import keras, numpy as np
from tf_gossip_pga.exchange import process
second, every = settings.pop("second", None), settings.pop("every", 1)
dies_beside = settings.pop("dies_beside", None)
if first_life:
    second = None
others = []
if settings.pop("restores", False) and second != "leaves callbacks out":
    # The best epoch for who has trained from the start is not one of those that come back.
    others = [keras.callbacks.EarlyStopping("val_loss", mode="max", patience=100,
                                            restore_best_weights=True)]

class Fate(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):  # invited, but not yet a member
        if second == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
    def on_epoch_begin(self, epoch, logs=None):
        while epoch == 3 and len(process.active().joining()) < len(cluster.lost):
            time.sleep(0.1)
        if epoch == 3 and cluster.rank == dies_beside:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()
    def on_train_batch_end(self, batch, logs=None):
        if first_life and cluster.rank in dying and gossip.step == 19:
            os.kill(os.getpid(), signal.SIGKILL)

keras.utils.set_random_seed(cluster.rank)
width = 17 if second == "differs" else 16
model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(width, "relu"),
                          keras.layers.BatchNormalization(), keras.layers.Dense(1)])
model.compile(keras.optimizers.Adam(0.01), "mse")
random = np.random.default_rng(cluster.rank)
x = random.normal(size=(64, 8)).astype("float32")
y = x.sum(1, keepdims=True)
H = settings.pop("H")
if H == "adaptive":
    H = pga.AdaptivePeriod(initial=2, warmup_steps=4, maximum=8)
outer = settings.pop("outer", None)
outer = pga.Outer(*outer) if outer else None
gossip = pga.GossipPGA(H=H, on_worker_lost="continue", outer_optimizer=outer, **settings)
checkpoint = pga.Checkpoint(gossip, folder / "checkpoints", every=every)
first_epoch = checkpoint.restore(model)
if second == "has another epoch":
    first_epoch = 0
history = model.fit(x, y, batch_size=8, epochs=8, verbose=0, validation_data=(x, y),
                    initial_epoch=first_epoch,
                    callbacks=[Fate(), gossip, *others, checkpoint])
def flat(weights):
    return [float(v) for w in weights for v in np.ravel(w)]
result = {
    "weights": flat(model.get_weights()),
    "best": flat(others[0].best_weights if others else model.get_weights()),
    "step": gossip.step, "state": gossip.state, "members": cluster.members,
    "iterations": int(model.optimizer.iterations), "logs": history.history,
    "epochs": history.epoch, "period": gossip.state["period"],
    "outer": [flat([v.numpy()]) for v in outer and gossip.run.outer.variables or ()],
}
(folder / f"{cluster.rank}.json").write_text(json.dumps(result))
"""


def _run(
    folder, settings: dict, dying: list[int], min_workers: int = 3
) -> tuple[dict[int, dict], str]:
    """What those that have ended well have left behind, and what all have said."""
    command = [sys.executable, "-c", PROGRAM, str(folder), json.dumps(settings), json.dumps(dying)]
    said = []
    with nursery.forks():
        launch.launch(
            command,
            workers=3,
            min_workers=min_workers,
            rejoins=len(dying),
            deadline_s=deadlines.long(),
            write=said.append,
        )
    results = {int(path.stem): json.loads(path.read_text()) for path in folder.glob("[0-9].json")}
    print("".join(said))
    return results, "".join(said)


@pytest.mark.parametrize(
    ("settings", "dying"),
    [
        pytest.param(
            {"H": 5, "optimizer_state": "average", "outer": [0.7, 0.9, True]},
            [2],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"H": 3, "overlap": True, "wire_dtype": "int8", "topology": "ring"},
            [0],
            marks=pytest.mark.slow,
        ),
        (
            {"H": "adaptive", "every": 2, "in a new step": True, "outer": [0.7, 0.5, True]},
            [0, 1],
        ),
        # In no consensus where the fourth epoch begins.
        pytest.param(
            {
                "H": 5,
                "every": 100,
                "optimizer_state": "reset",
                "nobody says so": True,
                "restores": True,
            },
            [1],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_who_comes_back_is_taken_in_and_ends_like_all(tmp_path, settings, dying):
    results, said = _run(tmp_path, settings, dying)
    assert sorted(results) == [0, 1, 2]
    for each in results.values():
        assert each["members"] == [0, 1, 2]
        assert (each["step"], each["iterations"]) == (64, 64)
        assert each["state"] == results[0]["state"]
        assert each["outer"] == results[0]["outer"]
    came_back = results[dying[0]]
    others = [each for rank, each in results.items() if rank not in dying]
    for each in results.values():
        np.testing.assert_array_equal(each["weights"], others[0]["best"])
    for rank in dying:
        assert f"Rank {rank} failed with signal SIGKILL. The launcher restarts it to join" in said
    epochs = came_back["epochs"]
    assert epochs == list(range(3, 8))
    for other in others:
        assert other["epochs"] == list(range(8))
        for name in ("loss", "val_loss", "consensus_distance"):
            np.testing.assert_array_equal(other["logs"][name][3:], came_back["logs"][name])
    assert came_back["logs"]["loss"][-1] < others[0]["logs"]["loss"][0]


@pytest.mark.parametrize(
    ("second", "why"),
    [
        pytest.param(
            "differs",
            "Rank 1 cannot join: it differs from the other workers in the model",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "leaves callbacks out",
            "the callbacks that set weights or learning rates (EarlyStopping",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "has another epoch",
            "Rank 1 begins epoch 1, but the other workers begin epoch 4.",
            marks=pytest.mark.slow,
        ),
        (
            "dies",
            "continues without rank 1: 2 of 3 workers remain. The failure interrupted the "
            "admission of rank 1.",
        ),
    ],
)
def test_the_others_go_on_without_one_that_cannot_be_taken_in(tmp_path, second, why):
    settings = {"H": 5, "second": second, "restores": second == "leaves callbacks out"}
    results, said = _run(tmp_path, settings, dying=[1], min_workers=2)
    assert sorted(results) == [0, 2]
    for each in results.values():
        assert (each["members"], each["step"]) == ([0, 2], 64)
        np.testing.assert_array_equal(each["weights"], results[0]["weights"])
    assert why in said


def test_one_that_is_lost_while_another_is_taken_in_is_gone_on_without(tmp_path):
    settings = {"H": 5, "every": 100, "dies_beside": 2}
    results, _ = _run(tmp_path, settings, dying=[1], min_workers=1)
    # Whether rank 1 was a member already when rank 2 died is not for us to say.
    assert 0 in results and 2 not in results
    for each in results.values():
        assert (each["members"], each["step"]) == (sorted(results), 64)
        np.testing.assert_array_equal(each["weights"], results[0]["weights"])


SECRET = b"sixteen characters"


def _awaited(*, port: int, others=(), timing: Timing | None = None) -> dict:
    """Return what a joining worker learns at its port."""
    given = [f"127.0.0.1:{each}" for each in (port, *others)]
    return joining.await_probe(given, 0, SECRET, timing)


def _free(count: int) -> list[int]:
    return [int(each.rpartition(":")[2]) for each in addresses.free(count)]


def _probe(port: int, line: Callable[[str], bytes]) -> bytes:
    """Return what a joining worker answers to a line, which may depend on its nonce."""
    for _ in range(600):
        try:
            connection = socket.create_connection(("127.0.0.1", port), timeout=30)
        except ConnectionRefusedError:
            time.sleep(0.05)
            continue
        with connection, connection.makefile("rb") as lines:
            greeting, _, nonce = lines.readline().decode().rstrip().rpartition(" ")
            assert greeting.encode() == greetings.JOINING
            connection.sendall(line(nonce))
            with contextlib.suppress(ConnectionResetError):
                return lines.readline()
            return b""
    raise TimeoutError


UNKNOWN = [b"\n", b"PRI * HTTP/2.0\r\n", b"[1]\n", b'{"endpoints": {"1": 7}}\n', b"\xff\n"]
UNKNOWN += [b"[" * 10_000 + b"\n", b"x" * 100_000, b"0" * 64 + b" {}\n"]
WRONG = [
    {},
    {"1": 3, "99": 4},
    {"1": 99_999_999},
    {"1": {"port": 7}},
    [1],
    {"-1": 7},
    {"1": 0},
    None,
]


def test_a_proven_probe_leaves_endpoints_and_unknown_peers_do_not(capfd):
    (port,) = _free(1)
    others = [1, 2]  # nobody listens there
    key = secret.key_of(SECRET, [f"127.0.0.1:{each}" for each in (port, *others)], 0)
    strangers = secret.key_of(b"another secret of a job", [f"127.0.0.1:{port}"], 0)
    patient = Timing(
        serve_s=deadlines.scaled(60),
        join_report_s=deadlines.long(),
        job_check_every_s=deadlines.long(),
    )

    def with_key(key, endpoints):
        request = {"kind": "probe", "endpoints": endpoints}
        return lambda nonce: secret.seal_request(key, nonce, request)[0]

    with concurrent.futures.ThreadPoolExecutor() as threads:
        heard = threads.submit(_awaited, port=port, others=others, timing=patient)
        for line in UNKNOWN:
            assert _probe(port, lambda nonce, line=line: line) == b""
        assert _probe(port, with_key(strangers, {"1": 7})) == b""
        for endpoints in WRONG:
            assert _probe(port, with_key(key, endpoints)) == b""
        assert _probe(port, with_key(key, {"1": 7, "2": 8}))
        assert heard.result(deadlines.long()) == {1: 7, 2: 8}
    assert capfd.readouterr().err == ""


def test_a_worker_without_a_secret_cannot_join_and_says_what_to_set():
    given = ["127.0.0.1:1", "127.0.0.1:2"]
    with pytest.raises(ValueError, match=r"Rank 1 cannot join .* Set TF_GOSSIP_PGA_SECRET to"):
        joining.await_probe(given, 1, None)
    assert joining.endpoints_if_probed(given, 1, None) is None


def test_a_worker_that_nobody_probes_ends_and_says_so():
    ports = _free(2)
    with pytest.raises(WorkerLost, match="the job has ended"):
        _awaited(port=ports[0], others=ports[1:], timing=Timing(job_check_every_s=0.1))


def test_a_port_that_is_taken_is_reported():
    with socket.create_server(("", 0)) as taken:
        taken.listen()
        with pytest.raises(RuntimeError, match="Is the process that it replaces still running"):
            _awaited(port=taken.getsockname()[1])


def test_who_is_to_join_must_know_whom(monkeypatch):
    # Another test of this process may have called `initialize` already.
    monkeypatch.setattr("tf_gossip_pga.exchange.process._active", None)
    with pytest.raises(ValueError, match="needs the TF_CONFIG of its first start") as caught:
        tf_gossip_pga.initialize(join=True)
    assert "set TF_GOSSIP_PGA_CLUSTER to the path of the cluster.json in" in str(caught.value)
