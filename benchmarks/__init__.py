"""Benchmarks, which are scripts that print a table and write a JSON file, and their helpers."""
