"""Say in words what a record shows: numbers with units, and sentences."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence

from tf_gossip_pga.coordination.reports import named
from tf_gossip_pga.observe.record import Change, Record

# Ranks wait evenly for one another if nobody was waited for longer than this times the mean.
_EVEN = 1.5

# If ranks waited for less than this part of their time, say that it hardly matters.
_LITTLE = 0.01


def seconds(value: float) -> str:
    """Return a duration for people: `"0.03 s"`, `"12.3 s"`, `"4 min 12 s"`, `"2 h 5 min"`."""
    if value < 99.95:
        return f"{value:.2f} s" if value < 1 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def size(value: float) -> str:
    """Return a number of bytes for people: `"640 B"`, `"1.2 MB"`."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def share(value: float) -> str:
    """Return a part of 1 in percent: `"0.4 %"`, `"12 %"`."""
    percent = 100 * value
    return f"{percent:.1f} %" if 0 < percent < 9.95 else f"{percent:.0f} %"


def number(value: float) -> str:
    """Return a measured number with four significant digits."""
    return f"{value:.4g}"


def moment(value: float) -> str:
    """Return a time, in seconds since 1970, as `"2026-11-28 16:05:08 UTC"`."""
    found = datetime.datetime.fromtimestamp(value, datetime.UTC)
    return found.strftime("%Y-%m-%d %H:%M:%S UTC")


def waits(record: Record) -> list[str]:
    """Return one or two sentences on who waited for whom.

    The first says which rank kept the others waiting longest, or that nobody stands out.
    """
    if record.size == 1:
        return ["There is only one worker, so there is nobody to wait for."]
    # waited_for[j]: seconds that all others together waited for rank j
    waited_for = [sum(column) for column in zip(*record.waiting, strict=True)]
    total = sum(waited_for)
    if total < 0.005:
        return ["No rank waited for another."]
    most = max(waited_for)
    if most <= _EVEN * total / record.size:
        low = min(waited_for)
        first = (
            "No rank stands out: the others waited between "
            f"{seconds(low)} and {seconds(most)} for each."
        )
    else:
        slowest = waited_for.index(most)
        part = f", which is {share(most / total)} of all waiting" if most < 0.995 * total else ""
        first = f"Rank {slowest} kept the others waiting longest: {seconds(most)} in all{part}."
    part = total / max(sum(record.training_seconds), 1e-9)
    second = f"Waiting took {share(part)} of the workers' time"
    return [first, second + (", which hardly matters." if part < _LITTLE else ".")]


def change(found: Change) -> str:
    """Return a sentence about workers that were lost or joined."""
    parts = []
    if found.lost:
        parts.append(f"{named(found.lost)} {_was(found.lost)} lost")
    if found.joined:
        parts.append(f"{named(found.joined)} joined")
    text = " and ".join(parts)
    return (
        f"{text[0].upper()}{text[1:]} at step {found.step:,}; {workers(found.members)} trained on."
    )


def state(record: Record) -> str:
    """Return a sentence on how far the run has come."""
    done = record.epochs[-1].number if record.epochs else 0
    first = record.epochs[0].number if record.epochs else 1
    written = moment(record.started + record.seconds)
    if record.is_finished and done < record.planned:
        text = f"Training stopped early, after {done} of {record.planned} epochs."
    elif record.is_finished:
        text = f"Training finished after {epochs(done)}."
    else:
        text = (
            f"Epoch {done} of {record.planned} had ended when this page was written, on {written}. "
            "The page is written again at the end of later epochs. If training no longer runs, it "
            "ended before its last epoch."
        )
    begin = f" This page begins with epoch {first}, with which this fit began."
    return text + begin * (first > 1)


def epochs(count: int) -> str:
    """Return `"1 epoch"`, `"2 epochs"`."""
    return f"{count} epoch{'s' * (count != 1)}"


def workers(count: int) -> str:
    """Return `"1 worker"`, `"2 workers"`."""
    return f"{count} worker{'s' * (count != 1)}"


def curve(name: str, x: Sequence[int], y: Sequence[float], unit: str = "epoch") -> str:
    """Describe a curve for readers who cannot see it."""
    finite = [(at, value) for at, value in zip(x, y, strict=True) if math.isfinite(value)]
    if not finite:
        return f"{name}: no finite value"
    (first, start), (last, end) = finite[0], finite[-1]
    if first == last:
        return f"{name}: {number(start)} in {unit} {first}"
    return f"{name}: {number(start)} in {unit} {first}, {number(end)} in {unit} {last}"


def _was(ranks: Sequence[int]) -> str:
    return "was" if len(ranks) == 1 else "were"
