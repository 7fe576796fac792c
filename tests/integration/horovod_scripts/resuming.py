"""Train a small ResNet and resume it, in the shape of Horovod's keras_imagenet_resnet50.py."""

import argparse
import os

import horovod.keras as hvd
import keras
import numpy as np
import tensorflow as tf
from keras import layers
from sklearn.datasets import load_digits

parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
parser.add_argument("--log", default="./log.csv")
parser.add_argument("--checkpoint-format", default="./checkpoint-{epoch}.keras")
parser.add_argument("--fp16-allreduce", action="store_true", default=False)
parser.add_argument("--batch-size", type=int, default=50)
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--base-lr", type=float, default=0.0125)
parser.add_argument("--warmup-epochs", type=float, default=1)
parser.add_argument("--momentum", type=float, default=0.9)
parser.add_argument("--wd", type=float, default=0.00005)
args = parser.parse_args()

hvd.init()

# Look for a checkpoint, and restart from rank 0's.
resume_from_epoch = 0
for try_epoch in range(args.epochs, 0, -1):
    if os.path.exists(args.checkpoint_format.format(epoch=try_epoch)):
        resume_from_epoch = try_epoch
        break
resume_from_epoch = hvd.broadcast(resume_from_epoch, 0, name="resume_from_epoch")
verbose = 1 if hvd.rank() == 0 else 0

x, y = load_digits(return_X_y=True)
x = x.reshape(-1, 8, 8, 1).astype("float32") / 16
y = keras.utils.to_categorical(y, 10)


def batches(part):
    dataset = tf.data.Dataset.from_tensor_slices((x[part], y[part]))
    return dataset.shuffle(2000).batch(args.batch_size, drop_remainder=True)


train_iter = batches(slice(None, 1500))
test_iter = batches(slice(1500, None))


def block(inputs, filters):
    """Two convolutions with a connection around them."""
    hidden = layers.Conv2D(filters, 3, padding="same")(inputs)
    hidden = layers.Activation("relu")(layers.BatchNormalization()(hidden))
    hidden = layers.Conv2D(filters, 3, padding="same")(hidden)
    return layers.Activation("relu")(layers.add([layers.BatchNormalization()(hidden), inputs]))


inputs = keras.Input((8, 8, 1))
outputs = layers.GlobalAveragePooling2D()(block(layers.Conv2D(8, 1)(inputs), 8))
model = keras.Model(inputs, layers.Dense(10, activation="softmax")(outputs))

compression = hvd.Compression.fp16 if args.fp16_allreduce else hvd.Compression.none
initial_lr = args.base_lr * hvd.size()

if resume_from_epoch > 0 and hvd.rank() == 0:
    model = hvd.load_model(
        args.checkpoint_format.format(epoch=resume_from_epoch), compression=compression
    )
else:
    # Add weight decay, and change the settings of BatchNorm.
    model_config = model.get_config()
    for layer, layer_config in zip(model.layers, model_config["layers"], strict=True):
        if hasattr(layer, "kernel_regularizer"):
            regularizer = keras.regularizers.L2(args.wd)
            layer_config["config"]["kernel_regularizer"] = {
                "class_name": regularizer.__class__.__name__,
                "config": regularizer.get_config(),
            }
        if type(layer) is keras.layers.BatchNormalization:
            layer_config["config"]["momentum"] = 0.9
            layer_config["config"]["epsilon"] = 1e-5
    model = keras.models.Model.from_config(model_config)
    opt = keras.optimizers.SGD(learning_rate=initial_lr, momentum=args.momentum)
    opt = hvd.DistributedOptimizer(opt, compression=compression)
    model.compile(
        loss=keras.losses.categorical_crossentropy,
        optimizer=opt,
        metrics=["accuracy", "top_k_categorical_accuracy"],
    )

callbacks = [
    hvd.callbacks.BroadcastGlobalVariablesCallback(0),
    hvd.callbacks.MetricAverageCallback(),
    hvd.callbacks.LearningRateWarmupCallback(
        initial_lr=initial_lr, warmup_epochs=args.warmup_epochs, verbose=verbose
    ),
    hvd.callbacks.LearningRateScheduleCallback(
        initial_lr=initial_lr, multiplier=1.0, start_epoch=args.warmup_epochs, end_epoch=2
    ),
    hvd.callbacks.LearningRateScheduleCallback(
        initial_lr=initial_lr, multiplier=1e-1, start_epoch=2, end_epoch=3
    ),
    hvd.callbacks.LearningRateScheduleCallback(
        initial_lr=initial_lr, multiplier=1e-2, start_epoch=3
    ),
]
if hvd.rank() == 0:
    callbacks.append(keras.callbacks.ModelCheckpoint(args.checkpoint_format))
    callbacks.append(keras.callbacks.CSVLogger(args.log, append=True))

history = model.fit(
    train_iter.repeat(),
    steps_per_epoch=len(train_iter) // hvd.size(),
    callbacks=callbacks,
    epochs=args.epochs,
    verbose=verbose,
    initial_epoch=resume_from_epoch,
    validation_data=test_iter.repeat(),
    validation_steps=3 * len(test_iter) // hvd.size(),
)

score = hvd.allreduce(model.evaluate(test_iter, steps=len(test_iter)))
if verbose:
    print("Test loss:", score[0])
    print("Test accuracy:", score[1])

np.savez(f"weights-{hvd.rank()}.npz", *model.get_weights())
np.savez(f"logs-{hvd.rank()}.npz", score=score, lr=history.history["lr"])
