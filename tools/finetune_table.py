"""What fine-tuning at the resolution of the test has brought, for each generation of a run.

    python -m tools.finetune_table --flagfile=flags/cifar10_fixres.flags --workdir=runs/fixres

Flags are those of the run, which must be finished. Three rows for each fine-tuned generation: the
trained network at its own resolution, the same at the resolution of the test, and the fine-tuned
one; accuracies on dev and on test. Below each generation stands whether the frozen layers, with
BatchNorm's statistics, have kept their bits. The last line is one JSON object.

Reference: [Touvron et al., 2019](https://arxiv.org/abs/1906.06423)
"""

import functools
import json

import numpy as np
from absl import app

from nsk import main as nsk_main
from nsk.errors import UserError
from nsk.report.text_table import columns

HEADER = ("gen", "network", "pixels", "dev", "test")


def show(argv):
    """The command."""
    if argv[1:]:
        raise UserError(f"Received {' '.join(argv[1:])!r}: settings are given as --name=value.")
    config = nsk_main.read_config()
    if not nsk_main.given_workdir().is_dir():
        raise UserError(f"--workdir={config.run.workdir} is not there: give that of a run.")
    if not any(config.finetune.finetune_resolution):
        raise UserError("--finetune_resolution is 0: give the flags of a run that fine-tunes.")
    nsk_main.prepare(config)
    from nsk import self_training
    from nsk.stages.all_stages import Stages

    stages = Stages(config, finished_only=True)
    images, chain = self_training.start_of(config, stages, config.num_students + 1)
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
        kept = compare_frozen(generation, config.finetune.at(number)["finetune_frozen_blocks"])
        lines.append(
            f"Generation {number}: {kept['unchanged']} of {kept['frozen']} frozen tensors are "
            f"unchanged, and {kept['changed']} of the {kept['others']} others changed."
        )
        results.append({"index": number, "rows": rows, **kept})
    print(*columns(table, left=2), "", *lines, json.dumps({"generations": results}), sep="\n")
    return nsk_main.OK


def measure(generation, images, batch_size):
    """Yields a dict `network`, `pixels`, `dev`, `test` (accuracies) for each of the three."""
    import keras

    from nsk.data import pipeline
    from nsk.evaluation import metrics
    from nsk.evaluation.predictor import Predictor, collect
    from nsk.models import files as model_files
    from nsk.stages.all_stages import MODEL, shard_set

    trained, tuned = (
        model_files.load_model(one.path / MODEL) for one in (generation.trained, generation.model)
    )
    enlarged = keras.models.clone_model(tuned)
    enlarged.set_weights(trained.get_weights())
    kinds = {"trained": trained, "trained, larger images": enlarged, "fine-tuned": tuned}
    for name, model in kinds.items():
        row, side = {"network": name, "pixels": model.input_shape[1]}, model.input_shape[1]
        predict = Predictor(model, batch_size)
        for split in ("dev", "test"):
            batches = pipeline.clean_batches(shard_set(images, split), side, batch_size)
            predicted = collect(predict(batches))
            row[split] = metrics.summarize(predicted.log_probabilities, predicted.labels)[
                "accuracy"
            ]
        yield row


def compare_frozen(generation, num_blocks):
    """How many of the frozen and of the other tensors are the same before and after: a dict."""
    from nsk.models import blocks
    from nsk.models import files as model_files
    from nsk.stages.all_stages import MODEL

    before, after = (
        model_files.load_model(one.path / MODEL) for one in (generation.trained, generation.model)
    )
    frozen = {layer.name for layer in blocks.shallow_layers(after, num_blocks)}
    same = {True: [], False: []}
    for layer in after.layers:
        for ours, theirs in zip(
            layer.get_weights(), before.get_layer(layer.name).get_weights(), strict=True
        ):
            same[layer.name in frozen].append(np.array_equal(ours, theirs))
    return {
        "frozen": len(same[True]),
        "unchanged": sum(same[True]),
        "others": len(same[False]),
        "changed": len(same[False]) - sum(same[False]),
    }


if __name__ == "__main__":
    nsk_main.define_flags()
    app.run(functools.partial(nsk_main.run_main, main=show), flags_parser=nsk_main.parse_flags)
