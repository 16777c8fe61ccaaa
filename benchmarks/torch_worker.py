"""The other side of `training_speed.py`: the same network, loss and update in PyTorch, a process of its own.

Reads one JSON object a line and answers with one:

- `{"do": "about"}`: versions.
- `{"do": "check", "network": …, "given": npz, "made": npz, "steps": n, "rate": r}`: from the weights, images
  and labels in `given` makes n updates, answers with the losses; the weights after the first update are
  written to `made`.
- `{"do": "time", "network": …, "batch": b, "precision": p, "steps": n}`: seconds a step of n steps.

ResNet18 for small images as `keras_exitens.applications` has it, with exits and heads as `add_exits` gives
them; exit-ensemble distillation with the mean squared error of the logits and of the active features; SGD
with momentum; two threads, channels last, bfloat16 by autocast. As in `fit`, loss and terms and the accuracy
of each exit and of the ensemble are counted in every step, and none is read before the last.
"""

import json
import math
import sys
import time
import types

import numpy as np
import torch
from torch import nn
from torch.nn import functional

CHANNELS = (64, 128, 256, 512)


class Unit(nn.Module):
    """Convolution, batch normalisation, and ReLU unless `relu` is false.

    Args:
        conv, bn: names of the two layers in Keras.
        same: whether Keras pads the convolution `"same"`.
    """

    def __init__(self, conv, bn, inputs, outputs, size, stride=1, *, relu=True, same=False):
        super().__init__()
        self.names = conv, bn
        # Where Keras pads "same" a map of even size, a stride of 2 pads at the bottom and at the right only.
        self.uneven = same and stride == 2 and size == 3
        self.conv = nn.Conv2d(
            inputs, outputs, size, stride, padding=0 if self.uneven else size // 2, bias=False
        )
        self.bn = nn.BatchNorm2d(outputs, eps=1e-5, momentum=0.1)
        self.relu = relu

    def forward(self, x):
        if self.uneven:
            x = functional.pad(x, (0, 1, 0, 1))
        x = self.bn(self.conv(x))
        return functional.relu(x, inplace=True) if self.relu else x


class Block(nn.Module):
    """Two 3×3 convolutions beside the identity, or beside a 1×1 convolution where the shape changes."""

    def __init__(self, name, inputs, outputs, stride):
        super().__init__()
        self.first = Unit(f"{name}_conv1", f"{name}_conv1_bn", inputs, outputs, 3, stride)
        self.second = Unit(f"{name}_conv2", f"{name}_conv2_bn", outputs, outputs, 3, relu=False)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            names = f"{name}_shortcut", f"{name}_shortcut_bn"
            self.shortcut = Unit(*names, inputs, outputs, 1, stride, relu=False)

    def forward(self, x):
        return functional.relu(self.second(self.first(x)) + self.shortcut(x), inplace=True)


def head(kind, name, inputs, width, halvings):
    """The head of one exit: a block a halving, as in `keras_exitens.layers`."""
    units, count, stride = [], max(halvings, 1), 2 if halvings else 1
    for i in range(1, count + 1):
        outputs = width if i == count else min(width, 2 * inputs)
        inner = math.ceil(outputs / 4)
        parts = {
            "conv": [("a", inputs, outputs, 3, stride)],
            "bottleneck": [
                ("a", inputs, inner, 1, 1),
                ("b", inner, inner, 3, stride),
                ("c", inner, outputs, 1, 1),
            ],
        }[kind]
        for part, *sizes in parts:
            stem = f"{name}_block{i}_{part}"
            units.append(Unit(f"{stem}_conv", f"{stem}_bn", *sizes, same=True))
        inputs = outputs
    return nn.Sequential(*units)


class Network(nn.Module):
    """ResNet18 whose exits leave after the blocks numbered in `exits`; block 0 is the stem.

    Gives the logits and the features of all exits, the final one last.
    """

    def __init__(self, width, classes, exits, head_kind):
        super().__init__()
        widths = [int(CHANNELS[max(block - 1, 0) // 2] * width + 0.5) for block in range(9)]
        self.exits = {block: i for i, block in enumerate(exits)}
        self.blocks = nn.ModuleList([Unit("stem_conv", "stem_conv_bn", 3, widths[0], 3)])
        for number in range(1, 9):
            stage, first = (number - 1) // 2, number % 2
            name = f"stage{stage + 1}_block{2 - first}"
            stride = 2 if stage and first else 1
            self.blocks.append(Block(name, widths[number - 1], widths[number], stride))
        self.heads = nn.ModuleList(
            head(head_kind, f"exit_{i + 1}", widths[block], widths[-1], 3 - max(block - 1, 0) // 2)
            for block, i in self.exits.items()
        )
        self.classifiers = nn.ModuleList(nn.Linear(widths[-1], classes) for _ in range(len(exits) + 1))

    def forward(self, x):
        features = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self.exits:
                features.append(self.heads[self.exits[number]](x).mean((2, 3)))
        features.append(x.mean((2, 3)))
        with torch.autocast("cpu", enabled=False):  # logits are float32, as in Keras
            features = [f.float() for f in features]
            logits = [layer(f) for layer, f in zip(self.classifiers, features, strict=True)]
        return logits, features

    def tensors(self):
        """By the name of a weight in Keras: the tensor, and how its axes are to be turned for Keras."""
        found = {}
        for unit in (m for m in self.modules() if isinstance(m, Unit)):
            conv, bn = unit.names
            found[f"{conv}/kernel"] = unit.conv.weight, (2, 3, 1, 0)
            found[f"{bn}/gamma"], found[f"{bn}/beta"] = (unit.bn.weight, (0,)), (unit.bn.bias, (0,))
        names = [f"exit_{i + 1}_classifier" for i in range(len(self.exits))] + ["predictions"]
        for name, layer in zip(names, self.classifiers, strict=True):
            found[f"{name}/kernel"], found[f"{name}/bias"] = (layer.weight, (1, 0)), (layer.bias, (0,))
        return found

    def load(self, weights):
        with torch.no_grad():
            for name, (tensor, axes) in self.tensors().items():
                tensor.copy_(torch.from_numpy(np.transpose(weights[name], np.argsort(axes)).copy()))

    def weights(self):
        return {n: t.detach().numpy().transpose(axes) for n, (t, axes) in self.tensors().items()}


def distillation(logits, features, labels):
    """The three terms of exit-ensemble distillation."""
    teacher = torch.stack(logits).mean(0).detach()
    pooled = torch.stack(features).mean(0).detach()
    return (
        sum(functional.cross_entropy(z, labels) for z in logits),
        sum(functional.mse_loss(z, teacher) for z in logits),
        sum((((f - pooled) ** 2) * ((f > 0) | (pooled > 0))).mean() for f in features),
    )


class Trainer:
    def __init__(self, network, precision, rate=0.01, compiled=False):
        self.model = network.to(memory_format=torch.channels_last).train()
        self.forward = torch.compile(self.model) if compiled else self.model
        self.optimizer = torch.optim.SGD(self.model.parameters(), rate, momentum=0.9, fused=True)
        self.half = precision == "bfloat16"
        self.counts = torch.zeros(4 + len(network.exits) + 2)

    def step(self, images, labels):
        """One update; the loss, as a tensor."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            logits, features = self.forward(images)
        terms = distillation(logits, features, labels)
        loss = sum(terms)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            stacked = torch.stack(logits)
            right = torch.cat([stacked, stacked.mean(0, keepdim=True)]).argmax(-1) == labels
            self.counts += torch.cat([torch.stack([loss, *terms]), right.float().mean(-1)])
        return loss.detach()


def as_images(array):
    """Images as Keras has them, in the same order in memory: channels last."""
    return torch.from_numpy(array).permute(0, 3, 1, 2)


def check(network, given, made, steps, rate):
    found = np.load(given)
    model = Network(**network)
    model.load(found)
    trainer = Trainer(model, "float32", rate)
    images, labels = as_images(found["images"]), torch.from_numpy(found["labels"])
    losses = [float(trainer.step(images, labels))]
    np.savez(made, **model.weights())
    return losses + [float(trainer.step(images, labels)) for _ in range(steps - 1)]


KNOWN = types.SimpleNamespace(key=None, trainers={}, batches={})


def timed(network, batch, precision, steps, compiled=False):
    """Seconds a step. The trainers of one network are kept until another one is asked for."""
    key = json.dumps(network)
    if KNOWN.key != key:
        KNOWN.key, KNOWN.trainers = key, {}
    if (precision, compiled) not in KNOWN.trainers:
        torch.manual_seed(0)
        KNOWN.trainers[precision, compiled] = Trainer(Network(**network), precision, compiled=compiled)
    if batch not in KNOWN.batches:
        rng = np.random.default_rng(0)
        images = rng.normal(size=(batch, 32, 32, 3)).astype("float32")
        labels = rng.integers(0, network["classes"], batch)
        KNOWN.batches[batch] = as_images(images), torch.from_numpy(labels)
    trainer = KNOWN.trainers[precision, compiled]
    start = time.perf_counter()
    for _ in range(steps):
        trainer.step(*KNOWN.batches[batch])
    trainer.counts.tolist()
    return (time.perf_counter() - start) / steps


def about():
    return {"torch": torch.__version__, "threads": torch.get_num_threads()}


def main():
    torch.set_num_threads(2)
    for line in sys.stdin:
        asked = json.loads(line)
        answer = {"about": about, "check": check, "time": timed}[asked.pop("do")](**asked)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
