"""Hold the benchmarks, scripts that print a table and write a JSON file, and their helpers."""
