"""The parts of train.py: its flags, what they ask for, and what a run leaves behind."""
