"""The comparisons of the laboratory; each returns a part of the results as JSON values."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from darts_jax.hypergradient import make, unrolled
from darts_jax.laboratory import problems
from darts_jax.laboratory.bench import Bench, Frozen, Gradient, Outcome, compare, to_host
from darts_jax.laboratory.settings import Laboratory
from darts_jax.runtime.checkpoint import Checkpoints, claims
from darts_jax.runtime.files import user_path
from darts_jax.runtime.mesh import make_mesh
from darts_jax.runtime.workdir import CHECKPOINTS
from darts_jax.search.optimizers import Optimizers
from darts_jax.search.searcher import Searcher
from darts_jax.search.settings import image_task
from darts_jax.search.state import SearchState
from darts_jax.settings import rename
from darts_jax.tasks.base import Halves

Json = Any

_TOY_RATES = (0.0, 0.1, 0.25, 0.5)
_TOY_RATE = 0.25


def toy(settings: Laboratory) -> Json:
  """Searches on the toy problem (the paper's figure 2), and all estimates at its start against closed forms."""
  trajectories = []
  for rate in _TOY_RATES:
    alphas, weights = problems.toy_search(rate)
    trajectories.append(
      {'learning_rate': rate, 'alphas': alphas.tolist(), 'weights': weights.tolist(), 'rest': 2 / (1 + 2 * rate)}
    )
  rows = []
  for name in settings.estimators:
    values = settings.hypergradient(name).fields
    estimate = problems.toy_estimate(name, values, _TOY_RATE)
    rows.append({'estimator': name, 'estimate': estimate, 'expected': problems.toy_expected(name, values, _TOY_RATE)})
  return {'trajectories': trajectories, 'rows': rows}


def quadratic(settings: Laboratory) -> Json:
  """All estimates on a random quadratic problem, against their own closed forms and the true hypergradient."""
  size = settings.quadratic
  problem = problems.Quadratic.random(size.weights, size.alphas, size.condition, settings.search.seed)
  truth = problem.true_hypergradient()

  def distance(gradient: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(gradient - reference) / np.linalg.norm(reference))

  rows = []
  for name in settings.estimators:
    values = settings.hypergradient(name).fields
    if name == 'neumann':
      values['step_size'] = problem.learning_rate
    if name == 'conjugate_gradient':
      # In exact arithmetic N iterations for N weights are enough; another N make up for rounding.
      values |= {'iterations': 2 * size.weights, 'damping': 1e-12}
    for dtype in ('float64', 'float32'):
      gradient, memory = problem.estimate(name, values, dtype)
      reports = make(name, values).reports
      rows.append(
        {
          'estimator': name,
          'precision': dtype,
          'error': distance(gradient, problem.expected(name, values)),
          'distance': distance(gradient, truth),
          'cosine': float(gradient @ truth / (np.linalg.norm(gradient) * np.linalg.norm(truth))),
          'residual': float(memory.residual) if 'residual' in reports else None,
        }
      )
  counts = sorted({1, 3, 10, 30, 100} | {size.weights})
  convergence = {}
  for name, by_count in (
    ('unrolled', lambda count: {'steps': count}),
    ('neumann', lambda count: {'terms': count, 'step_size': problem.learning_rate}),
    ('conjugate_gradient', lambda count: {'iterations': count, 'damping': 1e-12}),
  ):
    if name not in settings.estimators:
      continue
    points = []
    for count in counts:
      if name == 'conjugate_gradient' and count > size.weights:
        continue
      values = by_count(count)
      points.append((make(name, values).cost.forward, distance(problem.estimate(name, values, 'float64')[0], truth)))
    convergence[name] = {'passes': [p for p, _ in points], 'distance': [d for _, d in points]}
  return {**dataclasses.asdict(size), 'rows': rows, 'convergence': convergence}


class SupernetLab:
  """Comparisons on a supernet and real images, in several precisions, and on the supernet's smooth twin.

  Attributes:
    states: states of a search by step: the initialisation, or the checkpoints that can be read.
    source: names, for readers, the latest of these states.
    frozen: the latest state with a batch of each half of the data.
  """

  def __init__(self, settings: Laboratory, checkpoint: str | None, note: Callable[[str], None]) -> None:
    """Reads data and checkpoints; compiles little.

    Args:
      settings: settings of the laboratory; with a checkpoint, `settings.search` are the settings of that search.
      checkpoint: the working directory of a search, or None for a network at initialisation.
      note: called with messages about progress.

    Raises:
      ValueError: a setting, the data or the directory is unfit.
    """
    search = settings.search
    task = image_task(search, 'config.search')
    try:
      images = task.load()
    except ValueError as error:
      # Messages about data name fields of a search's config, which is `config.search` here.
      raise ValueError(rename(str(error), 'config.search')) from error
    mesh = make_mesh(1)
    self._settings = settings
    self._note = note
    if search.strategy.name != 'darts':
      raise ValueError(
        f'config.search.strategy: {search.strategy.name} is not allowed; estimators are compared on a whole search'
        ' space, by darts'
      )
    self._searchers: dict[int, tuple[Searcher, Halves, Callable[..., Halves]]] = {}
    for size in dict.fromkeys((search.batch_size, *settings.batch_sizes)):
      sized = dataclasses.replace(search, batch_size=size)
      try:
        searcher = Searcher.open(sized, images, mesh)
        halves = searcher.place([task.halves(images, sized, search.seed)])
      except ValueError as error:
        message = rename(str(error), 'config.search')
        if size != search.batch_size:
          message = message.replace('config.search.batch_size', 'config.batch_sizes')
        raise ValueError(message) from error
      self._searchers[size] = searcher, halves, jax.jit(searcher.batches)
    searcher = self._searcher
    self.states: dict[int, SearchState] = {}
    if checkpoint is None:
      self.source = 'initialisation'
      self.states[0] = searcher.init(jax.random.key(search.seed))
    else:
      template = searcher.template()
      folder = user_path(checkpoint, '--checkpoint') / CHECKPOINTS
      fingerprint = task.fingerprint(images)
      if any(claim.get('dataset', fingerprint) != fingerprint for claim in claims(folder)):
        raise ValueError(
          f'--checkpoint: {checkpoint} was searched on other data than those of config.search.data ({images.name})'
        )
      saved = Checkpoints(folder)
      for step in saved.steps():
        try:
          restored = saved.restore(template, at=step)
        except ValueError as error:
          note(f'left out: {error}')
          continue
        if restored is not None:  # A search that is still running may have removed the checkpoint.
          self.states[step] = restored.state
      if not self.states:
        raise ValueError(
          f'--checkpoint: {checkpoint} has no checkpoint that can be read; a search saves one after every epoch'
        )
      self.source = f'step {max(self.states)} of {checkpoint}'
    self._optimizers = Optimizers.from_settings(search, searcher.epoch_ends)
    # One object for each estimator: compiled functions are cached by its passes and serve all precisions.
    names = {*settings.estimators, search.hypergradient.name, 'first_order', 'finite_difference', 'exact'}
    self._estimators = {name: settings.hypergradient(name).estimator() for name in names}
    self._advances: dict[Any, Any] = {}
    self._benches: dict[tuple[str, bool], Bench] = {}
    self.frozen = self.freeze(self.states[max(self.states)])

  @property
  def _searcher(self) -> Searcher:
    return self._searchers[self._settings.search.batch_size][0]

  def freeze(self, state: SearchState, batch_size: int | None = None, draw: int | None = None) -> Frozen:
    """Adds a batch of each half to a state: the batches of its next step, or of step `draw`."""
    _, halves, batches = self._searchers[batch_size or self._settings.search.batch_size]
    shown = state if draw is None else state.replace(step=jnp.int32(draw))
    return Frozen(to_host(state), jax.device_get(batches(shown, halves)))

  def bench(self, precision: str, smooth: bool = False) -> Bench:
    """The bench of the network, or of its smooth twin, in a precision; the same object at every call."""
    if (precision, smooth) not in self._benches:
      fine = self.bench('float32', smooth) if precision == 'bfloat16' else None
      net = dataclasses.replace(self._searcher.learner.net, smooth=smooth)
      self._benches[precision, smooth] = Bench(
        net, self._searcher.searched, self._optimizers, precision, fine, self._note, self._advances
      )
    return self._benches[precision, smooth]

  @functools.cached_property
  def reference(self) -> Outcome:
    """The exact one-step hypergradient in float64."""
    return self.bench('float64').estimate(self._estimators['exact'], self.frozen)

  def table(self) -> Json:
    """All estimators in all precisions, against the exact and the unrolled hypergradient in float64."""
    settings = self._settings
    references = {
      'one_step': self.reference,
      'unrolled': self.bench('float64').estimate(unrolled(settings.reference_steps), self.frozen),
    }
    rows = []
    working = 'float32' if 'float32' in settings.precisions else settings.precisions[0]
    for precision in settings.precisions:
      for name in settings.estimators:
        if name == 'exact_reverse' and precision != working:
          # It gives the numbers of `exact` and is measured for its cost only.
          continue
        estimator = self._estimators[name]
        outcome = self.bench(precision).estimate(estimator, self.frozen, settings.repeats, checks=True)
        memory = outcome.memory
        reports = (*estimator.reports, *(('disagreement',) if estimator.checks else ()))
        rows.append(
          {
            'estimator': name,
            'precision': precision,
            **{
              key: {'term': compare(outcome.term, other.term), 'whole': compare(outcome.estimate, other.estimate)}
              for key, other in references.items()
            },
            'seconds': outcome.seconds,
            'bytes': outcome.num_bytes,
            **estimator.cost._asdict(),
            **{
              report: float(getattr(memory, report)) if report in reports else None
              for report in ('residual', 'epsilon', 'disagreement')
            },
          }
        )
    return rows

  def radius(self) -> Json:
    """The finite difference's error in the second-order term against its radius, on the network and its twin."""
    radii = np.geomspace(1e-7, 1, self._settings.radii)
    result: dict[str, Any] = {'paper': 0.01}
    for kind, smooth in (('network', False), ('twin', True)):
      truth = self.bench('float64', smooth).estimate(self._estimators['exact'], self.frozen)
      result[kind] = {}
      for precision in self._settings.precisions:
        bench = self.bench(precision, smooth)
        outcome = bench.estimate(self._estimators['finite_difference'], self.frozen)
        terms = bench.differences(self.frozen, outcome, radii)
        errors = [compare(term, truth.term)['error'] for term in terms]
        result[kind][precision] = {'radii': radii.tolist(), 'errors': errors}
    return result

  def batches(self) -> Json:
    """Cosine of means over batches to the mean over many batches, by batch size and number of batches."""
    settings, bench = self._settings, self.bench('float32')
    state = self.states[max(self.states)]
    size = settings.search.batch_size
    # The reference uses steps 0, 1, …, and the means to compare use steps from 100,000 on: no batch is shared.
    count = -(-2 * settings.images // size)
    truth = _mean([bench.estimate(self._estimators['exact'], self.freeze(state, size, draw)) for draw in range(count)])
    lines = []
    for batch_size in sorted({size, *settings.batch_sizes}):
      number = settings.images // batch_size
      draws = range(100_000, 100_000 + number)
      frozen = [self.freeze(state, batch_size, draw) for draw in draws]
      for name in ('first_order', 'finite_difference', 'exact'):
        estimator = self._estimators[name]
        outcomes = [bench.estimate(estimator, each) for each in frozen]
        groups = [2**i for i in range(number.bit_length()) if 2**i <= number]
        line: dict[str, Any] = {'estimator': estimator.name, 'batch_size': batch_size}
        line['images'] = [batch_size * group for group in groups]
        for part, index in (('term', 1), ('whole', 0)):
          line[part] = [_mean_cosine(outcomes, group, truth, index) for group in groups]
        lines.append(line)
    return {'reference_images': count * size, 'lines': lines}

  def along(self) -> Json:
    """All estimators against the exact one along a search: that of the checkpoints, or a short new one."""
    settings = self._settings
    names = [name for name in settings.estimators if name not in ('exact', 'exact_reverse')]
    result: dict[str, Any] = {'steps': [], 'term_fraction': [], 'outer_norm': [], 'loss': []}
    result['estimators'] = {name: {'term': [], 'whole': [], 'error': []} for name in names}
    if len(self.states) > 1:
      result['source'] = f'the checkpoints of the search of which this is {self.source}'
      states = iter(self.states.items())
    else:
      result['source'] = f'{settings.search_steps} steps of a search, from {self.source}'
      states = self._walk(max(self.states))
    for step, state in states:
      frozen = self.freeze(state)
      truth = self.bench('float64').estimate(self._estimators['exact'], frozen)
      loss, _ = self.bench('float32').gradients(frozen)
      outer = _norm(truth.outer)
      _check_outer(outer)
      for key, value in (
        ('steps', step),
        ('loss', loss),
        ('outer_norm', outer),
        ('term_fraction', _norm(truth.term) / outer),
      ):
        result[key].append(value)
      for name in names:
        estimator = self._estimators[name]
        outcome = self.bench('float32').estimate(estimator, frozen)
        term, whole = compare(outcome.term, truth.term), compare(outcome.estimate, truth.estimate)
        for key, found in (('term', term['cosine']), ('whole', whole['cosine']), ('error', term['error'])):
          result['estimators'][name][key].append(found)
    return result

  def _walk(self, first: int) -> Iterator[tuple[int, SearchState]]:
    """Yields steps and states of a search by the configured estimator, run with the programs of the bench."""
    settings, bench, optimizers = self._settings, self.bench('float32'), self._optimizers
    state = self.states[first]
    estimator = self._estimators[settings.search.hypergradient.name]
    timing = self._searcher.timing
    move_alphas, move_weights = jax.jit(optimizers.move_alphas), jax.jit(optimizers.move_weights)

    def alphas_moved(state: SearchState, frozen: Frozen) -> SearchState:
      estimate = bench.estimate(estimator, frozen).estimate
      return move_alphas(state, {name: jnp.float32(value) for name, value in estimate.items()})

    def weights_moved(state: SearchState, frozen: Frozen) -> SearchState:
      return move_weights(state, bench.gradients(frozen)[1].weights)

    moves = (weights_moved, alphas_moved) if timing.weights_first else (alphas_moved, weights_moved)
    for step in range(first, first + settings.search_steps + 1):
      if (step - first) % settings.compare_every == 0:
        yield step, state
      if step == first + settings.search_steps:
        return
      frozen = self.freeze(state)
      for move in moves if timing.moves(state.step) else (weights_moved,):
        # A move may advance the step, but the relaxation has to see the step of the batches in both moves.
        state = move(state, frozen._replace(state=to_host(state.replace(step=jnp.int32(step)))))

  def unrolled(self) -> Json:
    """Time and memory of unrolled gradients by number of steps."""
    settings, bench = self._settings, self.bench('float32')
    outcomes = [bench.estimate(unrolled(steps), self.frozen, settings.repeats) for steps in settings.unrolled_steps]
    seconds, num_bytes = bench.time_gradient(self.frozen, settings.repeats)
    return {
      'steps': list(settings.unrolled_steps),
      'seconds': [outcome.seconds for outcome in outcomes],
      'bytes': [outcome.num_bytes for outcome in outcomes],
      'gradient_seconds': seconds,
      'gradient_bytes': num_bytes,
    }

  def results(self) -> Json:
    """The results of all comparisons on the supernet."""
    search, task = self._settings.search, image_task(self._settings.search)
    state = self.states[max(self.states)]
    outer = _norm(self.reference.outer)
    _check_outer(outer)
    return {
      'data': task.source,
      'state': self.source,
      'weights': int(state.weights.vector.size),
      'alphas': sum(leaf.size for leaf in jax.tree.leaves(state.alphas)),
      'batch_size': search.batch_size,
      'operations': len(next(iter(search.space.cells.values())).operations),
      'channels': task.network.channels,
      'layers': task.network.layers,
      'nodes': len(next(iter(search.space.cells.values())).nodes),
      'reference_steps': self._settings.reference_steps,
      'outer_norm': outer,
      'term_fraction': _norm(self.reference.term) / outer,
      'rows': self.table(),
      'radius': self.radius(),
      'batches': self.batches(),
      'along': self.along(),
      'unrolled': self.unrolled(),
    }


def _check_outer(norm: float) -> None:
  """Raises a ValueError, one line, if the hypergradient cannot be compared with the validation loss's own gradient."""
  if not norm:
    raise ValueError(
      'config.search: the gradient of its validation loss with respect to α is 0; it has to be a search with something'
      ' to choose, on an edge with several operations'
    )


def _norm(gradient: Gradient) -> float:
  return math.sqrt(sum(float(np.sum(value**2)) for value in gradient.values()))


def _mean(outcomes: Sequence[Outcome]) -> tuple[Gradient, Gradient]:
  """The mean of the estimates, and the mean of their second-order terms."""

  def mean(gradients: Sequence[Mapping[str, np.ndarray]]) -> Gradient:
    return {name: np.mean([gradient[name] for gradient in gradients], axis=0) for name in gradients[0]}

  return mean([outcome.estimate for outcome in outcomes]), mean([outcome.term for outcome in outcomes])


def _mean_cosine(outcomes: Sequence[Outcome], group: int, truth: tuple[Gradient, Gradient], part: int) -> float | None:
  """The mean, over groups of `group` batches, of the cosine between a group's mean and the truth.

  Args:
    outcomes: one outcome for each batch.
    group: number of batches of a group.
    truth: means of estimate and second-order term over many batches.
    part: 0 for the estimate, 1 for the second-order term.

  Returns:
    The mean cosine; None if a norm is zero.
  """
  starts = range(0, len(outcomes) - group + 1, group)
  found = [compare(_mean(outcomes[start : start + group])[part], truth[part])['cosine'] for start in starts]
  return None if None in found else float(np.mean([value for value in found if value is not None]))
