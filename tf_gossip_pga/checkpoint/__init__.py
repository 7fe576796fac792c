"""Save a run and resume it.

callback: `Checkpoint`.
reader: find the newest checkpoint that fits, on all ranks together, and load it.
writer: write one checkpoint, on all ranks together.
files: numbered folders of files, each complete once its manifest is there.
ownership: which job, and which view of it, may write to a directory.
regular: open regular files, never through links.
rank_file: the variables that each rank keeps for itself.
"""
