"""Make data sets of TensorFlow Datasets look as if they were prepared."""

import pathlib

import tensorflow_datasets as tfds


def as_if_prepared(name, directory, **counts):
    """Write the metadata of a prepared data set, without examples.

    Args:
      name: name of the data set.
      directory: the directory for data sets.
      **counts: number of examples of each split.
    """
    builder = tfds.builder(name, data_dir=directory)
    path = pathlib.Path(builder.data_path)
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[count],
            num_bytes=1000 * count,
            filename_template=tfds.core.ShardedFileTemplate(
                data_dir=path, dataset_name=builder.name, split=split, filetype_suffix="tfrecord"
            ),
        )
        for split, count in counts.items()
    ]
    builder.info.set_splits(tfds.core.SplitDict(splits))
    path.mkdir(parents=True)
    builder.info.write_to_directory(path)
