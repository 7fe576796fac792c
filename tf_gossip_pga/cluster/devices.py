"""Choose the devices of this worker that compute, and how their gradients are summed."""

import tensorflow as tf


def local_strategy() -> tf.distribute.Strategy:
    """Return the strategy that trains a model on all devices of this worker, and on no others.

    A `MirroredStrategy` left to itself takes the devices of the whole cluster. It then sums
    gradients by a collective in a group of key 1; the leader of the cluster sees one group of all
    processes, which is "already full". Both kinds of summing here use no collective. Neither does
    anything else in the strategy unless XLA compiles the step, which
    `training.preflight.problem_of_devices` refuses.
    """
    devices = _names()
    if len(devices) < 2:
        return tf.distribute.get_strategy()
    # NCCL takes each GPU once, and so none that is split into several logical devices.
    nccl = len(devices) == len(tf.config.get_visible_devices("GPU"))
    return tf.distribute.MirroredStrategy(
        devices, tf.distribute.NcclAllReduce() if nccl else tf.distribute.ReductionToOneDevice()
    )


def _names() -> list[str]:
    """Return the visible GPUs, or else the visible CPUs, without starting TensorFlow."""
    kind = "GPU" if tf.config.get_visible_devices("GPU") else "CPU"
    count = sum(
        len(tf.config.get_logical_device_configuration(device) or [device])
        for device in tf.config.get_visible_devices(kind)
    )
    return [f"{kind}:{index}" for index in range(count)]
