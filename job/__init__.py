"""Define the parts of train.py: flags, their checks, the job to run, results and report."""
