"""Define the parts of train.py: flags, checks, the job they describe, results and report."""
