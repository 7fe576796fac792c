"""List the GPUs of this machine, and divide them among its workers."""

from __future__ import annotations

import contextlib
import importlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

# The device file of NVIDIA's driver. It is missing in a container without access to GPUs, although
# the files that list the GPUs (`_DRIVER`) exist there.
_CONTROL = pathlib.Path("/dev/nvidiactl")
_DRIVER = pathlib.Path("/proc/driver/nvidia/gpus")
_UUID = "GPU UUID:"


def visible(environment: Mapping[str, str] | None = None) -> list[str]:
    """Return the NVIDIA GPUs that a child process would see.

    If the package nvidia-ml-py is installed, each MIG device of a GPU in MIG mode counts as a GPU.

    Args:
      environment: the environment variables of the child process. Default: those of this process.

    Returns:
      One string per GPU, in the form that `CUDA_VISIBLE_DEVICES` accepts. If this variable is set,
      the strings are its entries. Otherwise they are UUIDs, such as `"GPU-8f3c…"`, or indices if
      the driver does not tell UUIDs.
    """
    environment = os.environ if environment is None else environment
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names = [name.strip() for name in chosen.split(",")]
        return names if names != [""] and "-1" not in names else []
    found = _from_library()
    if found is not None:
        return found
    return _from_driver() if _CONTROL.exists() else []


def divide(gpus: Sequence[str], workers: int, per_worker: int, share: bool) -> list[list[str]]:
    """Return the GPUs of each worker, in rank order.

    Args:
      gpus: the GPUs of this machine, as returned by `visible`.
      workers: number of workers.
      per_worker: number of GPUs for each worker.
      share: whether several workers may use one GPU.

    Returns:
      One list for each worker. If `gpus` is empty, all of these lists are empty.

    Raises:
      ValueError: this machine has GPUs, but fewer than one worker needs or, if `share` is false,
        fewer than all workers together need.
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
    blocks = len(gpus) // per_worker
    first = [rank % blocks * per_worker for rank in range(workers)]
    return [list(gpus[at : at + per_worker]) for at in first]


def _from_library() -> list[str] | None:
    """Return the GPUs' UUIDs from NVIDIA's management library, or None if it cannot be used."""
    try:
        library = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        library.nvmlInit()
        try:
            count = library.nvmlDeviceGetCount()
            handles = [library.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
            return [uuid for handle in handles for uuid in _parts(library, handle)]
        finally:
            library.nvmlShutdown()
    except (library.NVMLError, AttributeError):  # AttributeError: a library older than MIG mode
        return None


def _parts(library: Any, handle: Any) -> list[str]:
    """Return the UUIDs of a GPU's MIG devices, or its own UUID if it is not in MIG mode."""
    is_mig = False
    with contextlib.suppress(library.NVMLError_NotSupported):  # this kind of GPU has no MIG mode
        is_mig = bool(library.nvmlDeviceGetMigMode(handle)[0])
    devices: list[Any] = [] if is_mig else [handle]
    for index in range(library.nvmlDeviceGetMaxMigDeviceCount(handle) if is_mig else 0):
        with contextlib.suppress(library.NVMLError_NotFound):  # no MIG device has this index
            devices.append(library.nvmlDeviceGetMigDeviceHandleByIndex(handle, index))
    uuids = [library.nvmlDeviceGetUUID(device) for device in devices]
    # Old versions of the library return bytes.
    return [uuid.decode() if isinstance(uuid, bytes) else uuid for uuid in uuids]


def _from_driver(folder: pathlib.Path = _DRIVER) -> list[str]:
    """Return the GPUs' UUIDs from the driver's files, or their indices if any UUID is missing."""
    try:
        uuids = [_uuid_in(each / "information") for each in sorted(folder.iterdir())]
    except OSError:
        return []
    # Do not mix UUIDs and indices: CUDA may number the GPUs in another order than this folder does.
    return uuids if all(uuids) else [str(index) for index in range(len(uuids))]


def _uuid_in(file: pathlib.Path) -> str:
    """Return the UUID in a driver's file, or an empty string if the file has no known UUID."""
    with contextlib.suppress(OSError):
        for line in file.read_text().splitlines():
            if line.startswith(_UUID) and "?" not in line:
                return line.removeprefix(_UUID).strip()
    return ""
