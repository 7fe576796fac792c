"""Compares algorithms with virtual workers: a JSON file with curves, and a figure beside it.

python -m tf_gossip_pga.simulate --problem=logistic --nodes=20 --topology=ring --H=16 \
    --algorithm=pga --algorithm=gossip --output=output/simulation.json
"""

import json
import pathlib
import shlex
import sys

import tensorflow as tf
from absl import app, flags

from tf_gossip_pga import topology
from tf_gossip_pga.simulate import curves, problems
from tf_gossip_pga.simulate import figure as figure_lib

PROBLEMS = {
    each.__name__: each for each in (problems.logistic, problems.quadratic, problems.digits)
}

flags.DEFINE_string(
    "problem", "logistic", f"What to minimise: {', '.join(PROBLEMS)} (see simulate/problems.py)."
)
flags.DEFINE_integer("nodes", 20, "Virtual workers.")
flags.DEFINE_string("topology", "ring", f"Who gossips: {', '.join(topology.BY_NAME)}.")
flags.DEFINE_multi_string(
    "algorithm",
    ["gossip", "local", "pga"],
    f"May be repeated: {', '.join(curves.ALGORITHMS)}. parallel is always there, to compare with.",
)
flags.DEFINE_integer("H", 16, "Steps from one global average to the next. With aga: at first.")
flags.DEFINE_integer("iterations", 2000, "Steps.")
flags.DEFINE_integer("trials", 10, "Runs with batches of their own; curves are means over them.")
flags.DEFINE_integer("batch_size", 32, "Samples in a batch of one node.")
flags.DEFINE_float("heterogeneity", 0.0, "How much the nodes' data differ, from 0 (iid) to 1.")
flags.DEFINE_float("step_size", 0.2, "Of plain SGD.")
flags.DEFINE_integer("halve_every", None, "Steps after which the step size is halved. None: never.")
flags.DEFINE_integer("seed", 0, "Of the data and the batches.")
flags.DEFINE_string("output", "output/simulation.json", "JSON file; a .png is put beside it.")

FLAGS = flags.FLAGS
SETTINGS = ["problem", "nodes", "topology", "H", "iterations", "trials", "batch_size"]
SETTINGS += ["heterogeneity", "step_size", "halve_every", "seed"]


def main(arguments):
    """Checks the flags, simulates, prints a table, writes both files."""
    try:
        if len(arguments) > 1:
            raise ValueError(f"only flags are accepted, received {arguments[1]!r}.")
        if FLAGS.problem not in PROBLEMS:
            raise ValueError(
                f"Unknown problem {FLAGS.problem!r}. Known problems: {', '.join(sorted(PROBLEMS))}."
            )
        for name in FLAGS.algorithm:  # before the data are made
            curves.settings_of(name, FLAGS.topology, FLAGS.H, FLAGS.iterations)
        problem = PROBLEMS[FLAGS.problem](FLAGS.nodes, FLAGS.heterogeneity, seed=FLAGS.seed)
        found = curves.compare(
            problem,
            FLAGS.algorithm,
            FLAGS.topology,
            FLAGS.H,
            FLAGS.iterations,
            verbose=1,
            step_size=FLAGS.step_size,
            halve_every=FLAGS.halve_every,
            batch_size=FLAGS.batch_size,
            trials=FLAGS.trials,
            seed=FLAGS.seed,
        )
    except (ValueError, MemoryError, ModuleNotFoundError) as error:
        sys.exit(f"simulate: {error}")
    content = describe(found, problem.minimum)
    print(table(content["methods"]))
    path = pathlib.Path(FLAGS.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    draw(found, path.with_suffix(".png"))
    print(f"\nWritten to {path} and {path.with_suffix('.png')}")


def describe(found: dict[str, curves.Curve], minimum: float) -> dict:
    """What the JSON file holds."""
    parallel = found["parallel"]
    methods = {
        name: {
            "mean": curve.mean.tolist(),
            "standard_error": curve.standard_error.tolist(),
            "transient": curves.transient(curve, parallel),
            "consensus_distance": curve.consensus_distance.mean(axis=1).tolist(),
            "global_averages": float(curve.global_averages.mean()),
        }
        for name, curve in found.items()
    }
    return {
        "command": shlex.join(["python", "-m", "tf_gossip_pga.simulate", *sys.argv[1:]]),
        "tensorflow": tf.__version__,
        **{name: FLAGS[name].value for name in SETTINGS},
        "minimum": minimum,
        "transient_factor": curves.FACTOR,
        "evaluated_at": parallel.steps.tolist(),
        "methods": methods,
    }


def table(methods: dict[str, dict]) -> str:
    """A line a method: where it ends, and when it joined."""
    lines = [f"\n{'':14}{'f - f* at the end':>24}{'transient, steps':>20}{'global averages':>18}"]
    for name, each in methods.items():
        end = f"{each['mean'][-1]:.3e} ± {each['standard_error'][-1]:.0e}"
        joined = "not joined" if each["transient"] is None else each["transient"]
        lines.append(f"{name:14}{end:>24}{joined:>20}{each['global_averages']:>18.0f}")
    return "\n".join(lines)


def draw(found: dict[str, curves.Curve], path: pathlib.Path):
    """f(mean) - f* against steps, with bands of one standard error, and where each one joins."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        print(f"No figure, since matplotlib is not installed: pip install matplotlib. ({path})")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    figure_lib.draw(axes, found)
    axes.set(
        xlabel="step",
        ylabel="f(mean of the nodes) - f*",
        title=f"{FLAGS.problem}, {FLAGS.nodes} nodes, {FLAGS.topology}, H = {FLAGS.H}, "
        f"heterogeneity {FLAGS.heterogeneity:g}, {FLAGS.trials} trials",
    )
    figure.legend(loc="outside right upper")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    app.run(main)
