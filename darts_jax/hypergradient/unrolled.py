"""The gradient of L_val(w_T(α), α) through T steps of the inner optimiser, or through the last K of them.

With (w_{t+1}, s_{t+1}) = Φ(w_t, g_t, s_t), g_t = ∇w L_train(w_t, α), reverse mode takes the cotangents λ of weights and
state back through Φ to cotangents of w_t, g_t and s_t. The cotangent λ_g of g_t then goes on to w_t and α by a product
with second derivatives: (H_t λ_g, B_t λ_g) is one Jacobian-vector product of ∇_{(w, α)} L_train at w_t, as in
MixFlow-MG (arXiv 2505.00793). A backward step recomputes its forward pass, so the memory is that of one product and of
the K kept triples (w_t, g_t, s_t), whose size is that of the weights and not of the activations.

L_train is the same function at every inner step; in a search, the loss of one batch.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from darts_jax.hypergradient.base import Estimator, Gradients, Memory, Pass, Problem, like

Array = jax.Array
PyTree = Any


class _Tape(NamedTuple):
  """Values that the forward steps keep for the backward steps.

  Attributes:
    weights, gradients, states: `[K, …]`, values of step t in slot t mod K.
    state: current state of the inner optimiser.
    cotangents: cotangents of the state's floating-point leaves.
    direct: the part of the cotangent of w_t that does not go through g_t.
    step: `[]` int32, t.
  """

  weights: PyTree
  gradients: PyTree
  states: PyTree
  state: PyTree
  cotangents: list[Array]
  direct: PyTree
  step: Array


def unrolled(steps: int = 4) -> Estimator:
  """The gradient of L_val(w_T(α), α) through all T = `steps` inner steps; for T = 1 it equals `exact`.

    ∇α L_val(w_T, α) + Σ_t B_t λ_{g,t}

  Costs T + 1 gradients and T products, about 10T + 3 forward passes; the memory of one product and, for every step,
  of three vectors of the size of the weights (Franceschi et al. 2017, arXiv 1703.01785).

  Args:
    steps: T, the number of inner steps.

  Raises:
    ValueError: `steps` is less than 1.
  """
  return _unrolled('unrolled', steps, steps)


def truncated(steps: int = 4, backward_steps: int = 2) -> Estimator:
  """The gradient of L_val(w_T(α), α) through the last K = `backward_steps` of T = `steps` inner steps.

  The weights before these K steps count as constants. Costs T + 1 gradients and K products; the memory of one product
  and, for each of the K steps, of three vectors of the size of the weights (Shaban et al. 2019, arXiv 1810.10667).

  Args:
    steps: T, the number of inner steps.
    backward_steps: K, the number of steps that are differentiated.

  Raises:
    ValueError: `steps` is less than 1, or `backward_steps` less than 1 or more than `steps`.
  """
  return _unrolled('truncated', steps, backward_steps)


def _unrolled(name: str, steps: int, backward_steps: int) -> Estimator:
  if steps < 1:
    raise ValueError(f'steps: {steps} is not allowed; an unrolled gradient takes at least 1 inner step')
  if not 1 <= backward_steps <= steps:
    raise ValueError(
      f'backward_steps: {backward_steps} is not allowed; between 1 and steps, {steps}, can be differentiated'
    )

  def start(problem: Problem) -> _Tape:
    state = jax.tree.map(jnp.asarray, problem.inner.state)

    def slots(tree: PyTree) -> PyTree:
      return jax.tree.map(lambda x: jnp.broadcast_to(x, (backward_steps, *x.shape)), tree)

    zeros = jax.tree.map(jnp.zeros_like, problem.weights)
    cotangents = [jnp.zeros_like(leaf) for leaf in _floating(state)[0]]
    kept = slots(problem.weights)
    return _Tape(kept, kept, slots(state), state, cotangents, zeros, jnp.zeros((), jnp.int32))

  def step_forward(problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
    tape = memory.scratch
    slot = tape.step % backward_steps

    def write(kept: PyTree, value: PyTree) -> PyTree:
      return jax.tree.map(lambda all_, one: lax.dynamic_update_index_in_dim(all_, one, slot, 0), kept, value)

    after, state = problem.inner.update(memory.at, gradients.weights, tape.state)
    return memory._replace(
      at=like(after, memory.at),
      scratch=tape._replace(
        weights=write(tape.weights, memory.at),
        gradients=write(tape.gradients, gradients.weights),
        states=write(tape.states, tape.state),
        state=like(state, tape.state),
        step=tape.step + 1,
      ),
    )

  def through_update(problem: Problem, memory: Memory, cotangent: PyTree) -> Memory:
    """Takes the cotangents of w_{t+1} (`cotangent`) and of s_{t+1} (in the tape) back through Φ; t + 1 = `step`."""
    tape = memory.scratch
    step = tape.step - 1
    slot = step % backward_steps
    kept = tape.weights, tape.gradients, tape.states
    weights, gradient, state = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, slot, keepdims=False), kept)
    leaves, rebuild = _floating(state)

    def update(weights: PyTree, gradient: PyTree, leaves: list[Array]) -> tuple[PyTree, list[Array]]:
      after, state = problem.inner.update(weights, gradient, rebuild(leaves))
      return like(after, weights), like(_floating(state)[0], leaves)

    _, transpose = jax.vjp(update, weights, gradient, leaves)
    direct, direction, cotangents = transpose((cotangent, tape.cotangents))
    return memory._replace(
      at=weights, direction=direction, scratch=tape._replace(direct=direct, cotangents=cotangents, step=step)
    )

  def turn_back(problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
    memory = memory._replace(estimate=gradients.alphas, outer=gradients.alphas)
    return through_update(problem, memory, gradients.weights)

  def step_back(problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
    cotangent = jax.tree.map(jnp.add, memory.scratch.direct, gradients.weights)
    return through_update(problem, finish(problem, memory, gradients), cotangent)

  def finish(problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
    del problem
    return memory._replace(estimate=jax.tree.map(jnp.add, memory.estimate, gradients.alphas))

  passes = (
    *[Pass('train', step_forward)] * steps,
    Pass('valid', turn_back),
    *[Pass('train', step_back, derivative='product')] * (backward_steps - 1),
    Pass('train', finish, derivative='product', weights=False),
  )
  return Estimator(name, passes, scratch=start)


def _floating(state: PyTree) -> tuple[list[Array], Any]:
  """The floating-point leaves of a state, and a function that puts such leaves back into the state."""
  leaves, treedef = jax.tree.flatten(state)
  leaves = [jnp.asarray(leaf) for leaf in leaves]
  floating = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

  def rebuild(chosen: list[Array]) -> PyTree:
    rest = iter(chosen)
    chosen = [next(rest) if one else leaf for leaf, one in zip(leaves, floating, strict=True)]
    return jax.tree.unflatten(treedef, chosen)

  return [leaf for leaf, one in zip(leaves, floating, strict=True) if one], rebuild
