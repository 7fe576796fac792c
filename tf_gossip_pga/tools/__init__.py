"""Help the commands with output files, memory estimates, and the merged output of workers.

Contents:

- `memory`: refuse work that does not fit into this machine's memory.
- `output`: write a JSON file, and a picture next to it.
- `screen`: merge the output of several workers.
"""
