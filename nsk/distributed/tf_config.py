"""The machines of a run from TF_CONFIG, checked before TensorFlow waits for them.

While TensorFlow waits, it handles no signals and its messages are vague, so errors are reported
before if possible.

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
    """The workers of a run, and the index of this process.

    Attributes:
        addresses: host:port of each worker.
        index: index of this process in it.
    """

    addresses: list[str]
    index: int

    @property
    def count(self) -> int:
        """Number of workers."""
        return len(self.addresses)


def read_tf_config(text: str) -> Cluster:
    """The `Cluster` that TF_CONFIG describes.

    Args:
        text: the environment variable's value.

    Raises:
        UserError: TensorFlow would not accept it.
    """
    expected = f"expected TF_CONFIG='{EXAMPLE}', with each process's own index."
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
        raise UserError(f"TF_CONFIG is not valid ({reason}): {expected}") from None
    if kinds != {"worker"} or kind != "worker":
        raise UserError(f"TF_CONFIG names {', '.join(sorted(kinds | {kind}))}: {expected}")
    if not 0 <= index < len(workers):
        raise UserError(f"TF_CONFIG has the index {index} of {len(workers)} workers: {expected}")
    for address in workers:
        port = re.fullmatch(r".+:([0-9]+)", address)
        if not port or not 0 < int(port[1]) < 2**16:
            raise UserError(
                f"TF_CONFIG has the address {address!r}, which is not host:port: {expected}"
            )
        if workers.count(address) > 1:
            raise UserError(f"TF_CONFIG gives the address {address!r} to two workers: {expected}")
    return Cluster(workers, index)


def check_port(cluster: Cluster) -> None:
    """UserError if the port of this worker is in use."""
    _, port = cluster.addresses[cluster.index].rsplit(":", 1)
    with socket.socket() as listener:
        # A process that has ended does not hold the port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", int(port)))
        except OSError as error:
            raise UserError(
                f"The port {port} of worker {cluster.index} in TF_CONFIG cannot be used "
                f"({error.strerror}): check that no earlier process holds it, or give another one."
            ) from None


def check_hosts(cluster: Cluster) -> None:
    """UserError if a worker's host has no address."""
    for number, address in enumerate(cluster.addresses):
        host, port = address.rsplit(":", 1)
        try:
            socket.getaddrinfo(host.strip("[]"), int(port))
        except OSError as error:
            raise UserError(
                f"The address {address!r} of worker {number} in TF_CONFIG cannot be resolved "
                f"({error.strerror}): give a host that this machine can reach."
            ) from None
