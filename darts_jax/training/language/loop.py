"""A whole training of a language model: from a config and a genotype to a perplexity, resumable at any time."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from darts_jax import report
from darts_jax.data.sequences import Text, perplexity
from darts_jax.optimizers import stagnates
from darts_jax.runtime import metrics
from darts_jax.runtime.checkpoint import Checkpoints
from darts_jax.runtime.compilation import enable_cache
from darts_jax.runtime.files import user_path
from darts_jax.runtime.interrupts import InterruptGuard
from darts_jax.runtime.lock import locked
from darts_jax.runtime.loop import Loop, Plan, Sums
from darts_jax.runtime.mesh import check_batch, make_mesh, replicated
from darts_jax.runtime.metrics import Writer, check_writers
from darts_jax.runtime.precision import in_float32
from darts_jax.settings import build
from darts_jax.spaces import Genotype
from darts_jax.training.language.model import RecurrentModel
from darts_jax.training.language.restore import BEST
from darts_jax.training.language.settings import LanguageTraining
from darts_jax.training.language.texts import Texts, divide, mean_loss
from darts_jax.training.language.trainer import LanguageState, LanguageTrainer
from darts_jax.training.workdir import claim_training, training_config


@dataclasses.dataclass(frozen=True)
class LanguageResult:
  """Result of a training; perplexities and losses are those of the weights of the best epoch by validation.

  Attributes:
    test_perplexity: perplexity on the test text after the last epoch; NaN before that, or if the settings say not to
      read it.
    test_loss: the logarithm of `test_perplexity`, in nats per token.
    valid_perplexity: perplexity on the validation text; NaN before the end of the first epoch.
    valid_loss: the logarithm of `valid_perplexity`, in nats per token.
    num_weights: number of parameters of the network.
    finished: whether all epochs are done.
    interrupted: whether a signal asked to stop; a sequence of trainings then ends even if this one is finished.
    report: path of the report page.
    history: what was logged of every epoch, in their order.
  """

  test_perplexity: float
  test_loss: float
  valid_perplexity: float
  valid_loss: float
  num_weights: int
  finished: bool
  interrupted: bool
  report: pathlib.Path
  history: tuple[Mapping[str, Any], ...] = ()


@in_float32
def run(
  config: Mapping[str, Any], workdir: str | pathlib.Path, genotype: Genotype, *, writers: Sequence[Writer] = ()
) -> LanguageResult:
  """Trains the language model of an architecture from scratch, or resumes the training that `workdir` holds.

  Args:
    config: fields of `darts_jax.training.language.LanguageTraining`, as nested mappings or `ConfigDict`.
    workdir: working directory, for `config.json`, `genotype.json`, `model.json`, `metrics.jsonl`, `tensorboard/`,
      `checkpoints/`, `best/` and `report.html`. A resumed training gives the same result, bit for bit, as one without
      a stop.
    genotype: the architecture.
    writers: receive all metrics as they are logged.

  Returns:
    The result, also of a training that was interrupted.

  Raises:
    ValueError: a setting, the text or the directory is unfit; nothing has been written then.
    Diverged: a loss or gradient was not finite, before the first epoch ended or after `max_rollbacks` rollbacks.
  """
  check_writers(writers)
  settings = build(LanguageTraining, config)
  workdir = user_path(workdir, '--workdir')
  with locked(workdir):
    return _run(settings, workdir, genotype, writers)


def _run(
  settings: LanguageTraining, workdir: pathlib.Path, genotype: Genotype, writers: Sequence[Writer]
) -> LanguageResult:
  mesh, texts = _open(settings)
  model = RecurrentModel(genotype, settings.network.width, texts.corpus.vocabulary)
  config = training_config(settings, model, texts.corpus.fingerprint)
  claim_training(workdir, config, model)
  enable_cache()
  with InterruptGuard() as guard:
    loop = _Loop(settings, workdir, model, texts, mesh, guard, config)
    loop.writers = writers
    state, _, finished, requested = loop.run()
  tested = next((line for line in metrics.read(workdir) if line['kind'] == 'test'), {})
  best = float(jnp.min(state.valid_losses))
  valid_loss = best if math.isfinite(best) else math.nan
  return LanguageResult(
    tested.get('perplexity', math.nan),
    tested.get('loss', math.nan),
    perplexity(valid_loss),
    valid_loss,
    model.num_weights,
    finished,
    requested is not None,
    loop.reports()[0],
    metrics.epochs(workdir),
  )


@in_float32
def check(settings: LanguageTraining) -> tuple[str, ...]:
  """Checks settings and data as `run` does, without training.

  Returns:
    Names of the parts of the text that can be measured: `valid` and `test`.

  Raises:
    ValueError: as `run`.
  """
  return _open(settings)[1].parts


def _open(settings: LanguageTraining) -> tuple[Mesh, Texts]:
  mesh = make_mesh()
  check_batch(settings.batch_size, mesh)
  if settings.small_batch_size % mesh.size:
    raise ValueError(
      f'config.small_batch_size: {settings.small_batch_size} does not divide evenly over {mesh.size} devices'
    )
  return mesh, divide(settings.data.load(), settings)


class _Loop(Loop[LanguageState]):
  """The loop over the epochs of a training of text."""

  def __init__(
    self,
    settings: LanguageTraining,
    workdir: pathlib.Path,
    model: RecurrentModel,
    texts: Texts,
    mesh: Mesh,
    guard: InterruptGuard,
    config: Mapping[str, Any],
  ) -> None:
    ends = texts.windows['train'].epoch_ends
    plan = Plan(f'train on {texts.corpus.name}', ends, settings.log_every, settings.checkpoint)
    super().__init__(workdir, plan, guard, claim=config)
    self._settings = settings
    self._trainer = LanguageTrainer(settings, model, mesh)
    self._model = model
    self._texts = texts
    self._mesh = mesh
    # Kept beyond the latest: a run resumed from an earlier checkpoint needs the weights that were the best then.
    self._best = Checkpoints(workdir / BEST, keep=settings.checkpoint.every + 1)
    self._placed: dict[str, Text] = {}
    self._run: Any = None
    self._evaluations: dict[str, Any] = {}

  def init(self) -> LanguageState:
    return self._trainer.init(jax.random.key(self._settings.seed))

  def template(self) -> LanguageState:
    return self._trainer.template()

  def opened(self, state: LanguageState, resume_step: int | None) -> None:
    if resume_step is None:
      self.note(0, 'network', f'{self._model.num_weights:,} parameters')

  def prepare(self, state: LanguageState, step: int) -> None:
    self._run = self.compile(step, 'training step', self._trainer.run, state, self._text('train'), jnp.int32(1))

  def advance(self, state: LanguageState, num_steps: int) -> tuple[LanguageState, Mapping[str, Any]]:
    found: tuple[LanguageState, Mapping[str, Any]] = self._run(state, self._text('train'), jnp.int32(num_steps))
    return found

  def evaluate(self, state: LanguageState, step: int) -> dict[str, float]:
    loss = self._measure('valid', state, step)
    return {
      'valid_loss': loss,
      'valid_perplexity': perplexity(loss),
      'averaging': int(state.average.num_iterates > 0),
    }

  def summary(self, state: LanguageState, sums: Sums) -> dict[str, float | int]:
    steps, seconds = sums.values['steps'], sums.values['seconds']
    return {
      'train_perplexity': perplexity(sums.values['train_loss'] / steps),
      'tokens_per_second': sums.values['sequence_length'] * self._settings.batch_size / seconds,
      **super().summary(state, sums),
    }

  def turn_epoch(self, state: LanguageState, evaluation: Mapping[str, float], step: int) -> LanguageState:
    epoch = self.plan.epoch_ends.index(step)
    loss = evaluation['valid_loss']
    losses = np.array(state.valid_losses)
    before = losses[:epoch]
    if loss < before.min(initial=math.inf):
      self._best.save(step, state, {})
    losses[epoch] = loss
    interval = self._settings.weights.nonmonotone_interval
    begins = not state.averaging and stagnates(before.tolist(), loss, interval)
    if begins:
      self.note(step, 'averaging', f'step {step}: validation stagnates; from here on weights are averaged')
    return self._place(state, valid_losses=losses, averaging=np.array(begins or bool(state.averaging)))

  def recover(self, state: LanguageState, step: int) -> LanguageState | None:
    rollbacks, limit = int(state.rollbacks), self._settings.max_rollbacks
    best = self._best_of(state) if rollbacks < limit else None
    if best is None:
      return None
    self.note(
      step,
      'rolled_back',
      f'step {step}: a loss or gradient is not finite; back to the weights of step {int(best.step)}, the best so far'
      f' ({rollbacks + 1} of {limit} times at most)',
    )
    # The step count goes on, so that the training does not repeat the random draws that led here.
    return self._place(
      state.replace(weights=best.weights, averaging=best.averaging, average=best.average),
      hidden=np.zeros(state.hidden.shape, state.hidden.dtype),
      rollbacks=np.array(rollbacks + 1, np.int32),
    )

  def lacks(self) -> str:
    tests = 'test' in self._texts.parts
    return 'the result of the test' if tests and not self.has_logged(lambda line: line['kind'] == 'test') else ''

  def finish(self, state: LanguageState) -> None:
    best = self._best_of(state)
    if best is None:
      raise ValueError(f'--workdir: {self.workdir / BEST} has lost the checkpoint of the best weights')
    loss = self._measure('test', best, self.total)
    self.check_finite({'loss': loss}, self.total)
    averaged = int(best.average.num_iterates > 0)
    self.write('test', self.total, {'loss': loss, 'perplexity': perplexity(loss), 'averaged': averaged})

  def report(self, folder: pathlib.Path) -> pathlib.Path:
    return report.write(folder)

  def _best_of(self, state: LanguageState) -> LanguageState | None:
    """The state of the epoch with the least validation loss; None if no epoch has ended or its checkpoint is gone."""
    losses = np.asarray(state.valid_losses)
    if not np.isfinite(losses).any():
      return None
    restored = self._best.restore(self.template(), at=self.plan.epoch_ends[int(np.argmin(losses))])
    return None if restored is None else restored.state

  def _measure(self, part: str, state: LanguageState, step: int) -> float:
    """Loss on a part of the text in nats per token, rounded to float32 as in `LanguageState.valid_losses`."""
    text = self._text(part)
    if part not in self._evaluations:
      # Compiled on first use, so that the first training step starts sooner.
      name = {'valid': 'validation', 'test': 'test'}[part]
      self._evaluations[part] = self.compile(step, name, self._trainer.losses, state, text)
    losses = self._evaluations[part](state, text)
    return float(np.float32(mean_loss(losses, self._texts.windows[part])))

  def _text(self, part: str) -> Text:
    if part not in self._placed:
      self._placed[part] = self._texts.place(part, self._mesh)
    return self._placed[part]

  def _place(self, state: LanguageState, **changes: np.ndarray) -> LanguageState:
    return state.replace(**jax.device_put(changes, replicated(self._mesh)))
