"""One backend of Keras, timed in a process of its own; answers `backend_speed.py` in JSON, line by line."""

import functools
import json
import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # the default depends on the processor

import keras
import numpy as np
from leaving import leaving

import keras_exitens as kx
from keras_exitens._stages.compiled import compiled
from keras_exitens.stages import handed_on, split

SIZE, CLASSES = 32, 100


class Same(keras.utils.PyDataset):
    """One batch, again and again."""

    def __init__(self, batch, steps):
        super().__init__()
        self.batch, self.steps = batch, steps

    def __len__(self):
        return self.steps

    def __getitem__(self, index):
        return self.batch


class Clock(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.began = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds = time.perf_counter() - self.began


@functools.cache
def trained(policy, batch, width):
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(0)
    backbone = kx.applications.ResNet18((SIZE, SIZE, 3), classes=CLASSES, width=width)
    distiller = kx.ExitEnsembleDistiller(kx.add_exits(backbone, 3))
    distiller.compile(kx.optimizers.SGD(0.05, momentum=0.9, l2=5e-4), metrics=["accuracy"])
    keras.config.set_dtype_policy("float32")
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, SIZE, SIZE, 3)).astype("float32")
    return distiller, (images, rng.integers(0, CLASSES, batch))


def step(policy, batch, width, steps):
    """Seconds of a training step, mean over `steps` of them, after one that does not count."""
    distiller, data = trained(policy, batch, width)
    clock = Clock()
    distiller.fit(Same(data, 1), verbose=0)
    distiller.fit(Same(data, steps), verbose=0, callbacks=[clock])
    return clock.seconds / steps


@functools.cache
def network(width):
    keras.utils.set_random_seed(0)
    model = kx.add_exits(kx.applications.ResNet18((SIZE, SIZE, 3), classes=CLASSES, width=width), 3)
    rng = np.random.default_rng(0)
    for norm in (layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)):
        norm.gamma.assign(rng.uniform(0.5, 1.5, norm.gamma.shape))
        norm.moving_variance.assign(rng.uniform(0.5, 2, norm.gamma.shape))
    return model


def routing(batch, width, rounds):
    """Seconds of `predict_on_batch`, and of the stages alone on the rows that reach them, in turns."""
    model = network(width)
    x = np.random.default_rng(1).normal(size=(batch, SIZE, SIZE, 3)).astype("float32")
    found = model.predict_on_batch(x)
    thresholds, counts = leaving(
        np.stack([keras.ops.convert_to_numpy(found[name]) for name in kx.exit_names(model)])
    )
    reached = [sum(counts[k:]) for k in range(4)]
    early = kx.EarlyExit(model, kx.policies.MaxProbability(thresholds))
    exits = early.predict_on_batch(x)["exit"]
    assert [int((exits >= i).sum()) for i in range(4)] == reached
    calls, values = [], {}
    for stage, rows in zip(split(model), reached, strict=True):
        values = values or dict.fromkeys(stage.inputs, keras.ops.convert_to_tensor(x))
        given = {name: values[name][:rows] for name in stage.inputs}
        run = compiled(stage.model)
        values = handed_on(given, run(given), stage.carried)
        calls.append(lambda run=run, given=given: keras.ops.convert_to_numpy(run(given)["logits"]))
    routed, ideal = [], []
    for number in range(rounds + 2):
        for measure in (routed, ideal) if number % 2 else (ideal, routed):
            began = time.perf_counter()
            if measure is routed:
                early.predict_on_batch(x)
            else:
                for call in calls:
                    call()
            measure.append(time.perf_counter() - began)
    return {"routed": routed[2:], "ideal": ideal[2:], "reached": reached}


def main():
    for line in sys.stdin:
        question = json.loads(line)
        answer = {"step": step, "routing": routing}[question.pop("what")](**question)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
