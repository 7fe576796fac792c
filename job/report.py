"""Report a run: print a table, and write `results.json`, `curves.png` and `model.keras`.

The callback `pga.Report` has already written the page `report.html` by then.
"""

import math
import os
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from job import figure
from tf_gossip_pga.tools import output

if TYPE_CHECKING:
    import keras

PAGE = "report.html"


def report(
    directory: str,
    model: "keras.Model",
    results: dict,
    distances: list[tuple[int, float]],
    vocabulary: list[str] | None,
) -> None:
    """Print the results of a run as a table, and write the files of the run.

    `results.json` is deleted first and written last, so if it exists, all files are complete.

    Args:
      directory: the directory to write to. It must exist.
      model: the trained model.
      results: content of `results.json`, see `job.results`.
      distances: `[(step, consensus distance), …]`.
      vocabulary: tokens of a text model, to write to `vocabulary.txt`; None for images.
    """
    folder, title = pathlib.Path(directory), describe(results)
    (folder / "results.json").unlink(missing_ok=True)  # an earlier run's
    print(table(results), flush=True)
    names = ["results.json", "curves.png", PAGE, "model.keras"]
    if vocabulary:
        names.append("vocabulary.txt")
        text = "\n".join(vocabulary) + "\n"
        write(folder / "vocabulary.txt", lambda path: path.write_text(text, encoding="utf-8"))
    write(folder / "model.keras", model.save)
    write(folder / "curves.png", lambda path: figure.draw(path, title, results, distances))
    write(folder / "results.json", lambda path: path.write_text(output.as_json(results)))
    print(f"Wrote {', '.join(names[:-1])} and {names[-1]} into {folder}.", flush=True)


def write(path: pathlib.Path, save: Callable[[pathlib.Path], object]) -> None:
    """Write a file atomically: save it under another name, then move it.

    Args:
      path: the file.
      save: function that writes to a given path.
    """
    # Keep the suffix, from which Keras and matplotlib infer the format.
    partial = path.with_stem(f".{path.stem}.partial")
    save(partial)
    os.replace(partial, path)


def table(results: dict) -> str:
    """Return the results as a table of about a dozen lines.

    Args:
      results: content of `results.json`, see `job.results`.
    """
    distance, unigram = results["consensus_distance"], results["unigram_cross_entropy"]
    trained = results["gossip_steps"] + results["global_steps"]
    between = "local" if results["topology"] == "disconnected" else "gossip"
    accuracy = f"{results['val_accuracy']:.4f}, averaged model" + (
        ", of the masked tokens" if unigram else ""
    )
    rows = {
        "trained": describe(results),
        "validation accuracy": accuracy,
        "validation loss": f"{results['val_loss']:.4f}"
        + (" nats per masked token" * bool(unigram)),
        "unigram": f"{unigram:.4f} nats, the best model without context" if unigram else None,
        "training loss": f"{results['train_loss']:.4f}, last epoch, mean over workers",
        "time": f"{results['seconds']:.1f} s for {trained} steps",
        "communication": f"{results['communication_seconds'] / results['seconds']:.0%} of the time",
        "steps": f"{results['gossip_steps']} {between}, {results['global_steps']} global",
        "sent": f"{results['bytes_sent_per_worker'] / 1e6:.1f} MB per worker, mean",
        "consensus distance": "none (one worker)"
        if distance is None
        else f"{distance:.2e}, before the last average of replicas that differed",
    }
    if not math.isfinite(results["val_loss"]):
        rows["diverged"] = "the loss is no longer a number; try a smaller --learning_rate"
    lines = [f"  {name:<21}{value}" for name, value in rows.items() if value]
    return "\n".join(["", *lines, ""])


def describe(results: dict) -> str:
    """Describe a run in one line: `resnet20 on digits, pga, H = 6, ring, 4 workers`.

    Args:
      results: content of `results.json`, see `job.results`.
    """
    parts = [f"{results['model']} on {results['dataset']}", results["algorithm"]]
    if results["H"]:
        parts.append(f"H {'from ' if results['algorithm'] == 'aga' else '= '}{results['H']}")
    parts.append(results["topology"])
    if (results["gossip_every"] or 1) > 1:
        parts.append(f"a gossip every {results['gossip_every']} steps")
    if results["outer_optimizer"]:
        parts.append("outer optimizer")
    if results["overlap"]:
        parts.append("overlap")
    if results["wire_dtype"] != "float32":
        parts.append(results["wire_dtype"])
    workers = results["workers"]
    return ", ".join([*parts, f"{workers} worker{'s' if workers > 1 else ''}"])
