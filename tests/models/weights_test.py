"""Weights of files are those that the network gets, whatever the file; what is wrong is named."""

import re
import shutil
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from nsk.errors import UserError
from nsk.models import build_model, efficientnet, tf1_checkpoint, weights

# Keras 3.15 reads variables in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
CLASSES, SIDE = 5, 32


def pixels():
    return np.random.default_rng(0).uniform(0, 255, (2, SIDE, SIDE, 3)).astype("float32")


def randomize(model, seed=0):
    """Other weights, BatchNorm's statistics included."""
    random = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([random.uniform(0.5, 1.5, one.shape) for one in layer.get_weights()])
        elif isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            layer.set_weights(
                [one + random.normal(0, 0.02, one.shape) for one in layer.get_weights()]
            )


def ours(**changes):
    sizes = {"num_classes": CLASSES, "image_size": SIDE, **changes}
    return build_model("efficientnet_b0", **sizes)


@pytest.fixture(scope="module")
def network():
    """Our network, whose weights every test of a file replaces by those of the file."""
    return ours()


@pytest.fixture(scope="module")
def reference():
    """EfficientNet-B0 of `keras.applications`, and its logits."""
    sizes = {"input_shape": (SIDE, SIDE, 3), "classes": CLASSES}
    model = keras.applications.EfficientNetB0(
        weights=None, classifier_activation=None, name="reference", **sizes
    )
    randomize(model)
    (layer,) = (one for one in model.layers if isinstance(one, keras.layers.Normalization))
    moments = (efficientnet.MEAN, np.square(efficientnet.DEVIATION), 0)
    layer.set_weights([np.asarray(one) for one in moments])
    layer.finalize_state()
    return model, model(pixels()).numpy()


def assert_reads(path, network, reference, **expected):
    """Whether the network gives the reference's logits with the weights of a file."""
    network.set_weights([np.zeros(one.shape) for one in network.get_weights()])
    read = weights.read(path)
    assert not weights.assign(network, read)
    received = network(pixels()).numpy()
    np.testing.assert_allclose(received, reference[1], atol=1e-5 * np.abs(reference[1]).max())
    assert np.ptp(reference[1]) > 0.1
    assert {name: getattr(read, name) for name in expected} == expected
    return read


# keras.applications.


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5", "model.h5", "weights.h5"])
def test_files_of_keras_applications(name, reference, network, tmp_path):
    save = reference[0].save_weights if "weights" in name else reference[0].save
    if name == "weights.h5":
        write_keras_2(tmp_path / name, reference[0])
    else:
        save(tmp_path / name)
    read = assert_reads(tmp_path / name, network, reference, averaged=0, ignored=0)
    assert read.normalization is not None and not weights.foreign_pixels(network, read)


def write_keras_2(path, model):
    """Weights as Keras 2 wrote them, and as those for ImageNet are published."""
    with h5py.File(path, "w") as file:
        for layer in model.layers:
            group = file.create_group(layer.name)
            for variable in layer.weights:
                name = variable.name
                if isinstance(layer, keras.layers.DepthwiseConv2D):
                    name = f"depthwise_{name}"
                group[f"{layer.name}/{name}:0"] = variable.numpy()


def test_weights_of_a_trained_model_come_without_the_optimizers(tmp_path):
    inputs = keras.Input((8, 8, 3))
    features = keras.layers.Dropout(0.5)(keras.layers.Flatten()(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3, name="logits")(features))
    model.compile("adam", "mse")
    model.fit(np.ones((2, 8, 8, 3)), np.ones((2, 3)), verbose=0)
    for name in ("model.keras", "model.h5", "model.weights.h5"):
        (model.save_weights if "weights" in name else model.save)(tmp_path / name)
        read = weights.read(tmp_path / name)
        assert list(read.layers) == ["logits"] and read.ignored >= 6
        arrays = sorted(read.layers["logits"].values(), key=np.size, reverse=True)
        for array, expected in zip(arrays, model.layers[-1].get_weights(), strict=True):
            np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(
    ("mean", "variance", "told"),
    [
        (efficientnet.MEAN, np.square(efficientnet.DEVIATION), False),
        (efficientnet.MEAN, efficientnet.DEVIATION, False),  # As published.
        ((0, 0, 0), (1, 1, 1), True),
        (efficientnet.MEAN, (0.25, 0.25, 0.25), True),
        ((0.5, 0.5, 0.5), efficientnet.DEVIATION, True),
    ],
)
def test_other_pixels_than_the_networks_are_told(mean, variance, told, network, tmp_path):
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["normalization_1/normalization_1/mean:0"] = mean
        file["normalization_1/normalization_1/variance:0"] = variance
        file["normalization_1/normalization_1/count:0"] = 0
    given = weights.read(tmp_path / "weights.h5")
    assert given.layers == {}
    assert weights.foreign_pixels(network, given).startswith("mean ") == told
    # From pixels in [-1, 1] all of them are others.
    other = build_model("convnet5", num_classes=10, image_size=8)
    assert "convnet5 normalises by mean 0.500, 0.500, 0.500 and" in weights.foreign_pixels(
        other, given
    )


# Official checkpoints.


def official_name(layer, variable, block):
    """Name of a tensor in the official checkpoints, by the rules of their code."""
    norm = "tpu_batch_normalization"
    variable = "depthwise_kernel" if layer.endswith("_dwconv") else variable
    outside = {
        "stem_conv": "stem/conv2d",
        "stem_bn": f"stem/{norm}",
        "top_conv": "head/conv2d",
        "top_bn": f"head/{norm}",
        "predictions": "head/dense",
    }
    if layer in outside:
        return f"{outside[layer]}/{variable}"
    names = ["dwconv", "bn", "se_reduce", "se_expand", "project_conv", "project_bn"]
    theirs = ["depthwise_conv2d", norm, "se/conv2d", "se/conv2d_1", "conv2d", f"{norm}_1"]
    if not layer.startswith("block1"):
        names = ["expand_conv", "expand_bn", *names]
        theirs = ["conv2d", norm, "depthwise_conv2d", f"{norm}_1", *theirs[2:4]]
        theirs += ["conv2d_1", f"{norm}_2"]
    part = theirs[names.index(layer.partition("_")[2])]
    return f"blocks_{block}/{part}/{variable}"


def official_tensors(model, scope="efficientnet-b0/"):
    """Dict from names in an official checkpoint to arrays."""
    blocks, tensors = [], {}
    for layer in model.layers:
        if not layer.weights or isinstance(layer, keras.layers.Normalization):
            continue
        block = layer.name.partition("_")[0]
        if block.startswith("block") and block not in blocks:
            blocks.append(block)
        for variable in layer.weights:
            name = official_name(layer.name, variable.name, len(blocks) - 1)
            tensors[scope + name] = variable.numpy()
    return tensors


def write_checkpoint(prefix, tensors):
    prefix.parent.mkdir(exist_ok=True)
    slices = [""] * len(tensors)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(tensors),
        shape_and_slices=slices,
        tensors=list(tensors.values()),
    )


def with_averages(tensors):
    """Plain tensors that are something else than their averages, which are the given ones."""
    averages = {f"{name}/ExponentialMovingAverage": one for name, one in tensors.items()}
    return {name: one * 0.5 for name, one in tensors.items()} | averages


def with_optimizer(tensors):
    slots = {"global_step": np.int64(7), "beta1_power": np.float32(0.9)}
    for name, one in tensors.items():
        if name.endswith("kernel"):
            slots |= {f"{name}/RMSProp": one * 3, f"{name}/Momentum": one * 2}
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


def test_a_checkpoint_may_have_no_scope_and_some_averages(reference, network, tmp_path):
    tensors = official_tensors(reference[0], scope="")
    name = "stem/conv2d/kernel"
    tensors |= {f"{name}/ExponentialMovingAverage": tensors[name], name: tensors[name] * 2}
    write_checkpoint(tmp_path / "model", tensors | {"global_step": np.int64(7)})
    assert_reads(tmp_path / "model", network, reference, averaged=1, ignored=1)


def test_networks_of_as_many_blocks_have_the_same_blocks():
    """A checkpoint's blocks are told by how many there are."""
    repeats = {}
    for variant in efficientnet.VARIANTS.values():
        one = [
            efficientnet.round_repeats(stage.repeats, variant.depth) for stage in efficientnet.BASE
        ]
        assert repeats.setdefault(sum(one), one) == one
    names = [f"blocks_{number}/conv2d/kernel" for number in range(efficientnet.num_blocks("b7"))]
    blocks = tf1_checkpoint._blocks(names)
    assert len(blocks) == 55 and blocks[4] == ("block2a", True) and blocks[-1] == ("block7d", True)


def test_the_folder_of_a_stage_is_its_model(network, tmp_path):
    (tmp_path / "teacher-0123456789").mkdir()
    network.save(tmp_path / "teacher-0123456789" / "model.keras")
    given = weights.read(tmp_path / "teacher-0123456789")
    assert not weights.assign(network, given)
    assert weights.sha256(given.path) == weights.sha256(given.path / "model.keras")


def test_a_file_called_checkpoint_leads_nowhere(reference, network, tmp_path):
    """Whoever packs a folder may write into this file what he likes."""
    tensors = official_tensors(reference[0])
    write_checkpoint(tmp_path / "good" / "model", tensors)
    write_checkpoint(tmp_path / "evil" / "model", {name: one * 0 for name, one in tensors.items()})
    text = f'model_checkpoint_path: "{tmp_path}/evil/model"\n'
    (tmp_path / "good" / "checkpoint").write_text(text)
    assert_reads(tmp_path / "good", network, reference)
    (tmp_path / "good" / "model").mkdir()  # A folder with the name of the prefix.
    (tmp_path / "good" / "model" / "checkpoint").write_text(text)
    assert_reads(tmp_path / "good" / "model.index", network, reference)
    with pytest.raises(UserError, match=r"folder .*good/model has 0 files \*\.index"):
        weights.read(tmp_path / "good" / "model")


def test_blocks_and_tensors_that_are_none_are_told(reference, tmp_path):
    tensors = official_tensors(reference[0])
    fewer = {name: one for name, one in tensors.items() if "blocks_15" not in name}
    write_checkpoint(tmp_path / "fewer", fewer)
    with pytest.raises(UserError, match="it has 15 blocks, expected one of 16, 23, 26"):
        weights.read(tmp_path / "fewer")
    write_checkpoint(tmp_path / "other", {"resnet/conv2d/kernel": np.ones(3, np.float32)})
    with pytest.raises(UserError, match="expected one tensor SCOPE/stem/conv2d/kernel"):
        weights.read(tmp_path / "other")


# What does not fit.


def official_file(path, tensors):
    write_checkpoint(path / "model", tensors)
    return weights.read(path / "model")


def test_a_missing_a_misshapen_and_a_superfluous_tensor_are_named(reference, network, tmp_path):
    tensors = official_tensors(reference[0])
    scope = "efficientnet-b0"
    del tensors[f"{scope}/blocks_1/tpu_batch_normalization_1/moving_mean"]
    tensors[f"{scope}/blocks_0/se/conv2d/bias"] = np.ones(9, np.float32)
    tensors[f"{scope}/blocks_2/attention/kernel"] = np.ones(9, np.float32)
    before = network.get_weights()
    with pytest.raises(UserError) as error:
        weights.assign(network, official_file(tmp_path, tensors))
    assert str(error.value) == (
        f"The weights {tmp_path}/model do not fit efficientnet_b0: block1a_se_reduce: bias is (9,) "
        "and not (8,); block2a_bn: moving_mean is missing; blocks_2/attention is not in the "
        "network. Give weights of this network, or name the one that they are of in --models."
    )
    for one, other in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_another_network_is_told_layer_by_layer(tmp_path):
    build_model("resnet8", num_classes=3, image_size=8).save(tmp_path / "resnet.keras")
    model = build_model("convnet5", num_classes=3, image_size=8)
    with pytest.raises(UserError) as error:
        weights.assign(model, weights.read(tmp_path / "resnet.keras"))
    told = str(error.value)
    assert "\n" not in told and told.count(";") == weights.MOST_NAMED
    assert "do not fit convnet5: layer1_conv is missing; layer1_bn is missing; " in told
    assert "logits: kernel is (64, 3) and not (128, 3); " in told
    assert re.search(r"; and \d+ more layers\. Give weights of this network", told)


@pytest.mark.parametrize("name", ["convnet5", "resnet6", "resnet9", "resnet8", "wrn10_1"])
def test_our_own_networks(name, tmp_path):
    """At another size of images, too; what is fresh is fresh alone where classes are others."""
    taught = build_model(name, num_classes=3, image_size=32, seed=1, dropout_rate=0.5)
    randomize(taught)
    taught.save(tmp_path / "model.keras")
    read = weights.read(tmp_path / "model.keras")
    same = build_model(name, num_classes=3, image_size=16)
    assert not weights.assign(same, read)
    for one, other in zip(same.get_weights(), taught.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    others = build_model(name, num_classes=4, image_size=16, seed=2)
    head = others.get_layer("logits").get_weights()
    assert weights.assign(others, read)
    for one, other in zip(others.get_layer("logits").get_weights(), head, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(others.get_weights()[:-2], taught.get_weights()[:-2], strict=True):
        np.testing.assert_array_equal(one, other)


def test_weights_without_a_classifier_leave_it_fresh(tmp_path):
    model = build_model("convnet5", num_classes=3, image_size=8)
    layers = {
        layer: {name: one.numpy() for name, one in variables.items()}
        for layer, variables in weights.variables_of(model).items()
    }
    head = layers.pop("logits")
    assert weights.assign(model, weights.Weights(layers, tmp_path))
    halves = {"kernel": head["kernel"][:64], "bias": head["bias"]}
    for wrong in (halves, {"kernel": head["kernel"][:, :2]}, {"bias": head["bias"][:2]}):
        with pytest.raises(UserError, match="do not fit convnet5: logits: "):
            weights.assign(model, weights.Weights({**layers, "logits": wrong}, tmp_path))


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_numbers_of_any_precision_become_float32(dtype, tmp_path):
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["logits/logits/bias:0"] = np.array([1, 2.5], dtype)
    (variables,) = weights.read(tmp_path / "weights.h5").layers.values()
    assert variables["bias"].dtype == np.float32 and variables["bias"].tolist() == [1, 2.5]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([1, np.nan], np.float32), "logits/bias has numbers that are not finite"),
        (np.array([1, 1e300]), "logits/bias has numbers that are not finite"),
        (np.array([1, 2]), "logits/bias is int64, expected floats"),
        (np.array([b"cats", b"dogs"]), "logits/bias is .S4, expected floats"),
    ],
)
def test_what_are_no_finite_numbers_is_named(array, message, tmp_path):
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["logits/logits/bias:0"] = array
    with pytest.raises(UserError, match=message):
        weights.read(tmp_path / "weights.h5")


# What cannot be read.


@pytest.fixture
def small(tmp_path):
    """Files of a small network, in every format."""
    model = build_model("convnet5", num_classes=3, image_size=8)
    model.save(tmp_path / "model.keras")
    model.save(tmp_path / "model.h5")
    model.save_weights(tmp_path / "model.weights.h5")
    tensors = {f"stem/conv2d/{name}": np.ones(999, np.float32) for name in ("kernel", "bias")}
    for number in range(16):
        tensors[f"blocks_{number}/conv2d/kernel"] = np.ones(99, np.float32)
    write_checkpoint(tmp_path / "model", tensors)
    return tmp_path


SMALL = ("model.keras", "model.h5", "model.weights.h5", "model.index")


@pytest.mark.parametrize("name", SMALL)
def test_files_cut_short_and_files_of_something_else_are_told(name, small):
    assert weights.read(small / name).layers
    content = (small / name).read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"no weights at all", b"\0" * 5000):
        (small / name).write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{re.escape(name)} cannot be read \(") as error:
            weights.read(small / name)
        assert "\n" not in str(error.value)


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


def test_a_bit_that_has_changed_is_noticed_where_there_is_a_checksum(small):
    (data,) = small.glob("model.data-*")
    flip(data, 100)
    with pytest.raises(UserError, match=r"model\.index cannot be read .*[Cc]hecksum"):
        weights.read(small / "model.index")
    flip(small / "model.keras", (small / "model.keras").stat().st_size // 2)
    with pytest.raises(UserError, match="CRC"):
        weights.read(small / "model.keras")


def test_paths_without_weights_are_told(small):
    (small / "notes.txt").write_text("none")
    (small / "two").mkdir()
    for name in ("a.index", "b.index"):
        shutil.copy(small / "model.index", small / "two" / name)
    cases = {
        "nothing.keras": "There are no weights at",
        "notes.txt": "holds no weights that are understood: give the path of a .keras file",
        "two": r"has 2 files \*\.index: a\.index, b\.index; expected the one",
        "two/a": r"a\.index lacks its data: put a\.data-00000-of-00001 beside it",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=message):
            weights.read(small / name)


def test_bombs_are_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "zip.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", b" " * 2**24)
    with h5py.File(tmp_path / "shape.h5", "w") as file:
        file.create_dataset("logits/logits/kernel:0", (2**20, 2**20), "f4", chunks=(64, 64))
    with h5py.File(tmp_path / "packed.h5", "w") as file:
        zeros = np.zeros(2**22, np.float32)
        file.create_dataset("logits/logits/kernel:0", data=zeros, compression="gzip")
    with pytest.raises(UserError, match="it unpacks to 16,777,216 bytes, expected"):
        weights.read(tmp_path / "zip.keras")
    for name in ("shape.h5", "packed.h5"):
        with pytest.raises(UserError, match=r"it claims [0-9,]* bytes, expected [0-9,]* at most"):
            weights.read(tmp_path / name)


def test_a_checkpoint_that_claims_more_than_it_has_is_not_read(small):
    (data,) = small.glob("model.data-*")
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"it claims [0-9,]* bytes, expected 1,000 at most"):
        weights.read(small / "model.index")


def test_hdf5_files_lead_to_no_other_file(tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["kernel"] = np.ones(4, np.float32)
    (tmp_path / "secret.bin").write_bytes(np.ones(4, np.float32).tobytes())
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["logits/logits/bias:0"] = np.ones(4, np.float32)
        file["logits/logits/kernel:0"] = h5py.ExternalLink("secret.h5", "/kernel")
        file["logits/logits/cycle"] = file["logits"]
    assert list(weights.read(tmp_path / "link.h5").layers["logits"]) == ["bias"]
    with h5py.File(tmp_path / "external.h5", "w") as file:
        stored = [(str(tmp_path / "secret.bin"), 0, 16)]
        file.create_dataset("logits/logits/kernel:0", (4,), "f4", external=stored)
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "kernel", (4,))
        file.create_virtual_dataset("logits/logits/kernel:0", layout)
    for name in ("external.h5", "virtual.h5"):
        with pytest.raises(UserError, match="it refers to other files"):
            weights.read(tmp_path / name)


def test_layers_without_names_or_with_one_name_are_refused(tmp_path):
    with h5py.File(tmp_path / "early.weights.h5", "w") as file:
        file["layers/dense/vars/0"] = np.ones(4, np.float32)
    with pytest.raises(UserError, match="it does not name its layers, as files of early Keras 3"):
        weights.read(tmp_path / "early.weights.h5")
    with h5py.File(tmp_path / "twice.weights.h5", "w") as file:
        for group in ("dense", "dense_1"):
            file[f"layers/{group}/vars/0"] = np.ones(4, np.float32)
            file[f"layers/{group}/vars"].attrs["name"] = "logits"
    with pytest.raises(UserError, match="two of its layers are called 'logits'"):
        weights.read(tmp_path / "twice.weights.h5")


def test_the_digest_is_of_the_content_alone(small, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for path in small.iterdir():
        shutil.copy(path, elsewhere / path.name.replace("model", "other"))
    for name in SMALL:
        path = elsewhere / name.replace("model", "other")
        digest = weights.sha256(small / name)
        assert weights.sha256(path) == digest and re.fullmatch("[0-9a-f]{64}", digest)
        flip(next(elsewhere.glob("other.data-*")) if name == "model.index" else path, 100)
        assert weights.sha256(path) != digest
    assert weights.sha256(small / "model") == weights.sha256(small / "model.index")
