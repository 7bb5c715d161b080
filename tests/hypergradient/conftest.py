import dataclasses
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from darts_jax.hypergradient import Estimator, InnerOptimizer, Memory, from_optax, global_norm, hypergradient


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """An Optax optimiser that has been running for a while."""

  transformation: optax.GradientTransformation
  state: Any
  decay: float

  @property
  def inner(self) -> InnerOptimizer:
    return from_optax(self.transformation, self.state, self.decay)


@dataclasses.dataclass(frozen=True)
class Quadratic:
  """L_train = ½wᵀAw + wᵀCα + aᵀw, L_val = ½wᵀFw + wᵀKα + fᵀw + ½αᵀQα + qᵀα at one (w, α), and derivatives by hand.

  Weights and α are vectors, or trees if `nested`. With `bend` L_train has a term β Σ w³·(Cα), so that ∂²L_train/∂w²
  and ∂²L_train/∂α∂w depend on w; the derivatives by hand are those without it.
  """

  A: np.ndarray
  C: np.ndarray
  F: np.ndarray
  K: np.ndarray
  Q: np.ndarray
  a: np.ndarray
  f: np.ndarray
  q: np.ndarray
  w: np.ndarray
  alpha: np.ndarray
  bend: float = 0.0
  nested: bool = False

  rate = 0.3
  decay = 0.05
  momentum = 0.9

  @staticmethod
  def flat(tree: Any) -> jax.Array:
    return ravel_pytree(tree)[0]

  def nest(self, w: Any) -> Any:
    return {'cell': [{'kernel': w[:4].reshape(2, 2)}], 'stem': w[4:]} if self.nested else w

  @property
  def weights(self) -> Any:
    return self.nest(self.w)

  @property
  def alphas(self) -> Any:
    return {'normal': self.alpha[:2], 'reduce': self.alpha[2:]} if self.nested else self.alpha

  def train(self, weights: Any, alphas: Any) -> jax.Array:
    x, y = self.flat(weights), self.flat(alphas)
    loss = x @ self.A @ x / 2 + x @ self.C @ y + self.a @ x
    return loss + self.bend * jnp.sum(x**3 * (self.C @ y)) if self.bend else loss

  def valid(self, weights: Any, alphas: Any) -> jax.Array:
    x, y = self.flat(weights), self.flat(alphas)
    return x @ self.F @ x / 2 + x @ self.K @ y + self.f @ x + y @ self.Q @ y / 2 + self.q @ y

  def g(self, w: np.ndarray) -> np.ndarray:
    return self.A @ w + self.C @ self.alpha + self.a

  def v(self, w: np.ndarray) -> np.ndarray:
    return self.F @ w + self.K @ self.alpha + self.f

  def direct(self, w: np.ndarray) -> np.ndarray:
    """∇α L_val."""
    return self.Q @ self.alpha + self.q + self.K.T @ w

  def decayed(self, decay: float) -> np.ndarray:
    return self.A + decay * np.eye(6)

  def optimum(self, decay: float = 0.0) -> np.ndarray:
    """w* of L_train + ½λ‖w‖²."""
    return -np.linalg.solve(self.decayed(decay), self.C @ self.alpha + self.a)

  def optimizer(self, name: str) -> Optimizer:
    rate, decay, momentum = self.rate, self.decay, self.momentum
    transformation, used = {
      'sgd': (optax.sgd(rate), 0.0),
      'decay': (optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate)), decay),
      'momentum': (optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate, momentum)), decay),
      'nesterov': (optax.sgd(rate, momentum, nesterov=True), 0.0),
      'clipped': (
        optax.chain(optax.clip_by_global_norm(0.7), optax.add_decayed_weights(decay), optax.sgd(rate, momentum)),
        decay,
      ),
      'loosely_clipped': (optax.chain(optax.clip_by_global_norm(1e3), optax.sgd(rate, momentum)), 0.0),
      'adam': (optax.adam(rate), 0.0),
      'schedule': (optax.sgd(optax.piecewise_constant_schedule(rate, {4: 0.5, 5: 0.25}), momentum), 0.0),
    }[name]
    rng = np.random.default_rng(1)

    def resume(leaf: jax.Array) -> jax.Array:
      floating = jnp.issubdtype(leaf.dtype, jnp.floating)
      return jnp.asarray(rng.uniform(0.2, 1, leaf.shape) if floating else 3, leaf.dtype)

    return Optimizer(transformation, jax.tree.map(resume, transformation.init(self.weights)), used)

  def buffer(self, optimizer: Optimizer) -> np.ndarray:
    """Its momentum."""
    return np.asarray(self.flat(optax.tree.get(optimizer.state, 'trace')))

  def estimate(self, estimator: Estimator, inner: InnerOptimizer) -> tuple[jax.Array, Memory]:
    """The hypergradient as one vector, and the memory."""
    function = jax.jit(hypergradient(estimator, self.train, self.valid, inner))
    gradient, memory = function(self.weights, self.alphas)
    return self.flat(gradient), memory

  def explicit(self, optimizer: Optimizer, steps: int, backward_steps: int | None = None) -> jax.Array:
    """The derivative of a program that makes the steps, all but the last of them as constants, and then L_val."""

    def outer(alphas: Any) -> jax.Array:
      weights, state = self.weights, optimizer.state
      for step in range(steps):
        if step == steps - (backward_steps or steps):
          weights, state = jax.lax.stop_gradient((weights, state))
        gradient = jax.grad(self.train)(weights, alphas)
        updates, state = optimizer.transformation.update(gradient, state, weights)
        weights = optax.apply_updates(weights, updates)
      return self.valid(weights, alphas)

    return self.flat(jax.grad(outer)(self.alphas))


@pytest.fixture
def quadratic() -> Quadratic:
  """Six weights and four α; the eigenvalues of A are 0.5, …, 2.8."""
  rng = np.random.default_rng(0)
  basis, _ = np.linalg.qr(rng.normal(size=(6, 6)))
  spectrum = np.array([0.5, 1.2, 1.6, 2.0, 2.4, 2.8])
  f = rng.normal(size=(6, 6))
  c, k = rng.normal(size=(2, 6, 4))
  q = rng.normal(size=(4, 4))
  return Quadratic(
    A=basis * spectrum @ basis.T,
    C=c,
    F=f @ f.T / 6,
    K=k,
    Q=q + q.T,
    a=rng.normal(size=6),
    f=rng.normal(size=6),
    q=rng.normal(size=4),
    w=rng.normal(size=6),
    alpha=rng.normal(size=4),
  )


@pytest.fixture
def nested(quadratic: Quadratic) -> Quadratic:
  """The same problem with weights and α in trees."""
  return dataclasses.replace(quadratic, nested=True)


@pytest.fixture
def bent(quadratic: Quadratic) -> Quadratic:
  """The same problem with a term of third order in the weights."""
  return dataclasses.replace(quadratic, bend=0.05)


@pytest.fixture
def toy() -> types.SimpleNamespace:
  """The toy problem of the paper, with its one-step hypergradient (1 − 2ξ)w + 4ξα − 2."""
  return types.SimpleNamespace(
    train=lambda weights, alphas: weights * weights - 2 * alphas * weights + alphas * alphas,
    valid=lambda weights, alphas: alphas * weights - 2 * alphas + 1,
  )


@pytest.fixture
def safely_clipped() -> Callable[[float, float], InnerOptimizer]:
  """SGD with clipping to a norm that has a derivative at a zero gradient, too."""

  def make(rate: float, norm: float) -> InnerOptimizer:
    def update(weights: Any, gradient: Any, state: Any) -> tuple[Any, Any]:
      scale = norm / jnp.maximum(global_norm(gradient), norm)
      return jax.tree.map(lambda x, y: x - rate * scale * y, weights, gradient), state

    return InnerOptimizer(update)

  return make
