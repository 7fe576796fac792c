"""Choose the devices on which this worker computes, and how their gradients are summed."""

import tensorflow as tf


def local_strategy() -> tf.distribute.Strategy:
    """Return the strategy that trains a model on all devices of this worker, and on no others.

    By default, a `MirroredStrategy` uses the devices of the whole cluster and sums gradients with a
    collective whose group key is 1. TensorFlow's group leader would then put the processes of all
    workers into one group, and reject some of them because this group is "already full".

    `NcclAllReduce` and `ReductionToOneDevice`, the two ways of summing gradients that are used
    here, avoid this: both run inside this process, without a group key. The strategy itself creates
    a collective with a group key only if XLA compiles the step. Therefore,
    `training.preflight.problem_of_devices` refuses models with `jit_compile=True`.
    """
    devices = _names()
    if len(devices) < 2:
        return tf.distribute.get_strategy()
    # NCCL accepts each GPU only once, so it cannot use a GPU that is split into logical devices.
    nccl = len(devices) == len(tf.config.get_visible_devices("GPU"))
    return tf.distribute.MirroredStrategy(
        devices, tf.distribute.NcclAllReduce() if nccl else tf.distribute.ReductionToOneDevice()
    )


def grow_memory() -> None:
    """Make TensorFlow allocate GPU memory only as needed, because other workers use the GPU too.

    Leave GPUs unchanged that the script has split into logical devices. The script gives each
    logical device a limit of memory, and TensorFlow does not accept such a limit together with
    allocation as needed.
    """
    for device in tf.config.get_visible_devices("GPU"):
        if not tf.config.get_logical_device_configuration(device):
            tf.config.experimental.set_memory_growth(device, True)


def _names() -> list[str]:
    """Return the names of the visible GPUs, or of the CPUs if there are no GPUs.

    This function does not initialize TensorFlow.
    """
    kind = "GPU" if tf.config.get_visible_devices("GPU") else "CPU"
    count = sum(
        len(tf.config.get_logical_device_configuration(device) or [device])
        for device in tf.config.get_visible_devices(kind)
    )
    return [f"{kind}:{index}" for index in range(count)]
