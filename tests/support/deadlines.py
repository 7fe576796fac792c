"""Set deadlines on a machine that other programs may use at the same time.

A deadline ends what hangs; it does not test speed. At the start of a session `calibrate` measures
how long a fixed piece of work takes under the current load. `scaled` multiplies every deadline by
the resulting factor. Processes that the session starts inherit the factor.
"""

import os
import subprocess
import sys
import time

_VARIABLE = "TF_GOSSIP_PGA_TEST_DEADLINE_FACTOR"

# Time of the fixed work on one idle core of a small virtual machine.
_NOMINAL_S = 0.5
_LARGEST = 10.0

# Like a worker process of the tests: start an interpreter, import from disk, compute.
_WORK = """
import numpy
numbers = numpy.random.default_rng(0).normal(size=(200, 200))
for _ in range(20):
    numbers = numpy.tanh(numbers @ numbers)
sum(number * number for number in range(10**6))
"""


def calibrate() -> float:
    """Measure and return the factor by which this machine is slower than an idle one.

    Processes that this one starts afterwards inherit the factor.
    """
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", _WORK], check=True)
    measured = (time.monotonic() - began) / _NOMINAL_S
    os.environ[_VARIABLE] = f"{min(max(1.0, measured), _LARGEST):.2f}"
    return factor()


def factor() -> float:
    """Return the factor that `calibrate` measured, at least 1; 1 if it was not called."""
    return float(os.environ.get(_VARIABLE, "1"))


def scaled(seconds: float) -> float:
    """Return a deadline for this machine.

    Args:
      seconds: the deadline on an idle machine.
    """
    return seconds * factor()


def long() -> float:
    """Return a deadline for tests that start processes, far longer than they need."""
    return scaled(240)


class Deadline:
    """Limit several waits by one deadline.

    Args:
      seconds: the deadline on an idle machine.
    """

    def __init__(self, seconds: float):
        self._seconds = scaled(seconds)
        self._ends = time.monotonic() + self._seconds

    def remaining(self) -> float:
        """Return the remaining seconds, at least 0."""
        return max(0.0, self._ends - time.monotonic())

    def until(self, happened, describe=lambda: "", every_s: float = 0.05):
        """Wait until `happened()` is true, and return its value.

        Args:
          happened: function without arguments.
          describe: function that returns the state as text, for the error message.
          every_s: seconds between calls of `happened`.

        Raises:
          TimeoutError: the deadline passed.
        """
        while not (found := happened()):
            if not self.remaining():
                raise TimeoutError(f"Not within {self._seconds:g} s. {describe()}")
            time.sleep(every_s)
        return found
