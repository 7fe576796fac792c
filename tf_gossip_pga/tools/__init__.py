"""Support the commands with output files, memory checks, and merged worker output.

Contents:

- `memory`: refuse work that does not fit into this machine's memory.
- `output`: write a JSON file, and a picture next to it.
- `screen`: merge the output of several workers.
"""
