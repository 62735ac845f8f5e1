"""Decisions by hand."""

from __future__ import annotations

from typing import Any

from make_features import small_spec

from recsys.spec import Spec
from recsys.spec.records import Gate
from training.gate import Promote, Reject, decide


def gated(**gate: float) -> Spec:
    spec = small_spec()
    tasks = tuple(task.model_copy(update={"gate": Gate(**gate)}) for task in spec.tasks)
    return spec.model_copy(update={"tasks": tasks})


def found(click: float | None, conversion: float | None = 0.7, ece: float = 0.01) -> dict[str, Any]:
    tasks = {"click": {"auc": click, "ece": ece}, "conversion": {"auc": conversion, "ece": ece}}
    return {"rows": 100, "tasks": tasks}


def test_without_champion_and_gates_all_pass() -> None:
    assert decide(found(0.6), None, gated()) == Promote()


def test_least_auc() -> None:
    assert decide(found(0.70), None, gated(min_auc=0.7)) == Promote()
    assert decide(found(0.6999), None, gated(min_auc=0.7)) == Reject(
        ("click: AUC 0.6999 is below the gate of 0.7000",)
    )


def test_most_ece_of_each_task() -> None:
    assert decide(found(0.7, ece=0.03), None, gated(max_ece=0.02)) == Reject(
        (
            "click: ECE 0.0300 is above the gate of 0.0200",
            "conversion: ECE 0.0300 is above the gate of 0.0200",
        )
    )


def test_drop_against_the_champion() -> None:
    decision = decide(found(0.74, 0.70), found(0.75, 0.60), gated(max_auc_drop=0.005))
    assert decision == Reject(
        ("click: AUC 0.7400 is 0.0100 below the champion's 0.7500; at most 0.0050 is allowed",)
    )
    decision = decide(found(0.746), found(0.75), gated(max_auc_drop=0.005))
    assert isinstance(decision, Promote)
    assert decision.notes[0] == "click: AUC 0.7460, the champion's 0.7500"


def test_a_drop_of_just_what_is_allowed_passes() -> None:
    assert 0.75 - 0.74 > 0.01
    assert isinstance(decide(found(0.74), found(0.75), gated(max_auc_drop=0.01)), Promote)


def test_numbers_that_differ_are_told_apart() -> None:
    assert decide(found(0.69996), None, gated(min_auc=0.7)) == Reject(
        ("click: AUC 0.69996 is below the gate of 0.70000",)
    )
    decision = decide(found(0.7, ece=0.02004), None, gated(max_ece=0.02))
    assert isinstance(decision, Reject)
    assert decision.reasons[0] == "click: ECE 0.02004 is above the gate of 0.02000"
    decision = decide(found(0.73999), found(0.75), gated(max_auc_drop=0.01))
    assert isinstance(decision, Reject)
    assert "is 0.01001 below the champion's 0.7500; at most 0.01000" in decision.reasons[0]


def test_a_task_that_the_champion_lacks_is_not_compared() -> None:
    champion = {"rows": 9, "tasks": {"click": {"auc": 0.7, "ece": 0.0}}}
    assert isinstance(decide(found(0.7, 0.1), champion, gated()), Promote)


def test_a_champion_of_other_tasks_is_not_followed() -> None:
    champion = {"rows": 9, "tasks": {"like": {"auc": 0.7}, "share": {"auc": 0.7}}}
    decision = decide(found(0.9), champion, gated())
    assert isinstance(decision, Reject)
    (reason,) = decision.reasons
    assert "(like, share) has no task in common with the challenger (click, conversion)" in reason


def test_a_lost_task_is_refused_by_name() -> None:
    champion = found(0.7)
    champion["tasks"] |= {"like": {"auc": 0.7}, "conversion_given_click": {"auc": 0.7}}
    decision = decide(found(0.9), champion, gated())
    assert decision == Reject(("like: the challenger has no such task, and the champion has",))
    del champion["tasks"]["like"]
    assert isinstance(decide(found(0.9), champion, gated()), Promote)


def without_weight(**gate: float) -> Spec:
    """Conversions are not trained, and `gate` is theirs alone."""
    spec = gated()
    click, conversion = spec.tasks
    untrained = conversion.model_copy(update={"weight": 0.0, "gate": Gate(**gate)})
    return spec.model_copy(update={"tasks": (click, untrained)})


def test_a_task_that_is_not_trained_is_judged_by_a_gate_of_its_own_alone() -> None:
    note = "conversion: not judged, as its weight is 0 and its gate sets no limit"
    assert decide(found(0.7, None), None, without_weight()) == Promote(notes=(note,))
    decision = decide(found(0.7, 0.47), found(0.7, 0.52), without_weight())
    assert isinstance(decision, Promote) and note in decision.notes
    for auc, gate, reason in (
        (0.47, {"min_auc": 0.5}, "conversion: AUC 0.4700 is below the gate of 0.5000"),
        (0.47, {"max_auc_drop": 0.02}, "conversion: AUC 0.4700 is 0.0500 below the champion's"),
        (None, {"max_ece": 0.5}, "conversion: AUC is not defined"),
    ):
        decision = decide(found(0.7, auc), found(0.7, 0.52), without_weight(**gate))
        assert isinstance(decision, Reject)
        assert decision.reasons[0].startswith(reason)


def test_undefined_numbers_and_no_rows_are_refused() -> None:
    decision = decide(found(None), None, gated(max_ece=0.5))
    assert isinstance(decision, Reject) and "click: AUC is not defined" in decision.reasons[0]
    assert isinstance(decide({"rows": 0, "tasks": {}}, None, gated()), Reject)
