"""List the GPUs of this machine, and divide them among local workers."""

from __future__ import annotations

import contextlib
import importlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

_DRIVER = pathlib.Path("/proc/driver/nvidia/gpus")
_UUID = "GPU UUID:"


def visible() -> list[str]:
    """Return the NVIDIA GPUs that a child process would see.

    If the package nvidia-ml-py is installed, the parts of a GPU in MIG mode count as GPUs.

    Returns:
      One entry for `CUDA_VISIBLE_DEVICES` per GPU: the entries of this variable if it is set, else
      UUIDs, such as `"GPU-8f3c…"`, or indices if the driver does not tell UUIDs.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names = [name.strip() for name in chosen.split(",")]
        return names if names != [""] and "-1" not in names else []
    return _from_library() or _from_driver()


def divide(gpus: Sequence[str], workers: int, per_worker: int, share: bool) -> list[list[str]]:
    """Return the GPUs of each worker, in rank order.

    Args:
      gpus: the GPUs of this machine.
      workers: number of workers.
      per_worker: number of GPUs for each worker.
      share: whether several workers may use one GPU.

    Returns:
      Without GPUs, an empty list for each worker.

    Raises:
      ValueError: there are too few GPUs.
    """
    if not gpus:
        return [[] for _ in range(workers)]
    if len(gpus) < per_worker or (not share and len(gpus) < workers * per_worker):
        raise ValueError(
            f"{workers} worker{'s' * (workers > 1)} with {per_worker} GPU{'s' * (per_worker > 1)} "
            f"each need {workers * per_worker}, but this machine has {len(gpus)}. Start fewer "
            "workers, let several workers share a GPU (--share-gpus), or set "
            "CUDA_VISIBLE_DEVICES=-1 to train on the CPU."
        )
    first = [rank * per_worker for rank in range(workers)]
    return [[gpus[(at + k) % len(gpus)] for k in range(per_worker)] for at in first]


def _from_library() -> list[str]:
    """Return UUIDs from NVIDIA's management library, or an empty list if it cannot be used."""
    try:
        library = importlib.import_module("pynvml")
        library.nvmlInit()
    except Exception:  # not installed, or no driver: it has an error class for each reason
        return []
    try:
        count = library.nvmlDeviceGetCount()
        handles = [library.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        return [uuid for handle in handles for uuid in _parts(library, handle)]
    finally:
        library.nvmlShutdown()


def _parts(library: Any, handle: Any) -> list[str]:
    """Return the UUIDs of a GPU's MIG devices, or its own UUID if it is not in MIG mode."""
    found: list[str] = []
    with contextlib.suppress(library.NVMLError):  # this kind of GPU has no MIG mode
        if library.nvmlDeviceGetMigMode(handle)[0]:
            for index in range(library.nvmlDeviceGetMaxMigDeviceCount(handle)):
                with contextlib.suppress(library.NVMLError):  # no device has this index
                    part = library.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
                    found.append(library.nvmlDeviceGetUUID(part))
            return found
    return [library.nvmlDeviceGetUUID(handle)]


def _from_driver(folder: pathlib.Path = _DRIVER) -> list[str]:
    """Return UUIDs from the driver's files, or indices if they contain no UUID."""
    found: list[str] = []
    with contextlib.suppress(OSError):
        for index, each in enumerate(sorted(folder.iterdir())):
            lines = (each / "information").read_text().splitlines()
            uuids = [line.removeprefix(_UUID).strip() for line in lines if line.startswith(_UUID)]
            found.append(uuids[0] if uuids else str(index))
    return found
