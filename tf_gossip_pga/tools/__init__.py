"""Help this package's commands to write files, check memory, and merge the workers' output.

Contents:

- `memory`: refuse work that does not fit into this machine's memory.
- `output`: write a JSON file, and a picture next to it.
- `screen`: merge the output of several workers.
"""
