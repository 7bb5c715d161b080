"""Measures, step by step, the difference between a search on several devices and on one.

XLA_FLAGS=--xla_force_host_platform_device_count=4 python -m benchmarks.devices --config=configs/digits.py
    [--config.FIELD=VALUE] [--devices=4] [--steps=44]

Both begin with the same state and read the same batches; only the order of summation differs. The same is measured for
the smooth twin of the supernet, which has SiLU instead of ReLU and average instead of max pooling, and so no kinks
where a gradient jumps. For some steps the table gives: the largest change of an α since the start, on one device; the
largest difference in α between one device and several; the largest difference of the losses of the step, in nats; and
both differences for the smooth twin.
"""

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_flags

from benchmarks.command import exit_code
from darts_jax.data.images import Images
from darts_jax.runtime.mesh import check_batch, make_mesh
from darts_jax.search.searcher import Searcher
from darts_jax.search.settings import Search, check_alone, placed_task, read
from darts_jax.tasks.images import ImageLoss

TITLES = ('step', 'α moved', 'α differ', 'losses differ', 'α differ, smooth', 'losses differ, smooth')


class Walk(NamedTuple):
  """A search of T steps.

  Attributes:
    alphas: `[T + 1, n]`, all α before the first step and after each.
    losses: `[T, 2]`, losses of the batches of both halves, in nats.
  """

  alphas: np.ndarray
  losses: np.ndarray


def walk(settings: Search, images: Images, num_devices: int, steps: int, smooth: bool) -> Walk:
  """Runs a search on `num_devices` devices, with the supernet or its smooth twin."""
  mesh = make_mesh(num_devices)
  check_batch(settings.batch_size, mesh)
  searcher = Searcher.open(settings, images, mesh)
  learner = searcher.learner
  learner.net = learner.net.clone(smooth=smooth)
  learner.objective = ImageLoss(learner.net)
  data = searcher.place([settings.task.halves(images, settings, settings.seed)])
  state = searcher.init(searcher.keys())
  alphas, losses = [jax.device_get(state.alphas)], []
  for _ in range(steps):
    state, sums = searcher.run(state, data, jnp.int32(1))
    alphas.append(jax.device_get(state.alphas))
    losses.append([float(sums['train_loss']), float(sums['valid_loss'])])
  flat = [np.concatenate([each[name].ravel() for name in sorted(each)]) for each in alphas]
  return Walk(np.array(flat), np.array(losses))


def run(settings: Search, num_devices: int, steps: int) -> None:
  """Measures and prints the table."""
  images = settings.task.load()
  pairs = [[walk(settings, images, count, steps, smooth) for count in (1, num_devices)] for smooth in (False, True)]
  print('| ' + ' | '.join(TITLES) + ' |\n|' + ' --- |' * len(TITLES))
  for step in sorted({1, 3, 10, 20, 30, steps} & {*range(1, steps + 1)}):
    moved = np.abs(pairs[0][0].alphas[step] - pairs[0][0].alphas[0]).max()
    cells = [f'{step}', f'{moved:.3f}']
    for one, several in pairs:
      cells.append(f'{np.abs(one.alphas[step] - several.alphas[step]).max():.1e}')
      cells.append(f'{np.abs(one.losses[step - 1] - several.losses[step - 1]).max():.1e}')
    print('| ' + ' | '.join(cells) + ' |')


def main() -> int:
  """Parses the command line; returns the exit code."""
  config = config_flags.DEFINE_config_file('config', 'configs/digits.py', 'Path of the config file.')
  devices = flags.DEFINE_integer('devices', 4, 'Devices that are compared with one.', lower_bound=2)
  steps = flags.DEFINE_integer('steps', 44, 'Steps of each search.', lower_bound=1)

  def measured() -> None:
    flags.FLAGS(sys.argv)
    settings = read(config.value)
    placed_task(settings)
    check_alone(settings)
    run(settings, devices.value, steps.value)

  return exit_code(measured, __doc__)


if __name__ == '__main__':
  sys.exit(main())
