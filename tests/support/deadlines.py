"""Deadlines for a machine that other programs may use too.

A deadline ends what hangs; it says nothing about speed. `calibrate` measures once, at the start of
a session, how long a fixed piece of work takes under the present load, and `scaled` stretches every
deadline by that. Processes that the session starts inherit the factor.
"""

import os
import subprocess
import sys
import time

_VARIABLE = "TF_GOSSIP_PGA_TEST_DEADLINE_FACTOR"

# Seconds that the fixed work takes on one idle core of a small virtual machine.
_NOMINAL_S = 0.5
_LARGEST = 10.0

# Start an interpreter, import from disk, compute: what the tests' worker processes do too.
_WORK = """
import numpy
numbers = numpy.random.default_rng(0).normal(size=(200, 200))
for _ in range(20):
    numbers = numpy.tanh(numbers @ numbers)
sum(number * number for number in range(10**6))
"""


def calibrate() -> float:
    """Measure the factor by which this machine is slower than an idle one, and keep it.

    The processes that this one starts from now on inherit it.
    """
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", _WORK], check=True)
    measured = (time.monotonic() - began) / _NOMINAL_S
    os.environ[_VARIABLE] = f"{min(max(1.0, measured), _LARGEST):.2f}"
    return factor()


def factor() -> float:
    """Return what `calibrate` has measured, at least 1; 1 where nobody has."""
    return float(os.environ.get(_VARIABLE, "1"))


def scaled(seconds: float) -> float:
    """Return a deadline, given in seconds for an idle machine, for this one."""
    return seconds * factor()


def long() -> float:
    """Return the deadline for what starts processes, far beyond what it needs: it ends hangs."""
    return scaled(240)


class Deadline:
    """One deadline for several waits.

    Args:
      seconds: for an idle machine.
    """

    def __init__(self, seconds: float):
        self._seconds = scaled(seconds)
        self._ends = time.monotonic() + self._seconds

    def remaining(self) -> float:
        """Return the seconds that are left, at least 0."""
        return max(0.0, self._ends - time.monotonic())

    def until(self, happened, describe=lambda: "", every_s: float = 0.05):
        """Wait until `happened()` is true, and return what it returned.

        Raises:
          TimeoutError: the deadline passed first; `describe()` says what was there.
        """
        while not (found := happened()):
            if not self.remaining():
                raise TimeoutError(f"Not within {self._seconds:g} s. {describe()}")
            time.sleep(every_s)
        return found
