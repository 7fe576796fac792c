"""Name the GPU from which this worker exchanges, so that workers can tell whether they share it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

_DRIVER = "libcuda.so.1"
_BUS_ID_BYTES = 32  # "0000:3b:00.0" and a final zero, with room to spare


def own_gpu() -> str:
    """Return a name for this worker's first GPU, unique on this machine.

    Returns:
      The GPU's PCI bus id, such as `"0000:3b:00.0"`, by which NCCL too tells GPUs apart. If CUDA's
      driver does not tell the bus id, the name is the GPU's entry in `CUDA_VISIBLE_DEVICES`, such
      as `"GPU-8f3c…"` or `"1"`, or the GPU's index if this variable is unset. If `NCCL_HOSTID` is
      set, its value is appended, because NCCL accepts the same GPU once for each value of this
      variable. The name is an empty string if TensorFlow sees no GPU, or was built without CUDA.
    """
    visible = tf.config.get_visible_devices("GPU")
    if not visible or not tf.sysconfig.get_build_info().get("is_cuda_build"):
        return ""
    present = [device.name for device in tf.config.list_physical_devices("GPU")]
    index = present.index(visible[0].name)
    name = _bus_id(index) or _entry(index, os.environ.get("CUDA_VISIBLE_DEVICES"))
    host = os.environ.get("NCCL_HOSTID")
    return f"{name} (NCCL_HOSTID={host})" if host else name


def _bus_id(index: int) -> str:
    """Return the PCI bus id of a GPU, or an empty string if CUDA's driver does not tell it.

    The parts of a GPU in MIG mode have the same PCI bus id, and NCCL takes them for one GPU.

    Args:
      index: the GPU's index among those that CUDA shows to the process.
    """
    text, device = ctypes.create_string_buffer(_BUS_ID_BYTES), ctypes.c_int()
    try:
        driver: Any = ctypes.CDLL(_DRIVER)
        has_failed = (
            driver.cuInit(0)
            or driver.cuDeviceGet(ctypes.byref(device), index)
            or driver.cuDeviceGetPCIBusId(text, _BUS_ID_BYTES, device)
        )
    except (OSError, AttributeError):  # no such library, or no such function in it
        return ""
    return "" if has_failed else text.value.decode("ascii", "replace")


def _entry(index: int, chosen: str | None) -> str:
    """Return the entry of a GPU in `CUDA_VISIBLE_DEVICES`, or the index if there is no entry.

    Args:
      index: the GPU's index among those that CUDA shows to the process.
      chosen: value of `CUDA_VISIBLE_DEVICES`, or None if it is unset.
    """
    names: Sequence[str] = [name.strip() for name in (chosen or "").split(",") if name.strip()]
    return names[index] if index < len(names) else str(index)
