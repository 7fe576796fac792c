"""Kill, stop or delay workers at a chosen or random step and phase of training.

    python tests/chaos.py --runs=60 --output=output/chaos.json
    python tests/chaos.py --runs=60 --returning

Each run trains a small model on four real processes with `GossipPGA(on_worker_lost="continue")`,
and kills one or two of them. A run passes if all others finish `fit` with the same weights, and
with a loss within 10% of an undisturbed run with as many workers. With `--returning` the killed
workers are restarted, and join the others. In half of these runs any worker, possibly one that was
killed before, is killed while they join. In another script:

    events = [Event(rank=2, step=40, phase="exchange")]
    model.fit(…, callbacks=[Chaos(cluster.rank, events), gossip])
"""

import argparse
import dataclasses
import json
import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import keras
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import links
from tests.support import addresses, deadlines, gpus
from tf_gossip_pga.checkpoint import files as files_lib
from tf_gossip_pga.cluster import tf_config as cluster_lib
from tf_gossip_pga.exchange import process

# When in a step or epoch an event happens: during the computation; shortly after the start of the
# exchange; during the validation at the end of the epoch; at the end of the epoch; shortly after
# that, during a checkpoint if there is one.
PHASES = ("computing", "exchange", "validation", "epoch end", "checkpoint")

# Before the epoch after this step begins; shortly after that, while restarted workers join. On a
# restarted worker an admission event happens shortly after the start of its `fit`.
PHASES_OF_RETURNS = ("epoch begin", "admission")

WORKERS, EPOCHS, STEPS, PERIOD, BATCH = 4, 4, 15, 4, 64
LAST_EPOCH = (EPOCHS - 1) * STEPS  # number of steps before the last epoch
DEADLINE_S = 240

_AWAITING = "awaiting"  # file that exists once other workers wait for restarted ones


@dataclasses.dataclass(frozen=True)
class Event:
    """Describe an event on one rank.

    Attributes:
      rank: the rank.
      step: the step, counted from 1 over the whole run.
      phase: one of `PHASES` or `PHASES_OF_RETURNS`.
      kind: `"kill"`: SIGKILL. `"stop"`: SIGSTOP, and SIGCONT after `seconds`. `"delay"`: a sleep of
        `seconds`. `"cut"`: its network interface goes down; it must be on a separate host.
        `"await"`: it waits until all lost workers have asked to join.
      seconds: duration of `"stop"` and `"delay"`. Also the time from the start of an exchange,
        checkpoint or admission to the event.
      returns: whether a killed worker is restarted, to join the others. Later events of its rank
        then happen to the restarted worker.
    """

    rank: int
    step: int
    phase: str
    kind: str = "kill"
    seconds: float = 0.005
    returns: bool = False


class Chaos(keras.callbacks.Callback):
    """Make the events of this rank happen. It must stand before `GossipPGA` in the callbacks.

    Args:
      rank: this rank.
      events: the events of all ranks.
      log: file to which the time of each event is appended.

    Attributes:
      awaited_s: how long this rank has waited for restarted workers.
    """

    def __init__(self, rank: int, events, log=os.devnull):
        super().__init__()
        self._events = [event for event in events if event.rank == rank]
        self._log = log
        self._step = 0
        self.awaited_s = 0.0

    def on_train_begin(self, logs=None):
        if process.active().is_joining:
            self._step = process.active().admission.invitation.state["step"]
            self._happen_soon("admission")

    def on_epoch_begin(self, epoch, logs=None):
        self._happen("epoch begin")
        self._happen_soon("admission")

    def on_train_batch_begin(self, batch, logs=None):
        self._step += 1
        self._happen("computing")

    def on_train_batch_end(self, batch, logs=None):
        self._happen_soon("exchange")

    def on_test_batch_begin(self, batch, logs=None):
        self._happen("validation")

    def on_epoch_end(self, epoch, logs=None):
        self._happen("epoch end")
        self._happen_soon("checkpoint")

    def _at(self, phase: str) -> list[Event]:
        found = [each for each in self._events if (each.step, each.phase) == (self._step, phase)]
        self._events = [each for each in self._events if each not in found]
        return found

    def _happen(self, phase: str):
        for event in self._at(phase):
            self._do(event)

    def _happen_soon(self, phase: str):
        for event in self._at(phase):
            threading.Timer(event.seconds, self._do, [event]).start()

    def _do(self, event: Event):
        if event.kind == "await":
            self._await_joining()
            return
        with open(self._log, "a") as log:
            print(time.time(), file=log, flush=True)
        if event.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif event.kind == "cut":
            subprocess.run(["ip", "link", "set", "eth0", "down"], check=True)
        elif event.kind == "stop":
            subprocess.Popen(["sh", "-c", f"sleep {event.seconds}; kill -CONT {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGSTOP)
        else:
            time.sleep(event.seconds)

    def _await_joining(self):
        began, session = time.monotonic(), process.active()
        pathlib.Path(self._log).with_name(_AWAITING).touch()
        while len(session.joining()) < len(session.cluster.lost):
            time.sleep(0.05)
        self.awaited_s += time.monotonic() - began


def plan(seed: int) -> list[Event]:
    """Return one or two random kills; in a quarter of the runs one of them is on rank 0."""
    draw = random.Random(seed)
    ranks = [0] if seed % 4 == 0 else [draw.randrange(1, WORKERS)]
    if seed % 3 == 0:
        ranks.append(draw.choice([rank for rank in range(1, WORKERS) if rank not in ranks]))
    events = []
    for rank in ranks:
        phase = draw.choice(PHASES)
        step = draw.randrange(2, EPOCHS * STEPS)
        if phase in ("validation", "epoch end", "checkpoint"):
            step = max(1, round(step / STEPS)) * STEPS
        seconds = draw.uniform(0, 0.1 if phase == "checkpoint" else 0.01)
        events.append(Event(rank, step, phase, seconds=seconds))
    return events


def plan_of_returns(seed: int) -> list[Event]:
    """Return kills as in `plan`, but in the first two epochs, with restarts.

    Before the last epoch the other workers wait for the restarted ones. In every other run the
    restart comes only then, and a random worker is killed while they join.
    """
    draw = random.Random(seed)
    events = []
    for event in plan(seed):
        step = max(2, event.step // 2)
        if event.phase in ("validation", "epoch end", "checkpoint"):
            step = STEPS * draw.choice([1, 2])
        events.append(dataclasses.replace(event, step=step, returns=True))
    returning = {event.rank for event in events}
    for rank in set(range(WORKERS)) - returning:
        events.append(Event(rank, LAST_EPOCH, "epoch begin", kind="await"))
    if seed % 2:
        rank = draw.randrange(WORKERS)
        events.append(Event(rank, LAST_EPOCH, "admission", seconds=draw.uniform(0, 0.5)))
    return events


def settings(seed: int, returning: bool = False) -> dict:
    """Return random arguments of `GossipPGA`, and whether to take checkpoints.

    An `H` of 0 stands for an adaptive period. Every other run takes checkpoints. If workers are
    restarted every run does: a joining worker learns from its `Checkpoint` which epoch begins.
    """
    draw = random.Random(1000 + seed)
    return {
        "checkpoints": returning or seed % 2 == 1,
        "H": draw.choice([PERIOD, STEPS // 3, None, 0]),
        "topology": draw.choice(["ring", "one_peer_exponential", "hypercube"]),
        "overlap": draw.choice([False, True]),
        "wire_dtype": draw.choice(["float32", "float32", "int8"]),
    }


# ---- A worker -----------------------------------------------------------------------------------


class Clock(keras.callbacks.Callback):
    """Record when this rank learns of lost workers. It must stand after `GossipPGA`.

    Attributes:
      moments: the time at which this rank knew of each loss.
      pause_s: longest time from one batch to the next, except for the time in which this rank
        waited for restarted workers.
    """

    def __init__(self, cluster, chaos: Chaos):
        super().__init__()
        self._cluster = cluster
        self._chaos = chaos
        self._known = set()
        self._last = None
        self.moments = []
        self.pause_s = 0.0

    def _look(self, *arguments, **named):
        if self._cluster.lost - self._known:
            self.moments.append(time.time())
        self._known = set(self._cluster.lost)

    def on_train_batch_end(self, batch, logs=None):
        self._look()
        now = time.monotonic() - self._chaos.awaited_s
        if self._last is not None:
            self.pause_s = max(self.pause_s, now - self._last)
        self._last = now

    on_test_begin = on_epoch_begin = on_epoch_end = on_train_end = _look


def data(rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points in the plane with one of three labels; rank -1 stands for validation."""
    draw = np.random.default_rng(1 + rank)
    x = draw.normal(size=(EPOCHS * STEPS * BATCH, 2)).astype(np.float32)
    return x, (np.arctan2(x[:, 0], x[:, 1]) // (np.pi * 2 / 3) + 2).astype(np.int32)


def work(folder: pathlib.Path, events: list[Event], arguments: dict):
    """Train as one worker, and write the result.

    Args:
      folder: directory for results, events and checkpoints.
      events: the events of all ranks.
      arguments: arguments of `GossipPGA`; see `settings`.
    """
    import tf_gossip_pga as pga

    cluster = pga.initialize()
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(16, "tanh")])
    model.add(keras.layers.Dense(4))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    rate = keras.optimizers.schedules.CosineDecay(0.3, EPOCHS * STEPS)
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), loss)
    x, y = data(cluster.rank)
    x_validation, y_validation = data(-1)
    arguments = {
        "on_worker_lost": "continue",
        "timeout_s": deadlines.scaled(DEADLINE_S / 10),
        **arguments,
    }
    if arguments["H"] == 0:
        arguments["H"] = pga.AdaptivePeriod(initial=PERIOD, warmup_steps=2 * PERIOD)
    checkpoints = arguments.pop("checkpoints", False)
    gossip = pga.GossipPGA(**arguments)
    saving = [pga.Checkpoint(gossip, folder / "checkpoints")] if checkpoints else []
    chaos = Chaos(cluster.rank, events, folder / "events")
    clock = Clock(cluster, chaos)
    history = model.fit(
        x,
        y,
        batch_size=BATCH,
        steps_per_epoch=STEPS,
        epochs=EPOCHS,
        initial_epoch=saving[0].restore(model) if saving else 0,
        verbose=0,
        validation_data=(x_validation, y_validation),
        callbacks=[chaos, gossip, *saving, clock],
    )
    result = {
        "weights": [weight.tolist() for weight in model.get_weights()],
        "loss": model.evaluate(x_validation, y_validation, verbose=0),
        "step": gossip.step,
        "epochs": history.epoch,
    }
    # The surviving workers can train again.
    model.fit(x[: 2 * BATCH], y[: 2 * BATCH], batch_size=BATCH, verbose=0, callbacks=[gossip])
    result |= {
        "lost": sorted(cluster.lost),
        "moments": clock.moments,
        "pause_s": clock.pause_s,
        "checkpoint": _newest_checkpoint(folder / "checkpoints") if checkpoints else None,
    }
    (folder / f"{cluster.rank}.json").write_text(json.dumps(result))


def _newest_checkpoint(folder: pathlib.Path) -> tuple[int, int]:
    """Return the epoch and step of the newest complete checkpoint, and check its files."""
    newest = files_lib.CheckpointFiles(folder, keep=1)
    manifest = newest.read(newest.complete()[0])
    for name in manifest["files"]:
        newest.checked(newest.complete()[0], name, manifest["files"])
    return manifest["epoch"], manifest["state"]["step"]


# ---- The runs -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Hold the outcome of one run.

    Attributes:
      results: rank -> its result, for ranks that finished.
      exit_codes: exit code of each rank; None if it was still running at the deadline.
      said: output of each rank, including its restarts.
      recovery_s: seconds from the last event until the last survivor knew of it; None if none did.
    """

    results: dict[int, dict]
    exit_codes: list[int | None]
    said: list[str]
    recovery_s: float | None

    @property
    def output(self) -> str:
        """The output of all ranks."""
        return "".join(f"---- rank {rank}\n{said}" for rank, said in enumerate(self.said))


def run(events: list[Event], arguments: dict, workers: int = WORKERS, hosts: str = "") -> Outcome:
    """Train with several processes while events happen.

    Args:
      events: the events of all ranks.
      arguments: arguments of `GossipPGA`; see `settings`.
      workers: number of processes.
      hosts: `Hosts.flag` of `benchmarks/links.py` if each process has a separate host; else empty.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        left = list(events)
        held = any(event.phase == "admission" for event in events)
        given = addresses.free(workers)
        processes = [_start(folder, given, rank, left, arguments, hosts) for rank in range(workers)]
        ends = time.monotonic() + deadlines.scaled(DEADLINE_S)
        try:
            while any(each.poll() is None for each in processes) and time.monotonic() < ends:
                for rank, process in enumerate(processes):
                    own_event = next((event for event in left if event.rank == rank), None)
                    if held and not (folder / _AWAITING).exists():
                        continue
                    if process.poll() == -signal.SIGKILL and own_event and own_event.returns:
                        left.remove(own_event)
                        processes[rank] = _start(
                            folder, given, rank, left, arguments, hosts, joins=True
                        )
                time.sleep(0.1)
            exit_codes = [each.poll() for each in processes]
        finally:
            for each in processes:
                each.kill()
                each.wait()
        results = {
            rank: json.loads((folder / f"{rank}.json").read_text())
            for rank in range(workers)
            if (folder / f"{rank}.json").exists()
        }
        said = [(folder / f"{rank}.log").read_text() for rank in range(workers)]
        happened = folder / "events"
        recovery_s = None
        if happened.exists() and results:
            last = max(map(float, happened.read_text().split()))
            known = [each["moments"][-1] for each in results.values() if each["moments"]]
            recovery_s = max(known) - last if known else None
    return Outcome(results, exit_codes, said, recovery_s)


def _start(folder, given, rank: int, events, arguments, hosts, joins=False):
    """Start the process of a worker, with the events that remain."""
    plan_ = json.dumps([[dataclasses.asdict(event) for event in events], arguments, hosts])
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    environment["TF_CONFIG"] = cluster_lib.to_tf_config(given, rank)
    environment[cluster_lib.SECRET] = "a secret for tests/chaos.py"
    if joins:
        environment[cluster_lib.JOIN] = "1"
    with open(folder / f"{rank}.log", "a") as log:
        return subprocess.Popen(
            [sys.executable, __file__, "--join", str(folder), "--plan", plan_],
            env=environment,
            stdout=log,
            stderr=log,
        )


def problem(events: list[Event], outcome: Outcome, undisturbed_loss: float) -> str | None:
    """Return a description of what is wrong with an outcome, or None."""
    killed = _killed(events, outcome)
    survivors = set(range(len(outcome.exit_codes))) - killed
    if None in outcome.exit_codes:
        return f"hangs: {outcome.exit_codes}"
    if set(outcome.results) != survivors or any(outcome.exit_codes[rank] for rank in survivors):
        return f"finished: {sorted(outcome.results)}, exit codes {outcome.exit_codes}"
    first, *others = outcome.results.values()
    if any(each["weights"] != first["weights"] for each in others):
        return "the survivors' weights differ"
    wrong = _unfinished(events, outcome) or _wrong_checkpoints(events, outcome)
    if wrong:
        return wrong
    if any(set(each["lost"]) != killed for each in outcome.results.values()):
        return f"lost: {[each['lost'] for each in outcome.results.values()]}"
    if abs(first["loss"] / undisturbed_loss - 1) > 0.1:
        return f"loss {first['loss']:.4f} instead of {undisturbed_loss:.4f}"
    return None


def _ends(events: list[Event]) -> dict[int, Event]:
    """Return the last event that ends each rank, for ranks that have one."""
    return {event.rank: event for event in events if event.kind in ("kill", "cut")}


def _killed(events: list[Event], outcome: Outcome) -> set[int]:
    """Return the ranks that must be missing at the end."""
    ends = _ends(events)
    killed = {rank for rank, event in ends.items() if not event.returns}
    if any(ends[rank].phase == "admission" for rank in killed):
        # If a joining worker is killed, another one may fail to join, and says so.
        for rank in {event.rank for event in events if event.returns} - killed:
            missed = any(each in outcome.said[rank] for each in ("WorkerLost: ", "does not answer"))
            if outcome.exit_codes[rank] == 1 and missed:
                killed.add(rank)
    return killed


def _unfinished(events: list[Event], outcome: Outcome) -> str | None:
    """Return which rank did not take all steps, or None; restarted ranks begin at a later epoch."""
    returned = {event.rank for event in events if event.returns}
    for rank, each in outcome.results.items():
        began = each["epochs"][0]
        whole = each["epochs"] == list(range(began, EPOCHS)) and (began > 0) == (rank in returned)
        if not whole or each["step"] != EPOCHS * STEPS:
            return f"rank {rank} has taken {each['step']} steps, in epochs {each['epochs']}"
    return None


def _wrong_checkpoints(events: list[Event], outcome: Outcome) -> str | None:
    """Return the epochs and steps of the newest checkpoints if one is too old, or None."""
    # A worker killed in the last epoch may have prevented the last checkpoint.
    least = EPOCHS - any(event.step >= LAST_EPOCH for event in _ends(events).values())
    saved = [each["checkpoint"] for each in outcome.results.values() if each["checkpoint"]]
    if any(epoch < least or step != epoch * STEPS for epoch, step in saved):
        return f"checkpoints of the last epochs: {saved}"
    return None


def main():
    """Run all seeds, and print a line for each and a summary."""
    gpus.hide()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--first", type=int, default=0, help="seed of the first run")
    parser.add_argument("--returning", action="store_true", help="those killed are started again")
    parser.add_argument("--output", help="write a JSON file")
    for internal in ("--join", "--plan"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.join:
        events, arguments, hosts = json.loads(options.plan)
        if hosts:
            links.join(hosts)
        work(pathlib.Path(options.join), [Event(**each) for each in events], arguments)
        return 0
    usual = {"H": PERIOD, "topology": "ring"}
    undisturbed = {size: run([], usual, size).results[0]["loss"] for size in (2, 3)}
    print(f"undisturbed loss by workers: {undisturbed}", flush=True)
    measures = "longest pause" if options.returning else "recovery"
    rows = []
    for seed in range(options.first, options.first + options.runs):
        events = plan_of_returns(seed) if options.returning else plan(seed)
        arguments = settings(seed, options.returning)
        outcome = run(events, arguments)
        kills = [event for event in events if event.kind == "kill"]
        # Restarted workers train only in the last epoch; compare with a run without them.
        wrong = problem(events, outcome, undisturbed[WORKERS - min(2, len(kills))])
        seconds = outcome.recovery_s
        if options.returning:
            seconds = max((each["pause_s"] for each in outcome.results.values()), default=None)
        loss = next((each["loss"] for each in outcome.results.values()), None)
        what = "; ".join(f"rank {each.rank}, step {each.step}, {each.phase}" for each in kills)
        what += f"  {arguments}"
        time_ = "   none" if seconds is None else f"{seconds:5.1f} s"
        left = f"{len(outcome.results)} left"
        print(f"{seed:3}  {time_}  {loss or 0:.4f}  {left}  {wrong or 'ok':6}  {what}", flush=True)
        if wrong:
            print(outcome.output, flush=True)
        row = {"seed": seed, "events": what, "left": sorted(outcome.results), "loss": loss}
        rows.append({**row, "measures": measures, "seconds": seconds, "problem": wrong})
    measured = [row["seconds"] for row in rows if row["seconds"] is not None]
    failed = sum(row["problem"] is not None for row in rows)
    print(f"{len(rows)} runs, {failed} failed", end="")
    if measured:
        print(f"; {measures} {statistics.median(measured):.1f} s, at most {max(measured):.1f} s")
    if options.output:
        pathlib.Path(options.output).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(options.output).write_text(json.dumps(rows, indent=2) + "\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
