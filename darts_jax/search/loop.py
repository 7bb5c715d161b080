"""A whole search: from a config to a genotype, resumable at every moment."""

import dataclasses
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from darts_jax import genotype as genotypes
from darts_jax import report
from darts_jax.data import images as image_data
from darts_jax.genotype import Genotype, search_space
from darts_jax.relaxation import softmax
from darts_jax.runtime import metrics
from darts_jax.runtime.checkpoint import Checkpoints
from darts_jax.runtime.compilation import compile_with_report, enable_cache
from darts_jax.runtime.interrupts import InterruptGuard
from darts_jax.runtime.mesh import check_batch, make_mesh
from darts_jax.runtime.metrics import MetricsLog
from darts_jax.runtime.progress import Progress
from darts_jax.search import records
from darts_jax.search.darts import Darts
from darts_jax.search.searcher import Searcher, place
from darts_jax.search.settings import Search
from darts_jax.search.state import SearchState
from darts_jax.search.strategy import Strategy
from darts_jax.settings import build

# A call of the compiled steps lasts about so long, so that signals are heard and progress is seen.
_SECONDS_A_CALL = 2.0


class Diverged(RuntimeError):
  """A loss or gradient was not finite; the message names the step and the checkpoint to go back to."""


@dataclasses.dataclass(frozen=True)
class Result:
  """What a search found.

  Attributes:
    genotype: derived from the final α.
    valid_loss: of the supernet on the architecture half, in nats, at the end of the last complete epoch.
    valid_accuracy: likewise, 0 to 1.
    state: final state.
    finished: whether all epochs were done; not so after an interruption.
    report: path of the report page.
  """

  genotype: Genotype
  valid_loss: float
  valid_accuracy: float
  state: SearchState
  finished: bool
  report: pathlib.Path


def make_strategy(settings: Search) -> Strategy:
  """The strategy that the settings name, on the search space that they describe."""
  spec = search_space(settings.network.operations, settings.network.nodes)
  return Darts({'normal': spec, 'reduce': spec}, settings.alphas.init_scale)


def check_images(images: image_data.Images) -> None:
  """Raises a ValueError unless both reduction cells can halve the images."""
  height, width = images.x_train.shape[1:3]
  if height % 4 or width % 4:
    raise ValueError(
      f'config.data.name: images of {images.name} are {height}×{width} pixels, odd at a reduction cell;'
      ' both sides have to be divisible by 4'
    )


def run(config: Mapping[str, Any], workdir: str | pathlib.Path) -> Result:
  """Searches, or goes on with the search that `workdir` holds.

  Args:
    config: fields of `darts_jax.search.settings.Search`, as nested mappings or `ConfigDict`.
    workdir: gets `config.json`, `metrics.jsonl`, `tensorboard/`, `genotype.json`, `alphas.npz`, `checkpoints/` and
      `report.html`. A search that was stopped resumes to the same result, bit for bit.

  Raises:
    ValueError: a setting, the data or the directory is unfit; nothing has been written then.
    Diverged: a loss or gradient was not finite.
  """
  settings = build(Search, config)
  workdir = pathlib.Path(workdir).expanduser()
  data = settings.data
  images = image_data.load(data.name, directory=data.dir, path=data.path, download=data.download)
  check_images(images)
  mesh = make_mesh()
  check_batch(settings.batch_size, mesh)
  halves = place(images, settings, mesh)
  strategy = make_strategy(settings)
  searcher = Searcher(settings, strategy, images, mesh)
  records.claim(workdir, dataclasses.asdict(settings))
  enable_cache()
  with InterruptGuard() as guard:
    return _Loop(settings, workdir, searcher, strategy, guard).run(halves)


class _Sums:
  """Sums of metrics over steps, and the steps."""

  def __init__(self, values: Mapping[str, float] | None = None) -> None:
    self.values = dict(values or {})

  def add(self, sums: Mapping[str, float]) -> None:
    for name, value in sums.items():
      self.values[name] = self.values.get(name, 0.0) + value

  def means(self) -> dict[str, float]:
    """Means over the steps; what only some steps check is the mean over those, and left out if there were none."""
    values = dict(self.values)
    steps, checks = values.pop('steps'), values.pop('checks', 0)
    disagreement = values.pop('disagreement', 0)
    values.pop('seconds', None)
    means = {name: value / steps for name, value in values.items()}
    return {**means, 'disagreement': disagreement / checks} if checks else means


class _Loop:
  """The loop over epochs, with everything that it writes."""

  def __init__(
    self, settings: Search, workdir: pathlib.Path, searcher: Searcher, strategy: Strategy, guard: InterruptGuard
  ) -> None:
    self._settings = settings
    self._workdir = workdir
    self._searcher = searcher
    self._strategy = strategy
    self._guard = guard
    self._total = settings.epochs * searcher.steps_per_epoch
    self._checkpoints = Checkpoints(workdir / 'checkpoints', keep=settings.checkpoint.keep)

  def run(self, halves: Any) -> Result:
    settings, searcher, workdir = self._settings, self._searcher, self._workdir
    state, resume_step, saved, damaged = self._start()
    epoch_sums, log_sums = _Sums(saved.get('epoch_sums')), _Sums(saved.get('log_sums'))
    last_epoch: dict[str, float] = saved.get('last_epoch', {})
    with (
      MetricsLog(workdir, resume_step=resume_step) as log,
      Progress(self._total, resume_step or 0, f'search {settings.data.name}') as progress,
    ):
      step = resume_step or 0
      history = records.AlphaHistory(workdir, self._strategy.specs, resume_step)
      for line in damaged:
        self._note(log, progress, step, 'damaged_checkpoint', line)
      if resume_step is None:
        self._write_alphas(history, state, 0, 0)
      elif step < self._total:
        self._note(log, progress, step, 'resumed', f'resumed at step {step} of {self._total}')
      if step < self._total:
        run = self._compile(log, progress, step, 'search step', searcher.run, state, halves, jnp.int32(1))
      evaluate = None
      seconds_a_step = math.inf
      while step < self._total and self._guard.requested is None:
        until_line = settings.log_every - step % settings.log_every
        until_epoch = searcher.steps_per_epoch - step % searcher.steps_per_epoch
        planned = max(1, int(_SECONDS_A_CALL / seconds_a_step))
        start = time.monotonic()
        state, sums = run(state, halves, jnp.int32(min(until_line, until_epoch, planned)))
        sums = {name: float(value) for name, value in jax.device_get(sums).items()}
        sums['seconds'] = time.monotonic() - start
        seconds_a_step = sums['seconds'] / sums['steps']
        step += int(sums['steps'])
        if not sums.pop('finite'):
          self._stop_diverged(log, progress, step)
        epoch_sums.add(sums)
        log_sums.add(sums)
        progress.update(step, {name: sums[name] / sums['steps'] for name in ('train_loss', 'valid_loss')})
        epoch = (step - 1) // searcher.steps_per_epoch
        if step % settings.log_every == 0:
          log.write('step', step, {'epoch': epoch, **log_sums.means(), **self._summary(state, log_sums)})
          log_sums = _Sums()
        if step % searcher.steps_per_epoch == 0:
          # Not before it is needed, so that the first step is seen sooner.
          evaluate = evaluate or self._compile(log, progress, step, 'evaluation', searcher.evaluate, state, halves)
          evaluation = jax.device_get(evaluate(state, halves))
          if not np.isfinite(evaluation.loss):
            # The last step's loss was that before its update; these weights are not worth a checkpoint.
            self._stop_diverged(log, progress, step)
          last_epoch = {
            **epoch_sums.means(),
            'valid_loss': float(evaluation.loss),
            'valid_accuracy': float(evaluation.accuracy),
          }
          details = {**self._summary(state, epoch_sums), 'seconds': epoch_sums.values['seconds']}
          log.write('epoch', step, {'epoch': epoch, **last_epoch, **details})
          epoch_sums = _Sums()
          self._write_alphas(history, state, step, epoch + 1)
          if (epoch + 1) % settings.checkpoint.every == 0 or step == self._total:
            self._save(step, state, epoch_sums, log_sums, last_epoch)
          if step < self._total:
            self._report()
      if step == self._total and not any(line.get('event') == 'finished' for line in metrics.read(workdir)):
        log.write('event', step, {'event': 'finished', 'message': f'{settings.epochs} epochs done'})
      elif step < self._total:
        self._save(step, state, epoch_sums, log_sums, last_epoch)
        message = f'{self._guard.requested}: saved at step {step} of {self._total}; start again to resume'
        self._note(log, progress, step, 'interrupted', message)
    return Result(
      self._strategy.derive(jax.device_get(state.alphas)),
      last_epoch.get('valid_loss', math.nan),
      last_epoch.get('valid_accuracy', math.nan),
      state,
      step == self._total,
      self._report(),
    )

  def _start(self) -> tuple[SearchState, int | None, dict[str, Any], tuple[str, ...]]:
    """The state to start from, the step it was saved at, what was saved beside it, and damaged checkpoints."""
    key = jax.random.key(self._settings.seed)
    restored = self._checkpoints.restore(self._searcher.template())
    if restored is None:
      return self._searcher.init(key), None, {}, ()
    return restored.state, restored.step, restored.metadata, restored.damaged

  def _compile(self, log: MetricsLog, progress: Progress, step: int, name: str, function: Any, *args: Any) -> Any:
    progress.note(f'compiling the {name} ({self._settings.hypergradient.name}) ...')
    compilation = compile_with_report(function, *args)
    how = 'loaded from the compilation cache' if compilation.cached else 'compiled'
    self._note(log, progress, step, 'compiled', f'{name} {how} in {compilation.seconds:.1f} s')
    return compilation.compiled

  def _note(self, log: MetricsLog, progress: Progress, step: int, event: str, message: str) -> None:
    log.write('event', step, {'event': event, 'message': message})
    progress.note(message)

  def _summary(self, state: SearchState, sums: _Sums) -> dict[str, float | int]:
    alphas = jax.device_get(state.alphas)
    values: dict[str, float | int] = {}
    for name in sorted(alphas):
      mixing = np.asarray(softmax(alphas[name]), np.float64)
      values[f'entropy_{name}'] = float(np.mean(-np.sum(mixing * np.log(np.maximum(mixing, 1e-300)), axis=-1)))
    normal = self._strategy.derive(alphas).normal
    values['skip_connections'] = sum(operation == 'skip_connect' for operation, _ in normal)
    values['images_per_second'] = sums.values['steps'] * self._settings.batch_size / sums.values['seconds']
    return values

  def _write_alphas(self, history: records.AlphaHistory, state: SearchState, step: int, epoch: int) -> None:
    alphas = jax.device_get(state.alphas)
    with records.named_errors(self._workdir):
      history.append(step, epoch, alphas)
      genotypes.save(self._strategy.derive(alphas), self._workdir / 'genotype.json')

  def _save(
    self, step: int, state: SearchState, epoch_sums: _Sums, log_sums: _Sums, last_epoch: Mapping[str, float]
  ) -> None:
    metadata = {'epoch_sums': epoch_sums.values, 'log_sums': log_sums.values, 'last_epoch': dict(last_epoch)}
    self._checkpoints.save(step, state, metadata)

  def _report(self) -> pathlib.Path:
    with records.named_errors(self._workdir):
      return report.write(self._workdir)

  def _stop_diverged(self, log: MetricsLog, progress: Progress, step: int) -> None:
    steps = self._checkpoints.steps()
    good = f'the last good checkpoint is that of step {max(steps)}' if steps else 'there is no checkpoint yet'
    message = f'step {step}: a loss or gradient is not finite; {good}, in {self._workdir}'
    self._note(log, progress, step, 'non_finite', message)
    self._report()
    raise Diverged(message)
