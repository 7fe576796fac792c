"""Exchanges and whole training steps over slow links, beside what one would use instead.

    python benchmarks/network.py --hosts=8 --mbit=250 --output=output/network.json

Each worker is a host of its own, behind links of `--mbit` (see links.py: it needs root; without,
all share the loopback, and shares of the limit mean little). Everything is repeated in turn, from a
common start until the last rank has finished, and compared by medians. In the same run:

    TCP       what the links can do: each host sends the bytes to the next one through a plain
              socket, and receives as many. Everything is held against this row.
    PyTorch   over gloo, and Decent-DP on it: one step of a model of the same size without
              computation, since its exchange is part of the backward pass; where they are
              installed (benchmarks/requirements.txt)
    steps     `model.fit` of a model of the same size whose computation leaves the processor idle,
              as an accelerator would; and Parallel SGD as one has it today on TensorFlow, by
              MultiWorkerMirroredStrategy and tf_keras, where that is installed

Predicted is what `tf_gossip_pga.plan` foresees from the rate of the row TCP, the computation alone
and nothing else. CPU seconds are of all ranks together, for one repetition. Memory, for some of our
exchanges, is the most that a rank held above its parameters, in copies of them, what an exchange
keeps from one time to the next included: sampled every 2 ms, in fresh processes that do nothing
else.
"""

import argparse
import contextlib
import ctypes
import gc
import importlib.util
import itertools
import json
import os
import pathlib
import sys
import tempfile
import threading
import time

import links
import numpy as np
import peers
import report

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import results
from tf_gossip_pga import launch, plan

LIMIT, MWMS, GOSSIP, GLOBAL = "TCP", "MWMS all-reduce", "one-peer gossip", "global average"
BFLOAT16, INT8, DURING = f"{GOSSIP}, bfloat16", f"{GOSSIP}, int8", f"{GOSSIP} during a step"
FEWER_BITS = {BFLOAT16: "bfloat16", INT8: "int8"}
RING, STATIC = "ring gossip", "static exponential gossip"
EXCHANGES = (MWMS, GOSSIP, BFLOAT16, INT8, DURING, RING, STATIC, GLOBAL)
WEIGHED = (GOSSIP, BFLOAT16, INT8, DURING, GLOBAL)  # whose memory is measured
ALONE, PGA, OVERLAP, GOSSIP_OVERLAP = "compute alone", "PGA", "PGA, overlap", "gossip, overlap"
SYNCHRONOUS = "Parallel SGD, MWMS"
STEPS = (ALONE, OVERLAP, GOSSIP_OVERLAP, PGA, SYNCHRONOUS)
FACTORS = (0.5, 1.0, 1.2, 2.0)  # computation of a step, in times of a gossip
PERIOD = 6  # of the PGA steps, and the steps of a fit that are timed
WAIT_S = 1800


def parse(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--mbit", type=float, default=500, help="of a link, million bits a second")
    parser.add_argument("--megabytes", type=float, default=50, help="of parameters")
    parser.add_argument("--repetitions", type=int, default=7, help="of an exchange")
    parser.add_argument("--fits", type=int, default=1, help="of 6 steps each; 0: no training")
    parser.add_argument("--output", help="write a JSON file, and a picture beside it")
    for internal in ("--join", "--memory", "--folder"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    for name, least in (("hosts", 2), ("repetitions", 1), ("fits", 0)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}, received {getattr(options, name)}")
    for name in ("mbit", "megabytes"):
        if not getattr(options, name) > 0:
            parser.error(f"--{name} must be above 0, received {getattr(options, name)}")
    return options


def main() -> int:
    """Makes the hosts and starts the workers, or is one of them."""
    options = parse()
    if "TF_CONFIG" in os.environ:
        worker(options)
        return 0
    command = [sys.executable, __file__, *sys.argv[1:]]
    with contextlib.ExitStack() as stack:
        try:
            hosts = stack.enter_context(links.hosts(options.hosts, options.mbit))
            command.append(f"--join={hosts.flag}")
        except links.NoHostsError as reason:
            print(f"No hosts of their own ({reason}): all workers share the loopback.", flush=True)
        command.append(f"--folder={stack.enter_context(tempfile.TemporaryDirectory())}")
        for name in WEIGHED:
            print(f"Memory: {name}", flush=True)
            failed = launch.run([*command, f"--memory={name}"], options.hosts)
            if failed:
                return failed
        return launch.run(command, options.hosts)


def worker(options):
    """One rank of the benchmark; rank 0 reports."""
    if options.join:
        links.join(options.join)
    import tf_gossip_pga as pga
    from tf_gossip_pga.exchange import collectives

    pga.initialize()
    mine = collectives.active()
    shapes = report.shapes(options.megabytes)
    if options.memory:
        measure_memory(mine, shapes, options.memory, options.folder)
        return
    measured = measure_exchanges(mine, shapes, options.repetitions)
    steps = {}
    if options.fits:
        gossip_s = mine.gather(float(np.median(measured[GOSSIP]["seconds"])), "the gossip", WAIT_S)
        steps = measure_steps(mine, shapes, max(gossip_s), options.fits)
    everyone = mine.gather([measured, steps], "the end", WAIT_S)
    if mine.cluster.is_chief:
        publish(everyone, options)


# ---- Exchanges ----------------------------------------------------------------------------------


def measure_exchanges(mine, shapes, repetitions: int) -> dict:
    """What `report.measure` gives."""
    actions = {
        **peers.tcp(mine, report.bytes_of(shapes)),
        **{name: build() for name, build in exchanges(mine, shapes).items()},
        **peers.torch(mine, shapes),
        **peers.decent_dp(mine, shapes),
    }
    report.measure(mine, actions, report.warm_up(mine.cluster.size), "Warming up")
    return report.measure(mine, actions, repetitions, "Exchanges")


def exchanges(mine, shapes) -> dict:
    """Name -> a function that builds one exchange of parameters with these shapes."""
    import tensorflow as tf

    from tf_gossip_pga.algorithm import topology
    from tf_gossip_pga.exchange import averaging, wire

    variables = [tf.Variable(tf.random.normal(shape)) for shape in shapes]
    gradients = [tf.ones(shape) for shape in shapes]
    flat = tf.zeros([sum(v.shape.num_elements() for v in variables)])

    def averager(graph: str, form: str = "float32"):
        topology_ = topology.BY_NAME[graph](mine.cluster.size)
        return averaging.Averager(
            mine, topology_, variables, [], [], WAIT_S, WAIT_S, wire=wire.resolve(form)
        )

    def overlapped():
        gossips, change = averager("one_peer_exponential"), averaging.Traced(step)

        def exchange():
            gossips.start_gossip(next(rounds), "the benchmark")
            change()
            gossips.finish_gossip()

        rounds = itertools.count()
        return exchange

    def step():
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.assign_sub(gradient)

    builders = (
        lambda: report.all_reduce(mine.all_workers, flat),
        lambda: report.Cycle(averager("one_peer_exponential")),
        lambda: report.Cycle(averager("one_peer_exponential", "bfloat16")),
        lambda: report.Cycle(averager("one_peer_exponential", "int8")),
        overlapped,
        lambda: report.Cycle(averager("ring")),
        lambda: report.Cycle(averager("static_exponential")),
        lambda: report.Cycle(averager("ring"), is_global=True),
    )
    return dict(zip(EXCHANGES, builders, strict=True))


def measure_memory(mine, shapes, name: str, folder: str):
    """Writes how many copies of the parameters the rank that needs most holds for an exchange."""
    exchanges(mine, [(64,)])[name]()()  # what TensorFlow needs once, whatever the size
    held = memory_of(exchanges(mine, shapes)[name], report.warm_up(mine.cluster.size))
    most = max(mine.gather(held, "the end", WAIT_S)) / report.bytes_of(shapes)
    if mine.cluster.is_chief:
        pathlib.Path(folder, f"{name}.json").write_text(json.dumps(most))


def memory_of(build, warm_up: int) -> int:
    """Bytes held at most while an action runs, above those held before `build` made it.

    What is freed is given back to the system, or what was needed earlier would hide it. The first
    `warm_up` runs of the action, which trace it, do not count.
    """

    def held() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def sample():
        while not over.wait(0.002):
            samples.append(held())

    gc.collect()
    trim = ctypes.CDLL(None).malloc_trim
    trim(0)
    before, samples, over = held(), [], threading.Event()
    action = build()
    for _ in range(warm_up):
        action()
    trim(0)
    samples.append(held())
    sampler = threading.Thread(target=sample)
    sampler.start()
    action()
    over.set()
    sampler.join()
    return max(0, max(samples) - before)


# ---- Steps of fit -------------------------------------------------------------------------------


def measure_steps(mine, shapes, gossip_s: float, fits: int) -> dict:
    """Factor -> name -> seconds of a step, a value for each fit.

    A step's computation is so many times as long as a gossip; but where the processor alone needs
    longer than the least of these, so many times as long as makes that one possible.
    """
    pause = [0.0]
    trainers = _trainers(mine, shapes, pause)
    for train in trainers.values():
        train()  # traces everything
    busy_s = max(mine.gather(trainers[ALONE](), "the computation", WAIT_S))
    unit_s = max(gossip_s, busy_s / FACTORS[0])
    if mine.cluster.is_chief:
        print(
            f"Steps of fit: computation in times of {unit_s:.3g} s; a gossip takes {gossip_s:.3g} "
            f"s, a step's own work {busy_s:.3g} s",
            flush=True,
        )
    seconds = {str(factor): {name: [] for name in trainers} for factor in FACTORS}
    for _ in range(fits):
        for factor in FACTORS:
            if mine.cluster.is_chief:
                print(f"Steps of fit, computation {factor}x", flush=True)
            pause[0] = factor * unit_s - busy_s
            for name, train in trainers.items():
                mine.gather(None, "the common start", WAIT_S)
                seconds[str(factor)][name].append(train())
    return seconds


def _trainers(mine, shapes, pause: list[float]) -> dict:
    """Name -> a function that fits for one period, and returns seconds a step."""
    import keras

    import tf_gossip_pga as pga

    def local(*callbacks):
        model = _model(keras, shapes, pause)
        model.compile(keras.optimizers.SGD(1e-3), "mse", jit_compile=False)
        return lambda: _fit(keras, model, callbacks)

    trainers = {
        ALONE: local(),
        PGA: local(pga.GossipPGA(H=PERIOD)),
        OVERLAP: local(pga.GossipPGA(H=PERIOD, overlap=True)),
        GOSSIP_OVERLAP: local(pga.GossipPGA(H=None, overlap=True)),
    }
    found = importlib.util.find_spec("tf_keras") is not None
    if all(mine.gather(found, "tf_keras", WAIT_S)):
        import tf_keras

        with mine.all_workers.scope():
            model = _model(tf_keras, shapes, pause)
            model.compile(tf_keras.optimizers.SGD(1e-3), "mse")
        trainers[SYNCHRONOUS] = lambda: _fit(tf_keras, model, ())
    return trainers


def _model(library, shapes, pause: list[float]):
    """Parameters of these shapes, and `pause[0]` seconds of computation elsewhere."""
    import tensorflow as tf

    def compute():
        time.sleep(pause[0])
        return np.float32(0)

    class Elsewhere(library.layers.Layer):
        def build(self, shape):
            self.parts = [
                self.add_weight(shape=shape, initializer="zeros", name=f"part{index}")
                for index, shape in enumerate(shapes)
            ]

        def call(self, x):
            nothing = tf.numpy_function(compute, [], tf.float32)
            nothing = tf.ensure_shape(nothing, [])
            return x + tf.add_n([tf.reduce_mean(part) for part in self.parts]) + nothing

    return library.Sequential([library.layers.Input((1,)), Elsewhere()])


def _fit(library, model, callbacks) -> float:
    import tensorflow as tf

    class Clock(library.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.ended = time.perf_counter()
            # The first step waits for no gossip of the step before.
            self.started = self.ended if batch == 0 else self.started

    clock = Clock()
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    examples = tf.data.Dataset.from_tensors((tf.ones([8, 1]), tf.zeros([8, 1])))
    model.fit(
        examples.repeat(PERIOD + 1).with_options(options),
        steps_per_epoch=PERIOD + 1,
        shuffle=False,
        verbose=0,
        callbacks=[*callbacks, clock],
    )
    return (clock.ended - clock.started) / PERIOD


# ---- Rank 0 reports -----------------------------------------------------------------------------


def publish(everyone: list, options):
    """Table, JSON and picture."""
    exchanges_, steps = zip(*everyone, strict=True)
    rows = [row(name, exchanges_) for name in exchanges_[0]]
    for each in rows:
        file = pathlib.Path(options.folder, f"{each['name']}.json")
        each["memory_copies"] = json.loads(file.read_text()) if file.exists() else None
    limit = rows[0]["median_ms"]
    for each in rows:
        each["share_of_limit"] = limit / each["median_ms"]
    for factor, names in steps[0].items():
        for name in names:
            last = np.max([each[factor][name] for each in steps], axis=0)
            rows.append(report.row(f"step, compute {factor}x: {name}", last))
    medians = {each["name"]: each["median_ms"] for each in rows}
    foreseen = predicted(medians, report.bytes_of(report.shapes(options.megabytes)), options.hosts)
    for each in rows:
        each["predicted_ms"] = foreseen.get(each["name"])
    where = f"links of {options.mbit:g} Mbit/s" if options.join else "loopback"
    title = f"{options.hosts} workers, {options.megabytes:g} MB of float32, {where}"
    report.publish(title, rows, ratios(medians, options.hosts), options.output)
    if options.output:
        picture = pathlib.Path(options.output).with_suffix(".png")
        draw(picture, title, rows, options.hosts)
        print(f"Picture: {picture}", flush=True)


def row(name: str, ranks: list[dict]) -> dict:
    """The figures of one exchange: time of the last rank, CPU of all."""
    cpu = np.sum([each[name]["cpu"] for each in ranks], axis=0)
    return {**report.row(name, report.last(ranks, name)), "cpu_seconds": float(np.median(cpu))}


def ratios(medians: dict[str, float], size: int) -> dict[str, float]:
    """What the rows say, each as one number."""
    ring = 2 * (size - 1) / size
    found = {
        "gossip_share_of_limit": medians[LIMIT] / medians[GOSSIP],
        "global_share_of_limit": ring * medians[LIMIT] / medians[GLOBAL],
        "gossip_over_mwms": medians[GOSSIP] / medians[MWMS],
        "bfloat16_over_float32": medians[BFLOAT16] / medians[GOSSIP],
        "int8_over_float32": medians[INT8] / medians[GOSSIP],
    }

    def step(factor: float, name: str) -> float | None:
        return medians.get(f"step, compute {factor}x: {name}")

    if step(1.2, ALONE):
        found["overlap_step_over_compute"] = step(1.2, GOSSIP_OVERLAP) / step(1.2, ALONE)
    if step(1.0, SYNCHRONOUS):
        found["fit_speedup_over_mwms"] = step(1.0, SYNCHRONOUS) / step(1.0, OVERLAP)
    return found


def predicted(medians: dict[str, float], bytes_: int, size: int) -> dict[str, float]:
    """Name -> milliseconds that a plan foresees, from the rows of TCP and of computation alone."""

    def steps(compute_ms: float, form: str = "float32", overlap: bool = False) -> dict:
        graphs = ("one_peer_exponential", "ring", "static_exponential")
        found = plan.predict(
            nodes=size,
            parameters=bytes_ // 4,
            compute_ms=compute_ms,
            mbit=8e-3 * bytes_ / medians[LIMIT],
            latency_ms=0,
            wire_dtype=form,
            overlap=overlap,
            H=PERIOD,
            topology=graphs,
        )
        return {row["name"]: row["step_ms"] for row in found["rows"]}

    parallel, gossip = "Parallel SGD", "Gossip SGD, one_peer_exponential"
    pga = f"Gossip-PGA, one_peer_exponential, H={PERIOD}"
    bare = steps(0)
    found = dict.fromkeys((MWMS, GLOBAL), bare[parallel])
    found |= {GOSSIP: bare[gossip], RING: bare["Gossip SGD, ring"]}
    found |= {STATIC: bare["Gossip SGD, static_exponential"]}
    found |= {name: steps(0, form)[gossip] for name, form in FEWER_BITS.items()}
    for factor in FACTORS:
        step = f"step, compute {factor}x: "
        if step + ALONE in medians:
            compute_ms = medians[step + ALONE]
            plain, overlapped = steps(compute_ms), steps(compute_ms, overlap=True)
            found |= {step + PGA: plain[pga], step + SYNCHRONOUS: plain[parallel]}
            found |= {step + OVERLAP: overlapped[pga], step + GOSSIP_OVERLAP: overlapped[gossip]}
    return found


def draw(path: pathlib.Path, title: str, rows: list[dict], size: int):
    """Exchanges against what the links can do, and steps of `fit` against computation alone."""
    trained = any(each["name"].startswith("step") for each in rows)
    figure = results.new_figure(title)
    exchanges_, *panels = figure.subplots(1, 1 + trained, squeeze=False)[0]
    shown = [each for each in rows if "share_of_limit" in each]
    for place, each in enumerate(shown):
        ours = "gossip" in each["name"] or each["name"] == GLOBAL
        color = results.GREY if not ours else results.BLUE
        exchanges_.barh(place, each["median_ms"], color=color)
    exchanges_.set_yticks(range(len(shown)), [each["name"] for each in shown])
    exchanges_.invert_yaxis()
    limit = shown[0]["median_ms"]
    ring = 2 * (size - 1) / size * limit
    exchanges_.axvline(limit, color=results.ORANGE, label="the bytes over TCP")
    exchanges_.axvline(ring, color=results.ORANGE, ls="--", label="what a ring all-reduce sends")
    exchanges_.legend(frameon=False, ncol=2, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    exchanges_.set(title="One exchange; blue: ours")
    results.finish(exchanges_, xlabel="milliseconds")

    for panel in panels:
        draw_steps(panel, {each["name"]: each["median_ms"] for each in rows})
    figure.savefig(path)


def draw_steps(steps, medians: dict[str, float]):
    """A group of bars for each length of the computation."""
    for place, (color, name) in enumerate(zip(results.PALETTE, STEPS, strict=False)):
        found = [medians.get(f"step, compute {factor}x: {name}") for factor in FACTORS]
        if None not in found:
            at = np.arange(len(FACTORS)) + 0.16 * (place - 2)
            steps.bar(at, found, 0.15, color=color, label=name)
    steps.set_xticks(range(len(FACTORS)), [f"{factor}x" for factor in FACTORS])
    steps.set(title="A step of fit", ylabel="milliseconds")
    steps.legend(frameon=False)
    steps.set(xlabel="computation, in times of a one-peer gossip (or twice a step's own work)")
    steps.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    sys.exit(main())
