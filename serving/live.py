"""What serves now: one model version with its tables, replaced whole, off the request path."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recsys.artifacts import versions
from recsys.errors import UserError
from recsys.spec.schema import SCORE
from serving.assemble import Assembler
from serving.contract import Contract, RankRequest
from serving.logs import NAME
from serving.metrics import Metrics
from serving.scorer import Scorer, top
from serving.store import LocalStore, mark
from serving.versions import (
    Found,
    Mark,
    Refuse,
    Swap,
    decide,
    in_a_line,
    read_version,
    scan,
)

log = logging.getLogger(NAME)


@dataclass(frozen=True)
class Serving:
    """A version that can answer. Requests that began with it end with it."""

    version: int
    mark: Mark
    manifest: dict[str, Any]
    contract: Contract
    store: LocalStore
    scorer: Scorer
    assemble: Assembler

    def rank(self, request: RankRequest) -> dict[str, Any]:
        """The answer to a request, less its `took_ms`."""
        assembled = self.assemble(request)
        answer = self.scorer.score(assembled.columns)
        order = top(answer[SCORE], request.top_k)
        known = assembled.known[order].tolist()
        ordered = {name: values[order] for name, values in answer.items()}
        items: list[dict[str, Any]] = []
        for at, position in enumerate(order.tolist()):
            item = {
                "id": request.ids[position],
                "rank": at + 1,
                "score": ordered[SCORE][at],
                "probabilities": {n: ordered[n][at] for n in self.contract.probabilities},
                "known": known[at],
            }
            if self.contract.values:
                item["values"] = {name: ordered[name][at] for name in self.contract.values}
            items.append(item)
        return {
            "model_version": self.version,
            "user": {"known": assembled.user_known},
            "items": items,
            "unknown_items": int(np.count_nonzero(~assembled.known)),
            "duplicates": request.duplicates,
        }


@contextmanager
def frequent_switches(seconds: float = 0.0005) -> Iterator[None]:
    """Let threads wait for the interpreter this long at most, in place of Python's 5 ms.

    Loading a model or tables is Python, and a request takes turns with it several times.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(seconds, before))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class Refused(NamedTuple):
    """A version that may not serve: its mark then, why, and the features that it waits for."""

    mark: Mark
    reason: str
    features: str


class Live:
    """Keeps the newest good version of a MODELS folder, and its tables, ready to answer.

    Args:
        models: Folder of published versions.
        features: Folder of the feature job.
        metrics: Counts swaps and refusals.
        poll_seconds: How often the folders are looked at, once started.

    Raises:
        UserError: There is no version that can serve, or the tables are of other features.
    """

    def __init__(
        self, models: str | Path, features: str | Path, metrics: Metrics, poll_seconds: float = 2.0
    ) -> None:
        self.models, self.features = Path(models), Path(features)
        self.metrics = metrics
        self.poll_seconds = poll_seconds
        self.refused: dict[int, Refused] = {}
        self._seen: dict[int, Found] = {}
        log.info("reading the feature tables of %s", self.features)
        self._latest = LocalStore(self.features)
        self._failed_tables: Mark | None = None
        self._current: Serving | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._take_up()
        if self._current is None:
            raise self._nothing()

    @property
    def current(self) -> Serving:
        """The version that answers new requests."""
        assert self._current is not None
        return self._current

    def start(self) -> None:
        """Begin to watch the folders, in a thread of its own."""
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._watch, name="versions", daemon=True)
            self._thread.start()

    def stop(self, seconds: float = 30) -> None:
        """Stop watching; what serves now stays. What is being loaded is waited for so long."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=seconds)
            if not self._thread.is_alive():
                self._thread = None

    @property
    def watching(self) -> bool:
        """Whether the thread that watches is alive, as it is while a version loads."""
        return self._thread is not None

    def poll(self) -> None:
        """Look at the folders once, and take up what is new."""
        self._reload_tables()
        self._take_up()

    def _watch(self) -> None:
        while not self._stop.wait(self.poll_seconds):
            try:
                self.poll()
            except Exception:
                # The watcher must outlive whatever a half-copied folder throws at it.
                log.exception(
                    "looking for new versions failed; version %d goes on", self.current.version
                )
                self.metrics.poll_failures.inc()

    def _take_up(self) -> None:
        self._forget_gone()
        refusals: list[Refuse] = []
        while self._step(refusals):
            pass
        # Said last, since only now it is known what serves in their place.
        serves = f"; version {self._current.version} serves" if self._current else ""
        for each in refusals:
            log.warning("version %d is refused: %s%s", each.version, each.reason, serves)

    def _forget_gone(self) -> None:
        there = set(versions(self.models))
        self.refused = {version: why for version, why in self.refused.items() if version in there}
        self._seen = {version: found for version, found in self._seen.items() if version in there}

    def _step(self, said: list[Refuse]) -> bool:
        """Refuse what is bad, into `said`, and load what is next; whether something was."""
        current = self._current
        stores = {
            store.fingerprint: store
            for store in ((current.store,) if current else ()) + (self._latest,)
        }
        *refusals, last = decide(
            scan(self.models, self._seen),
            (current.version, current.mark) if current else None,
            {version: why.mark for version, why in self.refused.items()},
            stores,
        )
        for refusal in refusals:
            assert isinstance(refusal, Refuse)
            self._refuse(refusal, said)
        if not isinstance(last, Swap):
            return False
        try:
            self._swap(last.version, stores)
        except Exception as error:
            # As many kinds as there are damages; one version must not end the others.
            self._refuse(Refuse(last.version, in_a_line(error)), said)
        return True

    def _swap(self, version: int, stores: dict[str, LocalStore]) -> None:
        stamp = self._seen[version].mark
        log.info("loading version %d", version)
        started = time.perf_counter()
        manifest, spec = read_version(self.models, version)
        store = stores[manifest["fingerprints"]["features"]]
        with frequent_switches():
            scorer = Scorer(self.models / str(version), spec)
        contract = Contract(spec)
        before = self._current
        self._current = Serving(
            version, stamp, manifest, contract, store, scorer, Assembler(contract, store)
        )
        self.refused.pop(version, None)
        self.metrics.model_version.set(version)
        self.metrics.swaps.inc()
        log.info(
            "version %d serves%s; loaded and warmed in %.2f s",
            version,
            f" in place of {before.version}" if before else "",
            time.perf_counter() - started,
        )

    def _refuse(self, refusal: Refuse, said: list[Refuse]) -> None:
        stamp = self._seen[refusal.version].mark
        self.refused[refusal.version] = Refused(stamp, refusal.reason, refusal.features)
        self.metrics.refused.inc()
        said.append(refusal)

    def _reload_tables(self) -> None:
        stamp = mark(self.features)
        # The folder is absent for a moment while it is being replaced.
        if stamp is None or stamp in (self._latest.mark, self._failed_tables):
            return
        try:
            with frequent_switches():
                store = LocalStore(self.features)
            fingerprint = store.fingerprint
        except Exception as error:  # as above: the versions are still to be looked at
            self._failed_tables = stamp
            self.metrics.refused_tables.inc()
            log.warning("new feature tables are refused: %s", in_a_line(error))
            return
        self._latest = store
        # These may be just the features that a version that was refused is waiting for.
        self.refused = {
            version: why for version, why in self.refused.items() if why.features != fingerprint
        }
        current = self.current
        if fingerprint != current.store.fingerprint:
            log.warning(
                "the feature tables are now of features %s; version %d goes on with the "
                "tables of %s until a version of the new features is published",
                fingerprint,
                current.version,
                current.store.fingerprint,
            )
            return
        self._current = replace(current, store=store, assemble=Assembler(current.contract, store))
        self.metrics.table_reloads.inc()
        log.info(
            "new feature tables serve: %d users, %d items", store.size("user"), store.size("item")
        )

    def _nothing(self) -> UserError:
        if not self.models.is_dir():
            found = "no such folder"
        elif not self.refused:
            found = "no version in it (a version is a folder named by an integer)"
        else:
            version, why = max(self.refused.items())
            found = f"version {version}, refused: {why.reason}"
        mismatch = bool(self.refused) and bool(why.features)
        return UserError(
            "There is no model version that can serve.",
            where=str(self.models),
            expected=f"a version built from features {self._latest.fingerprint} ({self.features})"
            if mismatch
            else "at least one whole version",
            found=found,
            fix="Build the features of the model's spec again with: recsys features SPEC "
            "--input IN --output FEATURES, or publish a model of these features."
            if mismatch
            else "Publish one with: recsys publish RUN --models MODELS",
        )
