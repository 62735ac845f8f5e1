"""The application on Ray Serve: the same answers, from any number of replicas."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recsys.errors import UserError
from serving.store import LocalStore
from serving.versions import Swap, decide, scan

APPLICATION = "recsys"

# HAProxy in front of the replicas answers sooner than the default proxy, which runs in Python. Ray
# reads these when it is imported, and its processes inherit them.
SETTINGS = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # On a busy machine the proxies take longer to start than the five seconds that Ray allows.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    # HAProxy is told of a replica that goes at once; half a minute is for other balancers.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    "RAY_USAGE_STATS_ENABLED": "0",
}

REPLICA_CPUS = 0.5
"""What a replica claims of a node, so that it fits beside Ray's own actors on two cores."""


def preflight(models: Path, features: Path) -> None:
    """Fail here, with the reason, rather than in a replica. Loads no model.

    Raises:
        UserError: There is no version that can serve, or the tables are of other features.
    """
    store = LocalStore(features)
    *refusals, last = decide(scan(models), None, {}, [store.fingerprint])
    if not isinstance(last, Swap):
        found = "; ".join(f"version {each.version}: {each.reason}" for each in refusals)  # type: ignore[union-attr]
        raise UserError(
            "There is no model version that can serve.",
            where=str(models),
            expected=f"a whole version, built from features {store.fingerprint} ({features})",
            found=found or "no version (a version is a folder named by an integer)",
            fix="Publish one with: recsys publish RUN --models MODELS",
        )


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
        UserError: As for `serve`, and where Ray cannot start the service.
    """
    from serving.engine import listen, url_of

    # Ray's own processes will listen; this one only finds out whether they can.
    listener = listen(host, port)
    url, port = url_of(host, listener), listener.getsockname()[1]
    listener.close()
    models, features = Path(models).absolute(), Path(features).absolute()
    preflight(models, features)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    stop = threading.Event()
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    _stop_by_signal(stop)
    import ray
    from ray import serve

    try:
        ray.init(
            address=ray_address,
            include_dashboard=None if ray_address else False,
            log_to_driver=False,
            logging_level="WARNING",
            **({} if ray_address else {"num_cpus": max(2, os.cpu_count() or 2)}),
        )
        _stop_by_signal(stop)  # ray.init has put a handler of its own in place
        _start(host, port)
        application = deployment(models, features, poll_seconds, threads, replicas).bind()
        serve.run(application, name=APPLICATION, route_prefix="/")
        ready(url)
        stop.wait()
    except (ray.exceptions.RayError, RuntimeError, ConnectionError, TimeoutError) as error:
        raise UserError(
            "Ray Serve could not start the service.",
            where=url,
            found=str(error).strip().splitlines()[-1],
            fix="See the replica's log below /tmp/ray/session_latest/logs/serve, or "
            "use --engine local.",
        ) from error
    finally:
        if ray.is_initialized():
            serve.shutdown()
            ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            for each, handler in before.items():
                signal.signal(each, handler)


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
