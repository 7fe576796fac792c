"""What a run leaves behind: a table on the screen, `results.json`, `curves.png`, `model.keras`.

`report` takes the content of `results.json`, a dict:

    algorithm, model, dataset, H, topology, optimizer_state, overlap, wire_dtype, workers, epochs
    steps, gossip_steps, global_steps       steps of `local` count as gossip, with nobody
    parameters              number of trainable ones
    train_loss              of the last epoch, mean over workers
    val_loss, val_accuracy  of the averaged model on all validation examples; the loss is the
                            cross-entropy, without the label smoothing that history's has
    unigram_cross_entropy   of the same validation text, nats; None for images
    seconds, compute_seconds, communication_seconds
    bytes_sent_per_worker   mean over workers
    consensus_distance      before the last global average of replicas that differed, in training,
                            for validation or at the end; None with one worker
    history                 a list of values per epoch for each logged name

Of a resumed run `epochs` and `steps` are of the whole, the rest is of what came after.
"""

import math
import os
import pathlib

from tf_gossip_pga.tools import output

BLUE, ORANGE, GREY = "#2563a8", "#d9722b", "#777777"
PALETTE = (BLUE, ORANGE, "#3c9a5f", "#b8424f", "#8466b0", "#b89b2c", GREY)


def report(directory: str, model, results: dict, distances: list, vocabulary: list[str] | None):
    """Prints the table and writes the files, `results.json` last: where it is, all is.

    Args:
      directory: where to write.
      model: the trained `keras.Model`.
      results: as above.
      distances: `[(step, consensus distance), …]`.
      vocabulary: the tokens of a model of text, written to `vocabulary.txt`.
    """
    folder = pathlib.Path(directory)
    (folder / "results.json").unlink(missing_ok=True)  # of an earlier run
    print(table(results), flush=True)
    names = ["results.json", "curves.png", "model.keras"]
    if vocabulary:
        names.append("vocabulary.txt")
        text = "\n".join(vocabulary) + "\n"
        write(folder / "vocabulary.txt", lambda path: path.write_text(text, encoding="utf-8"))
    write(folder / "model.keras", model.save)
    write(folder / "curves.png", lambda path: draw(path, results, distances))
    write(folder / "results.json", lambda path: path.write_text(output.as_json(results)))
    print(f"Wrote {', '.join(names[:-1])} and {names[-1]} into {folder}.", flush=True)


def write(path: pathlib.Path, save):
    """Calls `save` with a path beside `path`, then moves the file: half of one is never seen."""
    partial = path.with_stem(f".{path.stem}.partial")  # Keras and matplotlib go by the suffix
    save(partial)
    os.replace(partial, path)


def table(results: dict) -> str:
    """The results in a dozen lines."""
    distance, unigram = results["consensus_distance"], results["unigram_cross_entropy"]
    trained = results["gossip_steps"] + results["global_steps"]
    between = "local" if results["topology"] == "disconnected" else "gossip"
    accuracy = f"{results['val_accuracy']:.4f}, averaged model" + (
        ", of the masked tokens" if unigram else ""
    )
    rows = {
        "trained": describe(results),
        "validation accuracy": accuracy,
        "validation loss": f"{results['val_loss']:.4f}" + (" nats a masked token" * bool(unigram)),
        "unigram": f"{unigram:.4f} nats, the best that knows no context" if unigram else None,
        "training loss": f"{results['train_loss']:.4f}, last epoch, mean over workers",
        "time": f"{results['seconds']:.1f} s for {trained} steps",
        "communication": f"{results['communication_seconds'] / results['seconds']:.0%} of it",
        "steps": f"{results['gossip_steps']} {between}, {results['global_steps']} global",
        "sent": f"{results['bytes_sent_per_worker'] / 1e6:.1f} MB by a worker, mean",
        "consensus distance": "none, one worker"
        if distance is None
        else f"{distance:.2e}, when the replicas last differed before an average",
    }
    if not math.isfinite(results["val_loss"]):
        rows["diverged"] = "the loss is no longer a number; try a smaller --learning_rate"
    lines = [f"  {name:<21}{value}" for name, value in rows.items() if value]
    return "\n".join(["", *lines, ""])


def describe(results: dict) -> str:
    """One line: `resnet20 on digits, pga, H=6, one_peer_exponential, 4 workers`."""
    parts = [f"{results['model']} on {results['dataset']}", results["algorithm"]]
    if results["H"]:
        parts.append(f"H {'from ' if results['algorithm'] == 'aga' else '= '}{results['H']}")
    parts.append(results["topology"])
    if results["overlap"]:
        parts.append("overlap")
    if results["wire_dtype"] != "float32":
        parts.append(results["wire_dtype"])
    workers = results["workers"]
    return ", ".join([*parts, f"{workers} worker{'s' if workers > 1 else ''}"])


def draw(path: pathlib.Path, results: dict, distances: list[tuple[int, float]]):
    """Loss, validation accuracy and consensus distance against steps, side by side."""
    history = results["history"]
    per_epoch = results["steps"] // results["epochs"]
    first_epoch = results["epochs"] - len(history["loss"])  # of a resumed run
    ends = [per_epoch * (epoch + 1) for epoch in range(first_epoch, results["epochs"])]
    figure = new_figure(describe(results))
    loss, accuracy, consensus = figure.subplots(1, 3)

    loss.set(title="Loss", yscale="log")
    loss.plot(ends, history["loss"], ".-", color=BLUE, label="training, mean over workers")
    loss.plot(ends, history["val_loss"], ".-", color=ORANGE, label="validation, averaged model")
    if results["unigram_cross_entropy"]:
        loss.axhline(results["unigram_cross_entropy"], color=GREY, ls="--", label="unigram")
    loss.legend(frameon=False)

    accuracy.set(title=f"Validation accuracy, {results['val_accuracy']:.4f} at the end")
    accuracy.plot(ends, history["val_accuracy"], ".-", color=ORANGE)

    consensus.set(title="Consensus distance before averages of all")
    measured = [(step, distance) for step, distance in distances if distance > 0]
    if measured:
        consensus.plot(*zip(*measured, strict=True), ".", color=BLUE, alpha=0.7)
        consensus.set(yscale="log")
    else:
        text = "one worker" if results["workers"] == 1 else "0 before every average"
        if any(math.isnan(distance) for _, distance in distances):
            text = "no longer a number: the run diverged"
        consensus.text(0.5, 0.5, text, transform=consensus.transAxes, ha="center")
        consensus.set(xticks=[], yticks=[])
    for axes in (loss, accuracy, consensus):
        finish(axes, xlabel="step")
    if measured:
        consensus.set(xlim=loss.get_xlim())
    figure.savefig(path)


def new_figure(title: str):
    """A wide `matplotlib.figure.Figure` for panels side by side."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure(figsize=(13.5, 4.4), dpi=120, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    figure.suptitle(title, fontsize=13, fontweight="bold")
    return figure


def finish(axes, **labels):
    """The look that all panels share."""
    axes.set(xlim=(0, None), **labels)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for line in axes.lines:
        line.set(markersize=4, linewidth=1.4)
