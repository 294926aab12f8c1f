"""Stage folders: built once, published when complete, resumed after an interruption, reused."""

import concurrent.futures
import dataclasses
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import threading

import pytest

from nsk.errors import UserError
from nsk.store import manifest
from nsk.store.files import WRITTEN, atomic_write
from nsk.store.folders import StageKey, build_or_reuse, describe_closest_match, find_stage
from nsk.store.verification import find_damage, finished_stages, foreign_files

FORMAT = manifest.FORMAT


def scores_key(workdir, settings=None, **inputs):
    return StageKey(workdir, "gen1/scores", settings or {}, inputs)


def teacher_key(workdir, **settings):
    return StageKey(workdir, "gen0/teacher", settings, {})


def write_result(folder):
    (folder / "result.txt").write_text("x")
    return {"images": 3}


def must_not_build(folder):
    raise AssertionError(f"{folder} was built again.")


def write(path, content):
    with atomic_write(path) as unfinished:
        unfinished.write_text(content)


def names_in(folder):
    """Names in a folder, without the records of what was written."""
    return sorted(path.name for path in folder.iterdir() if path.name != WRITTEN)


# One process.


def test_a_finished_stage_is_reused_and_a_changed_setting_builds_beside_it(tmp_path):
    def build(text):
        def build_text(folder):
            (folder / "result.txt").write_text(text)
            return {"images": 3}

        return build_text

    first = build_or_reuse(scores_key(tmp_path, {"seed": 0}), build("first"))
    assert not first.reused and first.counts == {"images": 3}
    assert first.path == tmp_path / f"gen1/scores-{first.fingerprint}"
    assert first.name == f"gen1/scores-{first.fingerprint}"

    again = build_or_reuse(scores_key(tmp_path, {"seed": 0}), must_not_build)
    assert again == dataclasses.replace(first, reused=True)

    second = build_or_reuse(scores_key(tmp_path, {"seed": 1}), build("second"))
    assert second.path != first.path
    assert (first.path / "result.txt").read_text() == "first"
    assert (second.path / "result.txt").read_text() == "second"
    assert names_in(tmp_path / "gen1") == sorted([first.path.name, second.path.name])


def test_a_stage_depends_on_the_fingerprints_of_its_inputs(tmp_path):
    teachers = [build_or_reuse(teacher_key(tmp_path, seed=seed), write_result) for seed in (0, 1)]
    first, second = (scores_key(tmp_path, teacher=teacher) for teacher in teachers)
    assert first.fingerprint == scores_key(tmp_path / "other", teacher=teachers[0]).fingerprint
    assert len({first.fingerprint, second.fingerprint, scores_key(tmp_path).fingerprint}) == 3


def test_the_manifest_lists_settings_inputs_counts_and_files(tmp_path):
    teacher = build_or_reuse(teacher_key(tmp_path), write_result)
    contents = {"a.bin": bytes(range(256)), "sub/b.txt": b"b", "sub/deeper/empty": b""}

    def build(folder):
        for name, content in contents.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return {"scored": 7}

    stage = build_or_reuse(scores_key(tmp_path, {"seed": 5}, teacher=teacher), build)
    content = json.loads((stage.path / "stage.json").read_text())
    assert content["stage"] == "gen1/scores"
    assert content["fingerprint"] == stage.fingerprint
    assert content["settings"] == {"seed": 5}
    assert content["counts"] == {"scored": 7}
    assert content["inputs"] == {
        "teacher": {"stage": teacher.name, "fingerprint": teacher.fingerprint, "files": []}
    }
    assert content["files"] == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }


def test_a_part_of_a_stage_is_identified_by_the_content_of_its_files(tmp_path):
    def make(number, **contents):
        def build(folder):
            for name, content in contents.items():
                (folder / name).mkdir()
                (folder / name / "file").write_text(content)
            return {}

        return build_or_reuse(StageKey(tmp_path, "images", {"number": number}, {}), build)

    first, second = make(1, dev="a", test="b", labeled="c"), make(2, dev="a", test="b", labeled="d")
    assert first.fingerprint != second.fingerprint
    assert first.part("dev", "test").fingerprint == second.part("dev", "test").fingerprint
    assert first.part("dev").fingerprint != first.part("dev", "test").fingerprint
    assert first.part("labeled").fingerprint != second.part("labeled").fingerprint
    # The same content under another name is not the same.
    assert make(3, dev="b", test="a").part("test").fingerprint != first.part("dev").fingerprint
    assert first.part("dev").path == first.path


def test_what_changed_is_said_when_a_stage_is_built_beside_another(tmp_path, caplog):
    teachers = [build_or_reuse(teacher_key(tmp_path, seed=seed), write_result) for seed in (1, 2)]
    settings = {"rate": 0.1, "content": {"dataset": {"files": 2, "sha256": "ab"}}}
    build_or_reuse(scores_key(tmp_path, settings, teacher=teachers[0]), write_result)
    settings = {"rate": 0.1, "content": {"dataset": {"files": 2, "sha256": "cd"}}}
    with caplog.at_level("INFO", logger="absl"):
        build_or_reuse(scores_key(tmp_path, settings, teacher=teachers[1]), write_result)
    differences = "other content of dataset, another teacher"
    expected = rf"gen1/scores-\w+: built anew \(scores-\w+ has {differences}\)"
    assert re.search(expected, caplog.text)


def test_a_build_that_raises_leaves_nothing_finished_and_the_next_one_succeeds(tmp_path):
    def fail(folder):
        (folder / "half.txt").write_text("half")
        raise RuntimeError("broken")

    key = scores_key(tmp_path)
    with pytest.raises(RuntimeError, match="broken"):
        build_or_reuse(key, fail)
    assert not key.path.exists()

    stage = build_or_reuse(key, write_result)
    assert not stage.reused
    assert names_in(stage.path) == ["result.txt", "stage.json"]  # And no half.txt.


def test_a_partial_folder_of_an_earlier_process_is_rebuilt(tmp_path):
    key = scores_key(tmp_path)
    (key.partial_path / "sub").mkdir(parents=True)
    (key.partial_path / "sub" / "old.txt").write_text("old")
    (key.partial_path / "stage.json").write_text("{}")

    stage = build_or_reuse(key, write_result)
    assert not stage.reused and not key.partial_path.exists()
    assert names_in(stage.path) == ["result.txt", "stage.json"]


def test_a_damaged_manifest_is_not_reused(tmp_path):
    stage = build_or_reuse(scores_key(tmp_path), write_result)
    (stage.path / "stage.json").write_text("{")
    with pytest.raises(UserError, match=r"stage\.json is damaged .*delete the folder"):
        build_or_reuse(scores_key(tmp_path), must_not_build)


def test_a_folder_without_manifest_is_not_reused(tmp_path):
    stage = build_or_reuse(scores_key(tmp_path), write_result)
    (stage.path / "stage.json").unlink()
    with pytest.raises(UserError, match=r"not a finished stage.*stage\.json"):
        build_or_reuse(scores_key(tmp_path), must_not_build)


def test_stages_of_another_format_are_not_reused(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "FORMAT", FORMAT - 1)
    old = build_or_reuse(scores_key(tmp_path), write_result)
    monkeypatch.undo()
    new = build_or_reuse(scores_key(tmp_path), write_result)
    assert not new.reused and new.path != old.path
    assert names_in(tmp_path / "gen1") == sorted([old.path.name, new.path.name])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_error_of_a_build_is_a_user_error(tmp_path, code):
    def build(folder):
        raise OSError(code, os.strerror(code), os.fspath(folder / "shard"))

    with pytest.raises(UserError) as error:
        build_or_reuse(scores_key(tmp_path), build)
    assert os.strerror(code) in str(error.value) and "shard" in str(error.value)
    build_or_reuse(scores_key(tmp_path), write_result)


def test_other_os_errors_of_a_build_are_bugs_and_are_not_converted(tmp_path):
    def build(folder):
        (folder / "missing").read_text()

    with pytest.raises(FileNotFoundError):
        build_or_reuse(scores_key(tmp_path), build)


def test_a_workdir_that_is_not_a_folder_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"Cannot create the folder .*--workdir"):
            build_or_reuse(scores_key(workdir), must_not_build)


def test_the_log_says_which_stages_were_built_and_reused(tmp_path, caplog):
    key = StageKey(tmp_path, "export", {}, {})
    with caplog.at_level(logging.INFO, "absl"):
        stage = build_or_reuse(key, write_result)
        build_or_reuse(key, must_not_build)
    assert f"export-{stage.fingerprint}: done in" in caplog.text
    assert f"export-{stage.fingerprint}: already done, reused" in caplog.text
    assert f"{tmp_path.name}/export" not in caplog.text


# Finding stages without building.


def test_find_stage_builds_nothing(tmp_path):
    assert find_stage(scores_key(tmp_path / "run", {"seed": 1})) is None
    assert not (tmp_path / "run").exists()
    teacher = build_or_reuse(teacher_key(tmp_path), write_result)
    key = scores_key(tmp_path, {"seed": 1}, teacher=teacher)
    stage = build_or_reuse(key, write_result)
    assert find_stage(key) == dataclasses.replace(stage, reused=True)
    assert find_stage(scores_key(tmp_path, {"seed": 2}, teacher=teacher)) is None
    assert find_stage(scores_key(tmp_path, {"seed": 1})) is None
    (stage.path / "stage.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        find_stage(key)


def test_the_closest_match_is_described_by_its_differences(tmp_path):
    assert describe_closest_match(scores_key(tmp_path, {"seed": 1})) == ""
    settings = {"seed": 1, "model": {"depth": 20, "rate": 0.5}}
    stage = build_or_reuse(scores_key(tmp_path, settings), write_result)
    far = {"seed": 2, "model": {"depth": 26, "rate": 0.5}}
    build_or_reuse(scores_key(tmp_path, far), write_result)
    wanted = {"seed": 3, "model": {"depth": 20, "rate": 0.5}}
    assert describe_closest_match(scores_key(tmp_path, wanted)) == (
        f" ({stage.path.name} has seed=1, not 3)"
    )
    wanted["model"] = {"depth": 20, "rate": 0.0}
    assert "seed=1, not 3, rate=0.5, not 0.0" in describe_closest_match(
        scores_key(tmp_path, wanted)
    )


def test_the_closest_match_may_lack_a_setting(tmp_path):
    stage = build_or_reuse(scores_key(tmp_path, {"seed": 1}), write_result)
    assert describe_closest_match(scores_key(tmp_path, {"version": 2, "seed": 1, "k": 0})) == (
        f" ({stage.path.name} has no k, no version)"
    )


def test_the_closest_match_names_inputs_and_few_settings(tmp_path):
    teachers = [build_or_reuse(teacher_key(tmp_path, seed=seed), write_result) for seed in (0, 1)]
    settings = {f"setting{number}": 0 for number in range(7)}
    stage = build_or_reuse(scores_key(tmp_path, settings, teacher=teachers[0]), write_result)
    key = scores_key(tmp_path, settings, teacher=teachers[1])
    assert describe_closest_match(key) == f" ({stage.path.name} has another teacher)"
    changed = {name: 1 for name in settings}
    description = describe_closest_match(scores_key(tmp_path, changed, teacher=teachers[1]))
    assert "setting2=0, not 1 and 5 more)" in description and "setting3" not in description


def test_digests_and_long_values_are_not_shown_in_the_closest_match(tmp_path):
    settings = {"labels": "0" * 64, "operations": "x" * 100, "content": {"dataset": {}}, "gone": 1}
    settings["content"]["dataset"]["sha256"] = "1" * 64
    build_or_reuse(scores_key(tmp_path, settings), write_result)
    wanted = {"labels": "2" * 64, "operations": "y" * 9, "content": {"dataset": {}}, "gone": 1}
    wanted["content"]["dataset"]["sha256"] = "3" * 64
    description = describe_closest_match(scores_key(tmp_path, wanted))
    assert "other content of labels, operations='" + "x" * 36 + "..., not 'yyy" in description
    assert description.endswith("other content of dataset)")
    del wanted["gone"]
    shown = describe_closest_match(scores_key(tmp_path, {**settings, "gone": 2}))
    assert "gone=1, not 2" in shown
    del settings["gone"]
    assert "gone=1, which is not used now" in describe_closest_match(scores_key(tmp_path, settings))


def test_only_files_that_differ_are_named_in_the_closest_match(tmp_path):
    def images(seed, dev, unlabeled):
        def build(folder):
            (folder / "dev").mkdir()
            (folder / "dev" / "0").write_text(dev)
            (folder / "unlabeled").write_text(unlabeled)
            return {}

        key = StageKey(tmp_path, "data/images", {"seed": seed}, {})
        return build_or_reuse(key, build).part("unlabeled", "dev")

    first = images(0, "a", "b")
    stage = build_or_reuse(scores_key(tmp_path, {}, images=first), write_result)
    for seed, dev, unlabeled, named in ((1, "a", "c", "unlabeled"), (2, "c", "b", "dev")):
        key = scores_key(tmp_path, {}, images=images(seed, dev, unlabeled))
        assert describe_closest_match(key) == f" ({stage.path.name} has other images ({named}))"
    shutil.rmtree(first.path)
    assert describe_closest_match(key) == (
        f" ({stage.path.name} has other images (unlabeled, dev))"
    )


def test_the_closest_match_of_an_unfinished_stage_is_itself(tmp_path):
    key = scores_key(tmp_path)
    key.partial_path.mkdir(parents=True)
    assert describe_closest_match(key) == " (it is unfinished)"


def test_stages_with_an_unreadable_manifest_are_not_the_closest_match(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "FORMAT", FORMAT - 1)
    build_or_reuse(scores_key(tmp_path, {"seed": 1}), write_result)
    monkeypatch.undo()
    assert describe_closest_match(scores_key(tmp_path, {"seed": 1})) == ""
    stage = build_or_reuse(scores_key(tmp_path, {"seed": 2, "top_k": 0}), write_result)
    assert describe_closest_match(scores_key(tmp_path, {"seed": 1, "top_k": 1})) == (
        f" ({stage.path.name} has seed=2, not 1, top_k=0, not 1)"
    )


# Builds that resume.


def resume(workdir, build, worker=0, num_workers=1, **settings):
    return build_or_reuse(
        scores_key(workdir, settings),
        build,
        resumes=True,
        worker=worker,
        num_workers=num_workers,
    )


def test_a_build_resumes_from_the_files_of_an_interrupted_one(tmp_path):
    def interrupt(folder):
        write(folder / "0.txt", "zero")
        raise KeyboardInterrupt

    def complete(folder):
        assert names_in(folder) == ["0.txt"]
        write(folder / "1.txt", "one")
        return {"files": 2}

    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path, interrupt)
    with pytest.raises(AssertionError):  # Another setting has a folder of its own.
        resume(tmp_path, complete, seed=1)
    stage = resume(tmp_path, complete)
    assert stage.counts == {"files": 2}
    assert names_in(stage.path) == ["0.txt", "1.txt", "stage.json"]
    assert resume(tmp_path, must_not_build).reused


def test_a_file_without_recorded_digest_is_rebuilt(tmp_path, caplog):
    """Whether it is as it was written cannot be known."""

    def interrupt(folder):
        (folder / "0.txt").write_text("zero")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path, interrupt)
    stage = resume(tmp_path, lambda folder: {"found": names_in(folder)})
    assert stage.counts == {"found": []}
    assert "0.txt is damaged: it is rebuilt" in caplog.text


def test_swapped_files_of_the_same_size_are_detected(tmp_path):
    def build(folder):
        for name in "ab":
            if not (folder / name).exists():
                write(folder / name, f"{name}'s")
        return None if interrupted else {}

    def swap(folder):
        (folder / "a").rename(folder / "c")
        (folder / "b").rename(folder / "a")
        (folder / "c").rename(folder / "b")
        assert (folder / "a").read_text() == "b's"

    interrupted = True
    resume(tmp_path, build)
    swap(scores_key(tmp_path).partial_path)
    interrupted = False
    stage = resume(tmp_path, build)
    assert [(stage.path / name).read_text() for name in "ab"] == ["a's", "b's"]
    swap(stage.path)
    with pytest.raises(UserError, match=r"a: its SHA-256 .*b: its SHA-256"):
        resume(tmp_path, must_not_build)


def test_unfinished_files_are_removed_before_a_build_resumes(tmp_path):
    def interrupt(folder):
        (folder / "0.txt.77.unfinished").write_text("ze")
        (folder / "model.unfinished").mkdir()
        (folder / "model.unfinished" / "model.keras").write_text("mo")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path, interrupt)
    stage = resume(tmp_path, lambda folder: {"found": names_in(folder)})
    assert stage.counts == {"found": []} and names_in(stage.path) == ["stage.json"]


def write_atomically(folder):
    write(folder / "result.txt", "x")
    return {}


def kill(*_, **__):
    raise KeyboardInterrupt


def test_the_manifest_of_a_killed_process_is_not_part_of_a_resumed_stage(
    tmp_path, monkeypatch, caplog
):
    """A process may be killed after it wrote the manifest and before it renamed the folder."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "rename", kill)
        resume(tmp_path, write_atomically)
    assert (scores_key(tmp_path).partial_path / "stage.json").exists()
    stage = resume(tmp_path, lambda folder: {"found": names_in(folder)})
    assert stage.counts == {"found": ["result.txt"]} and "is rebuilt" not in caplog.text
    assert set(json.loads((stage.path / "stage.json").read_text())["files"]) == {"result.txt"}
    assert not (stage.path / WRITTEN).exists()


def test_the_stage_of_a_process_killed_after_the_rename_is_reused(tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", kill)
        resume(tmp_path, write_atomically)
    path = scores_key(tmp_path).path
    assert (path / WRITTEN).exists()
    assert find_damage(path) == foreign_files(path) == []
    assert finished_stages(tmp_path) == [path]
    assert resume(tmp_path, must_not_build).reused
    assert not (path / WRITTEN).exists() and not caplog.records


def test_a_build_that_does_not_resume_starts_with_an_empty_folder(tmp_path):
    def interrupt(folder):
        write(folder / "half.txt", "half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_or_reuse(scores_key(tmp_path), interrupt)
    stage = build_or_reuse(scores_key(tmp_path), lambda folder: {"found": names_in(folder)})
    assert stage.counts == {"found": []}


# Several workers. Those in processes of their own are in locks_test.py.


def build_share(worker, num_workers, total=5):
    """A build of every `num_workers`-th of some files, complete if all of them exist."""

    def build(folder):
        for number in range(worker, total, num_workers):
            write(folder / f"{number}.txt", f"{number}")
        done = len(list(folder.glob("*.txt")))
        return {"files": done} if done == total else None

    return build


def test_the_last_worker_publishes_the_shares_of_all(tmp_path):
    assert resume(tmp_path, build_share(2, 3), 2, 3) is None
    assert resume(tmp_path, build_share(0, 3), 0, 3) is None
    key = scores_key(tmp_path)
    assert find_stage(key) is None
    assert names_in(key.partial_path) == ["0.txt", "2.txt", "3.txt"]
    (key.partial_path / "4.txt.999.unfinished").write_text("of a killed worker")
    stage = resume(tmp_path, build_share(1, 3), 1, 3)
    assert stage.counts == {"files": 5} and not stage.reused
    names = [f"{number}.txt" for number in range(5)]
    assert names_in(stage.path) == [*names, "stage.json"]
    assert set(json.loads((stage.path / "stage.json").read_text())["files"]) == set(names)
    assert resume(tmp_path, must_not_build, 0, 3).reused


def test_a_worker_may_run_again_until_the_others_have_finished(tmp_path):
    for _ in range(2):
        assert resume(tmp_path, build_share(0, 2), 0, 2) is None
    # A single process completes what workers have left.
    assert resume(tmp_path, build_share(0, 1)).counts == {"files": 5}


def test_one_of_several_workers_does_not_delete_a_damaged_file(tmp_path):
    resume(tmp_path, build_share(0, 2), 0, 2)
    damaged = scores_key(tmp_path).partial_path / "2.txt"
    damaged.write_text("3")
    with pytest.raises(UserError, match=r"2\.txt is damaged: stop the other workers, delete"):
        resume(tmp_path, must_not_build, 1, 2)
    assert damaged.exists()


def test_if_two_workers_find_the_stage_complete_one_publishes_it_and_both_get_it(tmp_path):
    """Both have seen the last file before either has published: the second one finds it done."""
    both_complete = threading.Barrier(2)

    def build(folder):
        build_share(0, 1)(folder)
        both_complete.wait(timeout=60)
        return {"files": 5}

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        stages = list(pool.map(lambda worker: resume(tmp_path, build, worker, 2), range(2)))
    assert sorted(stage.reused for stage in stages) == [False, True]
    assert stages[0].path == stages[1].path
    assert stages[0].counts == stages[1].counts == {"files": 5}
    assert names_in(tmp_path / "gen1") == [stages[0].path.name]


def test_a_published_stage_leaves_no_lock(tmp_path):
    for worker in range(3):
        stage = resume(tmp_path, build_share(worker, 3), worker, 3)
    assert names_in(tmp_path / "gen1") == [stage.path.name]
