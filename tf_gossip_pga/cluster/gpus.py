"""Name the GPU from which this worker exchanges, so that workers can tell whether they share it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import tensorflow as tf


def own_gpu() -> str:
    """Return a name for this worker's first GPU, unique on this machine.

    Returns:
      The GPU's entry in `CUDA_VISIBLE_DEVICES`, such as `"GPU-8f3c…"` or `"1"`, or its index if
      the variable is unset. If `NCCL_HOSTID` is set, also its value, because NCCL then accepts a
      GPU once per value. An empty string if TensorFlow sees no GPU, or was built without NCCL.
    """
    visible = tf.config.get_visible_devices("GPU")
    if not visible or not tf.sysconfig.get_build_info().get("is_cuda_build"):
        return ""
    present = [device.name for device in tf.config.list_physical_devices("GPU")]
    name = name_of(present.index(visible[0].name), os.environ.get("CUDA_VISIBLE_DEVICES"))
    host = os.environ.get("NCCL_HOSTID")
    return f"{name} (NCCL_HOSTID={host})" if host else name


def name_of(index: int, chosen: str | None) -> str:
    """Return the name of the GPU with this index among those that CUDA shows to the process.

    Args:
      index: the index.
      chosen: value of `CUDA_VISIBLE_DEVICES`, or None if it is unset.
    """
    names: Sequence[str] = [name.strip() for name in (chosen or "").split(",") if name.strip()]
    return names[index] if index < len(names) else str(index)
