"""`convert`: a trained model as a LiteRT file, with what a device needs to feed it.

OUTPUT/model.tflite         the numeric signature, built-in ops alone
OUTPUT/lookup.json          how each input is made from its raw value
OUTPUT/vocabularies/*.jsonl one token a line, a JSON string, in id order
OUTPUT/README.md            the rules of lookup.json in words
OUTPUT/manifest.json
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.artifacts import (
    read_manifest,
    require_learned,
    write_folder,
    write_json,
    write_manifest,
)
from recsys.errors import UserError
from recsys.loggers import quieted
from recsys.spec import fingerprints, load
from recsys.spec.records import Hash, Spec
from recsys.spec.schema import SCORE, model_inputs, output_names, value_names
from training.device_readme import device_readme
from training.evaluation import EXPORT, check_features, features_of, load_numeric, load_trained
from training.input import open_split, read_columns, to_numpy
from training.lookups import describe, read_vocabularies, vocabulary_file

MODEL = "model.tflite"
LOOKUP = "lookup.json"
SIGNATURE = "numeric"
TOLERANCE = 1e-5
"""Most that a converted model's probability may differ by.

Of a regression it is relative to the value, of the score to the weights of the blend.
"""

ROWS = 512
"""Validation rows on which the two are compared."""


def convert(
    model: str | Path, output: str | Path, features: str | Path | None = None
) -> dict[str, Any]:
    """Convert a model's numeric signature to LiteRT and write all that a device needs.

    The converted model is compared with the SavedModel on validation rows before the folder
    appears.

    Args:
        model: A finished run, or a published version.
        output: The folder to write.
        features: The features folder with the validation rows; by default the run's own. A
            published version needs it, since it does not know where its features lie.

    Returns:
        The manifest of the folder: `check` holds `rows`, `tolerance` and the `largest`
        difference by output.

    Raises:
        UserError: The model is no run or version, has a part that LiteRT's built-in ops cannot
            express, answers otherwise when converted, or the output is taken.
    """
    model = Path(model)
    version = (model / "saved_model.pb").is_file()
    manifest = read_manifest(model, "model" if version else "run")
    spec = load(model / "spec.yaml")
    export = model if version else model / EXPORT
    if version and features is None:
        raise UserError(
            "A published version does not say where its features lie.",
            where=str(model),
            fix="Name the folder whose validation rows it is compared on: --features FEATURES",
        )
    _require_convertible(spec, model)
    load_trained(model, manifest)
    folder = features_of(manifest, features)
    made = check_features(spec, folder)
    require_learned(
        manifest,
        made,
        where=folder,
        fix="Convert with the features that the model was trained on, or train on these.",
    )
    # An output that is taken is refused before the work.
    with write_folder(output) as aside:
        signature = load_numeric(export)
        rows = _validation_rows(spec, folder)
        content = to_lite(export)
        largest = compare(spec, signature, content, rows, model)
        (aside / MODEL).write_bytes(content)
        vocabularies = read_vocabularies(spec, export)
        graph = signature.owner.transform.transform_fn
        inputs = describe(spec, graph, vocabularies, made.get("counters") or {})
        for table, tokens in vocabularies.items():
            path = aside / vocabulary_file(table)
            path.parent.mkdir(exist_ok=True)
            lines = (json.dumps(token, ensure_ascii=False) + "\n" for token in tokens)
            path.write_bytes("".join(lines).encode())
        outputs = [*output_names(spec), SCORE]
        write_json(aside / LOOKUP, {"signature": SIGNATURE, "inputs": inputs, "outputs": outputs})
        count = len(next(iter(rows.values())))
        (aside / "README.md").write_text(
            device_readme(spec, MODEL, LOOKUP, count, max(largest.values())), encoding="utf-8"
        )
        prints = fingerprints(spec)
        write_manifest(
            aside,
            "device",
            {name: prints[name] for name in ("features", "model")},
            {
                "run": manifest["run"],
                "spec": spec.name,
                "bytes": len(content),
                "check": {"rows": count, "tolerance": TOLERANCE, "largest": largest},
            },
        )
    return read_manifest(output, "device")


def _require_convertible(spec: Spec, model: Path) -> None:
    for feature in spec.features:
        if isinstance(feature.encode, Hash) and feature.encode.hashes > 1:
            raise UserError(
                "LiteRT's built-in ops cannot hash an id several times.",
                where=f"{model / 'spec.yaml'}, feature `{feature.name}`",
                expected="encode.hashes: 1",
                found=f"encode.hashes: {feature.encode.hashes} (64-bit unsigned arithmetic)",
                fix="Train a model for devices with hashes: 1 and more buckets.",
            )
    if spec.train.precision != "float32":
        raise UserError(
            "LiteRT's built-in ops do not compute in half precision.",
            where=f"{model / 'spec.yaml'}, train.precision",
            expected="float32",
            found=spec.train.precision,
            fix="Train with train.precision: float32; --warm-start RUN starts from this run.",
        )


def _validation_rows(spec: Spec, features: Path) -> dict[str, NDArray[Any]]:
    """The first `ROWS` validation rows, by model input."""
    split = open_split(spec, features, "validation")
    if not split.rows:
        raise UserError(
            "The validation split has no rows to compare on.",
            where=str(features / "examples" / "validation"),
            expected="at least one row",
            found="0",
            fix="Change data.split in the spec.",
        )
    names = [item.name for item in model_inputs(spec)]
    tables = [table for _, table in read_columns(split, names, 0, min(ROWS, split.rows))]
    return {
        name: np.concatenate([to_numpy(table, name, "examples/validation") for table in tables])
        for name in names
    }


def to_lite(export: Path) -> bytes:
    """The numeric signature of a SavedModel as a LiteRT file of built-in ops.

    Raises:
        UserError: It has an op that is not built in.
    """
    import tensorflow as tf

    with _quiet():
        converter = tf.lite.TFLiteConverter.from_saved_model(
            str(export), signature_keys=[SIGNATURE]
        )
        # Built-in ops are the default; said here because all that is promised rests on it.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        try:
            return converter.convert()
        except Exception as error:  # the converter's own kind, and those of MLIR beneath it
            raise _inexpressible(export, error) from error


def _inexpressible(where: Path, error: Exception) -> UserError:
    return UserError(
        "The model has a part that LiteRT's built-in ops cannot express.",
        where=str(where),
        found=_cause(error),
        fix="Leave that part out of the spec's `model` section, and train again.",
    )


def _cause(error: Exception) -> str:
    """The line of a converter's long message that names the op, or else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if line.startswith(("TF Select ops:", "Custom ops:", "error:"))]
    return (named or lines or [type(error).__name__])[0][:300]


def compare(
    spec: Spec,
    signature: Any,
    content: bytes,
    rows: Mapping[str, NDArray[Any]],
    where: Path,
) -> dict[str, float]:
    """Largest difference of a SavedModel and a LiteRT file by output.

    Args:
        spec: The spec.
        signature: The SavedModel's numeric signature.
        content: The LiteRT file.
        rows: Values by model input, [rows] or [rows, length].
        where: The model, for errors.

    Raises:
        UserError: One is larger than `TOLERANCE`, or LiteRT cannot run the file.
    """
    import tensorflow as tf

    expected = signature(**{name: tf.constant(values) for name, values in rows.items()})
    try:
        with _quiet():
            interpreter = tf.lite.Interpreter(model_content=content)
            found = interpreter.get_signature_runner(SIGNATURE)(**rows)
    except (RuntimeError, ValueError) as error:  # a kernel refuses what the converter let pass
        raise _inexpressible(where, error) from error
    numbers, blend = set(value_names(spec)), spec.blend()
    # The score may blend in a regression's number.
    numbers |= {SCORE} if numbers & set(blend) else set()
    largest = {}
    for name in (*output_names(spec), SCORE):
        ours = expected[name].numpy()
        # Probabilities are at most 1, and so a blend of them at most its weights.
        size = max(1.0, sum(map(abs, blend.values()))) if name == SCORE else 1.0
        if name in numbers:
            size = np.maximum(np.abs(ours), size)
        largest[name] = float((np.abs(found[name] - ours) / size).max())
    worst = max(largest, key=lambda name: np.nan_to_num(largest[name], nan=np.inf))
    if not largest[worst] <= TOLERANCE:
        raise UserError(
            "The converted model does not answer as the SavedModel does.",
            where=f"{where}, output `{worst}` on {len(ours)} validation rows",
            expected=f"a difference of at most {TOLERANCE:g}",
            found=f"{largest[worst]:.3g}",
            fix="Serve the SavedModel, or train again with other parts in `model`.",
        )
    return largest


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the converter's own words and the interpreter's notice of its new package."""
    with quieted("tensorflow"), warnings.catch_warnings(action="ignore"):
        yield
