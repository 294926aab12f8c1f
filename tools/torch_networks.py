"""ResNet-20 and WRN-28-2 in PyTorch, layer by layer those of `nsk.models`; for benchmarks alone."""

import torch
from torch import nn
from torch.nn import functional

WIDE_FILTERS = (32, 64, 128)
FILTERS = (16, 32, 64)


def conv(inputs, outputs, kernel_size=3, stride=1):
    return nn.Conv2d(inputs, outputs, kernel_size, stride, kernel_size // 2, bias=False)


class Block(nn.Module):
    """conv-BN-ReLU-conv-BN, plus a shortcut of every second pixel and zero channels; ReLU."""

    def __init__(self, inputs, filters, stride):
        super().__init__()
        self.missing, self.stride = filters - inputs, stride
        self.conv1, self.norm1 = conv(inputs, filters, stride=stride), nn.BatchNorm2d(filters)
        self.conv2, self.norm2 = conv(filters, filters), nn.BatchNorm2d(filters)

    def forward(self, features):
        shortcut = features
        if self.missing:
            half = self.missing // 2
            shortcut = features[:, :, :: self.stride, :: self.stride]
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, half, self.missing - half))
        branch = functional.relu(self.norm1(self.conv1(features)))
        return functional.relu(self.norm2(self.conv2(branch)) + shortcut)


class WideBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv, plus the input, or a 1x1 convolution of the first BN-ReLU."""

    def __init__(self, inputs, filters, stride):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, filters, stride=stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(filters), conv(filters, filters)
        self.shortcut = conv(inputs, filters, 1, stride) if inputs != filters else None

    def forward(self, features):
        active = functional.relu(self.norm1(features))
        shortcut = self.shortcut(active) if self.shortcut else features
        return self.conv2(functional.relu(self.norm2(self.conv1(active)))) + shortcut


class Network(nn.Module):
    """Stem, three stages of blocks, BN-ReLU, mean, dense.

    Args:
        block: `Block` or `WideBlock`.
        filters: of the three stages.
        blocks_per_stage, num_classes: ints.

    Input shape: uint8 pixels (batch, 3, height, width). Output shape: logits (batch, num_classes).
    """

    def __init__(self, block, filters, blocks_per_stage, num_classes=10):
        super().__init__()
        self.stem = conv(3, FILTERS[0])
        inputs, blocks = FILTERS[0], []
        for stage, outputs in enumerate(filters):
            for position in range(blocks_per_stage):
                blocks.append(block(inputs, outputs, 2 if stage and not position else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.logits = nn.BatchNorm2d(inputs), nn.Linear(inputs, num_classes)

    def forward(self, pixels):
        features = self.blocks(self.stem(pixels.float() / 127.5 - 1))
        return self.logits(functional.relu(self.norm(features)).mean(dim=(2, 3)))


def build(name):
    """A network by our name of it: resnet20 or wrn28_2."""
    if name == "resnet20":
        return Network(Block, FILTERS, 3)
    if name == "wrn28_2":
        return Network(WideBlock, WIDE_FILTERS, 4)
    raise ValueError(f"name={name!r}: expected resnet20 or wrn28_2.")


class TrainingSteps:
    """Training steps of a network on one batch, channels last.

    Args:
        name: of `build`.
        images: uint8 array (batch, side, side, 3).
        labels: int array (batch,).
        learning_rate, momentum: of SGD.
        threads: int, of PyTorch.
    """

    def __init__(self, name, images, labels, learning_rate, momentum, threads):
        torch.set_num_threads(threads)
        self._network = build(name).to(memory_format=torch.channels_last).train()
        # In memory as NHWC, which is what PyTorch means by channels_last.
        self._images, self._labels = torch.tensor(images).permute(0, 3, 1, 2), torch.tensor(labels)
        self._optimizer = torch.optim.SGD(self._network.parameters(), learning_rate, momentum)

    @property
    def num_parameters(self):
        return sum(one.numel() for one in self._network.parameters())

    def __call__(self, steps):
        for _ in range(steps):
            self._optimizer.zero_grad()
            functional.cross_entropy(self._network(self._images), self._labels).backward()
            self._optimizer.step()
