"""Measure the memory of this process, and the peak memory of an action."""

import ctypes
import gc
import os
import threading
from collections.abc import Callable

_SAMPLE_S = 0.002


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_of(build: Callable[[], Callable[[], object]], warm_up: int) -> int:
    """Return an action's peak memory in bytes, above the memory held before it was built.

    Memory that this process has freed is first returned to the system. Otherwise, the action could
    reuse that memory, and the measurement would miss it.

    Args:
      build: function that builds the action.
      warm_up: how often to run the action before sampling memory. These runs trace functions.
    """

    def sample():
        while not is_over.wait(_SAMPLE_S):
            samples.append(resident_bytes())

    gc.collect()
    trim = ctypes.CDLL(None).malloc_trim
    trim(0)
    before, samples, is_over = resident_bytes(), [], threading.Event()
    action = build()
    for _ in range(warm_up):
        action()
    trim(0)
    samples.append(resident_bytes())
    sampler = threading.Thread(target=sample)
    sampler.start()
    action()
    is_over.set()
    sampler.join()
    return max(0, max(samples) - before)
