"""Serve the commands: output files, memory estimates, the merged output of several workers.

Contents:
  memory: refuse what does not fit into this machine's memory.
  output: a JSON file, and a picture next to it.
  screen: merge what several workers print.
"""
