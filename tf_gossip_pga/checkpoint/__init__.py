"""Save a run and resume it.

- `callback`: `Checkpoint`.
- `reader`: find the newest usable checkpoint, on all ranks together, and load it.
- `writer`: write a checkpoint, on all ranks together.
- `files`: numbered folders of files, each complete once it has a manifest.
- `ownership`: which job, and which view of it, may write to a directory.
- `regular`: open regular files only, never through links.
- `rank_file`: the variables that each rank saves for itself.
"""
