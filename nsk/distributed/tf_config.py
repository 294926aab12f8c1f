"""The machines of a run by TF_CONFIG, checked before TensorFlow waits for them.

TensorFlow's own waiting hears no signals and says little, so what can be seen before is told
before.

Reference: [Multi-worker training](https://www.tensorflow.org/tutorials/distribute/multi_worker_with_keras)
"""

import dataclasses
import json
import re
import socket

from nsk.errors import UserError

EXAMPLE = (
    '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a run and which one this process is.

    Attributes:
        addresses: list of strings, host:port of each worker.
        index: int, this process's place in it.
    """

    addresses: list
    index: int

    @property
    def count(self):
        return len(self.addresses)


def read_tf_config(text):
    """The `Cluster` that TF_CONFIG tells of.

    Args:
        text: the environment variable's value.

    Raises:
        UserError: TensorFlow would not understand it.
    """
    expected = f"expected TF_CONFIG='{EXAMPLE}', the index being each process's own."
    if not text:
        raise UserError(f"--strategy=multi_worker without TF_CONFIG: {expected}")
    try:
        config = json.loads(text)
        workers, task = config["cluster"]["worker"], config["task"]
        kinds, kind, index = set(config["cluster"]), task["type"], task["index"]
        if not isinstance(index, int):
            raise ValueError(f"index {index!r}")
        if not all(isinstance(address, str) for address in workers) or isinstance(workers, str):
            raise ValueError(f"workers {workers!r}")
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"TF_CONFIG is not understood ({reason}): {expected}") from None
    if kinds != {"worker"} or kind != "worker":
        raise UserError(f"TF_CONFIG names {', '.join(sorted(kinds | {kind}))}: {expected}")
    if not 0 <= index < len(workers):
        raise UserError(f"TF_CONFIG has the index {index} of {len(workers)} workers: {expected}")
    for address in workers:
        port = re.fullmatch(r".+:([0-9]+)", address)
        if not port or not 0 < int(port[1]) < 2**16:
            raise UserError(f"TF_CONFIG has the address {address!r}, no host:port: {expected}")
        if workers.count(address) > 1:
            raise UserError(f"TF_CONFIG gives the address {address!r} to two workers: {expected}")
    return Cluster(workers, index)


def check_port(cluster):
    """UserError where the port of this worker is taken."""
    _, port = cluster.addresses[cluster.index].rsplit(":", 1)
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # An ended process is no owner.
        try:
            one.bind(("", int(port)))
        except OSError as error:
            raise UserError(
                f"The port {port} of worker {cluster.index} in TF_CONFIG cannot be had "
                f"({error.strerror}): see that no earlier process holds it, or give another one."
            ) from None


def check_hosts(cluster):
    """UserError where a worker's host has no address."""
    for number, address in enumerate(cluster.addresses):
        host, port = address.rsplit(":", 1)
        try:
            socket.getaddrinfo(host.strip("[]"), int(port))
        except OSError as error:
            raise UserError(
                f"The address {address!r} of worker {number} in TF_CONFIG is not known "
                f"({error.strerror}): give a host that this machine can reach."
            ) from None
