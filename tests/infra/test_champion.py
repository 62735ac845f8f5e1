"""Tomorrow's challenger against today's champion: features built anew hold other ids."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import training
from beam_jobs import run_features
from recsys.artifacts import read_json, read_manifest
from recsys.errors import UserError
from recsys.spec import Spec, loads
from training.gate import Promote

pytestmark = pytest.mark.long

SPEC = """
name: shop
data:
  impressions: rows.csv
  keys: {user: user, item: item}
  time: {column: time, unit: iso}
  split: {train_to: 2026-01-03, validation_to: 2026-01-04}
features:
- {name: user, owner: user, encode: vocabulary}
- {name: item, owner: item, encode: vocabulary}
- {name: tags, owner: item, encode: {kind: vocabulary, max_length: 2}, separator: "|"}
- {name: price, owner: item, encode: {kind: numeric, scale: zscore}}
- {name: bucket, owner: item, column: price, encode: {kind: quantiles, buckets: 5}}
- {name: size, column: Size (cm), owner: item, encode: {kind: piecewise, bins: 4}}
tasks:
- {name: click, label: {column: click}}
model: {dim: 4, shared: [8], towers: [4]}
train: {epochs: 2, batch_size: 64, seed: 0}
"""


def spec(seed: int = 0) -> Spec:
    return loads(SPEC.replace("seed: 0", f"seed: {seed}"))


def rows(days: int, seed: int, n: int = 1500) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    item = rng.integers(0, 30, n)
    user = rng.integers(0, 40, n)
    price = np.round(np.abs(rng.normal(20, 9, n)), 2)
    chance = 1 / (1 + np.exp(-(np.sin(item) * 2 + np.cos(user) + (price - 20) / 10)))
    size = np.where(rng.random(n) < 0.1, "", np.round(rng.gamma(2.0, 3.0, n), 1).astype(str))
    return pd.DataFrame(
        {
            "user": [f"u{n}" for n in user],
            "item": [f"i{n}" for n in item],
            "tags": [f"t{n % 5}|t{n % 7}" for n in item],
            "price": price,
            "Size (cm)": size,
            "click": (rng.random(n) < chance).astype(int),
            "time": [f"2026-01-{1 + day:02d}T10:00:00" for day in rng.integers(0, days, n)],
        }
    )


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("days")
    first = rows(5, seed=0)
    # Late rows of the first days, in which other items and users are frequent.
    late = rows(3, seed=1, n=900)
    late["item"] = [f"i{29 - int(n[1:]) // 2}" for n in late["item"]]
    late["price"] += 30
    for name, table in (("today", first), ("tomorrow", pd.concat([first, late]))):
        (root / name).mkdir()
        table.to_csv(root / name / "rows.csv", index=False)
        run_features(spec(), root / name, root / f"features-{name}")
    training.train(spec(), root / "features-today", root / "champion")
    training.train(spec(1), root / "features-tomorrow", root / "challenger")
    return {"root": root, "own": training.evaluate(root / "champion")}


def test_the_champion_reads_the_challengers_rows_through_its_own_graph(
    places: dict[str, Any],
) -> None:
    root, own = places["root"], places["own"]
    ids = [read_manifest(root / f"features-{day}", "features") for day in ("today", "tomorrow")]
    assert ids[0]["learned"] != ids[1]["learned"]
    both = training.evaluate(root / "challenger", champion=root / "champion")
    # The test day is the same in both, and so must be what the champion says of it.
    assert both["champion"]["rows"] == own["rows"] == both["rows"]
    for metric, value in own["tasks"]["click"].items():
        assert both["champion"]["tasks"]["click"][metric] == pytest.approx(value, abs=1e-6), metric
    assert own["tasks"]["click"]["auc"] > 0.7


def test_the_gate_compares_on_the_same_rows(places: dict[str, Any], tmp_path: Path) -> None:
    root, auc = places["root"], places["own"]["tasks"]["click"]["auc"]
    training.publish(root / "champion", tmp_path / "models", force=True)
    # What it was published with does not count where it can be measured.
    path = tmp_path / "models" / "1" / "manifest.json"
    path.write_text(path.read_text().replace(str(auc), "0.1"))
    assert read_json(path)["metrics"]["tasks"]["click"]["auc"] == 0.1
    decision = training.publish(root / "challenger", tmp_path / "models")
    said = decision.notes if isinstance(decision, Promote) else decision.reasons
    assert len(said) == 1 and f"the champion's {auc:.4f}" in said[0]


def test_other_splits_hold_no_raw_columns(places: dict[str, Any]) -> None:
    root = places["root"]
    with pytest.raises(UserError, match="built anew") as error:
        training.evaluate(root / "challenger", "validation", champion=root / "champion")
    assert "test split" in error.value.fix
