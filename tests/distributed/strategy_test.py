import subprocess
import sys

import pytest
import tensorflow as tf

from nsk.distributed import strategy as strategies
from nsk.errors import UserError


def test_one_is_a_single_device_and_mirrored_takes_all():
    assert strategies.make_strategy("one").num_replicas_in_sync == 1
    mirrored = strategies.make_strategy("mirrored")
    assert mirrored.num_replicas_in_sync == len(tf.config.list_logical_devices("CPU")) == 2
    assert strategies.make_strategy("mirrored") is mirrored


@pytest.mark.parametrize(
    ("gpus", "expected"), [(0, "OneDevice"), (1, "OneDevice"), (2, "Mirrored")]
)
def test_auto_mirrors_where_there_are_several_gpus(monkeypatch, gpus, expected):
    cpus = tf.config.list_logical_devices("CPU")
    pretended = {"GPU": cpus[:gpus], "CPU": cpus}
    monkeypatch.setattr(tf.config, "list_logical_devices", pretended.__getitem__)
    strategy = strategies.make_strategy("auto")
    assert type(strategy).__name__.startswith(expected)
    assert strategy.num_replicas_in_sync == max(gpus, 1)


def test_the_cpu_is_split_before_it_is_used():
    script = (
        "import tensorflow as tf\n"
        "from nsk.distributed import strategy\n"
        "strategy.split_cpu(3)\n"
        "strategy.split_cpu(0)\n"
        "print(strategy.make_strategy('mirrored').num_replicas_in_sync)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "3"


def test_a_batch_that_does_not_divide_over_the_replicas_is_refused_by_name():
    mirrored = strategies.make_strategy("mirrored")
    strategies.check_divisible(mirrored, labeled_batch=6, pseudo_batch=18)
    strategies.check_divisible(strategies.make_strategy("one"), labeled_batch=7)
    with pytest.raises(UserError, match=r"pseudo batch of 17 images .* 2 replicas: .* of 2"):
        strategies.check_divisible(mirrored, labeled_batch=6, pseudo_batch=17)


def test_a_machine_without_a_tpu_is_told():
    with pytest.raises(UserError, match=r"the TPU 'local' cannot be used \(TPUs not found"):
        strategies.make_strategy("tpu", "local")
