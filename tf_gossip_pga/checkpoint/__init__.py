"""Save a run and resume it.

- `callback`: `Checkpoint`.
- `reader`: find the newest usable checkpoint, on all ranks together, and load it.
- `writer`: write a checkpoint, on all ranks together.
- `files`: numbered folders of files, each complete once it has a manifest.
- `ownership`: decide which job, and which of its views, may write to a directory.
- `regular`: open regular files without following links.
- `rank_file`: the variables that each rank saves for itself.
- `outer_file`: the state of the outer optimizer, which the chief saves.
"""
