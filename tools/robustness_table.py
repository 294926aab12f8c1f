"""A Markdown table of accuracy, calibration and robustness of several models, means over seeds.

    python -m tools.robustness_table NAME=PATH[,PATH...] ...

Each PATH is the `evaluation.json` of `evaluate`, or WORKDIR:GENERATION of a run with --evaluate and
--evaluate_models=all (WORKDIR:best is its best generation on dev); several are seeds of one row.
Columns: test accuracy and ECE; mean error under corruptions, mCE and relative mCE (over all 19 if
they were evaluated); mean flip probability and mFR; accuracy under FGSM and PGD. Values are in
percent but for ECE; a range is the smallest and largest value of the seeds. The last line is a JSON
object.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import app

from nsk import main as nsk_main
from nsk.errors import UserError

EPSILON = 0.03
# Title, digits after the decimal point, and factor of each column.
COLUMNS = {
    "accuracy": (2, 100),
    "ECE": (4, 1),
    "mean error": (2, 100),
    "mCE": (1, 1),
    "relative mCE": (1, 1),
    "flip probability": (2, 100),
    "mFR": (1, 1),
    f"FGSM {EPSILON}": (2, 100),
    f"PGD {EPSILON}": (2, 100),
}


def read_suites(path: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """(clean test metrics, results by suite) of a PATH; UserError if it cannot be read."""
    name, _, generation = path.rpartition(":")
    try:
        if not path.endswith(".json"):
            summary = json.loads((Path(name) / "summary.json").read_text(encoding="utf-8"))
            index = summary["best"]["index"] if generation == "best" else int(generation)
            found = summary["generations"][index]
            return found["test"], found["suites"]
        suites = json.loads(Path(path).read_text(encoding="utf-8"))["suites"]
        return suites["clean"]["test"], suites
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {error}): give an evaluation.json, or "
            "WORKDIR:GENERATION of a run with --evaluate and --evaluate_models=all."
        ) from None


def measure(path: str) -> dict[str, float | None]:
    """The values of all columns; None where a suite or a baseline is missing."""
    clean, suites = read_suites(path)
    corruptions, perturbations = suites.get("corruptions", {}), suites.get("perturbations", {})
    attacks = suites.get("attacks", {})
    values = (
        clean["accuracy"],
        clean["ece"],
        corruptions.get("mean_error"),
        corruptions.get("mce_of_19", corruptions.get("mce")),
        corruptions.get("relative_mce_of_19", corruptions.get("relative_mce")),
        perturbations.get("mean_flip_probability"),
        perturbations.get("mfr"),
        *(_accuracy_at(attacks.get(name)) for name in ("fgsm", "pgd")),
    )
    return dict(zip(COLUMNS, values, strict=True))


def _accuracy_at(curve):
    """The accuracy of an attack's curve at `EPSILON`; None if it is not known."""
    if curve is None:
        return None
    return dict(zip(curve["epsilons"], curve["accuracy"], strict=True)).get(EPSILON)


def describe(column: str, values: list[float | None]) -> str:
    """A cell: the mean, and the range if there are several values."""
    digits, factor = COLUMNS[column]
    known = [factor * value for value in values if value is not None]
    if not known:
        return "-"
    text = f"{np.mean(known):.{digits}f}"
    if len(known) < len(values):
        text += f" (of {len(known)})"
    if len(known) > 1:
        text += f" ({min(known):.{digits}f} to {max(known):.{digits}f})"
    return text


def main(argv: list[str]) -> int:
    """Prints the table."""
    rows = {}
    for argument in argv[1:]:
        name, separator, paths = argument.partition("=")
        if not separator or not paths:
            raise UserError(f"{argument!r}: expected NAME=PATH[,PATH...].")
        rows[name] = [measure(path) for path in paths.split(",")]
    if not rows:
        raise UserError("No model was given: expected NAME=PATH[,PATH...] for each row.")
    lines = [f"| | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, measured in rows.items():
        cells = [describe(column, [values[column] for values in measured]) for column in COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    sys.stdout.write("\n".join([*lines, json.dumps(rows), ""]))
    return 0


if __name__ == "__main__":
    app.run(lambda argv: nsk_main.exit_at_once(nsk_main.run_main(argv, main)))
