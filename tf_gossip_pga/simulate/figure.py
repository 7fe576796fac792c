"""Draw the curves of simulations on matplotlib axes, without importing matplotlib."""

from typing import Any

import numpy as np

from tf_gossip_pga.simulate.curves import Curve, is_reached, transient


def draw(axes: Any, found: dict[str, Curve]) -> None:
    """Draw each algorithm's curve on a logarithmic axis, with a dot where its transient stage ends.

    Args:
      axes: a `matplotlib.axes.Axes`.
      found: the curve of each algorithm, including `"parallel"`.
    """
    for index, (name, curve) in enumerate(found.items()):
        color = "black" if name == "parallel" else f"C{index - 1}"
        mean, error = curve.mean, curve.standard_error
        axes.plot(curve.steps, mean, color=color, linewidth=1.2, label=name)
        low = np.maximum(mean - error, mean / 10)  # positive, for the logarithmic axis
        axes.fill_between(curve.steps, low, mean + error, color=color, alpha=0.2, linewidth=0)
        joined = transient(curve, found["parallel"])
        if name == "parallel" or joined is None or not is_reached(joined, curve.steps[-1]):
            continue
        height = mean[np.searchsorted(curve.steps, joined)]
        axes.plot(joined, height, "o", color=color, zorder=3)
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
