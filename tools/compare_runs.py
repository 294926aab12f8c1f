"""Compares the test accuracies of teachers and chosen students over finished runs.

    python -m tools.compare_runs runs/quickstart-0 runs/quickstart-1 runs/quickstart-2

Each argument is a workdir with a `summary.json`. The last line is a JSON object.
"""

import argparse
import json
import sys
from pathlib import Path

from nsk.errors import UserError
from nsk.main import WRONG_INPUT, print_error
from nsk.report.text_table import align_columns


def read_summary(workdir):
    """Reads the summary of a finished run; UserError if there is none."""
    path = Path(workdir) / "summary.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}): give the workdirs of finished runs."
        ) from None


def compare(workdirs):
    """Rows of (workdir, seed, teacher's test accuracy, chosen generation, its test accuracy)."""
    rows = []
    for workdir in workdirs:
        summary = read_summary(workdir)
        try:
            best = summary["best"]["index"]
            accuracies = [generation["test"]["accuracy"] for generation in summary["generations"]]
            rows.append((str(workdir), summary["seed"], accuracies[0], best, accuracies[best]))
        except (KeyError, IndexError, TypeError):
            raise UserError(
                f"{Path(workdir) / 'summary.json'} is not the summary of a run: give the workdirs "
                "of finished runs."
            ) from None
    return rows


def main(arguments=None):
    """Prints the table of runs and a line of JSON with the means."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdirs", nargs="*", help="workdirs of finished runs")
    workdirs = parser.parse_args(arguments).workdirs
    if not workdirs:
        raise UserError("No runs are given: name the workdirs of finished runs.")
    rows = compare(workdirs)
    table = [("run", "seed", "teacher", "chosen", "accuracy", "gain")]
    table += [
        (
            name,
            str(seed),
            f"{teacher:.2%}",
            f"gen {best}",
            f"{chosen:.2%}",
            f"{chosen - teacher:+.2%}",
        )
        for name, seed, teacher, best, chosen in rows
    ]
    teacher = sum(row[2] for row in rows) / len(rows)
    chosen = sum(row[4] for row in rows) / len(rows)
    table.append(("mean", "", f"{teacher:.2%}", "", f"{chosen:.2%}", f"{chosen - teacher:+.2%}"))
    print(*align_columns(table, left=1), sep="\n")
    every_run_gains = all(row[4] > row[2] for row in rows)
    print(json.dumps({"teacher": teacher, "chosen": chosen, "every_run_gains": every_run_gains}))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print_error(str(error))
        sys.exit(WRONG_INPUT)
