"""Measure training on random data, in the shape of tensorflow2_keras_synthetic_benchmark.py."""

import argparse
import os
from timeit import default_timer as timer

import horovod.tensorflow.keras as hvd
import numpy as np
import tensorflow as tf
from tensorflow.keras import applications

parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
parser.add_argument("--fp16-allreduce", action="store_true", default=False)
parser.add_argument("--model", type=str, default="MobileNetV2")
parser.add_argument("--batch-size", type=int, default=4)
parser.add_argument("--num-batches-per-iter", type=int, default=2)
parser.add_argument("--num-iters", type=int, default=3)
parser.add_argument("--no-cuda", action="store_true", default=False)
args = parser.parse_args()
args.cuda = not args.no_cuda
device = "GPU" if args.cuda else "CPU"

hvd.init()

if hvd.rank() == 0:
    print(f"Model: {args.model}")
    print(f"Batch size: {args.batch_size}")
    print(f"Number of {device}s: {hvd.size()}")

if args.cuda:
    gpus = tf.config.experimental.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if gpus:
        tf.config.experimental.set_visible_devices(gpus[hvd.local_rank()], "GPU")
else:
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

model = getattr(applications, args.model)(weights=None, input_shape=(32, 32, 3))
opt = tf.optimizers.SGD(0.01)

data = tf.random.uniform([args.batch_size, 32, 32, 3])
target = tf.random.uniform([args.batch_size, 1], minval=0, maxval=999, dtype=tf.int64)
dataset = tf.data.Dataset.from_tensor_slices((data, target)).cache().repeat()
dataset = dataset.batch(args.batch_size)

compression = hvd.Compression.fp16 if args.fp16_allreduce else hvd.Compression.none
opt = hvd.DistributedOptimizer(opt, compression=compression)

model.compile(loss=tf.losses.SparseCategoricalCrossentropy(), optimizer=opt)

callbacks = [
    hvd.callbacks.BroadcastGlobalVariablesCallback(0),
    hvd.callbacks.MetricAverageCallback(),
]


class TimingCallback(tf.keras.callbacks.Callback):
    """Print how many images a second are trained."""

    def on_train_begin(self, logs=None):
        self.img_secs = []

    def on_train_end(self, logs=None):
        mean = np.mean(self.img_secs)
        print(f"Img/sec per {device}: {mean:.1f}")
        print(f"Total img/sec on {hvd.size()} {device}(s): {hvd.size() * mean:.1f}")

    def on_epoch_begin(self, epoch, logs=None):
        self.starttime = timer()

    def on_epoch_end(self, epoch, logs=None):
        if epoch > 0:
            seconds = timer() - self.starttime
            self.img_secs.append(args.batch_size * args.num_batches_per_iter / seconds)


if hvd.rank() == 0:
    callbacks.append(TimingCallback())

model.fit(
    dataset,
    steps_per_epoch=args.num_batches_per_iter,
    callbacks=callbacks,
    epochs=args.num_iters,
    verbose=0,
)
np.savez(f"weights-{hvd.rank()}.npz", *model.get_weights())
