"""Starts the workers of a run as processes of this machine, to try --strategy=multi_worker.

    python -m tools.start_workers --workers=2 --flagfile=flags/quickstart.flags --workdir=runs/two

All other flags are passed to `python -m nsk.main`. On several machines, run `nsk.main` on each of
them with a TF_CONFIG of its own instead. Worker 0 writes to this terminal, the others to
WORKDIR/worker-N.log. Signals are forwarded to all of them. The exit code is that of a worker that
failed; if the workers were only stopped, 75.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from nsk.main import OK, STOPPED


def tf_configs(count: int) -> list[str]:
    """TF_CONFIG of each of `count` workers on free ports of this machine."""
    servers = [socket.create_server(("localhost", 0)) for _ in range(count)]
    workers = [f"localhost:{server.getsockname()[1]}" for server in servers]
    for server in servers:
        server.close()
    return [
        json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}})
        for index in range(count)
    ]


def start(
    commands: Sequence[Sequence[str]], logs: Sequence[Path | None] | None = None
) -> list[subprocess.Popen]:
    """Starts a worker with its TF_CONFIG for each command.

    Args:
        commands: command lines.
        logs: file that each worker's output is appended to; None: this terminal.
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
                    start_new_session=True,  # Ctrl-C reaches this process, which forwards it.
                )
            )
    return processes


def main(arguments: Sequence[str] | None = None) -> int:
    """Starts the workers, forwards signals to them and returns the run's exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2, help="number of processes")
    parser.add_argument("--workdir", type=Path, required=True, help="the run's workdir")
    options, flags = parser.parse_known_args(arguments)
    if options.workers < 1:
        parser.error(f"--workers={options.workers}: expected at least 1.")
    options.workdir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "nsk.main", *flags]
    command += ["--strategy=multi_worker", f"--workdir={options.workdir}"]
    other_workers = range(1, options.workers)
    logs = [None, *(options.workdir / f"worker-{index}.log" for index in other_workers)]
    processes = []

    def forward_signal(signal_number, frame):
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal_number)
        if not processes:
            raise KeyboardInterrupt

    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, forward_signal)
    processes += start([command] * options.workers, logs)
    while any(process.poll() is None for process in processes):
        time.sleep(0.1)
    codes = [process.returncode for process in processes]
    for index, code in enumerate(codes):
        outcome = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        print(f"worker {index}: {outcome}")
    failures = [code for code in codes if code > 0 and code != STOPPED]
    if failures:
        return failures[0]
    return STOPPED if any(codes) else OK


if __name__ == "__main__":
    sys.exit(main())
