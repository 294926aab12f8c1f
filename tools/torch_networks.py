"""Networks of `nsk.models` in PyTorch, layer by layer; for benchmarks only.

    python3 tools/torch_networks.py

The command times training steps on the GPU (on the CPU if there is none) for `tools.benchmark_gpu`.
It needs PyTorch (and timm for EfficientNet-B0), but neither TensorFlow nor the rest of this
project. A request is a line of JSON on stdin:

    {"network": "resnet20", "precision": "bf16", "batch_size": 512, "image_size": 32, "steps": 20}

The result is a line of JSON on stdout: `images_per_second`, `first_seconds` (building and warming
up) and `parameters`.
"""

import json
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional

WIDE_FILTERS = (32, 64, 128)
FILTERS = (16, 32, 64)
PRECISIONS = ("float32", "bf16", "bf16_compiled")
WARM_UP_STEPS = 5


def conv(inputs, outputs, kernel_size=3, stride=1):
    """Convolution without bias, padded by half of the kernel."""
    return nn.Conv2d(inputs, outputs, kernel_size, stride, kernel_size // 2, bias=False)


def drop_samples(branch, survival):
    """Stochastic depth: drops the branch of whole samples, (batch, channels, height, width)."""
    if survival == 1:
        return branch
    kept = torch.rand(len(branch), 1, 1, 1, device=branch.device) < survival
    return branch * (kept / survival).to(branch.dtype)


class Block(nn.Module):
    """conv-BN-ReLU-conv-BN, plus a shortcut of every second pixel and zero channels; ReLU."""

    def __init__(self, inputs, filters, stride, survival):
        super().__init__()
        self.missing, self.stride, self.survival = filters - inputs, stride, survival
        self.conv1, self.norm1 = conv(inputs, filters, stride=stride), nn.BatchNorm2d(filters)
        self.conv2, self.norm2 = conv(filters, filters), nn.BatchNorm2d(filters)

    def forward(self, features):
        """Output of the block: (batch, channels, height, width) to (batch, filters, ...)."""
        shortcut = features
        if self.missing:
            half = self.missing // 2
            shortcut = features[:, :, :: self.stride, :: self.stride]
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, half, self.missing - half))
        branch = functional.relu(self.norm1(self.conv1(features)))
        branch = drop_samples(self.norm2(self.conv2(branch)), self.survival)
        return functional.relu(branch + shortcut)


class WideBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv, plus the input, or a 1x1 convolution of the first BN-ReLU."""

    def __init__(self, inputs, filters, stride, survival):
        super().__init__()
        self.survival = survival
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, filters, stride=stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(filters), conv(filters, filters)
        self.shortcut = conv(inputs, filters, 1, stride) if inputs != filters else None

    def forward(self, features):
        """Output of the block: (batch, channels, height, width) to (batch, filters, ...)."""
        active = functional.relu(self.norm1(features))
        shortcut = self.shortcut(active) if self.shortcut else features
        branch = self.conv2(functional.relu(self.norm2(self.conv1(active))))
        return drop_samples(branch, self.survival) + shortcut


class Network(nn.Module):
    """Stem, three stages of blocks, BN-ReLU, mean, dropout, dense.

    Args:
        block: `Block` or `WideBlock`.
        filters: channels of the three stages.
        blocks_per_stage: number of blocks in each stage.
        num_classes: number of classes.
        dropout: rate in [0, 1) before the dense layer.
        survival: in (0, 1], end of the linear decay of stochastic depth; 1: off.

    Input shape: uint8 pixels (batch, 3, height, width). Output shape: logits (batch, num_classes).
    """

    def __init__(self, block, filters, blocks_per_stage, num_classes=10, dropout=0.0, survival=1):
        super().__init__()
        self.stem = conv(3, FILTERS[0])
        inputs, blocks = FILTERS[0], []
        for stage, outputs in enumerate(filters):
            for position in range(blocks_per_stage):
                survives = 1 - (1 - survival) * len(blocks) / (3 * blocks_per_stage)
                stride = 2 if stage and not position else 1
                blocks.append(block(inputs, outputs, stride, survives))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.dropout = nn.BatchNorm2d(inputs), nn.Dropout(dropout)
        self.logits = nn.Linear(inputs, num_classes)

    def forward(self, pixels):
        """Logits of uint8 pixels."""
        features = self.blocks(self.stem(pixels.float() / 127.5 - 1))
        features = functional.relu(self.norm(features)).mean(dim=(2, 3))
        return self.logits(self.dropout(features))


class NormalizedInput(nn.Module):
    """Normalises uint8 pixels to [-1, 1] before a network."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, pixels):
        """Output of the network for uint8 pixels, scaled to [-1, 1]."""
        return self.network(pixels.float() / 127.5 - 1)


def build(name):
    """Builds a network by its name in `nsk.models`; ResNet-38 has the noise of a student."""
    if name == "resnet20":
        return Network(Block, FILTERS, 3)
    if name == "resnet38":
        return Network(Block, FILTERS, 6, dropout=0.5, survival=0.8)
    if name == "wrn28_2":
        return Network(WideBlock, WIDE_FILTERS, 4)
    if name == "efficientnet_b0":
        import timm  # Only needed for this network.

        return NormalizedInput(timm.create_model("efficientnet_b0", num_classes=1000))
    raise ValueError(f"name={name!r}: expected resnet20, resnet38, wrn28_2 or efficientnet_b0.")


class TrainingSteps:
    """Training steps of a network on one batch, in channels-last memory format.

    Args:
        name: name of the network, see `build`.
        images: uint8 array (batch, side, side, 3).
        labels: int array (batch,).
        learning_rate: of SGD.
        momentum: of SGD.
        threads: number of PyTorch's threads; 0: its default.
        device: cpu | cuda.
        precision: float32 (TF32 where the device has it) | bf16: autocast | bf16_compiled:
            autocast and `torch.compile`.
    """

    def __init__(
        self,
        name,
        images,
        labels,
        learning_rate,
        momentum,
        threads=0,
        device="cpu",
        precision="float32",
    ):
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r}: expected {', '.join(PRECISIONS)}.")
        if threads:
            torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        self._device, self._autocast = device, precision != "float32"
        network = build(name).to(device, memory_format=torch.channels_last).train()
        self._parameters = list(network.parameters())
        self._network = torch.compile(network) if precision == "bf16_compiled" else network
        # A permuted NHWC tensor has the memory format channels_last.
        self._images = torch.tensor(images, device=device).permute(0, 3, 1, 2)
        self._labels = torch.tensor(labels, device=device)
        self._optimizer = torch.optim.SGD(self._parameters, learning_rate, momentum)

    @property
    def num_parameters(self):
        """Number of trainable parameters."""
        return sum(parameter.numel() for parameter in self._parameters)

    def __call__(self, steps):
        """Runs steps on the batch and waits until the device has finished."""
        for _ in range(steps):
            self._optimizer.zero_grad()
            with torch.autocast(self._device, torch.bfloat16, enabled=self._autocast):
                logits = self._network(self._images)
            functional.cross_entropy(logits.float(), self._labels).backward()
            self._optimizer.step()
        if self._device == "cuda":
            torch.cuda.synchronize()


class Server:
    """Answers requests, see the module's docstring; keeps the last network."""

    def __init__(self):
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._steps = {}

    def answer(self, request):
        """Times the steps of a request; both are dicts as in the module's docstring."""
        network, precision = request["network"], request["precision"]
        batch_size, side = request["batch_size"], request["image_size"]
        key = (network, precision, batch_size, side)
        started = time.perf_counter()
        run = self._steps.get(key) or self._build(*key)
        run(WARM_UP_STEPS)
        first_seconds = time.perf_counter() - started
        started = time.perf_counter()
        run(request["steps"])
        speed = request["steps"] * batch_size / (time.perf_counter() - started)
        return {
            "images_per_second": speed,
            "first_seconds": first_seconds,
            "parameters": run.num_parameters,
        }

    def _build(self, network, precision, batch_size, side):
        random = np.random.default_rng(0)
        images = random.integers(0, 256, (batch_size, side, side, 3), np.uint8)
        labels = random.integers(0, 10, batch_size)
        run = TrainingSteps(
            network, images, labels, 0.01, 0.9, device=self._device, precision=precision
        )
        self._steps = {(network, precision, batch_size, side): run} | {
            key: steps for key, steps in self._steps.items() if key[0] == network
        }  # Steps of other networks are freed.
        return run


def main():
    """Answers the requests on stdin until it ends."""
    server, results = Server(), sys.stdout
    sys.stdout = sys.stderr  # Output of libraries is not a result.
    for line in sys.stdin:
        print(json.dumps(server.answer(json.loads(line))), file=results, flush=True)


if __name__ == "__main__":
    main()
