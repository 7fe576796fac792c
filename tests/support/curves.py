"""Read curves from event files, without the package tensorboard."""

import pathlib


def curves(folder) -> dict[str, list[tuple[int, float]]]:
    """The points of each curve, in the order in which they were written."""
    import tensorflow as tf

    found = {}
    for file in sorted(pathlib.Path(folder).iterdir()):
        for record in tf.data.TFRecordDataset(str(file)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                assert value.metadata.plugin_data.plugin_name == "scalars"
                point = (event.step, float(tf.make_ndarray(value.tensor)))
                found.setdefault(value.tag.removeprefix("gossip_pga/"), []).append(point)
    return found
