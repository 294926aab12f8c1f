import importlib.util
import json
import subprocess
import sys

import pytest

from tools import benchmark_models, benchmark_step_memory


@pytest.mark.slow
def test_the_same_network_is_timed_on_both_sides(capsys):
    small = ["--image_size=32", "--large_batch=2", "--rounds=1", "--steps=1"]
    benchmark_models.main(["--parts=keras", *small])
    printed = capsys.readouterr().out
    result = json.loads(printed.splitlines()[-1])
    timed = result["details"]["efficientnet_b0"]
    assert timed["images_per_second"] > 0 and timed["baseline"] > 0
    assert result["ratio"]["efficientnet_b0"] == pytest.approx(timed["ratio"], abs=1e-3)
    assert "ours" in printed and "keras.applications" in printed


@pytest.mark.slow
def test_the_memory_of_every_method_is_measured():
    def run(*arguments):
        # In an intermediate process, as ru_maxrss of a child starts at the size of its parent.
        command = [sys.executable, "-m", "tools.benchmark_step_memory", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run("--model=convnet5", "--image_size=16", "--batch=4")
    result = json.loads(done.stdout.splitlines()[-1])
    assert list(result) == list(benchmark_step_memory.METHODS)
    assert all(
        measured["mebibytes"] > 0 and measured["seconds"] >= 0 for measured in result.values()
    )
    wrong = run("--model=convnet55")
    assert wrong.returncode == 2 and "unknown network 'convnet55'" in wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1


def test_keras_network_is_ours_without_noise():
    theirs = benchmark_models.keras_efficientnet(image_size=32, num_classes=1000)
    ours = benchmark_models.models.build_model("efficientnet_b0", num_classes=1000, image_size=32)
    trainable = benchmark_models.trainable_parameters
    assert trainable(theirs) == trainable(ours) == 5_288_548
    assert not any(getattr(layer, "rate", 0) for layer in theirs.layers)


@pytest.mark.parametrize(
    "arguments, message",
    [(["--parts=jax"], "--parts=jax"), (["--parts=pytorch"], "pip install torch")],
)
def test_an_unavailable_comparison_is_reported_in_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stopped:
        benchmark_models.main(arguments)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


ANSWERS = """#!{python}
import sys
for line in sys.stdin:
    print('{{"images_per_second": 80.0, "first_seconds": 1.5, "parameters": {parameters}}}')
    sys.stdout.flush()
"""


@pytest.fixture
def fake_pytorch(tmp_path):
    """Function of a number of parameters that returns the path of a program that answers so."""

    def write(parameters):
        path = tmp_path / "python"
        path.write_text(ANSWERS.format(python=sys.executable, parameters=parameters))
        path.chmod(0o755)
        return f"--torch_python={path}"

    return write


SMALL = [
    "--device=gpu",
    "--parts=resnet20",
    "--rounds=3",
    "--steps=1",
    '--gpu_sizes={"batch_size": 4, "image_size": 8}',
]


@pytest.mark.slow
def test_ways_to_train_are_timed_in_turn(fake_pytorch, capsys):
    ways = "--ways=plain_float32,compiled_bf16,pytorch_bf16"
    benchmark_models.main([*SMALL, ways, fake_pytorch(269_818)])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    details = result["details"]["resnet20"]
    assert list(details) == ["plain_float32", "compiled_bf16", "pytorch_bf16"]
    for timed in details.values():
        assert sorted(timed["rounds"])[1] == timed["images_per_second"] > 0
        assert timed["first_seconds"] > 0
    ours = max(details[way]["images_per_second"] for way in ("plain_float32", "compiled_bf16"))
    assert result["ratio"]["resnet20"] == pytest.approx(ours / 80.0, abs=1e-3)


def test_another_network_of_pytorch_is_refused(fake_pytorch):
    with pytest.raises(SystemExit, match="resnet20 has 1,234 parameters in PyTorch, 269,818 here"):
        benchmark_models.main([*SMALL, "--ways=pytorch_float32", fake_pytorch(1234)])


@pytest.mark.parametrize("argument", ["--parts=resnet21", "--ways=jax"])
def test_unknown_networks_and_ways_are_refused(argument, capsys):
    with pytest.raises(SystemExit) as stopped:
        benchmark_models.main(["--device=gpu", argument])
    assert stopped.value.code == 2 and argument in capsys.readouterr().err
