"""Create the rows, the table and the picture of `time_to_loss.py`."""

import pathlib
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import report
from job import figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BASELINE = "MultiWorkerMirroredStrategy"
PARALLEL = "Parallel SGD"
SHARES = (0.9, 1.0)  # a target is the loss of Parallel SGD after each of these shares of its steps
LEGEND = """loss, accuracy: after the last step, mean ± standard deviation over seeds
seconds: of training all steps, mean over seeds
to 90% (100%): seconds to the loss that Parallel SGD has after 90% (100%) of its steps
x: how many times as fast as the baseline"""

# Row -> color and line style. Solid: float32 without overlap; dashed: with overlap; dotted: int8.
STYLES = {
    BASELINE: ("black", "-"),
    PARALLEL: (figure.GRAY, "-"),
    "PGA": (figure.PALETTE[0], "-"),
    "PGA overlap": (figure.PALETTE[0], "--"),
    "PGA int8": (figure.PALETTE[0], ":"),
    "PGA overlap int8": (figure.PALETTE[0], "-."),
    "AGA": (figure.PALETTE[2], "-"),
    "Local SGD": (figure.PALETTE[5], "-"),
    "DiLoCo-like": (figure.PALETTE[4], "-"),
    "H=auto": (figure.PALETTE[1], "-"),
}


def publish(
    title: str,
    runs: dict[str, list[dict]],
    steps: list[int],
    costs: dict[str, float],
    path: str | None,
) -> None:
    """Print the table, and write the JSON file and the picture next to it.

    Args:
      title: title of the table and the picture.
      runs: row -> for each seed `seconds`, `losses` and `accuracies`, with one number per
        validation.
      steps: the steps after which the model was validated.
      costs: result of `Bench.costs`.
      path: the JSON file; None: write no files.
    """
    targets = targets_of(runs.get(PARALLEL, runs[BASELINE]), steps)
    rows = [row(name, measured, targets) for name, measured in runs.items()]
    found = speedups(rows)
    ratio = costs["compute_ms"] / costs["all_reduce_ms"]
    cost = (
        f"a step's computation takes {costs['compute_ms']:.0f} ms, {ratio:.2f} times as long as an "
        f"all-reduce of {costs['parameters']} gradients ({costs['all_reduce_ms']:.0f} ms)"
    )
    seeds = len(runs[BASELINE])
    full = f"{title}, {steps[-1]} steps, {seeds} seed{'s' * (seeds > 1)}"
    print(f"\n{full}\n{report.machine()}\n{cost}\n\n{table(rows, found)}\n\n{LEGEND}", flush=True)
    if path:
        ratios = {"compute_over_all_reduce": ratio}
        for name, values in found.items():
            ratios |= {f"speedup of {name}{to}": value for to, value in values.items()}
        content = {"rows": rows, "ratios": ratios, "costs": costs, "steps": steps}
        report.write(path, **content, targets=targets)
        picture = pathlib.Path(path).with_suffix(".png")
        draw(picture, f"{full}\ncomputation {ratio:.2f} x all-reduce", runs, steps, targets)
        print(f"Picture: {picture}", flush=True)


def targets_of(synchronous: list[dict], steps: list[int]) -> dict[str, float]:
    """Return the targets, `{name: loss}`.

    Args:
      synchronous: the measurements of Parallel SGD for each seed.
      steps: the steps after which the model was validated.
    """
    losses = np.mean([each["losses"] for each in synchronous], axis=0)
    return {
        f"to {share:.0%}": float(np.interp(share * steps[-1], steps, losses)) for share in SHARES
    }


def row(name: str, measured: list[dict], targets: dict[str, float]) -> dict:
    """Return a row: final loss and accuracy, time of all steps, time to each target, and curves.

    Args:
      name: name of the row.
      measured: the measurements for each seed.
      targets: result of `targets_of`.
    """
    seconds, losses, accuracies = (
        np.array([each[field] for each in measured])  # [seeds, validations]
        for field in ("seconds", "losses", "accuracies")
    )
    found: dict = {"name": name}
    for field, values in (("loss", losses), ("accuracy", accuracies), ("seconds", seconds)):
        found[f"{field}_mean"] = float(values[:, -1].mean())
        found[f"{field}_std"] = float(values[:, -1].std(ddof=1)) if len(measured) > 1 else None
    for to, target in targets.items():
        found[to] = crossing(seconds.mean(0), losses.mean(0), target)
        each = zip(seconds, losses, strict=True)
        found[f"{to}, each seed"] = [crossing(*curve, target) for curve in each]
    return {**found, "seconds": seconds.tolist(), "losses": losses.tolist()}


def crossing(seconds: np.ndarray, losses: np.ndarray, target: float) -> float | None:
    """Return when a curve first reaches a target, or None if it never does.

    Args:
      seconds: `[validations]`, ascending.
      losses: `[validations]`; lines connect them.
      target: the loss to reach.
    """
    below = np.flatnonzero(losses <= target)
    if not len(below):
        return None
    last = below[0]
    if last == 0:
        return float(seconds[0])
    ends = slice(last - 1, last + 1)
    return float(np.interp(-target, -losses[ends], seconds[ends]))


def speedups(rows: list[dict]) -> dict[str, dict[str, float | None]]:
    """Return `{row: {"": of all steps, "to 90%": …}}`: the baseline's time divided by the row's.

    Args:
      rows: results of `row`. The first is the baseline.
    """

    def speedup(each: dict, field: str) -> float | None:
        base, own = rows[0][field], each[field]
        return base / own if base and own else None

    names = {"": "seconds_mean", **{f" {to}": to for to in rows[0] if to.endswith("%")}}
    return {
        each["name"]: {name: speedup(each, field) for name, field in names.items()} for each in rows
    }


def table(rows: list[dict], found: dict[str, dict[str, float | None]]) -> str:
    """Return a table with one line per row, and dashes for targets that a row does not reach.

    Args:
      rows: results of `row`.
      found: result of `speedups`.
    """

    def cell(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    targets = [to for to in rows[0] if to.endswith("%")]
    head = ["", "loss", "accuracy", "seconds", "x"]
    lines = [[*head, *(each for to in targets for each in (to, "x"))]]
    for each in rows:
        times = found[each["name"]]
        line = [
            each["name"],
            *(
                f"{cell(each[f'{field}_mean'], '.4f')} ± {cell(each[f'{field}_std'], '.4f')}"
                for field in ("loss", "accuracy")
            ),
            cell(each["seconds_mean"], ".1f"),
            cell(times[""], ".2f"),
        ]
        for to in targets:
            line += [cell(each[to], ".1f"), cell(times[f" {to}"], ".2f")]
        lines.append(line)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{text:{'<' if n == 0 else '>'}{widths[n]}}" for n, text in enumerate(line))
        for line in lines
    )


def draw(
    path: pathlib.Path,
    title: str,
    runs: dict[str, list[dict]],
    steps: list[int],
    targets: dict[str, float],
) -> None:
    """Draw the validation loss of the averaged model against seconds and against steps.

    Args:
      path: the file to write.
      title: title of the picture.
      runs: row -> the measurements for each seed.
      steps: the steps after which the model was validated.
      targets: result of `targets_of`.
    """
    picture = figure.new_figure(title)
    by_second, by_step = picture.subplots(1, 2, sharey=True)
    for name, measured in runs.items():
        losses = np.array([each["losses"] for each in measured])  # [seeds, validations]
        color, style = STYLES[name]
        line = {"color": color, "ls": style, "label": name}
        by_second.plot(np.mean([each["seconds"] for each in measured], 0), losses.mean(0), **line)
        by_step.plot(steps, losses.mean(0), **line)
        if name == BASELINE:
            band = (losses.min(0), losses.max(0))
            by_step.fill_between(steps, *band, color=color, alpha=0.12, linewidth=0)
    _finish(by_second, targets, "Loss against time", "seconds of training")
    _finish(by_step, targets, "Loss against steps (band: baseline, range over seeds)", "step")
    by_second.set(ylabel="validation loss, averaged model (log)")
    lines = by_second.get_legend_handles_labels()
    picture.legend(*lines, loc="outside right center", frameon=False)
    picture.savefig(path)


def _finish(axes: "Axes", targets: dict[str, float], title: str, xlabel: str):
    axes.set(title=title, yscale="log")
    figure.finish(axes, xlabel=xlabel)
    # The last target is the lowest, so its label is below its line, and the others are above.
    for number, (to, target) in enumerate(targets.items(), start=1):
        axes.axhline(target, color=figure.GRAY, linewidth=0.8, ls=(0, (1, 3)))
        side = "top" if number == len(targets) else "bottom"
        place = {"xycoords": ("axes fraction", "data"), "va": side}
        axes.annotate(to, (0.01, target), **place, fontsize=8, color=figure.GRAY)
