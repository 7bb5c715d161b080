import dataclasses
import math
import re

import pytest
from ml_collections import ConfigDict

from configs import cifar, digits, mnist
from darts_jax.genotype import CANDIDATES
from darts_jax.search.settings import Data, Network, Search
from darts_jax.settings import build, differences, setting


@dataclasses.dataclass(frozen=True)
class Inner:
  rate: float = setting(0.5, above=0, below=1)
  names: tuple[str, ...] = setting(('a', 'b'))


@dataclasses.dataclass(frozen=True)
class Outer:
  count: int = setting(3, at_least=1, at_most=9)
  kind: str = setting('slow', choices=('slow', 'fast'))
  loud: bool = setting(False)
  inner: Inner = setting(Inner(0.25))


def test_fields_that_are_left_out_have_their_default():
  assert build(Outer, {}) == Outer(3, 'slow', False, Inner(0.25, ('a', 'b')))


@pytest.mark.parametrize('make', [dict, ConfigDict])
def test_nested_values_arrive(make):
  config = make({'count': 9, 'kind': 'fast', 'loud': True, 'inner': {'rate': 0.125, 'names': ('c',)}})
  assert build(Outer, config) == Outer(9, 'fast', True, Inner(0.125, ('c',)))


def test_integers_are_numbers_and_lists_are_tuples():
  built = build(Search, {'weights': {'learning_rate': 1}, 'network': {'operations': ['none', 'skip_connect']}})
  assert isinstance(built.weights.learning_rate, float)
  assert built.network.operations == ('none', 'skip_connect')


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'conut': 3}, 'config.conut: unknown field; did you mean config.count?'),
    ({'zzz': 3}, 'config.zzz: unknown field; allowed are count, kind, loud, inner'),
    ({'inner': {'rat': 1}}, 'config.inner.rat: unknown field; did you mean config.inner.rate?'),
    ({'inner': 3}, 'config.inner: 3 is not a group of fields'),
    ({'count': 'x'}, "config.count: 'x' is not of type int"),
    ({'count': 2.0}, 'config.count: 2.0 is not of type int'),
    ({'count': True}, 'config.count: True is not of type int'),
    ({'count': None}, 'config.count: None is not of type int'),
    ({'loud': 1}, 'config.loud: 1 is not of type bool'),
    ({'kind': 3}, 'config.kind: 3 is not of type str'),
    ({'inner': {'rate': True}}, 'config.inner.rate: True is not of type float'),
    ({'inner': {'rate': math.nan}}, 'config.inner.rate: nan is not a finite number'),
    ({'inner': {'rate': math.inf}}, 'config.inner.rate: inf is not a finite number'),
    ({'inner': {'names': 'a'}}, "config.inner.names: 'a' is not a tuple"),
    ({'inner': {'names': ('a', 1)}}, 'config.inner.names: 1 is not of type str'),
    ({'count': 0}, 'config.count: 0 is not allowed; it has to be ≥ 1'),
    ({'count': 10}, 'config.count: 10 is not allowed; it has to be ≤ 9'),
    ({'inner': {'rate': 0}}, 'config.inner.rate: 0.0 is not allowed; it has to be > 0'),
    ({'inner': {'rate': 1}}, 'config.inner.rate: 1.0 is not allowed; it has to be < 1'),
    ({'kind': 'fsat'}, "config.kind: 'fsat' is not known; did you mean 'fast'? allowed are slow, fast"),
  ],
)
def test_errors_name_the_field_the_value_and_what_is_allowed(config, message):
  with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
    build(Outer, config)


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'epochs': 0}, 'config.epochs: 0 is not allowed'),
    ({'seed': -1}, 'config.seed: -1 is not allowed'),
    # A seed is a number of 32 bits; NumPy and JAX disagree on what lies above.
    ({'seed': 2**32}, 'config.seed: 4294967296 is not allowed'),
    ({'strategy': 'sgas'}, "config.strategy: 'sgas' is not known; allowed are darts"),
    ({'data': {'name': 'cifar'}}, "config.data.name: 'cifar' is not known; did you mean 'cifar10'?"),
    ({'data': {'validation_fraction': 1.0}}, 'config.data.validation_fraction: 1.0 is not allowed'),
    ({'network': {'channels': 5}}, 'config.network.channels: 5 is not allowed; it has to be even'),
    ({'network': {'layers': 2}}, 'config.network.layers: 2 is not allowed; it has to be ≥ 3'),
    ({'network': {'operations': ()}}, 'config.network.operations: no operation is listed'),
    ({'network': {'operations': ('none',)}}, "config.network.operations: ('none',) has nothing to choose"),
    (
      {'network': {'operations': ('sep_conv_3x4',)}},
      "config.network.operations: 'sep_conv_3x4' is not an operation; did you mean 'sep_conv_3x3'?",
    ),
    ({'network': {'operations': ('none',) * 2}}, 'config.network.operations: an operation is listed twice'),
    ({'weights': {'learning_rate': 0.0}}, 'config.weights.learning_rate: 0.0 is not allowed; it has to be > 0'),
    ({'alphas': {'beta1': 1.0}}, 'config.alphas.beta1: 1.0 is not allowed; it has to be < 1'),
    (
      {'hypergradient': {'name': 'finite_diference'}},
      "config.hypergradient.name: 'finite_diference' is not known; did you mean 'finite_difference'?"
      ' allowed are first_order, finite_difference, exact',
    ),
    ({'hypergradient': {'radius': 0.0}}, 'config.hypergradient.radius: 0.0 is not allowed; it has to be > 0'),
    ({'hypergradient': {'clipping': 'off'}}, "config.hypergradient.clipping: 'off' is not known; allowed are none,"),
    ({'hypergradient': {'steps': 0}}, 'config.hypergradient.steps: 0 is not allowed; it has to be ≥ 1'),
    ({'hypergradient': {'damping': -1.0}}, 'config.hypergradient.damping: -1.0 is not allowed; it has to be > 0'),
    (
      {'hypergradient': {'name': 'truncated', 'steps': 2, 'backward_steps': 3}},
      'config.hypergradient.backward_steps: 3 is not allowed; between 1 and steps, 2, can be differentiated',
    ),
    ({'checkpoint': {'keep': 0}}, 'config.checkpoint.keep: 0 is not allowed; it has to be ≥ 1'),
  ],
)
def test_settings_of_a_search_have_their_limits(config, message):
  with pytest.raises(ValueError, match=f'^{re.escape(message)}[^\n]*$'):
    build(Search, config)


def test_differences_are_the_changed_fields():
  old = {'seed': 0, 'data': {'name': 'digits', 'dir': 'data'}, 'gone': 1}
  new = {'seed': 0, 'data': {'name': 'mnist', 'dir': 'data'}, 'more': [1, 2]}
  assert differences(old, new) == [
    "config.data.name: 'digits' → 'mnist'",
    'config.gone: 1 → None',
    'config.more: None → [1, 2]',
  ]
  assert differences(old, dict(old)) == []


def names(value, path=''):
  """Paths of all fields of a config or of settings."""
  if dataclasses.is_dataclass(value):
    value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
  if not hasattr(value, 'items'):
    return {path}
  return {name for key, inner in value.items() for name in names(inner, f'{path}.{key}')}


@pytest.mark.parametrize('module', [cifar, digits, mnist])
def test_configs_have_every_field_and_build(module):
  config = module.get_config()
  assert names(config) == names(Search())
  settings = build(Search, config)
  assert settings.data.name == module.__name__.removeprefix('configs.').replace('cifar', 'cifar10')


def test_cifar_config_is_the_published_protocol():
  # [DARTS §3.1.1, §A.1]
  config = build(Search, cifar.get_config())
  assert config.epochs == 50
  assert config.batch_size == 64
  assert config.strategy == 'darts'
  assert config.data == Data('cifar10', 'data', '', False, validation_fraction=0.5)
  assert (config.augment.crop_padding, config.augment.flip, config.augment.cutout) == (4, True, 0)
  assert config.network == Network(channels=16, layers=8, nodes=4, stem_multiplier=3, operations=CANDIDATES)
  assert dataclasses.asdict(config.weights) == {
    'learning_rate': 0.025,
    'final_learning_rate': 0.001,
    'momentum': 0.9,
    'weight_decay': 3e-4,
    'clip_norm': 5.0,
  }
  assert dataclasses.asdict(config.alphas) == {
    'learning_rate': 3e-4,
    'beta1': 0.5,
    'beta2': 0.999,
    'weight_decay': 1e-3,
    'init_scale': 1e-3,
  }
  assert (config.hypergradient.name, config.hypergradient.radius) == ('finite_difference', 0.01)
  # The defaults of a search are the same.
  assert config == Search()
