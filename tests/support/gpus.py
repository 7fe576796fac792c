"""Hide the GPUs of this machine from all tests except those that need one."""

import contextlib
import os
from collections.abc import Generator

_VISIBLE = "CUDA_VISIBLE_DEVICES"

# Holds the value that the caller of the tests gave to `_VISIBLE`, or `_ALL` if it was unset.
_CHOSEN = "TF_GOSSIP_PGA_TEST_GPUS"
_ALL = "all"


def hide() -> None:
    """Hide all GPUs from this process and its children. Call this before TensorFlow starts."""
    os.environ.setdefault(_CHOSEN, os.environ.get(_VISIBLE, _ALL))
    os.environ[_VISIBLE] = "-1"


@contextlib.contextmanager
def shown() -> Generator[None, None, None]:
    """Show the GPUs that the caller has chosen to the children that start in this context."""
    chosen, hidden = os.environ.get(_CHOSEN, _ALL), os.environ.pop(_VISIBLE, None)
    if chosen != _ALL:
        os.environ[_VISIBLE] = chosen
    try:
        yield
    finally:
        os.environ.pop(_VISIBLE, None)
        if hidden is not None:
            os.environ[_VISIBLE] = hidden
