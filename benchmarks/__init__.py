"""Benchmarks: scripts that measure, print a table and write a JSON file, and what they share."""
