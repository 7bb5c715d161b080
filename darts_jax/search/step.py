"""The search step: one update of α by the hypergradient, then one of the weights [DARTS Alg. 1].

A step is a pure function of state and data. All its gradients, those the estimator asks for and the one of the
weight update, are passes of one `lax.scan`: the gradient of the supernet's loss, by far the largest piece of the
program, stands in it once, which divides the time to compile and, for second-order estimators, the memory.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from darts_jax.data.augment import augment, normalise
from darts_jax.data.images import Images, split
from darts_jax.hypergradient import ESTIMATORS, Estimator, Gradients, Problem, global_norm
from darts_jax.nets.bilinear import weights_gradient_if
from darts_jax.nets.conv import Supernet
from darts_jax.nets.layers import init_variables, running_average
from darts_jax.nets.materialise import materialise
from darts_jax.runtime.compilation import compiler_options
from darts_jax.runtime.mesh import replicated
from darts_jax.search.settings import Search
from darts_jax.search.state import Packed, SearchState
from darts_jax.search.strategy import Strategy

Array = jax.Array
PyTree = Any


class Examples(NamedTuple):
  """Raw images `[N, H, W, C]` and labels `[N]` int32."""

  images: Array
  labels: Array


class Halves(NamedTuple):
  """The training images, divided: `train` moves the weights and `valid` moves α."""

  train: Examples
  valid: Examples


class Evaluation(NamedTuple):
  """Mean loss in nats and share of correct answers, `[]` each."""

  loss: Array
  accuracy: Array


def place(images: Images, settings: Search, mesh: Mesh) -> Halves:
  """Divides the training images by seed and puts them on every device of the mesh.

  Raises:
    ValueError: a batch is larger than one of the two parts.
  """
  indices = split(len(images.y_train), settings.data.validation_fraction, settings.seed)
  parts = []
  for name, chosen in zip(Halves._fields, indices, strict=True):
    if len(chosen) < settings.batch_size:
      raise ValueError(
        f'config.batch_size: {settings.batch_size} is larger than the {name} half of {images.name},'
        f' which has {len(chosen)} images'
      )
    parts.append(Examples(images.x_train[chosen], images.y_train[chosen]))
  return jax.device_put(Halves(*parts), replicated(mesh))


def make_estimator(settings: Search) -> Estimator:
  """The hypergradient estimator that the settings name."""
  name = settings.hypergradient.name
  return ESTIMATORS[name](settings.hypergradient.radius) if name == 'finite_difference' else ESTIMATORS[name]()


def loss_and_aux(
  net: Supernet, weights: PyTree, mixing: Mapping[str, Array], images: Array, labels: Array
) -> tuple[Array, tuple[Array, PyTree]]:
  """Mean cross-entropy in training mode, with the accuracy and the moments for the running statistics."""
  logits, updated = net.apply({'params': weights}, images, mixing, train=True, mutable=['moments'])
  loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
  accuracy = jnp.mean(jnp.argmax(logits, -1) == labels, dtype=loss.dtype)
  return loss, (accuracy, updated['moments'])


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
  """Scales updates by min(1, max_norm / (‖g‖ + 1e-6)), the rule of the published experiments.

  Optax's own divides by ‖g‖ alone, which differs in the seventh digit.
  """

  def clip(updates: PyTree, params: PyTree | None) -> PyTree:
    del params
    factor = jnp.minimum(1, max_norm / (global_norm(updates) + 1e-6))
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates)

  return optax.stateless(clip)


class StepInfo(NamedTuple):
  """What a step saw.

  Attributes:
    metrics: `[]` each: losses in nats and accuracies on both batches (`train_…` at the new α and the old weights,
      `valid_…` where the estimator differentiates the outer loss), norms of both gradients before clipping, and the
      learning rate.
    hypergradient: the estimate that α was updated with, like the α.
  """

  metrics: dict[str, Array]
  hypergradient: PyTree


@dataclasses.dataclass(frozen=True)
class Optimizers:
  """The two optimisers of a search; the weights' work on the weights as one vector (see `Packed`).

  Attributes:
    weights: clipping by global norm, then `inner`.
    inner: the weights' optimiser without clipping, whose update is the virtual step of the hypergradient.
    alphas: Adam with decay in the gradient.
    learning_rate: the weights' learning rate at a step.
  """

  weights: optax.GradientTransformation
  inner: optax.GradientTransformation
  alphas: optax.GradientTransformation
  learning_rate: Callable[[Array], Array]

  @classmethod
  def from_settings(cls, settings: Search, steps_per_epoch: int) -> 'Optimizers':
    """Cosine by epoch from the first to the final learning rate; SGD and Adam as the settings say [DARTS §A.1]."""
    rates, alphas = settings.weights, settings.alphas
    cosine = optax.cosine_decay_schedule(
      rates.learning_rate, settings.epochs, rates.final_learning_rate / rates.learning_rate
    )

    def learning_rate(step: Array) -> Array:
      # XLA would compute the cosine again in every kernel that reads it, which are hundreds in the exact estimator; and
      # each would call the C library, which makes a stored program overflow the stack that XLA loads it on.
      return materialise(cosine(step // steps_per_epoch))

    step = (optax.add_decayed_weights(rates.weight_decay), optax.sgd(learning_rate, momentum=rates.momentum))
    return cls(
      optax.chain(clip_by_global_norm(rates.clip_norm), optax.chain(*step)),
      optax.chain(*step),
      optax.chain(
        optax.add_decayed_weights(alphas.weight_decay),
        optax.adam(alphas.learning_rate, alphas.beta1, alphas.beta2),
      ),
      learning_rate,
    )


class _Carry(NamedTuple):
  """What the passes of a step hand on: the estimator's memory, the state as far as it has got, gradient norms."""

  memory: Any
  state: SearchState
  weights_gradient_norm: Array
  alphas_gradient_norm: Array


def search_step(
  state: SearchState,
  train: Examples,
  valid: Examples,
  *,
  net: Supernet,
  strategy: Strategy,
  estimator: Estimator,
  optimizers: Optimizers,
  precision: str = 'float32',
  batch_sharding: NamedSharding | None = None,
) -> tuple[SearchState, StepInfo]:
  """One search step on two batches.

  Args:
    state: before the step.
    train: batch of the weights' half: normalised images `[B, H, W, C]`, labels `[B]`.
    valid: batch of the architecture's half, of the same size.
    net: the supernet.
    strategy: the relaxation of α.
    estimator: of the hypergradient.
    optimizers: of weights and α.
    precision: `'float32'`: all in the dtype of the images, products not rounded to less. `'bfloat16'`: images are
      bfloat16 throughout the network; weights, BN statistics, α, losses and gradients stay as they are, and so does
      all of a pass that asks for precision.
    batch_sharding: how the stacked batches `[2, B, …]` lie on the devices.

  Returns:
    The state after the step, and what the step saw.
  """
  batches = jax.tree.map(lambda *arrays: jnp.stack(arrays), train, valid)
  if batch_sharding is not None:
    batches = lax.with_sharding_constraint(batches, batch_sharding)
  step_key = jax.random.fold_in(state.key, state.step)

  def loss(
    weights: Array, alphas: PyTree, batch: Examples, precise: bool = False
  ) -> tuple[Array, tuple[Array, PyTree]]:
    mixing = strategy.relax(alphas, jax.random.fold_in(step_key, _RELAX), state.step)
    tree = state.weights.replace(weights).tree
    if precise or precision == 'float32':
      # Accelerators would else round the factors of a product to ten bits or fewer.
      with jax.default_matmul_precision('highest'):
        return loss_and_aux(net, tree, mixing, batch.images, batch.labels)
    return loss_and_aux(net, tree, mixing, batch.images.astype(precision), batch.labels)

  def virtual_step(weights: Array, gradient: Array) -> Array:
    inner_state = state.weights_optimizer[1]
    return optax.apply_updates(weights, optimizers.inner.update(gradient, inner_state, weights)[0])

  def train_loss(weights: Array, alphas: PyTree) -> Array:
    return loss(weights, alphas, jax.tree.map(lambda x: x[0], batches))[0]

  problem = Problem(train_loss, virtual_step, state.weights.vector, state.alphas)

  def update_alphas(carry: _Carry) -> _Carry:
    gradient, now = carry.memory.estimate, carry.state
    updates, optimizer_state = optimizers.alphas.update(gradient, now.alphas_optimizer, now.alphas)
    now = now.replace(alphas=optax.apply_updates(now.alphas, updates), alphas_optimizer=optimizer_state)
    # The next pass is that of the weight update, at the weights of the state.
    memory = carry.memory._replace(at=now.weights.vector)
    return carry._replace(memory=memory, state=now, alphas_gradient_norm=global_norm(gradient))

  def estimator_pass(index: int, carry: _Carry, gradients: Gradients, moments: Array) -> _Carry:
    del moments
    carry = carry._replace(memory=estimator.passes[index].advance(problem, carry.memory, gradients))
    return update_alphas(carry) if index == len(estimator.passes) - 1 else carry

  def weights_pass(carry: _Carry, gradients: Gradients, moments: Array) -> _Carry:
    now = carry.state
    vector = now.weights.vector
    updates, optimizer_state = optimizers.weights.update(gradients.weights, now.weights_optimizer, vector)
    now = now.replace(
      step=now.step + 1,
      weights=now.weights.replace(optax.apply_updates(vector, updates)),
      statistics=now.statistics.replace(running_average(now.statistics.vector, moments)),
      weights_optimizer=optimizer_state,
    )
    return carry._replace(state=now, weights_gradient_norm=global_norm(gradients.weights))

  branches = [functools.partial(estimator_pass, i) for i in range(len(estimator.passes))] + [weights_pass]
  # For every pass, the weight update last: its half of the data, and what it asks of the gradient (see `Pass`).
  halves = [Halves._fields.index(p.loss) for p in estimator.passes] + [0]
  wanted = [p.weights for p in estimator.passes] + [True]
  precise = [p.precise for p in estimator.passes] + [False]

  def differentiate(precisely: Array, *args: Any) -> Any:
    rough, fine = (
      jax.value_and_grad(functools.partial(loss, precise=value), (0, 1), has_aux=True) for value in (False, True)
    )
    # Two gradients in the program only where they differ.
    return rough(*args) if precision == 'float32' or not any(precise) else lax.cond(precisely, fine, rough, *args)

  def run_pass(carry: _Carry, index: tuple[Array, ...]) -> tuple[_Carry, Evaluation]:
    number, half, weights_wanted, precisely = index
    batch = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, half, keepdims=False), batches)
    with weights_gradient_if(weights_wanted):
      (value, (accuracy, moments)), gradients = differentiate(precisely, carry.memory.at, carry.state.alphas, batch)
    moments = Packed.pack(moments)
    assert moments.treedef == state.statistics.treedef, 'moments are to lie where the running statistics are'
    return lax.switch(number, branches, carry, Gradients(*gradients), moments.vector), Evaluation(value, accuracy)

  zero = jnp.zeros((), jax.tree.leaves(state.alphas)[0].dtype)
  carry = _Carry(estimator.start(problem), state, zero, zero)
  indices = jnp.arange(len(branches)), jnp.array(halves), jnp.array(wanted), jnp.array(precise)
  carry, evaluations = lax.scan(run_pass, carry, indices)
  outer = halves.index(1)
  metrics = {
    'train_loss': evaluations.loss[-1],
    'train_accuracy': evaluations.accuracy[-1],
    'valid_loss': evaluations.loss[outer],
    'valid_accuracy': evaluations.accuracy[outer],
    'weights_gradient_norm': carry.weights_gradient_norm,
    'alphas_gradient_norm': carry.alphas_gradient_norm,
    'learning_rate': jnp.asarray(optimizers.learning_rate(state.step), zero.dtype),
  }
  return carry.state, StepInfo(metrics, carry.memory.estimate)


# What the random key of a step is folded with for each purpose.
_RELAX, _ORDER, _VALID, _AUGMENT_TRAIN, _AUGMENT_VALID = range(5)


class Searcher:
  """A search as compiled functions: `init`, `run` steps, `evaluate`.

  Attributes:
    steps_per_epoch: batches in the weights' half; what is left over by the last full batch is another part of the
      images in every epoch.
    net: the supernet.
    image_shape: of an image, `(H, W, C)`.
  """

  def __init__(self, settings: Search, strategy: Strategy, images: Images, mesh: Mesh) -> None:
    """Builds the functions; compiles nothing.

    Args:
      settings: of the search.
      strategy: of the search; its specs are those of the supernet.
      images: the dataset, for its shape, classes, mean and standard deviation; and the size of its halves.
      mesh: devices with an axis `data`.
    """
    num_train, num_valid = (len(part) for part in split(len(images.y_train), settings.data.validation_fraction, 0))
    self.steps_per_epoch = num_train // settings.batch_size
    self.net = Supernet(
      strategy.specs['normal'],
      strategy.specs['reduce'],
      settings.network.channels,
      settings.network.layers,
      images.num_classes,
      settings.network.stem_multiplier,
      settings.remat,
    )
    self._settings = settings
    self._strategy = strategy
    self._optimizers = Optimizers.from_settings(settings, self.steps_per_epoch)
    self._estimator = make_estimator(settings)
    self._mesh = mesh
    self.image_shape = images.x_train.shape[1:]
    self._mean, self._std = np.array(images.mean, np.float32), np.array(images.std, np.float32)
    self._num_train, self._num_valid = num_train, num_valid
    same = replicated(mesh)
    self.init = jax.jit(self._init, out_shardings=same)
    options = compiler_options()
    self.run = jax.jit(self._run, donate_argnums=0, out_shardings=same, compiler_options=options)
    self.evaluate = jax.jit(self._evaluate, out_shardings=same, compiler_options=options)

  def _init(self, key: Array) -> SearchState:
    """The state before the first step, from the typed key of the run."""
    run_key, weights_key, alphas_key = jax.random.split(key, 3)
    alphas = self._strategy.init(alphas_key)
    images = jnp.zeros((1, *self.image_shape))
    mixing = self._strategy.relax(alphas, alphas_key, jnp.zeros((), jnp.int32))
    variables = init_variables(self.net, weights_key, images, mixing, train=False)
    weights = Packed.pack(variables['params'])
    return SearchState(
      step=jnp.zeros((), jnp.int32),
      key=run_key,
      weights=weights,
      statistics=Packed.pack(variables['batch_stats']),
      alphas=alphas,
      weights_optimizer=self._optimizers.weights.init(weights.vector),
      alphas_optimizer=self._optimizers.alphas.init(alphas),
    )

  def _run(self, state: SearchState, data: Halves, num_steps: Array) -> tuple[SearchState, dict[str, Array]]:
    """Takes up to `num_steps` steps; stops after one whose loss is not finite.

    Args:
      state: donated.
      data: both halves, on the devices.
      num_steps: `[]` int32; traced, so that any number is the same program.

    Returns:
      The new state; and sums of the steps' metrics (see `search_step`), with `steps`, their number, and `finite`,
      whether all losses were.
    """
    first = state.step
    step = functools.partial(self._step, data=data)
    shapes = jax.eval_shape(step, state)[1]
    totals = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def unfinished(carry: tuple[SearchState, dict[str, Array], Array]) -> Array:
      return (carry[0].step - first < num_steps) & carry[2]

    def body(carry: tuple[SearchState, dict[str, Array], Array]) -> tuple[SearchState, dict[str, Array], Array]:
      after, metrics = step(carry[0])
      finite = jnp.isfinite(metrics['train_loss']) & jnp.isfinite(metrics['valid_loss'])
      finite &= jnp.isfinite(metrics['weights_gradient_norm']) & jnp.isfinite(metrics['alphas_gradient_norm'])
      return after, jax.tree.map(jnp.add, carry[1], metrics), finite

    state, totals, finite = lax.while_loop(unfinished, body, (state, totals, jnp.array(True)))
    return state, {**totals, 'steps': state.step - first, 'finite': finite}

  def _step(self, state: SearchState, data: Halves) -> tuple[SearchState, dict[str, Array]]:
    train, valid = self._batches(state, data)
    state, info = search_step(
      state,
      train,
      valid,
      net=self.net,
      strategy=self._strategy,
      estimator=self._estimator,
      optimizers=self._optimizers,
      precision=self._settings.precision,
      batch_sharding=NamedSharding(self._mesh, PartitionSpec(None, 'data')),
    )
    return state, info.metrics

  def _batches(self, state: SearchState, data: Halves) -> Halves:
    """The batches of a step: the next ones of a random order for the weights, any images for the architecture."""
    size = self._settings.batch_size
    epoch, position = state.step // self.steps_per_epoch, state.step % self.steps_per_epoch
    order = jax.random.permutation(jax.random.fold_in(jax.random.fold_in(state.key, epoch), _ORDER), self._num_train)
    step_key = jax.random.fold_in(state.key, state.step)
    indices = (
      lax.dynamic_slice(order, (position * size,), (size,)),
      jax.random.randint(jax.random.fold_in(step_key, _VALID), (size,), 0, self._num_valid),
    )
    augmentation = self._settings.augment
    sharding = NamedSharding(self._mesh, PartitionSpec('data'))
    parts = []
    for half, chosen, purpose in zip(data, indices, (_AUGMENT_TRAIN, _AUGMENT_VALID), strict=True):
      raw, labels = lax.with_sharding_constraint((half.images[chosen], half.labels[chosen]), sharding)
      images = augment(
        raw,
        jax.random.fold_in(step_key, purpose),
        self._mean,
        self._std,
        crop_padding=augmentation.crop_padding,
        flip=augmentation.flip,
        cutout=augmentation.cutout,
      )
      parts.append(Examples(images, labels))
    return Halves(*parts)

  def _evaluate(self, state: SearchState, data: Halves) -> Evaluation:
    """Loss and accuracy of the supernet on the whole architecture half, with running statistics and no augmentation."""
    size, total = self._settings.batch_size, self._num_valid
    mixing = self._strategy.relax(state.alphas, state.key, state.step)
    variables = {'params': state.weights.tree, 'batch_stats': state.statistics.tree}
    # The last batch is filled up with repetitions that do not count.
    indices = np.arange(-(-total // size) * size).reshape(-1, size)
    sharding = NamedSharding(self._mesh, PartitionSpec('data'))

    def add(sums: Evaluation, chosen: Array) -> tuple[Evaluation, None]:
      place, counts = chosen % total, chosen < total
      raw, labels = lax.with_sharding_constraint((data.valid.images[place], data.valid.labels[place]), sharding)
      images = normalise(raw, self._mean, self._std).astype(self._settings.precision)
      logits: Any = self.net.apply(variables, images, mixing, train=False)
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      correct = jnp.argmax(logits, -1) == labels
      return Evaluation(sums.loss + jnp.sum(losses * counts), sums.accuracy + jnp.sum(correct & counts)), None

    zero = Evaluation(jnp.zeros(()), jnp.zeros(()))
    sums, _ = lax.scan(add, zero, jnp.asarray(indices))
    return jax.tree.map(lambda s: s / total, sums)
