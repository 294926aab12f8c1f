"""A stage that is killed at any moment resumes and ends with the bytes of an undisturbed run.

A program forks a process for each attempt, so that TensorFlow is imported only once.
"""

import io
import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn import datasets

from nsk.data import records
from nsk.data.shards import ShardSet, ShardWriter
from nsk.evaluation.prediction_files import make_stored_predictions, write_predictions
from nsk.stages.score_files import score_file_name, score_paths

NUM_SHARDS = 40
CLASS_NAMES = [str(digit) for digit in range(10)]

DRIVER = """
    import glob, json, os, random, signal, sys, time, traceback
    from pathlib import Path
    import numpy as np
    from nsk.store.folders import StageKey, build_or_reuse
    from nsk.data.shards import ShardSet

    base = Path({base!r})
    unlabeled, dev = ShardSet.load(base / "unlabeled"), ShardSet.load(base / "dev")

    {work}

    def files():
        return len(glob.glob(f"{{base}}/killed/gen1/made-*/*/0*.{kind}"))

    def attempt(workdir, more=None):
        '''Runs the stage in a process, killed shortly after `more` files; returns its status.'''
        until = None if more is None else files() + more
        pid = os.fork()
        if not pid:
            try:
                build_or_reuse(StageKey(workdir, "gen1/made", {{}}, {{}}), build, resumes=True)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        if until is not None:
            moment = random.uniform(0, 0.01)
            while files() < until:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    return status
            time.sleep(moment)
            os.kill(pid, signal.SIGKILL)
        return os.waitpid(pid, 0)[1]

    statuses, num_files = [attempt(base / "whole")], []
    random.seed(0)
    for _ in range({kills}):
        statuses.append(attempt(base / "killed", random.randint(0, 2 * {shards} // {kills})))
        num_files.append(files())
    statuses.append(attempt(base / "killed"))
    print(json.dumps([statuses, num_files]))
"""
SCORE = """
    from nsk.evaluation.predictor import Predictions
    from nsk.stages.scoring import ScoringOptions, score_shards

    def predict(shard_set, shards):
        for shard in shards:
            ids = [f"{shard_set.names[shard]}/{row}" for row in range(shard_set.counts[shard])]
            logits = np.random.default_rng(shard).normal(0, 2, (len(ids), 10)).astype(np.float32)
            log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            yield Predictions(ids, np.full(len(ids), shard % 10, np.int32), log_probabilities)

    def build(folder):
        return score_shards(unlabeled, dev, lambda: predict, folder, ScoringOptions(top_k=4))
"""
WRITE = """
    from nsk.stages.pseudo_shards import write_pseudo_shards

    def build(folder):
        return write_pseudo_shards(
            unlabeled, base / "scores", base / "selection", folder, shard_bytes=1
        )
"""


def write_digits(folder, count, images_per_shard):
    pixels = np.round(datasets.load_digits().images * (255 / 16)).astype(np.uint8)
    with ShardWriter(folder, "images", CLASS_NAMES, images_per_shard) as writer:
        for row in range(count):
            buffer = io.BytesIO()
            Image.fromarray(pixels[row]).save(buffer, "PNG")
            writer.write(records.image_example(f"digits/{row}", buffer.getvalue()))
    return ShardSet.load(folder)


def drive(base, work, kind, kills):
    """Runs the program; checks that it was killed while working and ended successfully."""
    work = textwrap.indent(textwrap.dedent(work), "    ")
    program = DRIVER.format(
        base=os.fspath(base), work=work.strip(), kind=kind, kills=kills, shards=NUM_SHARDS
    )
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (first, *killed, last), num_files = json.loads(done.stdout.splitlines()[-1])
    assert (first, last) == (0, 0), done.stderr
    assert set(killed) <= {0, 9}, done.stderr
    assert num_files == sorted(num_files) and killed.count(9) >= kills // 2
    assert len({count for count in num_files if 0 < count < NUM_SHARDS}) >= kills // 3, num_files


def assert_same_files(base):
    """The folders hold nothing else, and both manifests describe their files."""
    folders = [next((base / name / "gen1").glob("made-*")) for name in ("whole", "killed")]
    assert [len(list((base / name / "gen1").iterdir())) for name in ("whole", "killed")] == [
        1,
        1,
    ]
    undisturbed, killed = (
        {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        for folder in folders
    )
    manifests = [json.loads(files.pop("stage.json")) for files in (undisturbed, killed)]
    assert undisturbed == killed and len(undisturbed) > NUM_SHARDS
    for manifest in manifests:
        del manifest["seconds"]
        manifest.pop("seal", None)  # Depends on the seconds.
    assert manifests[0] == manifests[1]
    assert set(manifests[0]["files"]) == set(undisturbed)


def test_a_scoring_killed_several_times_writes_the_same_files(tmp_path):
    write_digits(tmp_path / "unlabeled", 4 * NUM_SHARDS, 4)
    write_digits(tmp_path / "dev", 60, 7)
    drive(tmp_path, SCORE, "parquet", kills=8)
    assert_same_files(tmp_path)


def test_a_writing_killed_several_times_writes_the_same_files(tmp_path):
    unlabeled = write_digits(tmp_path / "unlabeled", 4 * NUM_SHARDS, 4)
    write_digits(tmp_path / "dev", 4, 4)
    random = np.random.default_rng(0)
    (tmp_path / "scores" / "unlabeled").mkdir(parents=True)
    (tmp_path / "selection").mkdir()
    for shard, path in enumerate(score_paths(unlabeled, tmp_path / "scores")):
        log_probabilities = np.log(random.dirichlet(np.ones(10), 4)).astype(np.float32)
        ids = [f"digits/{row}" for row in range(4 * shard, 4 * shard + 4)]
        write_predictions(path, make_stored_predictions(ids, log_probabilities))
        table = pa.table({"copies": pa.array(random.integers(1, 5, 4), pa.int32())})
        pq.write_table(table, tmp_path / "selection" / score_file_name(unlabeled.names[shard]))
    drive(tmp_path, WRITE, "tfrecord", kills=5)
    assert_same_files(tmp_path)
