"""What TF_CONFIG says, and what can be known of its addresses before anyone waits for them."""

import json
import socket

import pytest

from nsk.distributed import tf_config as cluster
from nsk.errors import UserError

TASK = {"type": "worker", "index": 0}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "without TF_CONFIG: expected TF_CONFIG="),
        ("{", r"not understood \(JSONDecodeError"),
        ("[]", r"not understood \(TypeError"),
        ('{"cluster": {"worker": ["a:1"]}}', r"not understood \(KeyError: 'task'"),
        ('{"cluster": {"worker": "a:1"}, "task": {"type": "worker", "index": 0}}', "workers 'a:1'"),
        (
            '{"cluster": {"worker": ["a"], "ps": ["b"]}, "task": {"type": "worker", "index": 0}}',
            "names ps, worker",
        ),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}',
            "names chief, worker",
        ),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
            "the index 1 of 1 workers",
        ),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0.7}}',
            "index 0.7",
        ),
        (
            '{"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}',
            "'a:1' to two workers",
        ),
        *(
            (json.dumps({"cluster": {"worker": [one]}, "task": TASK}), f"'{one}', no host:port")
            for one in ("a", "a:b", "a:0", "a:99999", ":1")
        ),
    ],
)
def test_a_wrong_tf_config_is_told_in_one_line_with_an_example(text, said):
    with pytest.raises(UserError, match=said) as error:
        cluster.read_tf_config(text)
    assert cluster.EXAMPLE in str(error.value)
    assert "\n" not in str(error.value)


def test_the_example_of_tf_config_is_right():
    told = cluster.read_tf_config(cluster.EXAMPLE)
    assert (told.index, told.count) == (0, 2)


def test_a_port_that_is_taken_is_told_before_anyone_waits():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} of worker 0 .*no earlier process"):
            cluster.check_port(cluster.Cluster([f"localhost:{port}", "localhost:1"], 0))
    cluster.check_port(cluster.Cluster([f"localhost:{port}"], 0))


def test_a_host_that_nobody_knows_is_told():
    cluster.check_hosts(cluster.Cluster(["localhost:1", "127.0.0.1:2"], 0))
    with pytest.raises(UserError, match=r"'nosuchhost.invalid:1' of worker 1 .* is not known"):
        cluster.check_hosts(cluster.Cluster(["localhost:1", "nosuchhost.invalid:1"], 0))
