"""Kill a worker between or inside the fits of a script, and check that no other is lost.

    python tests/fits.py --seeds=20
    python tests/fits.py --seeds=1 --first=7 --fits=30

For each seed, three real processes train a small model in `--fits` short fits of one script, with
`GossipPGA(on_worker_lost="continue")`. Each process validates between fits. One process is killed
at a random moment. A run passes if the others complete all fits with the same weights.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from tests.support import addresses, deadlines, gpus, product

WORKERS, STEPS, BATCH, PERIOD = 3, 6, 16, 3
DEADLINE_S = 180


class _Step(keras.callbacks.Callback):
    """Lengthen each step a little, so that a kill may hit a step."""

    def on_train_batch_begin(self, batch, logs=None):
        time.sleep(0.005)


def work(folder: pathlib.Path, fits: int):
    """Train in several fits, and write the result.

    Args:
      folder: directory for the results of all ranks.
      fits: number of fits.
    """
    import tf_gossip_pga as pga

    cluster = pga.initialize()
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    draw = np.random.default_rng(1 + cluster.rank)
    x = draw.normal(size=(STEPS * BATCH, 2)).astype(np.float32)
    y = (x[:, 0] > x[:, 1]).astype(np.int32)
    gossip = pga.GossipPGA(
        H=PERIOD, on_worker_lost="continue", timeout_s=deadlines.scaled(DEADLINE_S / 10)
    )
    for fit in range(fits):
        model.fit(x, y, batch_size=BATCH, verbose=0, shuffle=False, callbacks=[_Step(), gossip])
        if not fit:
            (folder / f"{cluster.rank}.began").touch()
        model.evaluate(x, y, batch_size=BATCH, verbose=0)
    result = {
        "weights": [weight.tolist() for weight in model.get_weights()],
        "step": gossip.step,
        "lost": sorted(cluster.lost),
    }
    (folder / f"{cluster.rank}.json").write_text(json.dumps(result))


def run(victim: int, after_s: float, fits: int) -> tuple[dict[int, dict], list[int | None], str]:
    """Train with three processes, and kill one of them.

    Args:
      victim: the rank to kill.
      after_s: when to kill it, in seconds after all processes have completed the first fit.
      fits: number of fits.

    Returns:
      Results by rank, exit codes, and the output of all processes.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        given = addresses.free(WORKERS)
        processes = [_start(folder, given, rank, fits) for rank in range(WORKERS)]
        deadline = deadlines.Deadline(DEADLINE_S)
        try:
            deadline.until(lambda: all((folder / f"{r}.began").exists() for r in range(WORKERS)))
            time.sleep(after_s)
            processes[victim].kill()
            deadline.until(lambda: all(each.poll() is not None for each in processes))
        except TimeoutError:
            pass  # the exit codes show it
        finally:
            exit_codes = [each.poll() for each in processes]
            for each in processes:
                each.kill()
                each.wait()
        results = {
            rank: json.loads((folder / f"{rank}.json").read_text())
            for rank in range(WORKERS)
            if (folder / f"{rank}.json").exists()
        }
        said = "".join(
            f"---- rank {rank}\n{(folder / f'{rank}.log').read_text()}" for rank in range(WORKERS)
        )
    return results, exit_codes, said


def _start(folder: pathlib.Path, given, rank: int, fits: int) -> subprocess.Popen:
    environment = {
        **os.environ,
        "TF_CONFIG": product.tf_config(given, rank),
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TF_NUM_INTRAOP_THREADS": "1",
    }
    with open(folder / f"{rank}.log", "w") as log:
        return subprocess.Popen(
            [sys.executable, __file__, "--join", str(folder), "--fits", str(fits)],
            env=environment,
            stdout=log,
            stderr=log,
        )


def problem(victim: int, fits: int, results: dict[int, dict], exit_codes: list) -> str | None:
    """Return a description of what is wrong with a run, or None."""
    survivors = set(range(WORKERS)) - {victim}
    if any(exit_codes[rank] != 0 for rank in survivors) or not survivors <= set(results):
        return f"exit codes {exit_codes}"
    each, other = (results[rank] for rank in sorted(survivors))
    if each["weights"] != other["weights"]:
        return "the survivors' weights differ"
    if not each["step"] == other["step"] == fits * STEPS:
        return f"{each['step']} and {other['step']} steps instead of {fits * STEPS}"
    return None


def main():
    """Run all seeds, and print a line for each and a summary."""
    gpus.hide()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--fits", type=int, default=30)
    parser.add_argument("--join", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.join:
        work(pathlib.Path(options.join), options.fits)
        return 0
    failed = 0
    for seed in range(options.first, options.first + options.seeds):
        draw = random.Random(seed)
        victim, after_s = draw.randrange(WORKERS), draw.uniform(0.0, 0.1 * options.fits)
        results, exit_codes, said = run(victim, after_s, options.fits)
        wrong = problem(victim, options.fits, results, exit_codes)
        lost = next((each["lost"] for rank, each in results.items() if rank != victim), None)
        print(f"{seed:3}  rank {victim} after {after_s:.2f} s  lost {lost}  {wrong or 'ok'}")
        if wrong:
            failed += 1
            print(said)
        sys.stdout.flush()
    print(f"{options.seeds} runs, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
