"""Create the rows, the table and the picture of `compare.py`."""

import pathlib

import numpy as np

from benchmarks import report
from job import figure

ALONE, OWN = "one worker", "gossip, not averaged"  # the controls
LEGEND = """final loss, accuracy: validation of the averaged model, mean ± standard deviation
The other columns are medians over seeds.
seconds: from the end of the first batch, including validation
exchanging: seconds spent in exchanges
MB sent: mean per worker; global: share of the steps with a global average
distance: consensus distance, before the last average of replicas that differed"""


def publish(
    title: str,
    runs: dict[str, list[dict]],
    methods: list[str],
    steps_per_epoch: int,
    path: str | None,
) -> None:
    """Print the table, and write the JSON file and the picture next to it.

    Args:
      title: title of the table and the picture.
      runs: method or control -> the measurements for each seed.
      methods: the methods in `runs` to compare. Ratios are relative to the first one.
      steps_per_epoch: number of batches per epoch on one worker.
      path: the JSON file; None: write no files.
    """
    rows = [row(name, measured) for name, measured in runs.items()]
    by_name = {each["name"]: each for each in rows}
    if "gossip" in runs:
        own = [measured["own"] for measured in runs["gossip"]]
        spreads = [
            spread(f"val_{name}", [each[name] for each in own]) for name in ("loss", "accuracy")
        ]
        rows.append({"name": OWN, **spreads[0], **spreads[1]})
    print(f"\n{title}\n\n{table(rows)}\n\n{LEGEND}", flush=True)
    first, *others = methods
    ratios = {
        f"{name}_seconds_over_{first}": by_name[name]["seconds"] / by_name[first]["seconds"]
        for name in others
    }
    if path:
        picture = pathlib.Path(path).with_suffix(".png")
        report.write(path, rows=rows, ratios=ratios)
        draw(picture, title, steps_per_epoch, runs)
        print(f"Picture: {picture}", flush=True)


def row(name: str, measured: list[dict]) -> dict:
    """Return the row of a method.

    Args:
      name: name of the method or control.
      measured: the measurements for each seed.
    """

    def median(field: str) -> float | None:
        values = [each[field] for each in measured if each.get(field) is not None]
        return float(np.median(values)) if values else None

    steps, global_steps = median("steps"), median("global_steps")
    return {
        "name": name,
        **spread("val_loss", [each["val_loss"] for each in measured]),
        **spread("val_accuracy", [each["val_accuracy"] for each in measured]),
        "seconds": float(np.median([each["clock"][-1] for each in measured])),
        # Sum over epochs, because the exchange at the end of training waits while workers validate
        # their own models.
        "communication_seconds": float(
            np.median([sum(each["history"]["communication_seconds"]) for each in measured])
        )
        if steps
        else None,
        "bytes_sent_per_worker": median("bytes_sent_per_worker"),
        "global_share": global_steps / steps if steps and global_steps is not None else None,
        "consensus_distance": median("consensus_distance"),
    }


def spread(name: str, values: list[float]) -> dict:
    """Return the mean and the sample standard deviation over seeds.

    Args:
      name: name of the field. The result contains `{name}_mean` and `{name}_std`.
      values: one value per seed.
    """
    return {f"{name}_mean": float(np.mean(values)), f"{name}_std": float(np.std(values, ddof=1))}


def table(rows: list[dict]) -> str:
    """Return a table with one line per row, and dashes for missing values."""

    def cell(each: dict, field: str, form: str, scale: float = 1.0) -> str:
        value = each.get(field)
        return "-" if value is None else format(value * scale, form)

    def plus_minus(each: dict, field: str, form: str) -> str:
        if f"{field}_mean" not in each:
            return "-"
        return " ± ".join(cell(each, f"{field}_{part}", form) for part in ("mean", "std"))

    lines = [
        ["", "final loss", "accuracy", "seconds", "exchanging", "MB sent", "global", "distance"]
    ]
    for each in rows:
        lines.append(
            [
                each["name"],
                plus_minus(each, "val_loss", ".4f"),
                plus_minus(each, "val_accuracy", ".4f"),
                cell(each, "seconds", ".1f"),
                cell(each, "communication_seconds", ".1f"),
                cell(each, "bytes_sent_per_worker", ".1f", 1e-6),
                cell(each, "global_share", ".1%"),
                cell(each, "consensus_distance", ".1e"),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{text:{'<' if n == 0 else '>'}{widths[n]}}" for n, text in enumerate(line))
        for line in lines
    )


def draw(path: pathlib.Path, title: str, steps_per_epoch: int, runs: dict) -> None:
    """Draw the validation loss of the averaged model against steps and against seconds.

    Args:
      path: the file to write.
      title: title of the picture.
      steps_per_epoch: number of batches per epoch on one worker.
      runs: method or control -> the measurements for each seed.
    """
    picture = figure.new_figure(title)
    by_step, by_second = picture.subplots(1, 2, sharey=True)
    for color, (name, measured) in zip(figure.PALETTE, runs.items(), strict=False):
        losses = np.array([each["history"]["val_loss"] for each in measured])  # [seeds, epochs]
        mean = losses.mean(0)
        steps = steps_per_epoch * (1 + np.arange(len(mean)))
        style = {"color": color, "label": name, "ls": ":" if name == ALONE else "-", "marker": "."}
        by_step.plot(steps, mean, **style)
        band = (losses.min(0), losses.max(0))
        by_step.fill_between(steps, *band, color=color, alpha=0.15, linewidth=0)
        if name != ALONE:  # a single process has the whole machine to itself
            by_second.plot(np.median([each["clock"] for each in measured], 0), mean, **style)
    by_step.set(title="Loss against steps (band: range over seeds)", yscale="log")
    by_step.set(ylabel="validation loss of the averaged model (log scale)")
    by_second.set(title="Loss against time")
    picture.legend(*by_step.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.finish(by_step, xlabel="step")
    figure.finish(by_second, xlabel="seconds after the first batch, median over seeds")
    picture.savefig(path)
