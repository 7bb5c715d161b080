"""Estimators for searches without a bilevel problem: weights and α share one loss, or α stay as they are."""

from darts_jax.hypergradient.base import Estimator, Gradients, Memory, Pass, Problem


def joint() -> Estimator:
  """∇α L_train(w, α): weights and α step down the gradients of one loss on one batch (SNAS, arXiv 1812.09926).

  A search step makes one pass, at the old weights and α, and updates both by it; it costs no more than an update of the
  weights. The outer loss is not computed.
  """

  def finish(problem: Problem, memory: Memory, gradients: Gradients) -> Memory:
    del problem
    return memory._replace(estimate=gradients.alphas, outer=gradients.alphas)

  return Estimator('joint', (Pass('train', finish),), single_level=True)


def none() -> Estimator:
  """Zero: α stay as they are, and a search step is an update of the weights."""
  return Estimator('none', ())
