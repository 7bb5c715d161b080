"""Mistakes that published implementations of these estimators have made, put into ours: a check must notice each."""

import importlib
import inspect
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.hypergradient import Gradients, InnerOptimizer, Problem, sgd

DECAY, DAMPING, SIZE = 0.2, 0.7, 0.3


def load(module, old='', new=''):
  """A module of the package with a piece of its source replaced."""
  source = inspect.getsource(importlib.import_module(f'darts_jax.hypergradient.{module}'))
  if old:
    assert source.count(old) == 1
    source = source.replace(old, new)
  loaded = types.ModuleType(f'mutated_{module}')
  exec(compile(source, loaded.__name__, 'exec'), loaded.__dict__)
  return loaded


class Check(NamedTuple):
  """An estimator, and what it must give.

  Attributes:
    module: where it is.
    make: the estimator from the module.
    problem: the fixture.
    expected: from the problem.
    inner: the optimiser of the problem, or None for an implicit estimator.
  """

  module: str
  make: Callable[[Any], Any]
  problem: str
  expected: Callable[[Any], Any]
  inner: str | None = None


def of_program(name, steps, backward_steps=None):
  return lambda problem: problem.explicit(problem.optimizer(name), steps, backward_steps)


def of_equation(solve):
  """∇α L_val − Bx, where x stands for A⁻¹v."""

  def expected(problem):
    hessian = np.asarray(jax.jit(jax.hessian(problem.train))(problem.w, problem.alpha))
    mixed = np.asarray(jax.jit(jax.jacobian(jax.grad(problem.train), 1))(problem.w, problem.alpha))
    return problem.direct(problem.w) - mixed.T @ solve(hessian + DECAY * np.eye(6), problem.v(problem.w))

  return expected


CHECKS = {
  'finite_difference': Check(
    'one_step', lambda m: m.finite_difference(0.1), 'quadratic', of_program('momentum', 1), 'momentum'
  ),
  'one_sided': Check(
    'one_step', lambda m: m.finite_difference(0.1, True), 'quadratic', of_program('momentum', 1), 'momentum'
  ),
  'exact': Check('one_step', lambda m: m.exact(), 'bent', of_program('momentum', 1), 'momentum'),
  'exact_reverse': Check('one_step', lambda m: m.exact_reverse(), 'bent', of_program('momentum', 1), 'momentum'),
  'unrolled': Check('unrolled', lambda m: m.unrolled(3), 'bent', of_program('momentum', 3), 'momentum'),
  'truncated': Check('unrolled', lambda m: m.truncated(4, 2), 'bent', of_program('momentum', 4, 2), 'momentum'),
  'neumann': Check(
    'implicit', lambda m: m.neumann(1, SIZE), 'bent', of_equation(lambda matrix, v: SIZE * (2 * v - SIZE * matrix @ v))
  ),
  'conjugate_gradient': Check(
    'implicit',
    lambda m: m.conjugate_gradient(6, DAMPING),
    'bent',
    of_equation(lambda matrix, v: np.linalg.solve(matrix + DAMPING * np.eye(6), v)),
  ),
  'amended': Check('implicit', lambda m: m.amended(SIZE), 'bent', of_equation(lambda matrix, v: SIZE * matrix @ v)),
}


class Mutant(NamedTuple):
  check: str
  old: str
  new: str
  module: str | None = None


CENTRAL = '(plus - minus) / (2 * epsilon)'
LOOK_AHEAD = 'problem.inner.update(problem.weights, gradients.weights, problem.inner.state)'
WITHOUT_STATE = (
  'problem.inner.update(problem.weights, gradients.weights, jax.tree.map(jnp.zeros_like, problem.inner.state))'
)
MUTANTS = {
  'multiplied by ε': Mutant('finite_difference', CENTRAL, '(plus - minus) * (2 * epsilon)'),
  'divided by 2 and multiplied by ε': Mutant('finite_difference', CENTRAL, '(plus - minus) / 2 * epsilon'),
  'divided by ε where the sides are 2ε apart': Mutant('finite_difference', CENTRAL, '(plus - minus) / epsilon'),
  'sides swapped': Mutant('finite_difference', CENTRAL, '(minus - plus) / (2 * epsilon)'),
  'one side multiplied by ε': Mutant('one_sided', '(plus - base) / epsilon', '(plus - base) * epsilon'),
  'weights not restored before the other side': Mutant(
    'finite_difference',
    'at = add(problem.weights, -part * memory.epsilon, memory.direction)',
    'at = add(memory.at, -part * memory.epsilon, memory.direction)',
  ),
  'weights not restored after the step': Mutant(
    'finite_difference', 'at=add(problem.weights, epsilon, direction)', 'at=add(memory.at, epsilon, direction)'
  ),
  'weights not restored before the product': Mutant(
    'exact', 'at=problem.weights, direction=direction, outer', 'at=memory.at, direction=direction, outer'
  ),
  'first order under the name of a finite difference': Mutant(
    'finite_difference', 'estimate=jax.tree.map(jnp.add, memory.outer, product)', 'estimate=memory.outer'
  ),
  'first order under the name of second': Mutant(
    'exact', 'estimate=jax.tree.map(jnp.add, memory.outer, gradients.alphas)', 'estimate=memory.outer'
  ),
  'only the second-order term': Mutant(
    'exact', 'estimate=jax.tree.map(jnp.add, memory.outer, gradients.alphas)', 'estimate=gradients.alphas'
  ),
  'u = v': Mutant('exact_reverse', 'return transpose(cotangent)[0]', 'return cotangent'),
  'u = −v': Mutant('exact', 'return transpose(cotangent)[0]', 'return jax.tree.map(jnp.negative, cotangent)'),
  'u = v in a finite difference': Mutant('finite_difference', 'return transpose(cotangent)[0]', 'return cotangent'),
  'v at the weights before the step': Mutant(
    'exact',
    'at=like(after, problem.weights), direction=gradients.weights',
    'at=problem.weights, direction=gradients.weights',
  ),
  'no momentum in the step': Mutant('exact', LOOK_AHEAD, WITHOUT_STATE),
  'no momentum in the step of a finite difference': Mutant('finite_difference', LOOK_AHEAD, WITHOUT_STATE),
  'no way back through the momentum': Mutant('unrolled', 'cotangents=cotangents, step=step', 'step=step'),
  'no way back through the weights': Mutant(
    'unrolled', 'jax.tree.map(jnp.add, memory.scratch.direct, gradients.weights)', 'gradients.weights'
  ),
  'no way back through the gradient': Mutant(
    'unrolled', 'jax.tree.map(jnp.add, memory.scratch.direct, gradients.weights)', 'memory.scratch.direct'
  ),
  'momentum from the beginning': Mutant(
    'unrolled',
    'problem.inner.update(memory.at, gradients.weights, tape.state)',
    'problem.inner.update(memory.at, gradients.weights, problem.inner.state)',
  ),
  'all products at the last weights': Mutant(
    'unrolled', 'at=weights, direction=direction, scratch', 'at=memory.at, direction=direction, scratch'
  ),
  'a step of another slot': Mutant('unrolled', 'slot = step % backward_steps', 'slot = tape.step % backward_steps'),
  'only the first step': Mutant(
    'truncated',
    'estimate=jax.tree.map(jnp.add, memory.estimate, gradients.alphas)',
    'estimate=jax.tree.map(jnp.add, memory.outer, gradients.alphas)',
  ),
  'a direction from the old residual': Mutant(
    'conjugate_gradient', 'd, d), residual, memory.direction', 'd, d), memory.scratch.residual, memory.direction'
  ),
  'a ratio from the old residual': Mutant(
    'conjugate_gradient', 'after = dot(residual, residual)', 'after = dot(memory.scratch.residual, residual)'
  ),
  'a solution that was never updated': Mutant(
    'conjugate_gradient', 'solution = add(solution, length, memory.direction)', 'solution = add(solution, 0, residual)'
  ),
  'no damping': Mutant('conjugate_gradient', 'problem.inner.weight_decay + damping', 'problem.inner.weight_decay'),
  'no weight decay in a solution': Mutant('conjugate_gradient', 'problem.inner.weight_decay + damping', 'damping'),
  'a solution added': Mutant(
    'conjugate_gradient', 'add(memory.outer, -1, gradients.alphas)', 'add(memory.outer, 1, gradients.alphas)'
  ),
  'a series without its step size': Mutant(
    'neumann', 'add(memory.estimate, -step_size, gradients.alphas)', 'add(memory.estimate, -1, gradients.alphas)'
  ),
  'no weight decay in a series': Mutant(
    'neumann',
    'curved = add(gradients.weights, problem.inner.weight_decay, memory.direction)',
    'curved = gradients.weights',
  ),
  'a series of the last term only': Mutant(
    'neumann', 'add(memory.estimate, -step_size, gradients.alphas)', 'add(memory.outer, -step_size, gradients.alphas)'
  ),
  'no weight decay in an amended gradient': Mutant(
    'amended',
    'direction=add(gradients.weights, problem.inner.weight_decay, memory.direction)',
    'direction=gradients.weights',
  ),
  'an amended gradient without the Hessian': Mutant(
    'amended',
    'direction=add(gradients.weights, problem.inner.weight_decay, memory.direction)',
    'direction=memory.direction',
  ),
  'a gradient in place of its derivative': Mutant(
    'exact',
    'found = product_with_tangents(traced, jax.tree.leaves(weights), jax.tree.leaves(along))',
    'found = jax.tree.leaves(gradient(weights))',
    'program',
  ),
  'the losses swapped': Mutant(
    'finite_difference',
    "{'train': train_loss, 'valid': valid_loss}",
    "{'train': valid_loss, 'valid': train_loss}",
    'program',
  ),
}


class Setup(NamedTuple):
  """What all mutants of an estimator share."""

  problem: Any
  inner: InnerOptimizer
  evaluators: dict[tuple[str, str], Callable[..., Any]]
  expected: np.ndarray


SETUPS: dict[str, Setup] = {}


def make_setup(check, request):
  problem = request.getfixturevalue(check.problem)
  inner = problem.optimizer(check.inner).inner if check.inner else InnerOptimizer(sgd(1.0).update, weight_decay=DECAY)

  def evaluator(loss, derivative):
    gradient = jax.grad(getattr(problem, loss), (0, 1))

    def evaluate(weights, alphas, direction):
      if derivative == 'gradient':
        return gradient(weights, alphas)
      return jax.jvp(lambda w: gradient(w, alphas), (weights,), (direction,))[1]

    return jax.jit(evaluate)

  products = {('train', each): evaluator('train', 'product') for each in ('product', 'reverse_product')}
  gradients = {(each, 'gradient'): evaluator(each, 'gradient') for each in ('train', 'valid')}
  return Setup(problem, inner, {**gradients, **products}, np.asarray(check.expected(problem)))


def error(name, request, module, made_by=None):
  """Of an estimate, as a fraction of what is expected.

  Args:
    name: of a check.
    request: of the test.
    module: where the estimator is.
    made_by: the module whose `hypergradient` makes the passes; None makes one after the other here.
  """
  check = CHECKS[name]
  if name not in SETUPS:
    SETUPS[name] = make_setup(check, request)
  problem, inner, evaluators, expected = SETUPS[name]
  estimator = check.make(module)
  weights, alphas = jax.tree.map(jnp.asarray, (problem.weights, problem.alphas))
  if made_by:
    function = made_by.hypergradient(estimator, problem.train, problem.valid, inner)
    estimate, _ = jax.jit(function)(weights, alphas)
  else:
    bilevel = Problem(inner, weights, alphas)
    memory = estimator.start(bilevel)
    for each in estimator.passes:
      gradients = Gradients(*evaluators[each.loss, each.derivative](memory.at, alphas, memory.direction))
      memory = each.advance(bilevel, memory, gradients)
    estimate = memory.estimate
  return np.linalg.norm(problem.flat(estimate) - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize('name', list(CHECKS))
@pytest.mark.usefixtures('x64')
def test_source_as_it_is_passes(name, request):
  assert error(name, request, load(CHECKS[name].module)) < 1e-10


@pytest.mark.parametrize('name', sorted({mutant.check for mutant in MUTANTS.values() if mutant.module == 'program'}))
@pytest.mark.usefixtures('x64')
def test_source_as_it_is_passes_in_a_loop(name, request):
  assert error(name, request, load(CHECKS[name].module), load('program')) < 1e-10


@pytest.mark.parametrize('mutant', list(MUTANTS.values()), ids=list(MUTANTS))
@pytest.mark.usefixtures('x64')
def test_mistake_is_noticed(mutant, request):
  module = CHECKS[mutant.check].module
  if mutant.module == 'program':
    value = error(mutant.check, request, load(module), load('program', mutant.old, mutant.new))
  else:
    value = error(mutant.check, request, load(module, mutant.old, mutant.new))
  assert not value < 1e-2
