"""The results of killed runs are compared with those of an undisturbed run."""

import json

import pytest

from tools import chaos


@pytest.mark.parametrize("signal", ["KILL", pytest.param("TERM", marks=pytest.mark.slow)])
def test_a_small_killed_run_has_the_results_of_an_undisturbed_run(capsys, signal):
    arguments = ["--kills=1", f"--signal={signal}", "--seed=2", "--flags=--train_images=3000"]
    assert chaos.main(arguments)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["kills"] == 1 and result["identical"]
    assert result["damaged_checkpoints"] == result["repeated_steps"] == 0


def test_repeated_steps_lie_between_a_stop_and_the_resumed_step():
    lines = [
        "12:00:00 gen0/teacher convnet5: resumes from step 5 of 30",
        "12:00:00 gen0/teacher convnet5: stopped after step 12 of 30",
        "12:00:01 gen0/teacher convnet5: resumes from step 12 of 30",
        "12:00:02 gen1/student convnet5: stopped after step 9 of 30",
        "12:00:02 gen1/student convnet5: resumes from step 6 of 30",
        "12:00:02 gen1/student convnet5: resumes from step 6 of 30",
    ]
    assert chaos.repeated_steps(lines[:3]) == 0
    assert chaos.repeated_steps(lines) == 3
    assert chaos.repeated_steps(lines[:2]) == 12  # It restarts, without a message.
    assert chaos.repeated_steps([*lines[:2], *lines[1:3]]) == 12
