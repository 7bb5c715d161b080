"""A whole training: from a config and a genotype to a tested network, resumable at any time."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from darts_jax import report, spaces
from darts_jax.data.batches import Evaluation
from darts_jax.data.images import from_arrays
from darts_jax.nets.conv import Cells, check_image_size, check_operations, check_statistics
from darts_jax.runtime import metrics, processes
from darts_jax.runtime.compilation import enable_cache
from darts_jax.runtime.files import user_path
from darts_jax.runtime.interrupts import InterruptGuard
from darts_jax.runtime.lock import locked
from darts_jax.runtime.loop import Loop, Plan, Sums
from darts_jax.runtime.mesh import check_batch, make_mesh
from darts_jax.runtime.metrics import Writer, check_writers
from darts_jax.runtime.precision import in_float32
from darts_jax.runtime.workdir import claim_together
from darts_jax.settings import build
from darts_jax.spaces import CellSpec, Genotype, space_of
from darts_jax.training.feeds import Feed, open_feed
from darts_jax.training.model import Model
from darts_jax.training.settings import Training
from darts_jax.training.trainer import Trainer, TrainState
from darts_jax.training.workdir import claim_training, training_config


@dataclasses.dataclass(frozen=True)
class Result:
  """Result of a training.

  Attributes:
    test_accuracy: accuracy on the test images after the last epoch, 0 to 1; NaN before that or without test images.
    test_loss: mean cross-entropy on the test images in nats; NaN where `test_accuracy` is.
    valid_accuracy: accuracy on the held-out training images after the last complete epoch, 0 to 1; NaN without one.
    valid_loss: mean cross-entropy on the held-out images in nats; NaN where `valid_accuracy` is.
    num_weights: number of parameters of the network without its auxiliary head.
    finished: whether all epochs are done.
    interrupted: whether a signal asked to stop; a sequence of trainings then ends even if this one is finished.
    report: path of the report page.
    history: what was logged of every epoch, in their order; empty in other processes than the first.
  """

  test_accuracy: float
  test_loss: float
  valid_accuracy: float
  valid_loss: float
  num_weights: int
  finished: bool
  interrupted: bool
  report: pathlib.Path
  history: tuple[Mapping[str, Any], ...] = ()


@in_float32
def run(
  config: Mapping[str, Any],
  workdir: str | pathlib.Path,
  genotype: Genotype,
  *,
  data: tuple[Any, Any] | None = None,
  test: tuple[Any, Any] | None = None,
  writers: Sequence[Writer] = (),
) -> Result:
  """Trains the network of an architecture from scratch, or resumes the training that `workdir` holds.

  Args:
    config: fields of `darts_jax.training.settings.Training`, as nested mappings or `ConfigDict`.
    workdir: working directory, for `config.json`, `genotype.json`, `model.json`, `metrics.jsonl`, `tensorboard/`,
      `checkpoints/` and `report.html`. A resumed training gives the same result, bit for bit, as one without a stop.
    genotype: the architecture.
    data: training images and their labels, arrays that take the place of those that the config names; see
      `darts_jax.data.images.from_arrays`.
    test: arrays of test images and labels; only together with `data`.
    writers: receive all metrics as they are logged.

  Returns:
    The result, also of a training that was interrupted.

  Raises:
    ValueError: a setting, the data or the directory is unfit; nothing has been written then.
    Diverged: a loss or gradient was not finite.
  """
  check_writers(writers)
  settings = processes.together(lambda: build(Training, config))
  if data is None and test is not None:
    raise ValueError('test: needs data, the training images, as arrays too')
  if data is not None:
    # The name says that no file has them.
    settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, name='arrays'))
  workdir = user_path(workdir, '--workdir')
  with locked(workdir):
    return _run(settings, workdir, genotype, data, test, writers)


def _run(
  settings: Training,
  workdir: pathlib.Path,
  genotype: Genotype,
  data: tuple[Any, Any] | None,
  test: tuple[Any, Any] | None,
  writers: Sequence[Writer],
) -> Result:
  def open_all() -> tuple[Feed, Model, Trainer]:
    mesh = make_mesh()
    check_batch(settings.batch_size, mesh)
    feed = open_feed(settings, mesh, None if data is None else from_arrays(*data, *(test or ())))
    model = make_model(settings, genotype, feed)
    return feed, model, Trainer(settings, model, feed.num_train, mesh)

  # Before anything is compiled; see `darts_jax.search.loop`.
  enable_cache()
  feed, model, trainer = processes.together(open_all)
  config = training_config(settings, model, feed.fingerprint)
  claim_together(workdir, lambda: claim_training(workdir, config, model), lambda: [config, model.to_dict()])
  with InterruptGuard() as guard:
    loop = _Loop(settings, workdir, trainer, feed, model, guard, config)
    loop.writers = writers
    try:
      _, last_epoch, finished, requested = loop.run()
    finally:
      feed.close()
  lines = metrics.read(workdir) if processes.is_first() else []
  tested = next((line for line in lines if line['kind'] == 'test'), {})
  return Result(
    tested.get('accuracy', math.nan),
    tested.get('loss', math.nan),
    last_epoch.get('valid_accuracy', math.nan),
    last_epoch.get('valid_loss', math.nan),
    model.num_weights,
    finished,
    requested is not None,
    loop.reports()[0],
    metrics.epochs(workdir) if processes.is_first() else (),
  )


@in_float32
def check(
  settings: Training, genotype: Genotype | None = None, candidates: Mapping[str, CellSpec] | None = None
) -> tuple[tuple[str, ...], Any]:
  """Checks settings and data as `run` does, without training.

  Args:
    settings: settings of the training.
    genotype: the architecture; by default a published one of the space `darts`.
    candidates: cells with all operations that the architecture might have instead, by kind of cell.

  Returns:
    `Feed.parts` and `Feed.fingerprint` of the images.

  Raises:
    ValueError: as `run`.
  """
  mesh = make_mesh()
  check_batch(settings.batch_size, mesh)
  if genotype is None:
    genotype = next(found for found in spaces.published().values() if found.space == spaces.Darts.name)
  feed = open_feed(settings, mesh)
  plan = make_model(settings, genotype, feed).plan
  if candidates is not None:
    _check_operations(settings, tuple(candidates.items()), plan, feed)
  return feed.parts, feed.fingerprint


def make_model(settings: Training, genotype: Genotype, feed: Feed) -> Model:
  """The model that the settings describe, for a dataset.

  Raises:
    ValueError: the network cannot be built for images of this size, or the batch is too small for batch normalisation.
  """
  network = settings.network
  height, width, _ = feed.image_shape
  try:
    plan = space_of(genotype).plan(network.layers)
  except ValueError as error:
    raise ValueError(f'config.network.{error}') from error
  if network.auxiliary and plan.auxiliary is None:
    raise ValueError(f'config.network.auxiliary: True is not allowed; networks of {genotype.space} have no such head')
  try:
    check_image_size(height, width, plan, stem=network.stem, auxiliary=network.auxiliary)
  except ValueError as error:
    hint = ' (config.network.auxiliary=False)' if 'auxiliary' in str(error) else ''
    raise ValueError(f'config.data.name: {feed.name}: {error}{hint}') from error
  _check_operations(settings, genotype.cells, plan, feed)
  normalised = network.auxiliary and network.auxiliary_norm
  check_statistics(
    'config.batch_size',
    settings.batch_size,
    height,
    width,
    plan,
    stem=network.stem,
    auxiliary=normalised,
  )
  return Model(
    genotype,
    network.channels,
    network.layers,
    feed.num_classes,
    network.stem,
    network.auxiliary,
    network.auxiliary_norm,
    network.stem_multiplier,
    feed.image_shape,
    feed.mean,
    feed.std,
  )


def _check_operations(settings: Training, cells: Cells, plan: spaces.Plan, feed: Feed) -> None:
  """See `check_operations`."""
  (height, width, _), network = feed.image_shape, settings.network
  check_operations(cells, plan, network.channels, height, width, stem=network.stem, precision=settings.precision)


class _Loop(Loop[TrainState]):
  """The loop over the epochs of a training of images."""

  shown = ('train_loss', 'train_accuracy')

  def __init__(
    self,
    settings: Training,
    workdir: pathlib.Path,
    trainer: Trainer,
    feed: Feed,
    model: Model,
    guard: InterruptGuard,
    config: Mapping[str, Any],
  ) -> None:
    plan = Plan.even(
      f'train on {feed.name}',
      settings.epochs,
      trainer.steps_per_epoch,
      settings.log_every,
      settings.checkpoint,
    )
    super().__init__(workdir, plan, guard, claim=config)
    self._settings = settings
    self._trainer = trainer
    self._feed = feed
    self._model = model

  def init(self) -> TrainState:
    return self._trainer.init(jax.random.key(self._settings.seed))

  def template(self) -> TrainState:
    return self._trainer.template()

  def opened(self, state: TrainState, resume_step: int | None) -> None:
    if resume_step is None:
      self.note(0, 'network', f'{self._model.num_weights:,} parameters, without the auxiliary head')

  def prepare(self, state: TrainState, step: int) -> None:
    self._feed.prepare(self._trainer, state, step, functools.partial(self.compile, step), self.note)

  def advance(self, state: TrainState, num_steps: int) -> tuple[TrainState, Mapping[str, Any]]:
    return self._feed.advance(state, num_steps)

  def evaluate(self, state: TrainState, step: int) -> dict[str, float]:
    return {} if 'valid' not in self._feed.parts else self._measure('valid', state, step, 'valid_')

  def summary(self, state: TrainState, sums: Sums) -> dict[str, float | int]:
    rate = sums.values['steps'] * self._settings.batch_size / sums.values['seconds']
    return {'images_per_second': rate, **super().summary(state, sums)}

  def lacks(self) -> str:
    tests = 'test' in self._feed.parts
    return 'the result of the test' if tests and not self.has_logged(lambda line: line['kind'] == 'test') else ''

  def finish(self, state: TrainState) -> None:
    values = self._measure('test', state, self.total)
    self.check_finite(values, self.total)
    self.write('test', self.total, values)

  def report(self, folder: pathlib.Path) -> pathlib.Path:
    return report.write(folder)

  def _measure(self, part: str, state: TrainState, step: int, prefix: str = '') -> dict[str, float]:
    found: Evaluation = jax.device_get(
      self._feed.measure(part, self._trainer, state, step, functools.partial(self.compile, step), self.note)
    )
    values = {f'{prefix}loss': float(found.loss), f'{prefix}accuracy': float(found.accuracy)}
    if self._trainer.net.num_classes > 10:
      values[f'{prefix}top5_accuracy'] = float(found.top5_accuracy)
    return values
