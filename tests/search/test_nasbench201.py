"""Searches on NAS-Bench-201: what the log and the page say by the table, BN of batches, momentum of virtual steps."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import nasbench201_darts, nasbench201_darts_second, nasbench201_eval, nasbench201_tiny_darts
from configs import nasbench201_tiny_darts_second as tiny_second
from darts_jax import search, spaces, training
from darts_jax.runtime import metrics
from darts_jax.runtime.mesh import make_mesh
from darts_jax.search.optimizers import Optimizers
from darts_jax.search.searcher import Searcher
from darts_jax.search.settings import read
from darts_jax.settings import build
from darts_jax.spaces.nasbench201 import NasBench201

pytestmark = pytest.mark.usefixtures('same_programs')

SPACE = NasBench201()


@pytest.fixture(scope='module')
def folder(tmp_path_factory, write_table):
  """A table in which the accuracy of an architecture is its place."""
  found = tmp_path_factory.mktemp('table')
  write_table(found, *[100 * np.arange(15_625) / 15_625] * 3)
  return found


def small(**changes):
  config = nasbench201_tiny_darts.get_config()
  config.update(epochs=2, batch_size=128)
  config.network.update(channels=2)
  config.update_from_flattened_dict(changes)
  return config


@pytest.fixture(scope='module')
def finished(tmp_path_factory, folder):
  workdir = tmp_path_factory.mktemp('run')
  return workdir, search.run(small(**{'space.table': str(folder)}), workdir)


def test_the_log_says_how_good_the_architectures_are_by_the_table(finished):
  workdir, result = finished
  lines = [line for line in metrics.read(workdir) if line['kind'] == 'epoch']
  with np.load(workdir / 'alphas.npz') as file:
    texts = [json.loads(text) for text in file['genotype']]
  # Before the first step there is no line.
  assert len(texts) == 1 + len(lines) == 3
  for text, line in zip(texts[1:], lines, strict=True):
    place = SPACE.index(SPACE.from_json(text))
    assert line['true_accuracy'] == pytest.approx(place / 15_625)
    assert line['true_rank'] == 15_625 - place
    assert line['true_optimum'] == pytest.approx(1 - 1 / 15_625)
    assert line['true_mean'] == pytest.approx(0.5, abs=1e-4)
  assert spaces.load(workdir / 'genotype.json') == result.genotype == SPACE.from_json(texts[-1])


def test_the_page_draws_it(finished):
  workdir, result = finished
  page = (workdir / 'report.html').read_text()
  assert 'In the benchmark' in page
  assert f'rank {15_625 - SPACE.index(result.genotype):,}' in page
  assert f'--genotype={workdir / "genotype.json"}' in page
  assert 'darts-jax train --config=nasbench201_eval ' in page


def test_without_a_table_nothing_is_said(tmp_path):
  search.run(small(epochs=1), tmp_path)
  assert 'true_accuracy' not in (tmp_path / 'metrics.jsonl').read_text()
  assert 'In the benchmark' not in (tmp_path / 'report.html').read_text()


def test_a_folder_without_a_table_is_refused_before_anything_is_written(tmp_path):
  empty = tmp_path / 'empty'
  empty.mkdir()
  with pytest.raises(ValueError, match=f'^config.space.table: {empty} is empty; wanted is a folder with [^\n]*$'):
    search.run(small(**{'space.table': str(empty)}), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_cells_are_evaluated_with_the_statistics_of_batches(finished):
  workdir, result = finished
  del workdir
  names = {name for name in result.state.statistics.tree if not name.startswith(('stem', 'residual', 'last'))}
  assert names == set()


def test_the_found_cell_is_trained_by_the_benchmarks_recipe(finished, tmp_path):
  _, result = finished
  config = nasbench201_eval.get_config()
  config.update(epochs=1, batch_size=256)
  config.data.update(name='digits')
  config.augment.update(crop_padding=1, flip=False)
  config.network.update(channels=4, layers=3)
  trained = training.run(config, tmp_path, result.genotype)
  assert 0 <= trained.test_accuracy <= 1
  assert training.load(tmp_path).variables['params'].keys() >= {'stem', 'last_bn', 'residual1', 'residual3'}


def test_configs_are_the_published_searches():
  first, second = (read(each.get_config()) for each in (nasbench201_darts, nasbench201_darts_second))
  # [NB201 §3.2 and its code]
  assert (first.epochs, first.batch_size, first.weights.learning_rate, first.weights.final_learning_rate) == (
    *(50, 64),
    *(0.025, 0.001),
  )
  assert (first.weights.weight_decay, first.weights.momentum, first.weights.nesterov) == (5e-4, 0.9, True)
  assert (first.task.network.channels, first.task.network.layers, first.batch_norm.tracked) == (16, 15, False)
  assert (first.alphas.order, first.hypergradient.name) == ('weights_first', 'first_order')
  assert (second.alphas.order, second.hypergradient.name) == ('alphas_first', 'finite_difference')
  assert (second.hypergradient.radius, second.hypergradient.virtual_step) == (0.01, 'heavy_ball')
  tiny = read(tiny_second.get_config())
  assert (tiny.alphas.order, tiny.hypergradient) == (second.alphas.order, second.hypergradient)
  evaluation = build(training.Training, nasbench201_eval.get_config())
  assert (evaluation.epochs, evaluation.batch_size, evaluation.weights.learning_rate) == (200, 256, 0.1)
  assert (evaluation.weights.weight_decay, evaluation.weights.nesterov, evaluation.weights.clip_norm) == (5e-4, True, 0)
  # What the space says by itself.
  alone = read({'space': 'nasbench201'})
  assert (alone.task.network, alone.batch_norm) == (first.task.network, first.batch_norm)


def test_virtual_steps_have_the_momentum_that_is_asked_for():
  rates = {'learning_rate': 0.5, 'final_learning_rate': 0.5, 'momentum': 0.75, 'weight_decay': 0.25, 'clip_norm': 1e9}
  vector, gradient, trace = np.array([1.0, -2.0]), np.array([3.0, 0.5]), np.array([0.2, -0.4])
  heavy = 0.75 * trace + gradient + 0.25 * vector
  nesterov = gradient + 0.25 * vector + 0.75 * heavy
  for momentum, virtual, real, unrolled in (
    (False, 'as_optimizer', heavy, heavy),
    (True, 'as_optimizer', nesterov, nesterov),
    (True, 'heavy_ball', nesterov, heavy),
  ):
    config = {'epochs': 1, 'weights': {**rates, 'nesterov': momentum}, 'hypergradient': {'virtual_step': virtual}}
    optimizers = Optimizers.from_settings(read(config), [1])
    state = optimizers.weights.init(jnp.asarray(vector, jnp.float32))
    state = jax.tree.map(lambda leaf: jnp.asarray(trace, leaf.dtype) if leaf.shape == (2,) else leaf, state)
    for optimizer, expected in ((optimizers.weights, real), (optimizers.inner, unrolled)):
      updates, _ = optimizer.update(jnp.asarray(gradient, jnp.float32), state, jnp.asarray(vector, jnp.float32))
      np.testing.assert_allclose(updates, -0.5 * expected, rtol=1e-6)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'network': {'layers': 8}}, 'config.network.layers: 8 is not allowed; it counts the cells of 3 stages'),
    (
      {'network': {'stem_multiplier': 3}},
      'config.network.stem_multiplier: 3 is not allowed with the stem cifar; ',
    ),
    (
      {'network': {'stem': 'imagenet'}},
      'config.network.stem_multiplier: 1 is not allowed with the stem imagenet',
    ),
    (
      {'space': {'name': 'nasbench201', 'nodes': 3}},
      'config.space.nodes: unknown field of nasbench201; it is one',
    ),
  ],
)
def test_networks_that_are_none_of_the_benchmark_are_refused(changes, message):
  with pytest.raises(ValueError, match=f'^{message}[^\n]*$'):
    read(ConfigDict({'space': {'name': 'nasbench201'}, **changes}))


def test_a_part_of_the_images_is_the_same_for_every_seed():
  whole = read({'data': {'name': 'digits'}}).task.load()
  found = [read({'seed': seed, 'data': {'name': 'digits', 'num_images': 200}}).task.load() for seed in (0, 1)]
  assert found[0].x_train.shape[0] == 200
  np.testing.assert_array_equal(found[0].x_train, found[1].x_train)
  assert {image.tobytes() for image in found[0].x_train} <= {image.tobytes() for image in whole.x_train}
  for number, message in ((5000, 'is not allowed; digits has 1438 training images'), (3, 'leave out class ')):
    with pytest.raises(ValueError, match=f'^config.data.num_images: {number} {message}'):
      read({'data': {'name': 'digits', 'num_images': number}}).task.load()


def test_a_text_in_a_file_is_an_architecture(tmp_path):
  text = '|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|'
  found = spaces.resolve(text)
  assert found == SPACE.from_json(text)
  assert spaces.to_text(found) == text
  path = pathlib.Path(tmp_path) / 'log.txt'
  path.write_text(f'epoch 1: {text.replace("none", "skip_connect")}\nepoch 2: {text}, done')
  assert spaces.load(path) == found
  path.write_text(json.dumps({'genotype': text}))
  assert spaces.load(path) == found
  with pytest.raises(ValueError, match=r"^genotype: '\|x~0\|' is no architecture of NAS-Bench-201; the form is "):
    spaces.resolve('|x~0|')


def test_searchers_of_the_space_take_the_same_steps_on_eight_devices():
  found = []
  for devices in (1, 8):
    settings = read(small(**{'alphas.weight_decay': 0.1}))
    data = settings.task.load()
    searcher = Searcher.open(settings, data, make_mesh(devices))
    placed = searcher.place([settings.task.halves(data, settings, settings.seed)])
    state, _ = searcher.run(searcher.init(searcher.keys()), placed, jnp.int32(2))
    found.append(jax.device_get((state.weights.vector, state.alphas)))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), *found)
