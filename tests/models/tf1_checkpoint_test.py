"""Official TensorFlow 1 checkpoints of EfficientNet, with and without moving averages."""

from pathlib import Path

import numpy as np
import pytest

from nsk.errors import UserError
from nsk.models import efficientnet, tf1_checkpoint, weights
from tests.models.checkpoint_files import assert_reads, official_tensors, write_checkpoint


def with_averages(tensors):
    """Halves the tensors and adds moving averages with the given values."""
    averages = {f"{name}/ExponentialMovingAverage": array for name, array in tensors.items()}
    return {name: array * 0.5 for name, array in tensors.items()} | averages


def with_optimizer(tensors):
    slots = {"global_step": np.int64(7), "beta1_power": np.float32(0.9)}
    for name, array in tensors.items():
        if name.endswith("kernel"):
            slots |= {f"{name}/RMSProp": array * 3, f"{name}/Momentum": array * 2}
    return tensors | slots


@pytest.mark.parametrize("averages", [False, True])
@pytest.mark.parametrize("kind", ["prefix", "index", "folder"])
def test_official_checkpoints(kind, averages, reference, network, tmp_path):
    tensors = official_tensors(reference[0])
    num_kernels = sum(name.endswith("kernel") for name in tensors)
    prefix = tmp_path / "official" / "model.ckpt-350"
    write_checkpoint(prefix, with_optimizer(with_averages(tensors) if averages else tensors))
    path = {"prefix": prefix, "index": Path(f"{prefix}.index"), "folder": prefix.parent}[kind]
    expected = {"averaged": len(tensors) if averages else 0, "ignored": 2 + 2 * num_kernels}
    read = assert_reads(path, network, reference, **expected)
    assert sum(map(len, read.layers.values())) == len(tensors)


def test_a_checkpoint_without_scope_and_with_some_averages(reference, network, tmp_path):
    tensors = official_tensors(reference[0], scope="")
    name = "stem/conv2d/kernel"
    tensors |= {f"{name}/ExponentialMovingAverage": tensors[name], name: tensors[name] * 2}
    write_checkpoint(tmp_path / "model", tensors | {"global_step": np.int64(7)})
    assert_reads(tmp_path / "model", network, reference, averaged=1, ignored=1)


def test_variants_with_equally_many_blocks_have_the_same_blocks():
    """A checkpoint's blocks are derived from their number."""
    repeats_by_count = {}
    for variant in efficientnet.VARIANTS.values():
        repeats = [
            efficientnet.round_repeats(stage.repeats, variant.depth) for stage in efficientnet.BASE
        ]
        assert repeats_by_count.setdefault(sum(repeats), repeats) == repeats
    names = [f"blocks_{number}/conv2d/kernel" for number in range(efficientnet.num_blocks("b7"))]
    blocks = tf1_checkpoint._blocks(names)
    assert len(blocks) == 55 and blocks[4] == ("block2a", True) and blocks[-1] == ("block7d", True)


def test_the_path_in_a_file_named_checkpoint_is_not_followed(reference, network, tmp_path):
    """Whoever packs a folder can write any path into this file."""
    tensors = official_tensors(reference[0])
    write_checkpoint(tmp_path / "good" / "model", tensors)
    zeros = {name: array * 0 for name, array in tensors.items()}
    write_checkpoint(tmp_path / "evil" / "model", zeros)
    text = f'model_checkpoint_path: "{tmp_path}/evil/model"\n'
    (tmp_path / "good" / "checkpoint").write_text(text)
    assert_reads(tmp_path / "good", network, reference)
    (tmp_path / "good" / "model").mkdir()  # A folder with the name of the prefix.
    (tmp_path / "good" / "model" / "checkpoint").write_text(text)
    assert_reads(tmp_path / "good" / "model.index", network, reference)
    with pytest.raises(UserError, match=r"folder .*good/model has 0 files \*\.index"):
        weights.read(tmp_path / "good" / "model")


def test_unknown_numbers_of_blocks_and_unknown_tensors_are_refused(reference, tmp_path):
    tensors = official_tensors(reference[0])
    fewer = {name: array for name, array in tensors.items() if "blocks_15" not in name}
    write_checkpoint(tmp_path / "fewer", fewer)
    with pytest.raises(UserError, match="it has 15 blocks, expected one of 16, 23, 26"):
        weights.read(tmp_path / "fewer")
    write_checkpoint(tmp_path / "resnet", {"resnet/conv2d/kernel": np.ones(3, np.float32)})
    with pytest.raises(UserError, match="expected one tensor SCOPE/stem/conv2d/kernel"):
        weights.read(tmp_path / "resnet")
