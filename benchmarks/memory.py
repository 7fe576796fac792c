"""The memory that this process holds, and the most that an action needs."""

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
    """Return the most bytes held while an action runs, above those held before it was built.

    Freed memory goes back to the system first: what was needed earlier would hide the action's.

    Args:
      build: makes the action.
      warm_up: how often the action runs, which traces it, before memory is sampled.
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
