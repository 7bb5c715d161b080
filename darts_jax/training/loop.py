"""A whole training: from a config and a genotype to a tested network, resumable at every moment."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from darts_jax import genotype as genotypes
from darts_jax import report
from darts_jax.data.batches import Evaluation, Examples
from darts_jax.data.images import Images, split
from darts_jax.genotype import Genotype
from darts_jax.nets.conv import check_image_size
from darts_jax.runtime import metrics
from darts_jax.runtime.compilation import enable_cache
from darts_jax.runtime.interrupts import InterruptGuard
from darts_jax.runtime.loop import Loop, Plan, Sums
from darts_jax.runtime.mesh import check_batch, make_mesh, replicated
from darts_jax.runtime.workdir import claim, named_errors
from darts_jax.settings import build
from darts_jax.training import model as models
from darts_jax.training.model import Model
from darts_jax.training.settings import Training
from darts_jax.training.trainer import Trainer, TrainState


@dataclasses.dataclass(frozen=True)
class Result:
  """What a training came to.

  Attributes:
    test_accuracy: on the test images after the last epoch, 0 to 1; NaN before, or if there are none.
    test_loss: likewise, in nats.
    valid_accuracy: on the held-out part of the training images at the end of the last complete epoch; NaN without one.
    valid_loss: likewise.
    num_weights: in the network, without its auxiliary head.
    finished: whether all epochs were done; not so after an interruption.
    report: path of the report page.
  """

  test_accuracy: float
  test_loss: float
  valid_accuracy: float
  valid_loss: float
  num_weights: int
  finished: bool
  report: pathlib.Path


def run(config: Mapping[str, Any], workdir: str | pathlib.Path, genotype: Genotype) -> Result:
  """Trains the network of an architecture from scratch, or goes on with the training that `workdir` holds.

  Args:
    config: fields of `darts_jax.training.settings.Training`, as nested mappings or `ConfigDict`.
    workdir: gets `config.json`, `genotype.json`, `model.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/` and
      `report.html`. A training that was stopped resumes to the same result, bit for bit.
    genotype: the architecture.

  Raises:
    ValueError: a setting, the data or the directory is unfit; nothing has been written then.
    Diverged: a loss or gradient was not finite.
  """
  settings = build(Training, config)
  workdir = pathlib.Path(workdir).expanduser()
  images = settings.data.load()
  model = make_model(settings, genotype, images)
  mesh = make_mesh()
  check_batch(settings.batch_size, mesh)
  parts = place(images, settings, mesh)
  trainer = Trainer(settings, model, len(parts['train'].labels), mesh)
  claim(workdir, {**dataclasses.asdict(settings), 'genotype': genotypes.to_dict(genotype)}, 'training')
  with named_errors(workdir):
    models.write(model, workdir)
  enable_cache()
  with InterruptGuard() as guard:
    loop = _Loop(settings, workdir, trainer, parts, guard)
    _, last_epoch, finished = loop.run()
  tested = next((line for line in metrics.read(workdir) if line['kind'] == 'test'), {})
  return Result(
    tested.get('accuracy', math.nan),
    tested.get('loss', math.nan),
    last_epoch.get('valid_accuracy', math.nan),
    last_epoch.get('valid_loss', math.nan),
    models.num_weights(model),
    finished,
    loop.report(),
  )


def make_model(settings: Training, genotype: Genotype, images: Images) -> Model:
  """The network that the settings describe, for a dataset.

  Raises:
    ValueError: it cannot be built for images of this size.
  """
  network = settings.network
  height, width, channels = images.x_train.shape[1:]
  try:
    check_image_size(height, width, stem=network.stem, auxiliary=network.auxiliary)
  except ValueError as error:
    hint = ' (config.network.auxiliary=False)' if 'auxiliary' in str(error) else ''
    raise ValueError(f'config.data.name: {images.name}: {error}{hint}') from error
  return Model(
    genotype,
    network.channels,
    network.layers,
    images.num_classes,
    network.stem,
    network.auxiliary,
    network.auxiliary_norm,
    network.stem_multiplier,
    (height, width, channels),
    images.mean,
    images.std,
  )


def place(images: Images, settings: Training, mesh: jax.sharding.Mesh) -> dict[str, Examples]:
  """The parts `train`, and if there are such images `valid` and `test`, on every device of the mesh.

  Raises:
    ValueError: a batch is larger than the training part, or the validation part is empty.
  """
  fraction = settings.data.validation_fraction
  chosen = {'train': np.arange(len(images.y_train))}
  if fraction:
    chosen['train'], chosen['valid'] = split(len(images.y_train), fraction, settings.seed)
  parts = {name: (images.x_train[indices], images.y_train[indices]) for name, indices in chosen.items()}
  if images.x_test is not None and images.y_test is not None:
    parts['test'] = images.x_test, images.y_test
  if len(chosen['train']) < settings.batch_size:
    raise ValueError(
      f'config.batch_size: {settings.batch_size} is larger than the training part of {images.name},'
      f' which has {len(chosen["train"])} images'
    )
  return {name: Examples(*jax.device_put(arrays, replicated(mesh))) for name, arrays in parts.items()}


class _Loop(Loop[TrainState]):
  """The loop over the epochs of a training."""

  shown = ('train_loss', 'train_accuracy')

  def __init__(
    self,
    settings: Training,
    workdir: pathlib.Path,
    trainer: Trainer,
    parts: Mapping[str, Examples],
    guard: InterruptGuard,
  ) -> None:
    plan = Plan(
      f'train on {settings.data.name}',
      settings.epochs,
      trainer.steps_per_epoch,
      settings.log_every,
      settings.checkpoint,
    )
    super().__init__(workdir, plan, guard)
    self._settings = settings
    self._trainer = trainer
    self._parts = parts
    self._run: Any = None
    self._evaluations: dict[int, Any] = {}

  def init(self) -> TrainState:
    return self._trainer.init(jax.random.key(self._settings.seed))

  def template(self) -> TrainState:
    return self._trainer.template()

  def prepare(self, state: TrainState, step: int) -> None:
    self._run = self.compile(step, 'training step', self._trainer.run, state, self._parts['train'], jnp.int32(1))

  def advance(self, state: TrainState, num_steps: int) -> tuple[TrainState, Mapping[str, Any]]:
    found: tuple[TrainState, Mapping[str, Any]] = self._run(state, self._parts['train'], jnp.int32(num_steps))
    return found

  def evaluate(self, state: TrainState, step: int) -> dict[str, float]:
    return {} if 'valid' not in self._parts else self._measure('valid', state, step, 'valid_')

  def summary(self, state: TrainState, sums: Sums) -> dict[str, float | int]:
    rate = sums.values['steps'] * self._settings.batch_size / sums.values['seconds']
    return {'images_per_second': rate, **super().summary(state, sums)}

  def finish(self, state: TrainState) -> None:
    if 'test' in self._parts:
      self.write('test', self.total, self._measure('test', state, self.total))

  def report(self) -> pathlib.Path:
    with named_errors(self.workdir):
      return report.write(self.workdir)

  def _measure(self, part: str, state: TrainState, step: int, prefix: str = '') -> dict[str, float]:
    data = self._parts[part]
    size = len(data.labels)
    if size not in self._evaluations:
      # Not compiled before it is needed, so that the first step is seen sooner.
      name = {'valid': 'validation', 'test': 'test'}[part]
      self._evaluations[size] = self.compile(step, name, self._trainer.evaluate, state, data)
    found: Evaluation = jax.device_get(self._evaluations[size](state, data))
    values = {f'{prefix}loss': float(found.loss), f'{prefix}accuracy': float(found.accuracy)}
    if self._trainer.net.num_classes > 10:
      values[f'{prefix}top5_accuracy'] = float(found.top5_accuracy)
    return values
