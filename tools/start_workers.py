"""Starts the workers of one run as processes of this machine, to try --strategy=multi_worker.

    python -m tools.start_workers --workers=2 --flagfile=flags/quickstart.flags --workdir=runs/two

Every other flag goes to `python -m nsk.main`. On several machines each one starts its own process
with its own TF_CONFIG; see README. Worker 0 writes to this terminal, the others to
WORKDIR/worker-N.log. A signal goes to all of them. The exit code is that of a worker which failed
by itself, else 75 where they were stopped.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from nsk.main import OK, STOPPED


def tf_configs(count):
    """TF_CONFIG of each of `count` workers on free ports of this machine: a list of strings."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    workers = [f"localhost:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    return [
        json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}})
        for index in range(count)
    ]


def start(commands, logs=None):
    """Starts a process for each command, each with its TF_CONFIG.

    Args:
        commands: list of lists of strings.
        logs: list of paths that output is appended to; None in it or for it: this terminal.

    Returns:
        list of `subprocess.Popen`.
    """
    logs = logs or [None] * len(commands)
    processes = []
    for command, config, log in zip(commands, tf_configs(len(commands)), logs, strict=True):
        with open(log or os.devnull, "a") as file:
            output = file if log else None
            processes.append(
                subprocess.Popen(
                    command,
                    env={**os.environ, "TF_CONFIG": config},
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # Ctrl-C reaches this process, which passes it on.
                )
            )
    return processes


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--workdir", type=Path, required=True)
    options, flags = parser.parse_known_args(arguments)
    if options.workers < 1:
        parser.error(f"--workers={options.workers}: expected at least 1")
    options.workdir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "nsk.main", *flags]
    command += ["--strategy=multi_worker", f"--workdir={options.workdir}"]
    numbers = range(1, options.workers)
    logs = [None, *(options.workdir / f"worker-{number}.log" for number in numbers)]
    processes = []

    def pass_on(number, frame):
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)
        if not processes:
            raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    processes += start([command] * options.workers, logs)
    while any(process.poll() is None for process in processes):
        time.sleep(0.1)
    codes = [process.returncode for process in processes]
    for index, code in enumerate(codes):
        print(
            f"worker {index}: " + (f"killed by signal {-code}" if code < 0 else f"exit code {code}")
        )
    own = [code for code in codes if code > 0 and code != STOPPED]
    return own[0] if own else STOPPED if any(codes) else OK


if __name__ == "__main__":
    sys.exit(main())
