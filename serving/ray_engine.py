"""The application on Ray Serve: the same answers, from any number of replicas."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from recsys.cores import cores_at_hand
from recsys.errors import UserError
from recsys.quiet_ray import ENVIRONMENT, quiet_ray
from serving.live import Live
from serving.logs import NAME
from serving.metrics import Metrics

log = logging.getLogger(NAME)

APPLICATION = "recsys"

# HAProxy in front of the replicas answers sooner than the default proxy, which runs in Python. Ray
# reads these when it is imported, and its processes inherit them.
SETTINGS = {
    **ENVIRONMENT,
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # On a busy machine the proxies take longer to start than the five seconds that Ray allows.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    # HAProxy is told of a replica that goes at once; half a minute is for other balancers.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
}

REPLICA_CPUS = 0.5
"""What a replica claims of a node, so that it fits beside Ray's own actors on two cores."""

ANSWER_SECONDS = 60
"""How long a service that has been started may take to be reached at its address."""


def preflight(models: Path, features: Path) -> None:
    """Load once what each replica will, to fail here, with the reason, and before Ray starts.

    Raises:
        UserError: There is no version that can serve, or the tables are of other features.
    """
    Live(models, features, Metrics())


def serve_on_ray(
    models: str | Path,
    features: str | Path,
    host: str,
    port: int,
    ready: Callable[[str], None],
    *,
    poll_seconds: float = 2.0,
    threads: int | None = None,
    replicas: int = 1,
    ray_address: str | None = None,
) -> None:
    """As `serving.engine.serve`, on Ray Serve.

    Raises:
        UserError: As for `serve`, and where Ray cannot start the service, or a cluster's Serve
            listens elsewhere.
    """
    from serving.engine import listen, port_of, url_of

    if ray_address is None or not port:
        # Ray's own processes will listen; this one only finds out whether they can. The port of
        # a cluster may be in use by the very Serve that is to answer there.
        listener = listen(host, port)
        port = port_of(listener)
        listener.close()
    url = url_of(host, port)
    models, features = Path(models).absolute(), Path(features).absolute()
    preflight(models, features)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    log.info("starting Ray%s", f" at {ray_address}" if ray_address else "")
    stop = threading.Event()
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    _stop_by_signal(stop)
    import ray
    from ray import serve

    deployed = False
    try:
        with quiet_ray():
            _connect(ray_address)
            _stop_by_signal(stop)  # ray.init has put a handler of its own in place
            _start(host, port)
            _require_port(url, port)
            application = deployment(models, features, poll_seconds, threads, replicas).bind()
            deployed = True
            log.info("starting %d replica%s", replicas, "" if replicas == 1 else "s")
            serve.run(application, name=APPLICATION, route_prefix="/")
            _require_answer(url, stop)
        if not stop.is_set():
            ready(url)
        with quiet_ray():
            stop.wait()
    except (
        ray.exceptions.RayError,
        serve.exceptions.RayServeException,
        RuntimeError,
        ConnectionError,
        TimeoutError,
    ) as error:
        raise UserError(
            "Ray Serve could not start the service.",
            where=url,
            found=_last_line(error),
            fix="See the replica's log below /tmp/ray/session_latest/logs/serve, or "
            "use --engine local.",
        ) from error
    finally:
        if ray.is_initialized():
            # Ray prints that its controller, which it has just ended, has failed.
            with quiet_ray(), contextlib.redirect_stdout(io.StringIO()):
                if ray_address is None:
                    serve.shutdown()
                elif deployed:
                    serve.delete(APPLICATION)  # a cluster's Serve may have others, which go on
                ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            for each, handler in before.items():
                signal.signal(each, handler)


def _connect(address: str | None) -> None:
    import ray

    try:
        ray.init(
            # Without an address Ray would join a cluster that it finds on this machine.
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level="ERROR",
            **({} if address else {"num_cpus": max(2, cores_at_hand())}),
        )
    except (ray.exceptions.RayError, RuntimeError, ValueError, OSError) as error:
        if address is None:
            raise
        raise UserError(
            "The Ray cluster cannot be reached.",
            where=address,
            expected="HOST:PORT of a running cluster, or auto for one of this machine",
            found=_last_line(error),
            fix="Start one with: ray start --head, or leave --ray-address out.",
        ) from error


def _require_port(url: str, port: int) -> None:
    """Refuse a cluster whose Serve ran before, on another port: it keeps that.

    Raises:
        UserError: It listens elsewhere.
    """
    if _http_options().port != port:
        raise _unreachable(url)


def _require_answer(url: str, stop: threading.Event) -> None:
    """Wait until the service answers where it is said to.

    Raises:
        UserError: It does not.
    """
    for _ in range(ANSWER_SECONDS):
        try:
            if httpx.get(f"{url}/readyz", timeout=10).is_success:
                return
        except httpx.TransportError:
            pass
        if stop.wait(1):
            return
    raise _unreachable(url)


def _unreachable(url: str) -> UserError:
    options = _http_options()
    return UserError(
        "The service does not answer where it should.",
        where=url,
        expected="Ray Serve at this address",
        found=f"the cluster's Serve listens on {options.host}:{options.port}",
        fix="Take that address with --host and --port, or end that Serve with: serve shutdown",
    )


def _http_options() -> Any:
    """Where the cluster's Serve listens; it has no public call that says so."""
    from ray.serve.context import _get_global_client

    return _get_global_client().http_config


def _last_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[-1]


def _stop_by_signal(stop: threading.Event) -> None:
    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread may be told by signals
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: stop.set())


def deployment(
    models: Path, features: Path, poll_seconds: float, threads: int | None, replicas: int
) -> Any:
    """The application as a Ray Serve deployment."""
    from ray import serve

    def build() -> Any:
        """The application, built in the replica."""
        from serving.app import create_app
        from serving.logs import log_to_stderr
        from serving.scorer import set_apart

        log_to_stderr()
        set_apart()
        return create_app(models, features, poll_seconds=poll_seconds, threads=threads)

    # Ray calls what is a plain function, and takes anything else for an application.
    @serve.deployment(
        name="rank",
        num_replicas=replicas,
        # The application turns requests away itself, with a reason, at its own limit.
        max_ongoing_requests=256,
        ray_actor_options={"num_cpus": REPLICA_CPUS},
        graceful_shutdown_timeout_s=10,
        graceful_shutdown_wait_loop_s=0.1,
    )
    @serve.ingress(build)
    class Rank:
        """Serves the application; all its routes are the application's own."""

    return Rank


def _start(host: str, port: int, attempts: int = 3) -> None:
    """Start Ray Serve's proxies; Ray's own wait is a fixed minute, short for a busy machine."""
    from ray import serve

    for attempt in range(attempts):
        try:
            serve.start(
                http_options={"host": host, "port": port},
                logging_config={"log_level": "WARNING", "enable_access_log": False},
            )
            return
        except TimeoutError:
            if attempt + 1 == attempts:
                raise
