"""Workers that TF_CONFIG joins, each a process of its own, as Ray Train has them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

LIMIT_S = 500


def run_workers(count: int, arguments: Callable[[int], Sequence[str]], **environment: str) -> None:
    """Run Python as each worker of a cluster, and wait until all have ended.

    Args:
        count: How many workers.
        arguments: Of Python, by the number of the worker.
        environment: Of the workers, beside what this process has.

    Raises:
        AssertionError: A worker failed; with its output. The others, which may wait for it, are
            ended.
    """
    with contextlib.ExitStack() as stack:
        # Held until the end, or another process might get a port before its worker has it.
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in held:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            each.bind(("127.0.0.1", 0))
        cluster = {"worker": [f"127.0.0.1:{each.getsockname()[1]}" for each in held]}
        pool = stack.enter_context(ThreadPoolExecutor(count))
        ends = {}
        for rank in range(count):
            config = {"cluster": cluster, "task": {"type": "worker", "index": rank}}
            output = stack.enter_context(tempfile.TemporaryFile("w+"))
            process = subprocess.Popen(
                [sys.executable, *arguments(rank)],
                env={
                    **os.environ,
                    "TF_CONFIG": json.dumps(config),
                    "TF_GRPC_REUSE_PORT": "1",
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                    **environment,
                },
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            stack.callback(process.kill)
            ends[pool.submit(process.wait)] = output
        for end in as_completed(ends, timeout=LIMIT_S):
            if end.result():
                ends[end].seek(0)
                raise AssertionError(ends[end].read())
