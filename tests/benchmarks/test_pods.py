"""Times are projected as by hand; libtpu, which compiles for pods, is not needed."""

import importlib.util
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from ml_collections import ConfigDict

from benchmarks import pods
from benchmarks.hlo import Collective, Work
from benchmarks.pods import HOP, Slice
from configs import digits, ptb
from darts_jax.search.settings import read

GRADIENTS = 'gradients'


@pytest.fixture
def config():
  config = digits.get_config()
  config.network.channels = 2
  config.space.nodes = 1
  return config


def test_time_of_a_collective_is_that_of_a_ring():
  pod = Slice('v5e', (4, 8))
  sums = Collective('all-reduce', GRADIENTS, 32_000_000, 32, 2, False, 1.0)
  # 31/32 of the bytes go around twice, 200 GB/s.
  assert pods.seconds(sums, pod) == pytest.approx(2 * 31e6 / 200e9 + (4 + 8) * HOP)
  assert pods.seconds(sums._replace(kind='reduce-scatter'), pod) == pytest.approx(31e6 / 200e9 + 6 * HOP)
  assert pods.seconds(sums._replace(kind='all-gather'), pod) == pytest.approx(31 * 32e6 / 200e9 + 6 * HOP)
  assert pods.seconds(sums._replace(group=4), pod) == pytest.approx(2 * 24e6 / 200e9 + 4 * HOP)
  assert pods.seconds(sums._replace(group=1), pod) == 0


def test_projection_is_the_roofline_and_the_collectives():
  pod = Slice('v4', (2, 2, 1))
  sums = Collective('all-reduce', GRADIENTS, 3_000_000, 4, 2, False, 5.0)
  communication = 5 * (1.5 * 3e6 / 300e9 + 4 * HOP)
  found = pods.project(pod, Work(1.228e9, [sums]), flops=275e9, times=12)
  assert found == pytest.approx(
    {
      'compute_s': 0.012,
      'communication_s': communication,
      'step_s': 0.012 + communication,
      'efficiency': 0.012 / (0.012 + communication),
    }
  )
  assert pods.project(pod, Work(1.228e10, []), flops=275e9, times=2)['compute_s'] == pytest.approx(0.01)
  [row] = pods.rows_of(pod, [sums, sums])
  assert (row['number'], row['bytes'], row['seconds']) == (2, 6_000_000, pytest.approx(2 * communication))


def test_products_of_float32_take_six_of_bfloat16(config):
  config.hypergradient = ConfigDict({'name': 'finite_difference'})
  passes = read(config).hypergradient.estimator().passes
  assert pods.products(passes, 'float32') == 6 * (len(passes) + 1)
  precise = sum(each.precise for each in passes)
  assert 0 < precise < len(passes) + 1
  assert pods.products(passes, 'bfloat16') == 6 * precise + len(passes) + 1 - precise


def test_rates_are_those_of_the_generation():
  assert Slice.parse('v5e:2x4').chip.flops == 197e12
  assert Slice.parse('v4:4x4x4').chip.flops == 275e12
  assert Slice.parse('v5p:2x2x1').chip.memory == 95 * 2**30
  assert Slice.parse('v6e:16x16').chip.links == 400e9


@pytest.mark.parametrize(
  ('topology', 'size', 'smaller'),
  [
    ('v5e:16x16', 8, 'v5e:2x4'),
    ('v5e:16x16', 64, 'v5e:8x8'),
    ('v5e:16x16', 256, 'v5e:16x16'),
    ('v5e:4x2', 8, 'v5e:4x2'),
    ('v4:4x4x4', 4, 'v4:2x2x1'),
    ('v4:4x4x4', 16, 'v4:2x2x4'),
    ('v4:4x4x12', 192, 'v4:4x4x12'),
  ],
)
def test_smaller_slices_are_as_square_as_possible(topology, size, smaller):
  assert str(Slice.parse(topology).smaller(size)) == smaller


def test_images_are_shapes_only(config):
  images = pods.shapes_only(read(config), '224x224x3', 1000, 10**7)
  assert images.x_train.shape == (10**7, 224, 224, 3)
  assert images.num_classes == 1000
  images = pods.shapes_only(read(config), None, 1000, 100)
  assert images.x_train.shape == (100, 8, 8, 1)
  assert images.num_classes == 10
  mesh = Mesh(np.array(jax.devices()).reshape(1, -1), ('seed', 'data'))
  train, valid = pods.data_template(images, read(config), mesh)
  assert train.images.shape[0] + valid.images.shape[0] == 100
  assert train.images.sharding.is_fully_replicated


def test_batches_are_no_larger_than_halves(config):
  config.batch_size = 64
  images = pods.shapes_only(read(config), None, 10, 20)
  mesh = Mesh(np.array(jax.devices()).reshape(1, -1), ('seed', 'data'))
  with pytest.raises(ValueError, match=r'^--num_images: a half has 10 of them, less than a batch of 64$'):
    pods.data_template(images, read(config), mesh)


@pytest.mark.parametrize(
  ('topology', 'sizes', 'changes', 'message'),
  [
    ('v9:2x2', [], {}, "--topology: 'v9:2x2'; allowed are v4, v5e, v5p, v6e with sides, as in v5e:2x4"),
    ('v5e', [], {}, "--topology: 'v5e'; allowed are"),
    ('v5e:2x4', ['16'], {}, '--devices: 16; v5e:2x4 has 8 chips'),
    ('v5e:16x16', ['12'], {}, '--devices: 12; slices of v5e:16x16 have a power of two of chips'),
    ('v5e:16x16', ['many'], {}, "--devices: 'many' is no number"),
    ('v5e:2x4', [], {'image': '224'}, "--image: '224'; height, width and channels are to be given as in 224x224x3"),
    ('v5e:2x4', [], {'global_batch': 12}, '--global_batch: 12 does not divide evenly over 8 chips'),
  ],
)
def test_what_cannot_be_compiled_is_refused(config, topology, sizes, changes, message):
  with pytest.raises(ValueError, match='^') as error:
    pods.run(config, topology, sizes, **changes)
  assert str(error.value).startswith(message)


def test_a_recurrent_search_is_refused():
  with pytest.raises(ValueError, match="^config.task.name: 'text' is not allowed; it has to be 'images' here$"):
    pods.run(ptb.get_config(), 'v5e:2x4', [])


def test_a_step_of_one_pass_is_refused(config):
  config.hypergradient = ConfigDict({'name': 'joint'})
  with pytest.raises(ValueError, match=r"^config.hypergradient.name: 'joint' has no loop over passes to count; allow"):
    pods.run(config, 'v5e:2x4', [])


def test_missing_libtpu_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=r'^libtpu: missing; pip install darts_jax\[pods\]$'):
    Slice.parse('v5e:2x4').devices()


def test_a_step_that_does_not_fit_is_one_line():
  message = 'RESOURCE_EXHAUSTED: Ran out of memory on HBM (15.75G).\nThe largest buffers are:\n'
  expected = pytest.raises(ValueError, match=r'^config.batch_size: .* v5e:2x4: Ran out of memory on HBM \(15.75G\).$')
  with expected, pods.within_memory(Slice('v5e', (2, 4))):
    raise jax.errors.JaxRuntimeError(message)


def test_command_line_says_what_is_wrong():
  command = [sys.executable, '-m', 'benchmarks.pods', '--topology=v5e:2x4', '--devices=9', '--config=configs/cifar.py']
  done = subprocess.run(command, check=False, capture_output=True, text=True)
  assert (done.returncode, done.stdout, done.stderr) == (2, '', 'error: --devices: 9; v5e:2x4 has 8 chips\n')
