"""Export: one SavedModel that carries the transform graph, the network and the calibration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from recsys.calibration import Calibration
from recsys.errors import UserError
from recsys.model import RankingModel
from recsys.outputs import Outputs
from recsys.spec.names import argument_names
from recsys.spec.records import Spec
from recsys.spec.schema import model_inputs, raw_columns

RAW = "serving_default"
TF_EXAMPLE = "tf_example"
NUMERIC = "numeric"

_DTYPES = {"string": tf.string, "float32": tf.float32}


def export(
    model: RankingModel,
    spec: Spec,
    transform: Path,
    folder: Path,
    calibrations: Mapping[str, Calibration] | None = None,
) -> None:
    """Write a SavedModel with three signatures, each [batch] in and float32 [batch] out.

    `serving_default` takes the raw columns (`recsys.spec.schema.raw_columns`, under the names of
    `recsys.spec.names.argument_names`), `tf_example` takes `examples`, serialized `tf.Example`s
    of the same columns (an absent one is missing), and `numeric` takes the model's inputs as the
    transform graph makes them. All answer `recsys.spec.schema.output_names` and `score`.

    Args:
        model: A trained model.
        spec: Its spec.
        transform: The TF Transform output folder that made its features.
        folder: Where the SavedModel is written.
        calibrations: Calibration by task, carried in the graph.

    Raises:
        UserError: The transform folder holds no transform graph.
    """
    if not (Path(transform) / "transform_fn" / "saved_model.pb").is_file():
        raise UserError(
            "The transform graph is missing.",
            where=str(transform),
            expected="a TF Transform output folder, with transform_fn/saved_model.pb",
            fix="Build the features again: recsys features SPEC --input IN --output FEATURES",
        )
    served = _Served(model, spec, Path(transform), calibrations or {})
    tf.saved_model.save(
        served,
        str(folder),
        signatures={
            RAW: served.raw.get_concrete_function(),
            TF_EXAMPLE: served.tf_example.get_concrete_function(),
            NUMERIC: served.numeric.get_concrete_function(),
        },
    )


class _Served(tf.Module):
    """What the SavedModel holds: only variables and functions, no Keras objects."""

    def __init__(
        self,
        model: RankingModel,
        spec: Spec,
        transform: Path,
        calibrations: Mapping[str, Calibration],
    ) -> None:
        super().__init__(name="served")
        self.weights = list(model.variables)
        self.transform = tf.saved_model.load(str(transform / "transform_fn"))
        packing, outputs, columns = model.packing, Outputs(spec, calibrations), raw_columns(spec)

        # Signatures call one another and all of them this: each copy of the networks, or of the
        # transform graph, would be written and read apart, and that takes seconds.
        @tf.function(
            input_signature=[
                tf.TensorSpec([None, packing.ids_width], tf.int32, "ids"),
                tf.TensorSpec([None, packing.numbers_width], tf.float32, "numbers"),
            ],
            autograph=False,
        )
        def scores(ids: tf.Tensor, numbers: tf.Tensor) -> dict[str, tf.Tensor]:
            logits = model({"ids": ids, "numbers": numbers}, training=False)
            return dict(outputs(logits))

        def answer(features: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            found = scores(**packing.pack_tensors(features))
            return {name: tf.identity(value, name) for name, value in found.items()}

        arguments = argument_names(column.name for column in columns)
        raw_spec = {
            column.name: tf.TensorSpec([None], _DTYPES[column.dtype], name=arguments[column.name])
            for column in columns
        }
        parsing = {
            column.name: tf.io.FixedLenFeature([], _DTYPES[column.dtype], column.default)
            for column in columns
        }

        @tf.function(input_signature=[raw_spec], autograph=False)
        def raw(inputs: Any) -> dict[str, tf.Tensor]:
            return answer(self.transform.transform_fn(dict(inputs)))

        @tf.function(
            input_signature=[tf.TensorSpec([None], tf.string, name="examples")], autograph=False
        )
        def tf_example(examples: tf.Tensor) -> dict[str, tf.Tensor]:
            return raw(tf.io.parse_example(examples, parsing))

        @tf.function(input_signature=[numeric_signature(spec)], autograph=False)
        def numeric(inputs: Any) -> dict[str, tf.Tensor]:
            return answer(inputs)

        self.raw, self.tf_example, self.numeric = raw, tf_example, numeric


def numeric_signature(spec: Spec) -> dict[str, tf.TensorSpec]:
    """Tensor specs of the model's inputs, by feature."""
    return {
        item.name: tf.TensorSpec(
            [None] if item.kind in ("id", "number") else [None, item.length],
            tf.int32 if item.kind in ("id", "ids") else tf.float32,
            name=item.name,
        )
        for item in model_inputs(spec)
    }
