"""Bilevel problems with closed forms: the paper's toy problem, and random quadratic ones.

  toy        L_train = w² − 2αw + α²,  L_val = αw − 2α + 1                                    [DARTS §2.3, figure 2]
  quadratic  L_train = ½wᵀAw + wᵀCα + aᵀw,  L_val = ½wᵀFw + wᵀKα + fᵀw + ½αᵀQα + qᵀα

The quadratic's inner optimiser is gradient descent with ξ = 1/largest eigenvalue of A.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from darts_jax.hypergradient import Memory, exact, first_order, hypergradient, make, sgd

Array = jax.Array

#: Where the paper's figure begins: (α, w).
TOY_START = (2.0, -2.0)


def toy_train(weights: Array, alphas: Array) -> Array:
  """w² − 2αw + α², least at w = α."""
  return weights * weights - 2 * alphas * weights + alphas * alphas


def toy_valid(weights: Array, alphas: Array) -> Array:
  """αw − 2α + 1; along w = α it is least at α = 1."""
  return alphas * weights - 2 * alphas + 1


def toy_search(rate: float, num_steps: int = 400, alpha_rate: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
  """α and w along a search by gradient descent on both; it converges to α = w = 2/(1 + 2ξ).

  Args:
    rate: ξ, the learning rate of the one-step hypergradient; 0 is first order.
    num_steps: number of search steps.
    alpha_rate: the learning rate of α; the learning rate of w is 0.1.

  Returns:
    α and w, `[num_steps + 1]` each.
  """
  estimate = hypergradient(exact() if rate else first_order(), toy_train, toy_valid, sgd(rate))

  def step(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    alphas, weights = state
    alphas = alphas - alpha_rate * estimate(weights, alphas)[0]
    weights = weights - 0.1 * jax.grad(toy_train)(weights, alphas)
    return (alphas, weights), (alphas, weights)

  with jax.enable_x64(True):
    start = jnp.array(TOY_START[0]), jnp.array(TOY_START[1])
    _, path = jax.jit(lambda: lax.scan(step, start, None, num_steps))()
  alphas, weights = (np.concatenate([[first], np.asarray(rest)]) for first, rest in zip(TOY_START, path, strict=True))
  return alphas, weights


def toy_estimate(name: str, fields: Mapping[str, Any], rate: float) -> float:
  """An estimator's estimate at `TOY_START`, in float64, for the inner learning rate ξ = `rate`."""
  alpha, w = TOY_START
  with jax.enable_x64(True):
    return float(hypergradient(make(name, fields), toy_train, toy_valid, sgd(rate))(w, alpha)[0])


def toy_expected(name: str, fields: Mapping[str, Any], rate: float) -> float:
  """The closed form of an estimator's estimate at `TOY_START`, for the inner learning rate ξ = `rate`."""
  alpha, w = TOY_START
  if name == 'first_order':
    return w - 2
  if name in ('finite_difference', 'exact', 'exact_reverse'):
    return (1 - 2 * rate) * w + 4 * rate * alpha - 2
  if name in ('unrolled', 'truncated'):
    steps = fields['steps']
    backward = steps if name == 'unrolled' else fields['backward_steps']
    last = alpha + (1 - 2 * rate) ** steps * (w - alpha)
    return last - 2 + (1 - (1 - 2 * rate) ** backward) * alpha
  # B = −2, H = 2, v = α, ∂L_val/∂α = w − 2.
  solution = {
    'neumann': lambda: (1 - (1 - 2 * fields['step_size']) ** (fields['terms'] + 1)) / 2,
    'conjugate_gradient': lambda: 1 / (2 + fields['damping']),
    'amended': lambda: 2 * fields['amending'],
  }[name]()
  return w - 2 + 2 * solution * alpha


@dataclasses.dataclass(frozen=True)
class Quadratic:
  """A random quadratic bilevel problem with weights and α near, but not at, the inner optimum.

  Attributes:
    a, c, f, k, q: matrices A `[N, N]`, C `[N, M]`, F `[N, N]`, K `[N, M]`, Q `[M, M]`.
    linear_a, linear_f, linear_q: vectors a `[N]`, f `[N]`, q `[M]`.
    weights, alphas: the state, `[N]` and `[M]`.
  """

  a: np.ndarray
  c: np.ndarray
  f: np.ndarray
  k: np.ndarray
  q: np.ndarray
  linear_a: np.ndarray
  linear_f: np.ndarray
  linear_q: np.ndarray
  weights: np.ndarray
  alphas: np.ndarray

  @classmethod
  def random(cls, num_weights: int, num_alphas: int, condition: float, seed: int) -> 'Quadratic':
    """Draws a problem; the eigenvalues of A are evenly spaced in the logarithm from 1/condition to 1."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(num_weights, num_weights)))
    f, q = (x @ x.T / len(x) for x in (rng.normal(size=(n, n)) for n in (num_weights, num_alphas)))
    c, k = rng.normal(size=(2, num_weights, num_alphas)) / np.sqrt(num_weights)
    linear_a, linear_f, noise = rng.normal(size=(3, num_weights))
    linear_q, alphas = rng.normal(size=(2, num_alphas))
    a = (basis * np.geomspace(1 / condition, 1, num_weights)) @ basis.T
    optimum = -np.linalg.solve(a, c @ alphas + linear_a)
    weights = optimum + 0.1 * np.linalg.norm(optimum) * noise / np.linalg.norm(noise)
    return cls(a, c, f, k, q, linear_a, linear_f, linear_q, weights, alphas)

  @property
  def learning_rate(self) -> float:
    """ξ = 1 / the largest eigenvalue of A."""
    return 1 / float(np.linalg.eigvalsh(self.a)[-1])

  def train(self, weights: Array, alphas: Array) -> Array:
    """L_train."""
    a, c, linear = (jnp.asarray(x, weights.dtype) for x in (self.a, self.c, self.linear_a))
    return weights @ a @ weights / 2 + weights @ c @ alphas + linear @ weights

  def valid(self, weights: Array, alphas: Array) -> Array:
    """L_val."""
    f, k, q, linear_f, linear_q = (
      jnp.asarray(x, weights.dtype) for x in (self.f, self.k, self.q, self.linear_f, self.linear_q)
    )
    of_weights = weights @ f @ weights / 2 + weights @ k @ alphas + linear_f @ weights
    return of_weights + alphas @ q @ alphas / 2 + linear_q @ alphas

  def estimate(self, name: str, fields: Mapping[str, Any], dtype: str) -> tuple[np.ndarray, Memory]:
    """An estimator's estimate at the state, `[M]`, and its memory after the last pass."""
    with jax.enable_x64(dtype == 'float64'):
      estimate = hypergradient(make(name, fields), self.train, self.valid, sgd(self.learning_rate))
      gradient, memory = jax.jit(estimate)(jnp.asarray(self.weights, dtype), jnp.asarray(self.alphas, dtype))
      return np.asarray(gradient, np.float64), jax.device_get(memory)

  def true_hypergradient(self) -> np.ndarray:
    """The hypergradient ∇α L_val(w*(α), α) through the inner optimum, `[M]`."""
    optimum = -np.linalg.solve(self.a, self._push())
    return self._outer(optimum) - self.c.T @ np.linalg.solve(self.a, self._v(optimum))

  def expected(self, name: str, fields: Mapping[str, Any]) -> np.ndarray:
    """The closed form of an estimator's estimate at the state, `[M]`.

    For conjugate gradients, the estimate after as many iterations as weights, in exact arithmetic.
    """
    a, rate, w = self.a, self.learning_rate, self.weights
    eye = np.eye(len(w))
    if name == 'first_order':
      return self._outer(w)
    if name in ('finite_difference', 'exact', 'exact_reverse', 'unrolled', 'truncated'):
      steps = fields['steps'] if name in ('unrolled', 'truncated') else 1
      backward = fields['backward_steps'] if name == 'truncated' else steps
      for _ in range(steps):
        w = w - rate * (a @ w + self._push())
      powers = np.linalg.matrix_power(eye - rate * a, backward)
      return self._outer(w) - self.c.T @ np.linalg.solve(a, (eye - powers) @ self._v(w))
    v = self._v(w)
    if name == 'neumann':
      powers = np.linalg.matrix_power(eye - fields['step_size'] * a, fields['terms'] + 1)
      solution = np.linalg.solve(a, (eye - powers) @ v)
    elif name == 'conjugate_gradient':
      solution = np.linalg.solve(a + fields['damping'] * eye, v)
    else:
      assert name == 'amended', f'{name} needs its closed form here'
      solution = fields['amending'] * a @ v
    return self._outer(w) - self.c.T @ solution

  def _push(self) -> np.ndarray:
    return self.c @ self.alphas + self.linear_a

  def _outer(self, w: np.ndarray) -> np.ndarray:
    return self.q @ self.alphas + self.linear_q + self.k.T @ w

  def _v(self, w: np.ndarray) -> np.ndarray:
    return self.f @ w + self.k @ self.alphas + self.linear_f
