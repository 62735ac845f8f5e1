"""Runs the application until it is told to stop: in this process, or on Ray Serve."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import uvicorn

from recsys.errors import EXIT_WRONG_USE, UserError
from serving.app import create_app
from serving.logs import NAME
from serving.scorer import set_apart

log = logging.getLogger(NAME)

Engine = Literal["local", "ray"]

GRACE_SECONDS = 10
"""How long requests at work may take when the service is told to stop."""


def serve(
    models: str | Path,
    features: str | Path,
    host: str = "127.0.0.1",
    port: int = 8501,
    engine: Engine = "local",
    ready: Callable[[str], None] | None = None,
    *,
    poll_seconds: float = 2.0,
    threads: int | None = None,
    replicas: int = 1,
    ray_address: str | None = None,
) -> None:
    """Serve the newest good version until SIGINT or SIGTERM; requests at work are finished.

    Work that is left behind its deadline then ends with the process, which this function ends.

    Args:
        models: Folder of published versions (`recsys publish`).
        features: Folder of the feature job (`recsys features`).
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        engine: `local` (one process) or `ray` (Ray Serve, for replicas on a cluster).
        ready: Called with the URL once requests are answered; by default it is printed.
        poll_seconds: How often the folders are looked at for something new.
        threads: Requests that a process works on at once; by default one a core.
        replicas: Processes under Ray Serve.
        ray_address: A Ray cluster; by default one of this machine's own.

    Raises:
        UserError: The port is in use, there is no version that can serve, or the tables are
            of other features.
    """
    ready = ready or announce
    if engine == "ray":
        from serving.ray_engine import serve_on_ray

        serve_on_ray(
            models,
            features,
            host,
            port,
            ready,
            poll_seconds=poll_seconds,
            threads=threads,
            replicas=replicas,
            ray_address=ray_address,
        )
        return
    if engine != "local":
        raise UserError(
            "There is no such engine.",
            expected="local or ray",
            found=str(engine),
            exit_code=EXIT_WRONG_USE,
        )
    listener = listen(host, port)
    try:
        set_apart()
        app = create_app(models, features, poll_seconds=poll_seconds, threads=threads)
        Server(app, ready, url_of(host, port_of(listener))).run(sockets=[listener])
    finally:
        listener.close()
    if app.state.rank.at_work or app.state.live.watching:
        _leave_behind(app.state.rank.at_work)


def _leave_behind(late: int) -> None:
    """End the process, whatever its threads are at: nobody waits for them any longer.

    Python would wait, and TensorFlow cannot be stopped within a graph.
    """
    log.warning("the service ends in spite of threads at work (%d late requests)", late)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def announce(url: str) -> None:
    """Say where the service listens."""
    print(f"Listening on {url} (POST {url}/v1/rank, {url}/docs)", file=sys.stderr, flush=True)


class Server(uvicorn.Server):
    """Uvicorn, which says when it answers."""

    def __init__(self, app: Any, ready: Callable[[str], None], url: str) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE_SECONDS,
                timeout_keep_alive=30,
            )
        )
        self._ready = ready
        self._url = url

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM as what they are here: a service that is told to end, ends."""
        with super().capture_signals():
            yield
            # Uvicorn would raise them again, so that a graceful end looked like a failure.
            self._captured_signals.clear()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then call `ready`."""
        await super().startup(sockets)
        if not self.should_exit:
            self._ready(self._url)


@contextmanager
def running(
    models: str | Path, features: str | Path, host: str = "127.0.0.1", port: int = 0, **options: Any
) -> Iterator[str]:
    """The local engine in a thread of this process, as a context: gives the URL.

    Args:
        models: As for `serve`.
        features: As for `serve`.
        host: As for `serve`.
        port: As for `serve`.
        options: Further arguments of `create_app`.

    Raises:
        UserError: As for `serve`.
    """
    listener = listen(host, port)
    try:
        app = create_app(models, features, **options)
        up = threading.Event()
        url = url_of(host, port_of(listener))
        server = Server(app, lambda _: up.set(), url)
        thread = threading.Thread(
            target=lambda: asyncio.run(server.serve(sockets=[listener])), name="server", daemon=True
        )
        thread.start()
        try:
            while not up.wait(0.05):
                if not thread.is_alive():
                    raise UserError(
                        "The service did not start.",
                        where=url,
                        fix="See the log above.",
                    )
            yield url
        finally:
            server.should_exit = True
            thread.join(timeout=GRACE_SECONDS + 5)
    finally:
        listener.close()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        UserError: The address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except (OSError, OverflowError) as error:
        listener.close()
        in_use = getattr(error, "errno", None) == errno.EADDRINUSE
        raise UserError(
            f"Port {port} is in use." if in_use else "The service cannot listen there.",
            where=f"{host}:{port}",
            found=str(error),
            fix="Stop what uses it, or take another with --port (0 finds a free one)."
            if in_use
            else "Check --host and --port.",
        ) from None
    return listener


def port_of(listener: socket.socket) -> int:
    """The port of a listener."""
    return int(listener.getsockname()[1])


def url_of(host: str, port: int) -> str:
    """The URL of a service that listens there."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
