import json

import tensorflow as tf

from nsk import noise
from tools import check_noise


def test_draws_that_differ_are_counted(capsys, monkeypatch):
    monkeypatch.setattr(check_noise, "SHAPES", ((5, 3),))
    cpu = tf.config.list_logical_devices("CPU")[:1]
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda: cpu)
    assert check_noise.main(["--keys=2"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["CPU:0 compiled"] == {"draws": 2 * (5 + 5 + 15), "differences": 0}
    monkeypatch.setattr(noise, "portable_uniform", noise.uniform)  # Other bits under XLA.
    assert check_noise.main(["--keys=2"]) == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["CPU:0 plain"]["differences"] == 0
    assert result["CPU:0 compiled"]["differences"] > 0
