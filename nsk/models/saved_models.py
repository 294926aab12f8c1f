"""Image classifiers from TensorFlow SavedModels of any origin, as functions with gradients.

A SavedModel is a program: load only those that you trust.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from nsk.errors import UserError
from nsk.hashing import sha256_of_bytes, sha256_of_file

# Used in this order if several signatures take images: that of `nsk export`, those of Keras.
PREFERRED = ("pixels", "serve", "serving_default")
EXPECTED = "one float input (None, size, size, 3) and one float output (None, classes)"


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A signature of a SavedModel that classifies images.

    Attributes:
        function: from float32 images, shape (n, size, size, 3), to float32 outputs (n, classes);
            differentiable.
        input_shape: (None, height, width, 3); an unknown side is None.
        class_names: names of the classes, from an output `labels` as in `nsk export`; None: there
            is none.
    """

    function: Callable[[tf.Tensor], tf.Tensor]
    input_shape: tuple[int | None, ...]
    class_names: list[str] | None


def is_saved_model(folder: Path) -> bool:
    """Whether a folder is a SavedModel."""
    return any((folder / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt"))


def sha256(folder: Path) -> str:
    """SHA-256, in hex, of the names and content of all files of a SavedModel."""
    digests = [
        f"{path.relative_to(folder).as_posix()} {sha256_of_file(path)}\n"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return sha256_of_bytes("".join(digests).encode())


def load(folder: Path) -> SavedModel:
    """Loads the signature of a SavedModel that takes images.

    Args:
        folder: the SavedModel: an export of `nsk`, `keras.Model.export` or `tf.saved_model.save`.

    Raises:
        UserError: it cannot be loaded, or not exactly one signature maps images to classes. Those
            in `PREFERRED` come first.
    """
    try:
        loaded = tf.saved_model.load(str(folder))
    except Exception as error:  # TensorFlow raises nearly anything on damaged files.
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise UserError(
            f"The SavedModel {folder} cannot be loaded ({reason}): give a complete one, with its "
            "folder `variables`."
        ) from None
    signatures = dict(getattr(loaded, "signatures", {}))
    suitable = [name for name, signature in signatures.items() if _takes_images(signature)]
    preferred = [name for name in PREFERRED if name in suitable]
    if not preferred and len(suitable) != 1:
        found = "; ".join(f"{name}: {_describe(each)}" for name, each in signatures.items())
        raise UserError(
            f"The SavedModel {folder} has {len(suitable)} signatures that classify images, among "
            f"{found or 'none at all'}: expected one with {EXPECTED}, or one of them named "
            f"{', '.join(PREFERRED)}."
        )
    signature = signatures[(preferred or suitable)[0]]
    return _from_signature(loaded, signature)


def on_one_replica(function: Callable, *args: Any) -> Any:
    """Result of a function on the first replica of the current strategy.

    A SavedModel that is loaded within a strategy's scope can be called on a replica only.
    """
    strategy = tf.distribute.get_strategy()
    results = strategy.run(function, args)
    return tf.nest.map_structure(
        lambda result: strategy.experimental_local_results(result)[0], results
    )


def _from_signature(loaded, signature):
    """The `SavedModel` of a suitable signature; keeps `loaded`, which owns the variables."""
    (argument,) = _inputs(signature).items()
    (output,) = _class_outputs(signature)
    input_name, spec = argument

    def call(images):
        outputs = signature(**{input_name: tf.cast(images, spec.dtype)})
        return tf.cast(outputs[output], tf.float32)

    call.owner = loaded
    names = None
    labels = signature.structured_outputs.get("labels")
    if labels is not None and labels.dtype == tf.string and None not in spec.shape[1:]:
        black = {input_name: tf.zeros([1, *spec.shape[1:]], spec.dtype)}
        outputs = on_one_replica(lambda: signature(**black))
        names = [label.decode() for label in outputs["labels"].numpy().reshape(-1)]
    return SavedModel(call, tuple(spec.shape), names)


def _inputs(signature):
    """Dict from the name of each input to its `tf.TensorSpec`."""
    return signature.structured_input_signature[1]


def _class_outputs(signature):
    """Names of the outputs (batch, classes) of floats."""
    return [
        name
        for name, spec in signature.structured_outputs.items()
        if spec.dtype.is_floating and spec.shape.rank == 2
    ]


def _takes_images(signature):
    """Whether a signature has `EXPECTED`."""
    inputs = list(_inputs(signature).values())
    if len(inputs) != 1 or len(_class_outputs(signature)) != 1:
        return False
    (spec,) = inputs
    return (
        spec.dtype.is_floating
        and spec.shape.rank == 4
        and spec.shape[0] is None
        and spec.shape[3] == 3
    )


def _describe(signature):
    """Inputs and outputs of a signature, such as `float32 (None, 8, 8, 3) -> float32 (None, 3)`."""
    sides = (_inputs(signature), signature.structured_outputs)
    return " -> ".join(
        ", ".join(f"{spec.dtype.name} {_shape(spec.shape)}" for spec in side.values())
        for side in sides
    )


def _shape(shape):
    return tuple(shape) if shape.rank is not None else "of any shape"
