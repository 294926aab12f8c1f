"""The gain of fine-tuning at the test resolution, for each generation of a run.

    python -m tools.finetune_table --flagfile=flags/cifar10_fixres.flags --workdir=runs/fixres

Flags are those of the run, which must be finished. Each fine-tuned generation has three rows with
accuracies on dev and test: the trained network at its own resolution, the same network at the test
resolution, and the fine-tuned one. Below the table, a line for each generation says whether the
frozen layers, with BatchNorm's statistics, are exactly unchanged. The last line is a JSON
object.

Reference: [Touvron et al., 2019](https://arxiv.org/abs/1906.06423)
"""

import functools
import json

import numpy as np
from absl import app

from nsk import main as nsk_main
from nsk.commands.preparation import prepare
from nsk.config.config import Config
from nsk.errors import UserError
from nsk.report.text_table import align_columns

HEADER = ("gen", "network", "pixels", "dev", "test")


def show(argv):
    """The command."""
    if argv[1:]:
        raise UserError(f"Received {' '.join(argv[1:])!r}: settings are given as --name=value.")
    runner = prepare(nsk_main.flag_values(), check)
    from nsk import self_training
    from nsk.stages.runner import ReadOnlyRunner

    config = runner.config
    read_only = ReadOnlyRunner(config, runner.runtime)
    images, chain = self_training.train_generations(read_only, config.num_students + 1)
    table, lines, results = [HEADER], [], []
    for number, generation in enumerate(chain):
        if generation.trained == generation.model:
            continue
        rows = list(measure(generation, images, config.run.eval_batch_size))
        table += [
            (
                str(number),
                row["network"],
                str(row["pixels"]),
                f"{row['dev']:.2%}",
                f"{row['test']:.2%}",
            )
            for row in rows
        ]
        tensors = compare_frozen(generation, config.finetune.at(number).finetune_frozen_blocks)
        lines.append(
            f"Generation {number}: {tensors['unchanged']} of {tensors['frozen']} frozen tensors "
            f"are unchanged, and {tensors['changed']} of the {tensors['others']} others changed."
        )
        results.append({"index": number, "rows": rows, **tensors})
    print(*align_columns(table, left=2), "", *lines, json.dumps({"generations": results}), sep="\n")
    return nsk_main.OK


def check(config: Config) -> None:
    """UserError if the flags are not those of a run that fine-tunes."""
    if not config.workdir.is_dir():
        raise UserError(
            f"--workdir={config.run.workdir} does not exist: give the workdir of a run."
        )
    if not any(config.finetune.finetune_resolution):
        raise UserError("--finetune_resolution is 0: give the flags of a run that fine-tunes.")


def measure(generation, images, batch_size):
    """Yields a dict `network`, `pixels`, `dev`, `test` (accuracies) for each of the networks."""
    import keras

    from nsk.data import pipeline
    from nsk.evaluation import metrics
    from nsk.evaluation.predictor import Predictor, collect
    from nsk.models import files as model_files
    from nsk.stages.runner import shard_set

    trained, tuned = (
        model_files.load_model(stage.path / "model.keras")
        for stage in (generation.trained, generation.model)
    )
    enlarged = keras.models.clone_model(tuned)
    enlarged.set_weights(trained.get_weights())
    networks = {"trained": trained, "trained, larger images": enlarged, "fine-tuned": tuned}
    for name, model in networks.items():
        row, side = {"network": name, "pixels": model.input_shape[1]}, model.input_shape[1]
        predict = Predictor(model, batch_size)
        for split in ("dev", "test"):
            batches = pipeline.clean_batches(shard_set(images, split), side, batch_size)
            predictions = collect(predict(batches))
            row[split] = metrics.accuracy(predictions.log_probabilities, predictions.labels)
        yield row


def compare_frozen(generation, num_blocks):
    """Counts the frozen tensors and the others that fine-tuning has left unchanged: a dict."""
    from nsk.models import blocks
    from nsk.models import files as model_files

    before, after = (
        model_files.load_model(stage.path / "model.keras")
        for stage in (generation.trained, generation.model)
    )
    frozen = {layer.name for layer in blocks.shallow_layers(after, num_blocks)}
    is_equal = {True: [], False: []}  # For frozen layers and for the others.
    for layer in after.layers:
        weights_before = before.get_layer(layer.name).get_weights()
        for array, array_before in zip(layer.get_weights(), weights_before, strict=True):
            is_equal[layer.name in frozen].append(np.array_equal(array, array_before))
    return {
        "frozen": len(is_equal[True]),
        "unchanged": sum(is_equal[True]),
        "others": len(is_equal[False]),
        "changed": len(is_equal[False]) - sum(is_equal[False]),
    }


if __name__ == "__main__":
    nsk_main.define_flags()
    app.run(functools.partial(nsk_main.run_main, main=show), flags_parser=nsk_main.parse_flags)
