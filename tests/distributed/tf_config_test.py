"""TF_CONFIG and its addresses are checked before any worker waits for others."""

import json
import socket

import pytest

from nsk.distributed.tf_config import EXAMPLE, Cluster, check_hosts, check_port, read_tf_config
from nsk.errors import UserError

TASK = {"type": "worker", "index": 0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "without TF_CONFIG: expected TF_CONFIG="),
        ("{", r"not valid \(JSONDecodeError"),
        ("[]", r"not valid \(TypeError"),
        ('{"cluster": {"worker": ["a:1"]}}', r"not valid \(KeyError: 'task'"),
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
            (
                json.dumps({"cluster": {"worker": [address]}, "task": TASK}),
                f"'{address}', which is not host:port",
            )
            for address in ("a", "a:b", "a:0", "a:99999", ":1")
        ),
    ],
)
def test_an_invalid_tf_config_is_a_user_error_with_an_example(text, message):
    with pytest.raises(UserError, match=message) as error:
        read_tf_config(text)
    assert EXAMPLE in str(error.value)
    assert "\n" not in str(error.value)


def test_the_example_of_tf_config_is_valid():
    cluster = read_tf_config(EXAMPLE)
    assert (cluster.index, cluster.count) == (0, 2)
    assert cluster.addresses == ["host0:2222", "host1:2222"]


def test_a_port_in_use_is_a_user_error():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} of worker 0 .*no earlier process"):
            check_port(Cluster([f"localhost:{port}", "localhost:1"], 0))
    check_port(Cluster([f"localhost:{port}"], 0))


def test_an_unknown_host_is_a_user_error():
    check_hosts(Cluster(["localhost:1", "127.0.0.1:2"], 0))
    with pytest.raises(
        UserError, match=r"'nosuchhost.invalid:1' of worker 1 .* cannot be resolved"
    ):
        check_hosts(Cluster(["localhost:1", "nosuchhost.invalid:1"], 0))
