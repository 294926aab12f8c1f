"""Speed and memory of the selection, from score files to files of copies.

    python -m tools.benchmark_select [--rows=100000000] [--classes=1000] [--rows_per_file=1000000]

The score files simulate a saturated teacher: half of the images have the confidence 1.0, and the
sizes of the classes differ by three orders of magnitude. Each size (a hundredth, a tenth and all of
`--rows`) is selected by the paper policy in a separate process, which reports its time and its peak
memory (`ru_maxrss`, imports included). DuckDB computes the same selection in SQL, which is compared
by the number and the sum of the keys of each class's selected images. The last line is a JSON
object.
"""

import argparse
import functools
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MIN_CONFIDENCE = 0.3
SEED = 0


def write_score_files(folder, rows, classes, rows_per_file):
    """Writes score files with the columns that selection reads: `key`, `label`, `confidence`."""
    folder.mkdir()
    for number, first in enumerate(range(0, rows, rows_per_file)):
        random = np.random.default_rng(number)
        count = min(rows_per_file, rows - first)
        # The share of label c is proportional to about 1 / sqrt(c).
        labels = (random.random(count) ** 2 * classes).astype(np.int32)
        unsaturated = 1 / (1 + np.exp(-random.normal(1.0, 3.0, count)))
        confidences = np.where(random.random(count) < 0.5, 1.0, unsaturated).astype(np.float32)
        columns = {
            "key": random.integers(0, 2**64, count, np.uint64),
            "label": labels,
            "confidence": confidences,
        }
        path = folder / f"{number:05d}.parquet"
        pq.write_table(pa.table(columns), path, compression="zstd", use_dictionary=["label"])


def select_files(folder, output, classes):
    """Selects as the stage does; returns a dict of the result, the time and the memory."""
    # Imported here so that only the memory of the measured process includes them.
    from nsk.pseudo import score_rows
    from nsk.pseudo.engine import LOCAL
    from nsk.pseudo.policies import apply_policy

    paths = sorted(folder.iterdir())
    rows = sum(pq.read_metadata(path).num_rows for path in paths)
    output.mkdir()
    started = time.perf_counter()
    selection = apply_policy(
        functools.partial(score_rows.scan, LOCAL, paths, score_rows.ScoreColumns()),
        "paper",
        thresholds=np.full(classes, MIN_CONFIDENCE, np.float32),
        seed=SEED,
        images_per_class=max(1, rows // classes // 2),
    )
    score_rows.write_copies(LOCAL, selection, paths, score_rows.ScoreColumns(), output)
    seconds = time.perf_counter() - started
    return {
        "rows": rows,
        "rows_per_second": rows / seconds,
        "seconds": seconds,
        # Linux counts in KiB.
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "kept": list(selection.statistics.kept),
    }


def checksum(folder, output, classes):
    """For each class the sum of the selected images' keys modulo 2^32, from the files of copies."""
    sums = np.zeros(classes, np.uint64)
    for path in sorted(folder.iterdir()):
        copies = pq.read_table(output / path.name)["copies"].to_numpy()
        scores = pq.read_table(path, columns=["key", "label"])
        kept = copies > 0
        keys = scores["key"].to_numpy()[kept] & np.uint64(2**32 - 1)
        np.add.at(sums, scores["label"].to_numpy()[kept], keys)
    return sums.tolist()


def select_with_duckdb(folder, classes, rows):
    """Selects in SQL: (seconds, selected images of each class, checksum of each class)."""
    import duckdb

    # The hash that orders equal confidences is the splitmix64 finaliser: products modulo 2^64.
    from nsk.hashing import stable_key

    size = 2**64

    def times(value, factor):
        return f"(({value})::UHUGEINT * {factor}::UHUGEINT % {size}::UHUGEINT)::UBIGINT"

    first = f"xor(key, {int(stable_key(str(SEED)))}::UBIGINT)"
    steps = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
    query, value = f"SELECT key, label, confidence, {first} AS z FROM scores", "z"
    for shift, factor in steps:
        value = times(f"xor(z, z >> {shift})", factor)
        query = f"SELECT key, label, confidence, {value} AS z FROM ({query})"
    limit = max(1, rows // classes // 2)
    started = time.perf_counter()
    with duckdb.connect() as connection:
        connection.execute(f"CREATE VIEW scores AS FROM '{folder}/*.parquet'")
        answer = connection.execute(
            f"""SELECT label, count(*), sum(key % 4294967296) FROM (
                SELECT label, key, row_number() OVER (
                    PARTITION BY label ORDER BY confidence DESC, xor(z, z >> 31)
                ) AS place FROM ({query}) WHERE confidence >= {MIN_CONFIDENCE}::FLOAT
            ) WHERE place <= {limit} GROUP BY label"""
        ).fetchall()
    seconds = time.perf_counter() - started
    kept, sums = [0] * classes, [0] * classes
    for label, count, total in answer:
        kept[label], sums[label] = count, int(total)
    return seconds, kept, sums


def main(arguments=None):
    """Selects from files of three sizes, each in a process of its own, and prints the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000_000, help="number of scored images")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--rows_per_file", type=int, default=1_000_000)
    parser.add_argument(
        "--duckdb_rows", type=int, default=10_000_000, help="largest size selected with DuckDB"
    )
    parser.add_argument("--select", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.select:
        print(json.dumps(select_files(*options.select, options.classes)))
        return
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for rows in sorted({max(1, options.rows // part) for part in (100, 10, 1)}):
            scores, output = Path(folder) / f"scores-{rows}", Path(folder) / f"copies-{rows}"
            write_score_files(scores, rows, options.classes, options.rows_per_file)
            command = [sys.executable, "-m", "tools.benchmark_select", "--select", scores, output]
            command.append(f"--classes={options.classes}")
            output_text = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True
            ).stdout
            results[rows] = result = json.loads(output_text.splitlines()[-1])
            kept = result.pop("kept")
            print(
                f"{rows:,} rows: {result['seconds']:.1f} s, {result['rows_per_second']:,.0f} "
                f"rows/s, peak memory {result['peak_rss_bytes'] / 2**20:,.0f} MiB; "
                f"{sum(kept):,} kept"
            )
            if rows <= options.duckdb_rows:
                seconds, *selected = select_with_duckdb(scores, options.classes, rows)
                expected = [kept, checksum(scores, output, options.classes)]
                result["duckdb_seconds"] = seconds
                result["duckdb_agrees"] = selected == expected
                agrees = "agrees" if result["duckdb_agrees"] else "DOES NOT AGREE"
                print(f"{rows:,} rows: DuckDB {seconds:.1f} s, {agrees}")
    largest = results[max(results)]
    print(
        json.dumps(
            {
                "rows_per_second": round(largest["rows_per_second"]),
                "peak_rss_bytes": largest["peak_rss_bytes"],
                "sizes": results,
            }
        )
    )


if __name__ == "__main__":
    main()
