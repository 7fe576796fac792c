r"""Compare algorithms on virtual workers: print a table, and write the curves and a picture.

python -m tf_gossip_pga.simulate --problem=logistic --nodes=20 --topology=ring --H=16 \
    --algorithm=pga --algorithm=gossip --output=output/simulation.json
"""

import functools
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from absl import app, flags

from tf_gossip_pga.algorithm import schedule, topology
from tf_gossip_pga.simulate import curves, problems, report, simulation
from tf_gossip_pga.simulate import figure as figure_lib
from tf_gossip_pga.simulate.problem import Problem
from tf_gossip_pga.tools import output

PROBLEMS = {
    each.__name__: each for each in (problems.logistic, problems.quadratic, problems.digits)
}

flags.DEFINE_string(
    "problem",
    "logistic",
    f"Problem to minimize: {', '.join(PROBLEMS)}. digits needs scikit-learn.",
)
flags.DEFINE_integer("nodes", 20, "Number of virtual workers.", lower_bound=1)
flags.DEFINE_string(
    "topology", "ring", f"Graph of the nodes that gossip: {', '.join(topology.BY_NAME)}."
)
flags.DEFINE_multi_string(
    "algorithm",
    ["gossip", "local", "pga"],
    f"Algorithm to compare: {', '.join(curves.ALGORITHMS)}. parallel always runs too.",
)
flags.DEFINE_integer(
    "H",
    16,
    "Period: steps from one global average to the next. With aga: the first period. Not used by "
    "auto.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "gossip_every",
    1,
    "Number of steps from one gossip to the next; less than --H, unless it is 1.",
    lower_bound=1,
)
flags.DEFINE_integer("iterations", 2000, "Number of steps.", lower_bound=1)
flags.DEFINE_integer(
    "trials", 10, "Number of runs with different batches; curves are their mean.", lower_bound=1
)
flags.DEFINE_integer("batch_size", 32, "Samples in a batch of one node.", lower_bound=1)
flags.DEFINE_float(
    "heterogeneity", 0.0, "How much the data differ between nodes, from 0 (iid) to 1."
)
flags.DEFINE_float("step_size", 0.2, "Step size of plain SGD.")
flags.DEFINE_integer(
    "halve_every",
    None,
    "Halve the step size each time this number of steps has passed. Default: never.",
    lower_bound=1,
)
flags.DEFINE_integer("seed", 0, "Seed of the data and the batches.", lower_bound=0)
flags.DEFINE_string(
    "output", "output/simulation.json", "JSON file to write; the picture is a .png next to it."
)

FLAGS = flags.FLAGS
SETTINGS = ["problem", "nodes", "topology", "H", "gossip_every", "iterations", "trials"]
SETTINGS += ["batch_size", "heterogeneity", "step_size", "halve_every", "seed"]


def main(arguments: Sequence[str]) -> None:
    """Check the flags, simulate, print the table, and write the JSON file and the picture.

    Args:
      arguments: the program name and any non-flag arguments, which are rejected.
    """
    try:
        if len(arguments) > 1:
            raise ValueError(f"only flags are accepted, received {arguments[1]!r}.")
        path = output.check(FLAGS.output)
        problem, found = _simulate()
    except (ValueError, MemoryError, ModuleNotFoundError) as error:
        sys.exit(f"simulate: {error}")
    content = describe(found, problem.minimum)
    print(f"\n{report.table(content)}", flush=True)
    output.write(path, "tf_gossip_pga.simulate", content, functools.partial(draw, found))


def _simulate() -> tuple[Problem, dict[str, curves.Curve]]:
    if FLAGS.problem not in PROBLEMS:
        raise ValueError(
            f"Unknown problem {FLAGS.problem!r}. Known problems: {', '.join(sorted(PROBLEMS))}."
        )
    topology.resolve(FLAGS.topology, FLAGS.nodes)  # find errors before generating the data
    for name in FLAGS.algorithm:
        settings = curves.settings_of(
            name, FLAGS.topology, FLAGS.H, FLAGS.iterations, FLAGS.gossip_every
        )
        schedule.resolve(settings["H"], settings.get("gossip_every", 1))
        simulation.check_period(settings["H"], FLAGS.trials, settings.get("outer_optimizer"))
    problem = PROBLEMS[FLAGS.problem](FLAGS.nodes, FLAGS.heterogeneity, seed=FLAGS.seed)
    return problem, curves.compare(
        problem,
        FLAGS.algorithm,
        FLAGS.topology,
        FLAGS.H,
        FLAGS.iterations,
        verbose=1 if sys.stdout.isatty() else 2,
        gossip_every=FLAGS.gossip_every,
        step_size=FLAGS.step_size,
        halve_every=FLAGS.halve_every,
        batch_size=FLAGS.batch_size,
        trials=FLAGS.trials,
        seed=FLAGS.seed,
    )


def describe(found: dict[str, curves.Curve], minimum: float) -> dict[str, Any]:
    """Return the content of the JSON file.

    Args:
      found: the curve of each algorithm, including `"parallel"`.
      minimum: f*, the minimum of the mean loss over the data of all nodes.
    """
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
        "tensorflow": tf.__version__,
        **{name: FLAGS[name].value for name in SETTINGS},
        "minimum": minimum,
        "transient_factor": curves.FACTOR,
        "evaluated_at": parallel.steps.tolist(),
        "methods": methods,
    }


def draw(found: dict[str, curves.Curve], path: pathlib.Path) -> None:
    """Draw the curve of each algorithm against steps, with bands of one standard error.

    Args:
      found: the curve of each algorithm, including `"parallel"`.
      path: the file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    figure_lib.draw(axes, found)
    trials = "one trial" if FLAGS.trials == 1 else f"mean over {FLAGS.trials} trials"
    marks = ["dot: end of the transient stage"]
    if FLAGS.trials > 1:
        marks.append("band: ± one standard error")
    axes.set(
        xlabel=f"step ({'; '.join(marks)})",
        ylabel=f"f(mean of the nodes) - f*, {trials}",
        title=f"{FLAGS.problem}, {FLAGS.nodes} nodes, {FLAGS.topology}, H = {FLAGS.H}, "
        f"heterogeneity {FLAGS.heterogeneity:g}",
    )
    figure.legend(loc="outside right upper")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    app.run(main)
