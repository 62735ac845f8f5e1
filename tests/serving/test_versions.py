"""Decisions about versions, as values: no model is loaded here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from serving.versions import Found, Keep, Refuse, Swap, decide, scan

FP = "f1"


def good(version: int, mark: str = "m") -> Found:
    return Found(version, mark, "", FP)


@pytest.mark.parametrize(
    ("found", "current", "refused", "decisions"),
    [
        ([], None, {}, (Keep(),)),
        ([], (1, "m"), {}, (Keep(),)),
        ([good(1)], None, {}, (Swap(1),)),
        ([good(1), good(10), good(9)], None, {}, (Swap(10),)),
        ([good(1)], (1, "m"), {}, (Keep(),)),
        ([good(1), good(2)], (1, "m"), {}, (Swap(2),)),
        # The newest is damaged: the last good goes on; at the start the one before serves.
        ([good(1), Found(2, "m", "half")], (1, "m"), {}, (Refuse(2, "half"), Keep())),
        ([good(1), Found(2, "m", "half")], None, {}, (Refuse(2, "half"), Swap(1))),
        ([good(1), good(2), Found(3, "m", "half")], (1, "m"), {}, (Refuse(3, "half"), Swap(2))),
        # A refusal is said once, until the folder changes.
        ([good(1), Found(2, "m", "half")], (1, "m"), {2: "m"}, (Keep(),)),
        ([good(1), good(2, "n")], (1, "m"), {2: "m"}, (Swap(2),)),
        # A version that was written anew is loaded anew; if it fails, what serves goes on.
        ([good(1), good(2, "n")], (2, "m"), {}, (Swap(2),)),
        ([good(1), good(2, "n")], (2, "m"), {2: "n"}, (Keep(),)),
        # What serves was removed: back to the newest that is left.
        ([good(1), good(2)], (3, "m"), {}, (Swap(2),)),
    ],
)
def test_decide(
    found: list[Found],
    current: tuple[int, str] | None,
    refused: dict[int, str],
    decisions: tuple[object, ...],
) -> None:
    assert decide(found, current, refused, [FP]) == decisions


def test_a_version_of_other_features_is_refused_with_both_named() -> None:
    refusal, last = decide([good(1), Found(2, "m", "", "f2")], (1, "m"), {}, [FP])
    assert isinstance(refusal, Refuse) and "f2" in refusal.reason and FP in refusal.reason
    assert last == Keep()


def test_scan_tells_whole_from_damaged(tmp_path: Path, publish: Callable[..., Path]) -> None:
    models = publish(tmp_path / "models", 7)
    for version in (8, 9, 10, 11, 12):
        publish(models, version)
    (models / "8" / "saved_model.pb").unlink()
    (models / "9" / "manifest.json").write_text("{")
    (models / "10" / "spec.yaml").write_text("name: [")
    (models / "11" / "variables" / "variables.index").unlink()
    (models / "12").rename(models / "13")
    (models / ".14.partial").mkdir()
    (models / "latest").mkdir()
    (models / "015").mkdir()
    (models / "16").write_text("a file")
    faults = {each.version: each.fault for each in scan(models)}
    assert faults.keys() == {7, 8, 9, 10, 11, 13}
    assert faults[7] == ""
    assert faults[8] == "saved_model.pb is missing"
    assert "damaged" in faults[9]
    assert "spec.yaml" in faults[10]
    assert faults[11] == "variables/variables.index is missing"
    assert faults[13] == "its manifest says version 12"
    assert scan(tmp_path / "nowhere") == []
