"""Train a small model for a long time, and compare each worker's resources early and at the end.

    python benchmarks/soak.py --steps=20000 --output=output/soak.json

Each row shows one worker's resident memory, threads and open files, first after a tenth of the
steps, when all functions are traced and all connections are open, and then at the end.
"""

import argparse
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import cli, memory, report, timing

STEPS_PER_EPOCH = 500


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line.

    Args:
      argv: the arguments after the program name. Default None: those of the current process.
    """
    parser = cli.parser(__doc__)
    parser.add_argument("--workers", type=int, default=4, help="number of workers, at least 2")
    parser.add_argument("--steps", type=int, default=20000, help="steps to train, at least 20")
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args(argv)
    if options.workers < 2:
        parser.error(f"--workers must be at least 2, received {options.workers}")
    if options.steps < 20:
        parser.error(f"--steps must be at least 20, received {options.steps}")
    return options


def held() -> dict[str, int]:
    """Return the resident memory in bytes, threads and open files of this process."""
    count = {name: len(os.listdir(f"/proc/self/{name}")) for name in ("task", "fd")}
    resident = memory.resident_bytes()
    return {"resident_bytes": resident, "threads": count["task"], "files": count["fd"]}


def worker(options: argparse.Namespace) -> None:
    """Run one rank of the benchmark, and report on rank 0.

    Args:
      options: the options of the command line.
    """
    import tf_gossip_pga as pga

    cluster = pga.initialize()
    import keras
    import numpy as np

    seen = {}

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if gossip.step in (options.steps // 10, options.steps):
                seen[gossip.step] = held()

    random = np.random.default_rng(cluster.rank)
    x = random.normal(size=(STEPS_PER_EPOCH * 8, 49)).astype(np.float32)
    y = x[:, :10].argmax(1)
    model = keras.Sequential([keras.Input((49,)), keras.layers.Dense(50), keras.layers.Dense(10)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    gossip = pga.GossipPGA(H=6, overlap=True)
    steps = min(STEPS_PER_EPOCH, options.steps)
    model.fit(
        x,
        y,
        batch_size=8,
        steps_per_epoch=steps,
        epochs=options.steps // steps,
        verbose=2 if cluster.is_chief else 0,  # pyright: ignore[reportArgumentType]
        validation_data=(x[:80], y[:80]),
        callbacks=[gossip, Look()],
    )
    everyone = cluster.gather([*seen.values()], timing.PATIENCE_S)
    if cluster.is_chief:
        publish(everyone, options)


def publish(everyone: list, options: argparse.Namespace) -> None:
    """Report each rank, and the largest growth of memory, threads and open files.

    Args:
      everyone: for each rank, the results of `held` early and at the end.
      options: the options of the command line.
    """
    print(f"\n{options.workers} workers, {options.steps} steps\n{report.machine()}\n")
    print("After a tenth of the steps, and at the end:")
    print(f"rank  {'MB':>7}  {'at end':>7}  {'threads':>7}  {'at end':>7}  files   at end")
    rows, growth = [], {"resident_bytes": 0.0, "threads": 0.0, "files": 0.0}
    for rank, (early, late) in enumerate(everyone):
        rows.append({"name": f"rank {rank}", "early": early, "late": late})
        for kind in growth:
            growth[kind] = max(growth[kind], late[kind] / early[kind] - 1)
        print(
            f"{rank:4}  {early['resident_bytes'] / 1e6:7.1f}  {late['resident_bytes'] / 1e6:7.1f}"
            f"  {early['threads']:7}  {late['threads']:7}  {early['files']:5}  {late['files']:7}"
        )
    print()
    for kind, share in growth.items():
        print(f"{kind}_growth = {share:.4f}")
    if options.output:
        ratios = {f"{kind}_growth": share for kind, share in growth.items()}
        report.write(options.output, rows=rows, ratios=ratios)


if __name__ == "__main__":
    sys.exit(cli.run(worker, parse()))
