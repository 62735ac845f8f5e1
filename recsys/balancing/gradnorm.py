"""GradNorm: weights that keep the tasks' gradient norms in proportion to their pace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

from recsys.balancing.base import Balancer, Gradient, Logs, flatten, state
from recsys.exchange import replica_mean


class GradNorm(Balancer):
    """Gradient normalisation (Chen et al. 2018, https://arxiv.org/abs/1711.02257).

    With n_t the norm of the task's gradient on the shared variables, G_t = w_t n_t, its
    mean G over tasks, and r_t the task's loss ratio loss_t / loss_t(first) over the mean
    ratio, the weights descend on sum_t |G_t - G r_t^alpha|, the second term held
    constant: w_t -= learning_rate sign(G_t - G r_t^alpha) n_t / G. Then they are held
    above a floor and rescaled to sum to the number of tasks. Division by G, which the
    paper leaves to its optimizer, frees the learning rate of the losses' scale.

    Fixed factors stay apart from this: norms are of the losses without them, and a task
    whose factor is 0 has no part in it.

    Norms are those of the gradient averaged over all replicas, not averages of norms.
    Pass the dense weights of the last shared layer as `shared_variables`: each task
    costs a backward pass to them. Embedding tables among them are left out.

    A step whose losses or norms are not finite (an overflow of float16 that the loss
    scale will skip) leaves the state alone. A task's first loss is its first above 0.

    Args:
        task_names: see `Balancer`.
        weights: see `Balancer`.
        alpha: strength of the pull towards equal pace; 0 asks for equal norms.
        learning_rate: of the weights.
    """

    persistent = True

    def __init__(
        self,
        task_names: Sequence[str],
        weights: Mapping[str, float] | None = None,
        alpha: float = 1.5,
        learning_rate: float = 0.025,
    ) -> None:
        super().__init__(task_names, weights)
        if not alpha >= 0 or not learning_rate > 0:
            raise ValueError(
                f"alpha must be at least 0 and learning_rate above; got {alpha}, {learning_rate}."
            )
        self.alpha = alpha
        self.learning_rate = learning_rate
        self.weights = state([1.0] * len(self.task_names), "gradnorm_weights")
        self.first = state([0.0] * len(self.task_names), "gradnorm_first_losses")

    def gradients(
        self,
        losses: Mapping[str, tf.Tensor],
        tape: tf.GradientTape,
        shared_variables: Sequence[Sequence[tf.Variable]],
        all_variables: Sequence[tf.Variable],
        scale: float | tf.Tensor = 1.0,
    ) -> tuple[list[Gradient], Logs]:
        """See `Balancer.gradients`; logs "gradient_norm/TASK" (weighted) too.

        Raises:
            ValueError: if no shared variable has a dense gradient.
        """
        weights = tf.convert_to_tensor(self.weights)
        shared = [variable for network in shared_variables for variable in network]
        per_task = self._task_gradients(losses, tape, shared, scale)
        dense = [
            k
            for k in range(len(shared))
            if any(grads[k] is not None for grads in per_task)
            and not any(isinstance(grads[k], tf.IndexedSlices) for grads in per_task)
        ]
        if not dense:
            raise ValueError(
                "gradnorm needs a dense shared variable that the losses reach, such as the "
                f"kernel of the last shared layer; received {[v.name for v in shared]}."
            )
        variables = [shared[k] for k in dense]
        flat = tf.stack([flatten([grads[k] for k in dense], variables) for grads in per_task])
        flat /= tf.cast(scale, tf.float32)
        # One collective for losses and gradients together.
        mean = replica_mean(tf.concat([self._stack(losses)[:, tf.newaxis], flat], axis=1))
        loss, norms = mean[:, 0], tf.norm(mean[:, 1:], axis=1)
        bare = tf.math.divide_no_nan(norms, tf.constant(self._base))
        grads = self._weighted_gradients(losses, tape, all_variables, weights, scale)
        self._update(loss, bare, weights)
        logs = self._logs(loss, weights)
        for t, name in enumerate(self.task_names):
            logs[f"gradient_norm/{name}"] = weights[t] * norms[t]
        return grads, logs

    def _update(self, loss: tf.Tensor, norms: tf.Tensor, weights: tf.Tensor) -> None:
        learned = tf.constant([base > 0 for base in self._base])
        count = tf.reduce_sum(tf.cast(learned, tf.float32))

        def over_learned(values: tf.Tensor) -> tf.Tensor:
            return tf.reduce_sum(tf.where(learned, values, 0.0))

        first = tf.convert_to_tensor(self.first)
        finite = tf.reduce_all(tf.math.is_finite(loss) & tf.math.is_finite(norms))
        first = tf.where((first > 0) | ~finite, first, loss)
        ratio = tf.where(first > 0, tf.math.divide_no_nan(loss, first), 1.0)
        pace = tf.math.divide_no_nan(ratio, over_learned(ratio) / count)
        norm = weights * norms
        mean_norm = over_learned(norm) / count
        direction = tf.sign(norm - mean_norm * tf.pow(pace, self.alpha))
        step = direction * tf.math.divide_no_nan(norms, mean_norm)
        new = tf.maximum(weights - self.learning_rate * step, 1e-3)
        new = tf.where(learned, new * count / over_learned(new), weights)
        self.first.assign(first)
        self.weights.assign(tf.where(finite, new, weights))
