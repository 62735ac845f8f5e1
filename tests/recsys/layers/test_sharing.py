import numpy as np
import pytest
import tensorflow as tf

from recsys.layers import PLE, MMoE, SharedBottom
from recsys.layers.gated_tower import GatedTower

TASKS = ("click", "conversion")


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def dense(layer, x):
    return x @ layer.kernel.numpy() + layer.bias.numpy()


def test_shared_bottom_is_one_tower():
    layer = SharedBottom(TASKS, [4])
    x = tf.random.normal([3, 5])
    output = layer(x)
    assert list(output) == list(TASKS)
    np.testing.assert_array_equal(output["click"], layer.bottom(x))
    np.testing.assert_array_equal(output["click"], output["conversion"])


def test_mmoe_is_the_gated_average_of_its_experts():
    layer = MMoE(TASKS, [6, 4], experts=3)
    x = tf.random.normal([5, 7])
    output = layer(x)
    experts = np.stack([tower(x) for tower in layer.towers], axis=1)
    gates = softmax(dense(layer.gate, x.numpy()).reshape(5, 2, 3))
    for index, task in enumerate(TASKS):
        expected = (gates[:, index, :, None] * experts).sum(axis=1)
        np.testing.assert_allclose(output[task], expected, rtol=1e-5, atol=1e-6)


def test_ple_by_the_paper():
    """Two levels, two shared experts, one of each task, written out."""
    layer = PLE(TASKS, [4], levels=2, shared_experts=2, task_experts=1)
    x = tf.random.normal([5, 7])
    output = layer(x)
    tower = {t.name: t for t in layer.towers}
    gate = {g.name: g for g in layer.gates}
    assert len(tower) == 8 and len(gate) == 5

    def mix(name, source, outputs):
        weights = softmax(dense(gate[name], source))
        return (weights[:, :, None] * np.stack(outputs, axis=1)).sum(axis=1)

    shared, click, conversion = (x.numpy(),) * 3
    for level in (0, 1):
        s = [tower[f"level_{level}_shared_{i}"](shared).numpy() for i in (0, 1)]
        a = tower[f"level_{level}_task_0_0"](click).numpy()
        b = tower[f"level_{level}_task_1_0"](conversion).numpy()
        click, conversion = (
            mix(f"level_{level}_task_0_gate", click, [a, *s]),
            mix(f"level_{level}_task_1_gate", conversion, [b, *s]),
        )
        if level == 0:
            shared = mix("level_0_shared_gate", shared, [*s, a, b])
    np.testing.assert_allclose(output["click"], click, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(output["conversion"], conversion, rtol=1e-5, atol=1e-6)


def test_a_tasks_own_experts_are_not_reached_by_the_other_task():
    layer = PLE(TASKS, [4], levels=1)
    x = tf.random.normal([5, 7])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(x)["click"])
    names = [w.name for w in layer.trainable_weights]
    grads = dict(zip(names, tape.gradient(loss, layer.trainable_weights), strict=True))
    assert all((grad is None) == ("task_1" in name) for name, grad in grads.items())
    assert sum("task_1" in name for name in names) == 4


def test_recomputation_gives_the_same_gradients_with_dropout():
    x, seed = tf.random.normal([8, 6]), tf.constant([1, 2])
    for kind in (SharedBottom, MMoE, PLE):
        grads, weights = [], None
        for recompute in (False, True):
            layer = kind(TASKS, [5, 4], dropout=0.4, recompute=recompute)
            layer(x)
            weights = weights or layer.get_weights()
            layer.set_weights(weights)
            with tf.GradientTape() as tape:
                output = layer(x, training=True, seed=seed)
                loss = tf.add_n([tf.reduce_sum(tf.square(o)) for o in output.values()])
            grads.append(tape.gradient(loss, layer.trainable_weights))
        for plain, recomputed in zip(*grads, strict=True):
            # Not to the last bit: gradients that meet at a gate are added in another order.
            np.testing.assert_allclose(recomputed, plain, rtol=1e-5, atol=1e-7)


def test_experts_drop_apart_from_one_another():
    layer = MMoE(TASKS, [64], experts=2, dropout=0.5)
    x = tf.ones([4, 3])
    layer(x)
    layer.towers[1].set_weights(layer.towers[0].get_weights())
    # Gates through which each task sees one expert alone.
    layer.gate.kernel.assign(tf.zeros_like(layer.gate.kernel))
    layer.gate.bias.assign([99.0, -99.0, -99.0, 99.0])
    whole, dropped = layer(x), layer(x, training=True, seed=tf.constant([1, 2]))
    np.testing.assert_array_equal(whole["click"], whole["conversion"])
    assert np.any((dropped["click"] == 0) != (dropped["conversion"] == 0))


@pytest.mark.parametrize(
    ("kind", "extra"), [(SharedBottom, {}), (MMoE, {"experts": 3}), (PLE, {"levels": 1})]
)
def test_without_gates_every_expert_is_a_plain_dense_layer(kind, extra):
    """All experts alike: whatever a task's softmax, it mixes equal outputs."""
    layer = kind(TASKS, [2], gated=False, **extra)
    x = tf.constant([[1.0, 1.0], [-2.0, 0.0]])
    layer(x)
    towers = [part for part in layer.submodules if isinstance(part, GatedTower)]
    assert towers and not any(tower.gated for tower in towers)
    for tower in towers:
        tower.set_weights([np.array([[1.0, -1.0], [2.0, 1.0]]), np.array([0.5, 0.0])])
    # [1, 1] W + b = [3.5, 0]; [-2, 0] W + b = [-1.5, 2], of which relu leaves [0, 2].
    for task in TASKS:
        np.testing.assert_allclose(layer(x)[task], [[3.5, 0.0], [0.0, 2.0]], rtol=1e-6)


def test_the_last_shared_towers_are_those_that_all_tasks_read():
    bottom, mixture = SharedBottom(TASKS, [4, 4]), MMoE(TASKS, [4], experts=3)
    assert bottom.last_shared == [bottom.bottom]
    assert mixture.last_shared == mixture.towers
    layer = PLE(TASKS, [4, 4], levels=2, shared_experts=2, task_experts=3)
    assert [tower.name for tower in layer.last_shared] == ["level_1_shared_0", "level_1_shared_1"]
