"""The other side of `inference_speed.py --parts earlyon`: a process with torch, torchvision and earlyon 0.3.

Reads a line `full <batch>` or `routed <batch>` and answers with seconds. ResNet50 as Keras has it (the stride
in the first convolution of a block), exits after its first three groups, fp32, two threads, channels last.
"""

import json
import sys
import time
from importlib.metadata import version

import torch
from earlyon.models import resnet50_ee

EXITS_OF_TEN = (0, 0, 0, 0, 1, 1, 1, 2, 2, 3)  # shares 40/30/20/10


def network():
    model = resnet50_ee(num_classes=1000, pretrained=False).eval()
    for group in (model.backbone.layer2, model.backbone.layer3, model.backbone.layer4):
        group[0].conv1.stride, group[0].conv2.stride = (2, 2), (1, 1)
    return model.to(memory_format=torch.channels_last)


def leave_at(model, exit):
    """Thresholds that a softmax always, or never, reaches."""
    model.config.confidence_thresholds = [2.0] * exit + [0.0] * (3 - exit)


def routed(model, images):
    """Seconds a batch. earlyon lets the hardest image decide: with these shares no batch leaves early."""
    if len(images) > 1:
        leave_at(model, 3)
        start = time.perf_counter()
        model.forward_inference_batched(images)
        return time.perf_counter() - start
    seconds = 0.0
    for exit in EXITS_OF_TEN:
        leave_at(model, exit)
        start = time.perf_counter()
        found = model(images)
        seconds += time.perf_counter() - start
        assert found.exit_taken == (exit if exit < 3 else -1)
    return seconds / len(EXITS_OF_TEN)


def full(model, images):
    """Seconds a batch of the network without exits."""
    start = time.perf_counter()
    with torch.inference_mode():
        model.backbone(images)
    return time.perf_counter() - start


def main():
    torch.set_num_threads(2)
    torch.manual_seed(0)
    model = network()
    known = {}
    for line in sys.stdin:
        what, batch = line.split()
        if what == "about":
            answer = {name: version(name) for name in ("earlyon", "torch", "torchvision")}
        else:
            images = known.setdefault(
                batch, torch.randn(int(batch), 3, 224, 224).to(memory_format=torch.channels_last)
            )
            answer = {"routed": routed, "full": full}[what](model, images)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
