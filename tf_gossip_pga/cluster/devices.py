"""WHICH devices of this worker compute, and what sums their gradients."""

import tensorflow as tf


def local_strategy() -> tf.distribute.Strategy:
    """What trains a model on all devices of this worker, and on no others.

    A `MirroredStrategy` left to itself takes the devices of the whole cluster, and sums gradients
    by a collective in a group of key 1: for the cluster's leader those of all processes are one
    group, which is "already full". Both kinds of summing here use no collective, and nor does
    anything else in it unless XLA compiles the step, which `agreement.problem_of_devices` refuses.
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
    """The GPUs that this process sees, or else its CPUs; asks without starting TensorFlow."""
    kind = "GPU" if tf.config.get_visible_devices("GPU") else "CPU"
    count = sum(
        len(tf.config.get_logical_device_configuration(device) or [device])
        for device in tf.config.get_visible_devices(kind)
    )
    return [f"{kind}:{index}" for index in range(count)]
