"""DeepCTR's SharedBottom, on this project's TensorFlow and legacy Keras, by Adam.

python -m infra.benchmarks.training.deepctr_peer DeepCTR ROWS FOLDER
"""

from __future__ import annotations

import itertools
import sys

import recsys  # noqa: F401  (Keras switch first)
from infra.benchmarks.training import worker


def main() -> None:
    """Serve the contestant."""
    channel = worker.take_channel()
    import tensorflow as tf
    import tf_keras

    tf.config.threading.set_intra_op_parallelism_threads(worker.THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(worker.THREADS)
    from deepctr.feature_column import DenseFeat, SparseFeat
    from deepctr.models import SharedBottom

    each = worker.per_table(int(sys.argv[2]))
    columns = [SparseFeat(f"c{n}", each, worker.DIM) for n in range(worker.FIELDS)]
    columns += [DenseFeat(f"n{n}", 1) for n in range(worker.NUMBERS)]
    model = SharedBottom(
        columns,
        bottom_dnn_hidden_units=worker.UNITS,
        tower_dnn_hidden_units=(),
        l2_reg_embedding=0,
        task_names=worker.TASKS,
    )
    model.compile(tf_keras.optimizers.Adam(0.001), loss="binary_crossentropy")
    found = []
    for batch in worker.batches(sys.argv[3]):
        x = {f"c{n}": tf.constant(batch["ids"][:, n : n + 1]) for n in range(worker.FIELDS)}
        x |= {f"n{n}": tf.constant(batch["numbers"][:, n : n + 1]) for n in range(worker.NUMBERS)}
        found.append((x, [tf.constant(batch["labels"][:, n : n + 1]) for n in (0, 1)]))
    turn = itertools.cycle(found)
    step = tf.function(model.train_step)
    worker.serve(lambda: step(next(turn))["loss"], lambda loss: float(loss), channel)


if __name__ == "__main__":
    main()
