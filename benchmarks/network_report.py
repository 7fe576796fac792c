"""Create the rows, ratios, predictions and the picture of `network.py`."""

import argparse
import json
import pathlib
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import exchanges, peers, report, steps, timing
from job import figure
from tf_gossip_pga import plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Names of the rows of exchanges. `steps` defines the names of the rows of steps.
LIMIT, MWMS, GOSSIP, GLOBAL = peers.TCP, "MWMS all-reduce", "one-peer gossip", "global average"
BFLOAT16, INT8, DURING = f"{GOSSIP}, bfloat16", f"{GOSSIP}, int8", f"{GOSSIP} during a step"
RING, STATIC = "ring gossip", "static exponential gossip"
_FEWER_BITS = {BFLOAT16: "bfloat16", INT8: "int8"}


def publish(everyone: list, options: argparse.Namespace) -> None:
    """Print the table, and write the JSON file and the picture.

    Args:
      everyone: for each rank, `[exchanges, steps]`, which are the results of `timing.measure` and
        `steps.measure`.
      options: the options of the command line.
    """
    rows = rows_of(everyone, pathlib.Path(options.folder))
    medians = {each["name"]: each["median_ms"] for each in rows}
    bytes_ = exchanges.bytes_of(exchanges.shapes(options.megabytes))
    foreseen = predicted(medians, bytes_, options.hosts)
    for each in rows:
        each["predicted_ms"] = foreseen.get(each["name"])
    where = f"links of {options.mbit:g} Mbit/s" if options.join else "loopback"
    title = f"{options.hosts} workers, {options.megabytes:g} MB of float32, {where}"
    report.publish(title, rows, ratios(medians, options.hosts), options.output)
    if options.output:
        picture = pathlib.Path(options.output).with_suffix(".png")
        draw(picture, title, rows, options.hosts)
        print(f"Picture: {picture}", flush=True)


def rows_of(everyone: list, folder: pathlib.Path) -> list[dict]:
    """Return the rows: the limit, then the exchanges, then the steps.

    Args:
      everyone: as in `publish`.
      folder: directory with one file per memory measurement, in copies of the parameters.
    """
    timed, trained = [each[0] for each in everyone], [each[1] for each in everyone]
    rows = [exchange_row(name, timed) for name in timed[0]]
    for each in rows:
        file = folder / f"{each['name']}.json"
        each["memory_copies"] = json.loads(file.read_text()) if file.exists() else None
        each["share_of_limit"] = rows[0]["median_ms"] / each["median_ms"]
    for factor, names in trained[0].items():
        for name in names:
            last = np.max([each[factor][name] for each in trained], axis=0)
            rows.append(report.row(steps.row_name(factor, name), last))
    return rows


def exchange_row(name: str, ranks: list[dict]) -> dict:
    """Return the row of an exchange: the time until the last rank finished, and total CPU time.

    Args:
      name: name of the exchange.
      ranks: the result of `timing.measure` on each rank.
    """
    cpu = np.sum([each[name]["cpu"] for each in ranks], axis=0)
    return {**report.row(name, timing.last(ranks, name)), "cpu_seconds": float(np.median(cpu))}


def ratios(medians: dict[str, float], size: int) -> dict[str, float]:
    """Return the ratios of the report.

    Args:
      medians: name of a row -> median in ms.
      size: number of workers.
    """
    ring = 2 * (size - 1) / size  # what a ring all-reduce sends, relative to the parameters
    found = {
        "gossip_share_of_limit": medians[LIMIT] / medians[GOSSIP],
        "global_share_of_limit": ring * medians[LIMIT] / medians[GLOBAL],
        "gossip_over_mwms": medians[GOSSIP] / medians[MWMS],
        "bfloat16_over_float32": medians[BFLOAT16] / medians[GOSSIP],
        "int8_over_float32": medians[INT8] / medians[GOSSIP],
    }
    alone, overlapped = steps.row_name(1.2, steps.ALONE), steps.row_name(1.2, steps.GOSSIP_OVERLAP)
    if alone in medians:
        found["overlap_step_over_compute"] = medians[overlapped] / medians[alone]
    synchronous, pga = steps.row_name(1.0, steps.SYNCHRONOUS), steps.row_name(1.0, steps.OVERLAP)
    if synchronous in medians:
        found["fit_speedup_over_mwms"] = medians[synchronous] / medians[pga]
    return found


def predicted(medians: dict[str, float], bytes_: int, size: int) -> dict[str, float]:
    """Predict the rows with `tf_gossip_pga.plan`.

    Args:
      medians: name of a row -> median in ms. Only the TCP row and the rows of computation alone are
        used.
      bytes_: size of the parameters.
      size: number of workers.

    Returns:
      Name of a row -> predicted time in ms.
    """

    def step_ms(
        compute_ms: float, wire_dtype: str = "float32", overlap: bool = False
    ) -> dict[str, float]:
        found = plan.predict(
            nodes=size,
            parameters=bytes_ // 4,
            compute_ms=compute_ms,
            mbit=8e-3 * bytes_ / medians[LIMIT],
            latency_ms=0,
            wire_dtype=wire_dtype,
            overlap=overlap,
            H=steps.PERIOD,
            topology=("one_peer_exponential", "ring", "static_exponential"),
        )
        return {row["name"]: row["step_ms"] for row in found["rows"]}

    parallel, gossip = "Parallel SGD", "Gossip SGD, one_peer_exponential"
    pga = f"Gossip-PGA, one_peer_exponential, H={steps.PERIOD}"
    bare = step_ms(0)
    found: dict[str, float] = dict.fromkeys((MWMS, GLOBAL), bare[parallel])
    found |= {GOSSIP: bare[gossip], RING: bare["Gossip SGD, ring"]}
    found |= {STATIC: bare["Gossip SGD, static_exponential"]}
    found |= {name: step_ms(0, dtype)[gossip] for name, dtype in _FEWER_BITS.items()}
    for factor in steps.FACTORS:
        compute_ms = medians.get(steps.row_name(factor, steps.ALONE))
        if compute_ms is None:
            continue
        plain, overlapped = step_ms(compute_ms), step_ms(compute_ms, overlap=True)
        by_name = {
            steps.PGA: plain[pga],
            steps.SYNCHRONOUS: plain[parallel],
            steps.OVERLAP: overlapped[pga],
            steps.GOSSIP_OVERLAP: overlapped[gossip],
        }
        found |= {steps.row_name(factor, name): ms for name, ms in by_name.items()}
    return found


def draw(path: pathlib.Path, title: str, rows: list[dict], size: int) -> None:
    """Draw exchanges next to the limit of the links, and steps next to computation alone.

    Args:
      path: the file to write.
      title: title of the picture.
      rows: the rows.
      size: number of workers.
    """
    trained = any(each["name"].startswith("step") for each in rows)
    picture = figure.new_figure(title)
    first, *others = picture.subplots(1, 1 + trained, squeeze=False)[0]
    _draw_exchanges(first, [each for each in rows if "share_of_limit" in each], size)
    for panel in others:
        _draw_steps(panel, {each["name"]: each["median_ms"] for each in rows})
    picture.savefig(path)


def _draw_exchanges(panel: "Axes", rows: list[dict], size: int) -> None:
    """Draw one bar per exchange, and lines for the limits of the links."""
    for label, color, of_ours in (
        ("this library", figure.BLUE, True),
        ("alternatives", figure.GRAY, False),
    ):
        shown = [place for place, each in enumerate(rows) if _is_ours(each["name"]) == of_ours]
        panel.barh(shown, [rows[place]["median_ms"] for place in shown], color=color, label=label)
    panel.set_yticks(range(len(rows)), [each["name"] for each in rows])
    panel.invert_yaxis()
    limit = rows[0]["median_ms"]
    ring = 2 * (size - 1) / size * limit
    panel.axvline(limit, color=figure.ORANGE, label="the parameters over TCP")
    panel.axvline(ring, color=figure.ORANGE, ls="--", label="the bytes of a ring all-reduce")
    panel.legend(frameon=False, ncol=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    panel.set(title="One exchange")
    figure.finish(panel, xlabel="median time (ms)")


def _is_ours(name: str) -> bool:
    return "gossip" in name or name == GLOBAL


def _draw_steps(panel: "Axes", medians: dict[str, float]) -> None:
    """Draw one group of bars per length of the computation."""
    for place, (color, name) in enumerate(zip(figure.PALETTE, steps.NAMES, strict=False)):
        rows = [steps.row_name(factor, name) for factor in steps.FACTORS]
        if all(row in medians for row in rows):
            at = np.arange(len(rows)) + 0.16 * (place - 2)
            panel.bar(at, [medians[row] for row in rows], 0.15, color=color, label=name)
    panel.set_xticks(range(len(steps.FACTORS)), [f"{factor}x" for factor in steps.FACTORS])
    panel.set(title="A step of fit", ylabel="median time (ms)")
    panel.legend(frameon=False)
    panel.set(
        xlabel="computation of a step, relative to a one-peer gossip\n"
        "(or to twice a step's own work, if that takes longer)"
    )
    panel.spines[["top", "right"]].set_visible(False)
