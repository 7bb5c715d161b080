"""Compares this implementation with results of the reference code.

python -m benchmarks.parity FILE.npz|FILE.json

Recomputes the results in a file, in float64, and prints `name relative_error` for each of them. The relative error of
an array is max |ours − theirs| / max |theirs|; that of an architecture is 0 or 1. The exit code is 0 if all errors are
within tolerance, 1 if not, and 2, with one line, if the file cannot be read. Kinds of files, with the names and layouts
of the reference code (NCHW, OIHW):

- cnn_search: weights `w/…`, momentum buffers `momentum/…`, `alphas_…`, two batches, and results: logits, losses,
  hypergradients, one whole search step.
- cnn_eval: the network of an architecture: weights `w/…`, a batch `x`, and logits.
- rnn_search and rnn_eval: the same for recurrent cells: weights, token ids `x…` and `y…`, hidden states `h…`,
  log-probabilities, losses and hypergradients.
- genotype_parse: a list of α with their genotypes.
- sgas_decisions: a list of searches of SGAS: α after every epoch, and the decisions so far.
- nb201_eval, nb201_search and nb201_params: networks of NAS-Bench-201: discrete networks with logits, gradients and
  running statistics; a supernet; numbers of weights and multiply-adds.
- gdas: draws of GDAS and their gradients on a supernet of NAS-Bench-201.
- pc_darts: a supernet of PC-DARTS.
- pc_darts_genotypes: a list of α and β with their genotypes.
- robustdarts: a supernet and the second derivative of its loss in α; or curvatures of searches and the epochs after
  which they stop.

For NAS-Bench-201, GDAS, PC-DARTS and RobustDARTS, absolute differences up to 1e-12 are not counted, since some
gradients are rounding errors only.
"""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import nasbench201_parity, strategies_parity
from benchmarks.command import exit_code
from darts_jax import spaces
from darts_jax.data.sequences import Sequences
from darts_jax.hypergradient import Estimator, exact, finite_difference, first_order
from darts_jax.interop.reference import convert_language_model, convert_network, convert_supernet, infer_network
from darts_jax.laboratory.bench import Bench, Frozen, to_host
from darts_jax.nets.conv import Supernet
from darts_jax.nets.recurrent import LanguageModel, Masks
from darts_jax.runtime.compilation import compiler_options
from darts_jax.runtime.files import parse_json, read_json, read_npz, user_path
from darts_jax.runtime.packed import Packed
from darts_jax.search.optimizers import Optimizers
from darts_jax.search.searched import Searched
from darts_jax.search.settings import Alphas, Search, Weights, read
from darts_jax.search.state import SearchState
from darts_jax.search.step import StepInfo, search_step
from darts_jax.spaces import from_json, kind_of, to_json, undecided_edges
from darts_jax.strategies.darts import Darts
from darts_jax.strategies.sgas import Decision, Sgas
from darts_jax.tasks.base import Halves
from darts_jax.tasks.images import ImageBatch, ImageLoss
from darts_jax.tasks.text import TextBatch, TextLoss

# Tolerances in float64. Outputs and gradients agree up to rounding; a finite difference divides the rounding errors of
# two gradients by its small step.
TOLERANCE = 1e-9
TOLERANCE_FINITE_DIFFERENCE = 1e-6

CELLS = tuple(spaces.Darts().cells)
[CELL] = spaces.Recurrent().cells


def relative_error(ours: Any, theirs: Any) -> float:
  """max |ours − theirs| / max |theirs|."""
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  if ours.shape != theirs.shape:
    raise ValueError(f'shape {ours.shape} computed, {theirs.shape} found')
  return float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))


class SearchFile:
  """A file of the kind cnn_search, converted to a network, a state and two batches."""

  def __init__(self, values: Mapping[str, np.ndarray]) -> None:
    """Converts everything; computes nothing. Raises ValueError or KeyError if something is missing or does not fit."""
    self.values = values
    self.meta: dict[str, Any] = parse_json(str(values['meta']).encode())
    space = spaces.Darts()
    plan = space.plan(self.meta['layers'])
    self.net = Supernet(tuple(space.cells.items()), plan, self.meta['C'], self.meta['num_classes'])
    self.variables = convert_supernet(self.net, self._group('w/'))
    self.searched = Searched.start(Darts(), space)
    self.train, self.valid = (
      ImageBatch(jnp.asarray(values[f'x_{half}'].transpose(0, 2, 3, 1)), jnp.asarray(values[f'y_{half}']))
      for half in ('train', 'valid')
    )
    meta = self.meta
    settings = Search(
      epochs=1,
      weights=Weights(meta['eta'], meta['eta'], meta['momentum'], meta['weight_decay'], meta['grad_clip']),
      alphas=Alphas(meta['arch_lr'], meta['arch_betas'][0], meta['arch_betas'][1], meta['arch_weight_decay']),
    )
    self.optimizers = Optimizers.from_settings(settings, [1])
    weights = Packed.pack(self.variables['params'])
    alphas = {name: jnp.asarray(values[f'alphas_{name}']) for name in CELLS}
    momentum = convert_supernet(self.net, self._group('momentum/'), statistics=False)['params']
    self.state = SearchState(
      step=jnp.zeros((), jnp.int32),
      key=jax.random.key(0),
      weights=weights,
      statistics=Packed.pack(self.variables['batch_stats']),
      alphas=alphas,
      weights_optimizer=optax.tree_utils.tree_set(
        self.optimizers.weights.init(weights.vector), trace=Packed.pack(momentum).vector
      ),
      alphas_optimizer=self.optimizers.alphas.init(alphas),
    )

  def logits(self) -> tuple[jax.Array, jax.Array]:
    """Logits of the training batch in evaluation and in training mode."""
    mixing = jax.tree.map(jax.nn.softmax, self.state.alphas)
    apply = jax.jit(self.net.apply, static_argnames='train')
    evaluated, trained = (apply(self.variables, self.train.images, mixing, train=train) for train in (False, True))
    return evaluated, trained

  def hypergradients(self, *estimators: Estimator) -> list[dict[str, np.ndarray]]:
    """Estimates of several estimators, which share compiled programs; see `darts_jax.laboratory.bench`."""
    bench = Bench(self.net, self.searched, self.optimizers, 'float64', products_of_weights=False)
    frozen = Frozen(to_host(self.state), Halves(self.train, self.valid))
    return [bench.estimate(estimator, frozen).estimate for estimator in estimators]

  def step(self, estimator: Estimator) -> tuple[SearchState, StepInfo]:
    """One whole search step."""

    def run(state: SearchState, train: ImageBatch, valid: ImageBatch) -> tuple[SearchState, StepInfo]:
      return search_step(
        state,
        train,
        valid,
        objective=ImageLoss(self.net),
        searched=self.searched,
        estimator=estimator,
        optimizers=self.optimizers,
      )

    return jax.jit(run, compiler_options=compiler_options())(self.state, self.train, self.valid)

  def expected_weights(self) -> dict[str, Any]:
    """The weights after the whole step."""
    return convert_supernet(self.net, self._group('step_w/'), statistics=False)['params']

  def _group(self, prefix: str) -> dict[str, np.ndarray]:
    return {name[len(prefix) :]: value for name, value in self.values.items() if name.startswith(prefix)}


#: Names of the results in a cnn_search file; further ones are the weights after the step, `step_w/…`.
RESULTS = (
  *('logits_eval', 'logits_train', 'loss_train', 'unrolled_loss', 'step_grad_norm'),
  *(f'{kind}_{cell}' for kind in ('first_order', 'exact', 'fd', 'step_alphas') for cell in CELLS),
)
#: Groups of results that share compiled programs.
PARTS = ('forward', 'hypergradients', 'finite_difference')


def compare_search(file: SearchFile, parts: Sequence[str] = PARTS) -> Iterator[tuple[str, float, float]]:
  """Yields the name, relative error and tolerance of the results in a cnn_search file."""
  values, meta = file.values, file.meta
  if 'forward' in parts:
    if 'param_count' in meta:
      count = sum(leaf.size for leaf in jax.tree.leaves(file.variables['params']))
      yield 'param_count', float(count != meta['param_count']), 0.0
    evaluated, trained = file.logits()
    losses = optax.softmax_cross_entropy_with_integer_labels(trained, file.train.labels)
    yield 'logits_eval', relative_error(evaluated, values['logits_eval']), TOLERANCE
    yield 'logits_train', relative_error(trained, values['logits_train']), TOLERANCE
    yield 'loss_train', relative_error(jnp.mean(losses), values['loss_train']), TOLERANCE
  if 'hypergradients' in parts:
    estimators = first_order(), exact()
    for estimator, found in zip(estimators, file.hypergradients(*estimators), strict=True):
      for cell in CELLS:
        name = f'{estimator.name}_{cell}'
        yield name, relative_error(found[cell], values[name]), TOLERANCE
  if 'finite_difference' in parts:
    state, info = file.step(finite_difference(meta['fd_radius']))
    for cell in CELLS:
      yield f'fd_{cell}', relative_error(info.hypergradient[cell], values[f'fd_{cell}']), TOLERANCE_FINITE_DIFFERENCE
    yield from _compare_step(file, state, info)


def _compare_step(file: SearchFile, state: SearchState, info: StepInfo) -> Iterator[tuple[str, float, float]]:
  """Yields the results of a whole search step, which the reference takes with the finite difference."""
  values = file.values
  yield 'unrolled_loss', relative_error(info.metrics['valid_loss'], values['unrolled_loss']), TOLERANCE
  for cell in CELLS:
    name = f'step_alphas_{cell}'
    yield name, relative_error(state.alphas[cell], values[name]), TOLERANCE
  yield 'step_grad_norm', relative_error(info.metrics['weights_gradient_norm'], values['step_grad_norm']), TOLERANCE
  expected = dict(jax.tree_util.tree_leaves_with_path(file.expected_weights()))
  for path, leaf in jax.tree_util.tree_leaves_with_path(state.weights.tree):
    yield 'step_w/' + '/'.join(key.key for key in path), relative_error(leaf, expected[path]), TOLERANCE


def compare_network(values: Mapping[str, np.ndarray]) -> Iterator[tuple[str, float, float]]:
  """Yields the name, relative error and tolerance of the results in a cnn_eval file."""
  meta = parse_json(str(values['meta']).encode())
  genotype = from_json(meta['genotype'])
  if genotype.space != spaces.Darts.name:
    raise ValueError(f'meta: a {kind_of(genotype)} architecture')
  # The reference computed in float64, but saved running statistics in float32.
  tensors = {name[2:]: value.astype(np.float64) for name, value in values.items() if name.startswith('w/')}
  net = infer_network(genotype, tensors)
  variables = convert_network(net, tensors)
  count = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
  yield 'param_count', float(count != meta['param_count']), 0.0
  count -= sum(leaf.size for leaf in jax.tree.leaves(variables['params']['auxiliary']))
  yield 'param_count_no_aux', float(count != meta['param_count_no_aux']), 0.0
  images = jnp.asarray(values['x'].transpose(0, 2, 3, 1))
  evaluated = jax.jit(lambda: net.apply(variables, images, train=False))()
  trained = jax.jit(lambda: net.apply(variables, images, train=True))()
  yield 'logits_eval', relative_error(evaluated.main, values['logits_eval']), TOLERANCE
  yield 'logits_train', relative_error(trained.main, values['logits_train']), TOLERANCE
  yield 'logits_aux', relative_error(trained.auxiliary, values['logits_aux']), TOLERANCE


class RecurrentFile:
  """A file of the kind rnn_search, converted to a network, a state and two batches without dropout."""

  def __init__(self, values: Mapping[str, np.ndarray]) -> None:
    """Converts everything; computes nothing. Raises ValueError or KeyError if something is missing or does not fit."""
    self.values = values
    self.meta: dict[str, Any] = parse_json(str(values['meta']).encode())
    meta = self.meta
    self.space = spaces.Recurrent()
    self.net = LanguageModel(self.space.cells[CELL], meta['vocab'], meta['hidden'], norm=True)
    self.variables = convert_language_model(self.net, _tensors(values))
    self.searched = Searched.start(Darts(), self.space)
    # By default, recurrent searches clip virtual steps with a constant factor, and clip the outer gradient, too.
    rates = {'learning_rate': meta['eta'], 'final_learning_rate': meta['eta'], 'momentum': 0.0}
    group = {**rates, 'weight_decay': meta['weight_decay'], 'clip_norm': meta['clip']}
    settings = read({'space': self.space.name, 'epochs': 1, 'weights': group})
    self.optimizers = Optimizers.from_settings(settings, [1])
    weights = Packed.pack(self.variables['params'])
    self.optimizers = dataclasses.replace(self.optimizers, inner=_keep_embedding(self.optimizers.inner, weights))
    alphas = {CELL: jnp.asarray(values['alphas'])}
    self.batches = Halves(*(self._batch(half) for half in Halves._fields))
    self.state = SearchState(
      step=jnp.zeros((), jnp.int32),
      key=jax.random.key(0),
      weights=weights,
      statistics=Packed.pack(self.variables['batch_stats']),
      alphas=alphas,
      weights_optimizer=self.optimizers.weights.init(weights.vector),
      alphas_optimizer=self.optimizers.alphas.init(alphas),
      carried=Halves(self.batches.train.hidden, self.batches.valid.hidden),
    )

  def _batch(self, half: str) -> TextBatch:
    tokens, targets = (jnp.asarray(self.values[f'{name}_{half}'], jnp.int32) for name in 'xy')
    hidden = jnp.asarray(self.values[f'h_{half}'][0])
    nothing_dropped = Masks(jnp.ones(self.meta['vocab']), *[jnp.ones_like(hidden)] * 4)
    return TextBatch(Sequences(tokens, targets, jnp.int32(len(tokens))), hidden, nothing_dropped)

  def step(self, estimator: Estimator) -> tuple[SearchState, StepInfo]:
    """One whole search step."""

    def run(state: SearchState, batches: Halves) -> tuple[SearchState, StepInfo]:
      return search_step(
        state,
        *batches,
        objective=TextLoss(self.net, 0.0, False),
        searched=self.searched,
        estimator=estimator,
        optimizers=self.optimizers,
      )

    return jax.jit(run, compiler_options=compiler_options())(self.state, self.batches)


def _keep_embedding(inner: optax.GradientTransformation, weights: Packed) -> optax.GradientTransformation:
  """Makes virtual steps that leave the embedding unchanged, as in the reference.

  The reference loads the weights after a virtual step by name, first the encoder's new weights and then the decoder's
  old weights, and both share their memory. The product with second derivatives is nevertheless taken with all of v.
  Searches of this package update all weights; in these files, that changes the hypergradient by 14 %.
  """

  def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
    updates, state = inner.update(updates, state, params)
    tree = weights.replace(updates).tree
    kept = Packed.pack({**tree, 'embedding': jnp.zeros_like(tree['embedding'])}).vector
    return updates + jax.lax.stop_gradient(kept - updates), state

  return optax.GradientTransformation(inner.init, update)


#: Names of the results in an rnn_search file.
RECURRENT_RESULTS = ('log_prob_train', 'log_prob_eval', 'h_next', 'loss_train', 'first_order', 'fd', 'genotype')


def compare_recurrent_search(file: RecurrentFile) -> Iterator[tuple[str, float, float]]:
  """Yields the name, relative error and tolerance of the results in an rnn_search file."""
  values = file.values
  mixing = jax.nn.softmax(file.state.alphas[CELL])
  batch = file.batches.train
  read = jax.jit(functools.partial(file.net.apply, mutable='batch_stats'), static_argnames='train')
  arguments = file.variables, batch.sequences.tokens, batch.hidden, mixing
  (trained, hidden), _ = read(*arguments, train=True)
  (evaluated, _), _ = read(*arguments, train=False)
  yield 'log_prob_train', relative_error(trained, values['log_prob_train']), TOLERANCE
  yield 'log_prob_eval', relative_error(evaluated, values['log_prob_eval']), TOLERANCE
  yield 'h_next', relative_error(hidden, values['h_next'][0]), TOLERANCE
  losses = -jnp.take_along_axis(trained, batch.sequences.targets[..., None], axis=-1)
  yield 'loss_train', relative_error(jnp.mean(losses), values['loss_train']), TOLERANCE
  for name, estimator, tolerance in (
    ('first_order', first_order(), TOLERANCE),
    ('fd', finite_difference(file.meta['fd_radius']), TOLERANCE_FINITE_DIFFERENCE),
  ):
    found = file.step(estimator)[1].hypergradient[CELL]
    yield name, relative_error(found, values[name]), tolerance
  derived = to_json(file.space.strongest({CELL: mixing}))
  yield 'genotype', float(derived != parse_json(str(values['genotype']).encode())), 0.0


def compare_language_model(values: Mapping[str, np.ndarray]) -> Iterator[tuple[str, float, float]]:
  """Yields the name, relative error and tolerance of the results in an rnn_eval file."""
  meta = parse_json(str(values['meta']).encode())
  genotype = from_json(meta['genotype'])
  if genotype.space != spaces.Recurrent.name:
    raise ValueError(f'meta: a {kind_of(genotype)} architecture')
  net = LanguageModel(genotype.cell(CELL), meta['vocab'], meta['hidden'])
  variables = convert_language_model(net, _tensors(values))
  found, hidden = jax.jit(lambda: net.apply(variables, values['x'], jnp.asarray(values['h'][0]), train=False))()
  yield 'log_prob', relative_error(found, values['log_prob']), TOLERANCE
  yield 'h_next', relative_error(hidden, values['h_next'][0]), TOLERANCE


def _tensors(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The reference's state dict of a file."""
  return {name[2:]: value for name, value in values.items() if name.startswith('w/')}


def compare_genotypes(cases: list[Any]) -> Iterator[tuple[str, float, float]]:
  """Yields the name, error (0 or 1) and tolerance of every architecture in a file of the kind genotype_parse."""
  for i, case in enumerate(cases):
    space: spaces.CellSpace = spaces.Recurrent() if 'alphas' in case else spaces.Darts()
    names = {name: f'alphas_{name}' if len(space.cells) > 1 else 'alphas' for name in space.cells}
    found = space.strongest({name: jax.nn.softmax(jnp.asarray(case[key])) for name, key in names.items()})
    yield f'genotype_{i}', float(to_json(found) != case['genotype']), 0.0


def compare_decisions(cases: list[Any]) -> Iterator[tuple[str, float, float]]:
  """Yields the name, error (0 or 1) and tolerance of the decisions of SGAS after every epoch.

  For each kind of cell: which edges are undecided; the column of the operation of each decided edge (0 if the edge was
  removed); and whether an edge was decided in this epoch. For the whole search: the architecture if it ended here.
  """
  for i, case in enumerate(cases):
    names = {'criterion': 'criterion', 'warmup_epochs': 'warmup', 'decision_frequency': 'decision_freq'}
    fields = {field: case[name] for field, name in names.items()}
    searched = Searched.start(Sgas(**fields, history=case['history_size']), spaces.Darts())
    for row in case['rows']:
      epoch, before = row['epoch'], len(searched.memory['decisions'])
      alphas = {name: np.array(row[name]['alphas']) for name in CELLS}
      searched, _ = searched.turn(alphas, epoch)
      decisions = [Decision(*decision) for decision in searched.memory['decisions']]
      for name in CELLS:
        decided = {decision.edge: decision.operation for decision in decisions if decision.cell == name}
        undecided = undecided_edges(searched.space.cells[name], decided).tolist()
        columns = [
          spaces.Darts().operations.index(decided[edge]) if edge in decided else -int(left)
          for edge, left in enumerate(undecided)
        ]
        now = any(decision.cell == name for decision in decisions[before:])
        expected = [list(map(bool, row[name]['undecided'])), row[name]['selected'], row[name]['decided']]
        yield f'decisions_{i}_{epoch}_{name}', float([undecided, columns, now] != expected), 0.0
      yield f'genotype_{i}_{epoch}', float(to_json(searched.read(alphas)) != row['genotype_forced']), 0.0
    yield f'genotype_{i}', float(to_json(searched.read(alphas)) != case['genotype']), 0.0


def compare(path: pathlib.Path) -> Iterator[tuple[str, float, float]]:
  """Yields `(name, relative error, tolerance)` of every quantity in a file.

  Raises:
    ValueError: the file cannot be read, or its kind is unknown.
  """
  cases = read_json(path) if path.suffix == '.json' else None
  values = read_npz(path) if cases is None else {}
  try:
    if cases is not None:
      if isinstance(cases, list) and cases and 'decision_freq' in cases[0]:
        yield from compare_decisions(cases)
      elif isinstance(cases, list) and cases and 'betas_normal' in cases[0]:
        yield from strategies_parity.compare_pc_darts_genotypes(cases)
      elif isinstance(cases, list) and cases and {'alphas', 'alphas_normal'} & set(cases[0]):
        yield from compare_genotypes(cases)
      elif isinstance(cases, dict) and 'ev_freq' in cases.get('meta', {}):
        yield from strategies_parity.compare_curvatures(cases)
      elif isinstance(cases, dict) and 'rows' in cases:
        yield from nasbench201_parity.compare_counts(cases)
      else:
        raise ValueError('not a list of α and genotypes or decisions')
      return
    if 'logits_aux' in values:
      yield from compare_network(values)
    elif 'log_prob' in values:
      yield from compare_language_model(values)
    elif 'log_prob_train' in values:
      yield from compare_recurrent_search(RecurrentFile(values))
    elif '0/logits_eval' in values:
      yield from nasbench201_parity.compare_networks(values)
    elif 'betas_normal' in values:
      yield from strategies_parity.compare_pc_darts(values)
    elif '0/gumbel' in values:
      yield from strategies_parity.compare_gdas(values)
    elif 'hessian' in values:
      yield from strategies_parity.compare_robust_darts(values)
    elif 'dalpha_train' in values:
      yield from nasbench201_parity.compare_supernet(values)
      yield from nasbench201_parity.compare_virtual_steps(values)
    elif 'alphas_normal' in values and 'meta' in values:
      yield from compare_search(SearchFile(values))
    else:
      raise ValueError('not a file of search results: alphas_normal or meta is missing')
  except KeyError as error:
    raise ValueError(f'{path}: {error} is missing') from error
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error


def main(arguments: list[str]) -> int:
  """Prints the comparison; returns the exit code."""

  def compared() -> int:
    if len(arguments) != 1:
      raise ValueError('one file is compared: python -m benchmarks.parity FILE.npz|FILE.json')
    failed = False
    with jax.enable_x64(True):
      for name, error, tolerance in compare(user_path(arguments[0], 'FILE')):
        # The comparison is written so that NaN fails.
        failed |= not error <= tolerance
        print(f'{name} {error:.3e}', flush=True)
    return int(failed)

  return exit_code(compared, __doc__)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
