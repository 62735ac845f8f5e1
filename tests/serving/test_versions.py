"""Decisions about versions, as values: no model is loaded here."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
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
        ([good(10), good(9), good(1)], None, {}, (Swap(10),)),
        ([good(1)], (1, "m"), {}, (Keep(),)),
        ([good(2), good(1)], (1, "m"), {}, (Swap(2),)),
        # The newest is damaged: the last good goes on; at the start the one before serves.
        ([Found(2, "m", "half"), good(1)], (1, "m"), {}, (Refuse(2, "half"), Keep())),
        ([Found(2, "m", "half"), good(1)], None, {}, (Refuse(2, "half"), Swap(1))),
        ([Found(3, "m", "half"), good(2), good(1)], (1, "m"), {}, (Refuse(3, "half"), Swap(2))),
        # A refusal is said once, until the folder changes.
        ([Found(2, "m", "half"), good(1)], (1, "m"), {2: "m"}, (Keep(),)),
        ([good(2, "n"), good(1)], (1, "m"), {2: "m"}, (Swap(2),)),
        # A version that was written anew is loaded anew; if it fails, what serves goes on.
        ([good(2, "n"), good(1)], (2, "m"), {}, (Swap(2),)),
        ([good(2, "n"), good(1)], (2, "m"), {2: "n"}, (Keep(),)),
        ([Found(2, "n", "half"), good(1)], (2, "m"), {}, (Refuse(2, "half"), Keep())),
        # What serves was removed: back to the newest that is left.
        ([good(2), good(1)], (3, "m"), {}, (Swap(2),)),
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
    refusal, last = decide([Found(2, "m", "", "f2"), good(1)], (1, "m"), {}, [FP])
    assert (
        isinstance(refusal, Refuse)
        and refusal.features == "f2"
        and "f2" in refusal.reason
        and FP in refusal.reason
    )
    assert last == Keep()


def test_scan_tells_whole_from_damaged(tmp_path: Path, publish: Callable[..., Path]) -> None:
    models = publish(tmp_path / "models", 7)
    for version in (8, 9, 10, 11, 12, 17, 18, 19):
        publish(models, version)
    (models / "8" / "saved_model.pb").unlink()
    (models / "9" / "manifest.json").write_text("{")
    (models / "10" / "spec.yaml").write_text("name: [")
    (models / "11" / "variables" / "variables.index").unlink()
    (models / "12").rename(models / "13")
    for version, change in ((17, {}), (18, {"fingerprints": {}}), (19, {"fingerprints": "none"})):
        path = models / str(version) / "manifest.json"
        manifest = json.loads(path.read_text())
        del manifest["fingerprints"]
        path.write_text(json.dumps({**manifest, **change}))
    (models / "20" / "variables").mkdir(parents=True)
    for name in ("saved_model.pb", "variables/variables.index"):
        (models / "20" / name).write_text("")
    # What may not be read fails as any other error of the system: root may read all.
    (models / "20" / "manifest.json").write_text('{"kind": "model", "format_version": 1}')
    (models / "20" / "spec.yaml").mkdir()
    (models / ".14.partial").mkdir()
    (models / "latest").mkdir()
    (models / "015").mkdir()
    (models / "16").write_text("a file")
    faults = {each.version: each.fault for each in scan(models, {})}
    assert list(faults) == [20, 19, 18, 17, 13, 11, 10, 9, 8, 7]
    assert faults[7] == ""
    assert faults[8] == "saved_model.pb is missing"
    assert "damaged" in faults[9]
    assert "spec.yaml" in faults[10]
    assert faults[11] == "variables/variables.index is missing"
    assert faults[13] == "its manifest says version 12"
    assert faults[17] == "its manifest lacks 'fingerprints'"
    assert faults[18] == "its manifest lacks 'features'"
    assert faults[19].startswith("TypeError: ")
    assert "spec.yaml" in faults[20]
    assert list(scan(tmp_path / "nowhere", {})) == []


def test_scan_reads_only_what_is_asked_for_and_has_changed(
    tmp_path: Path, publish: Callable[..., Path]
) -> None:
    for version in (1, 2):
        models = publish(tmp_path / "models", version)
    seen: dict[int, Found] = {}
    assert next(scan(models, seen)).version == 2
    assert seen.keys() == {2}
    seen[2] = replace(seen[2], fault="as it was seen")
    assert next(scan(models, seen)).fault == "as it was seen"
    (models / "2" / "manifest.json").chmod(0o600)
    assert next(scan(models, seen)).fault == ""
