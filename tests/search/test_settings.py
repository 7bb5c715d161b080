import dataclasses
import math
import pickle
import re
import typing

import pytest
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder, required_placeholder

from configs import cifar, digits, mnist, ptb, text
from darts_jax import searches
from darts_jax.data.settings import Augment, TextSource
from darts_jax.laboratory.settings import Laboratory
from darts_jax.search.settings import Alphas, Search, Weights, read
from darts_jax.selection.settings import Selection
from darts_jax.settings import as_config, build, differences, setting
from darts_jax.spaces import Darts, Recurrent
from darts_jax.spaces.darts import CANDIDATES
from darts_jax.spaces.recurrent import ACTIVATIONS
from darts_jax.strategies.darts import Darts as DartsStrategy
from darts_jax.tasks import ImageTask, TextTask
from darts_jax.tasks.images import Data, Network
from darts_jax.training.language.settings import LanguageTraining
from darts_jax.training.settings import Training
from darts_jax.trials import TrialSearch


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


@dataclasses.dataclass(frozen=True)
class Outermost:
  outer: Outer = setting(Outer(5, inner=Inner(0.125, ('d', 'e'))))
  another: Outer = setting(Outer())


def test_fields_of_a_group_have_the_defaults_that_it_has_where_it_is():
  # An inner rate is a half where it is declared, a quarter in another group, and an eighth in one of that.
  assert build(Inner, {}) == Inner(0.5, ('a', 'b'))
  assert build(Outer, {'inner': {'names': ('c',)}}) == Outer(inner=Inner(0.25, ('c',)))
  found = build(Outermost, {'outer': {'kind': 'fast', 'inner': {'names': ('c',)}}, 'another': {'inner': {}}})
  assert found.outer == Outer(5, 'fast', False, Inner(0.125, ('c',)))
  assert found.another == Outer(3, 'slow', False, Inner(0.25, ('a', 'b')))
  assert build(Outermost, {'outer': {'inner': {'rate': 0.75}}}).outer == Outer(5, inner=Inner(0.75, ('d', 'e')))


def test_fields_that_are_left_out_have_those_of_the_base():
  base = Outer(7, 'fast', True, Inner(0.75, ('f',)))
  assert build(Outer, {}, base=base) == base
  found = build(Outer, {'count': 2, 'inner': {'names': ('g',)}}, base=base)
  assert found == Outer(2, 'fast', True, Inner(0.75, ('g',)))
  with pytest.raises(ValueError, match=r'^here.inner.rate: 2.0 is not allowed; it has to be < 1$'):
    build(Outer, {'inner': {'rate': 2}}, 'here', base)


def test_integers_are_numbers_and_lists_are_tuples():
  built = build(Search, {'weights': {'learning_rate': 1}, 'space': {'operations': ['none', 'skip_connect']}})
  assert isinstance(built.weights.learning_rate, float)
  assert built.space.operations == ('none', 'skip_connect')


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
    (
      {'strategy': 'sgs'},
      "config.strategy.name: 'sgs' is not known; did you mean 'sgas'? allowed are darts, sgas, gdas, pc_darts",
    ),
    ({'data': {'name': 'cifar'}}, "config.data.name: 'cifar' is not known; did you mean 'cifar10'?"),
    ({'data': {'validation_fraction': 1.0}}, 'config.data.validation_fraction: 1.0 is not allowed'),
    ({'network': {'channels': 5}}, 'config.network.channels: 5 is not allowed; it has to be even'),
    ({'network': {'layers': 2}}, 'config.network.layers: 2 is not allowed; it has to be ≥ 3'),
    ({'space': {'operations': ()}}, 'config.space.operations: no operation is listed'),
    ({'space': {'operations': ('none',)}}, "config.space.operations: ('none',) has nothing to choose"),
    (
      {'space': {'operations': ('sep_conv_3x4',)}},
      "config.space.operations: 'sep_conv_3x4' is not an operation; did you mean 'sep_conv_3x3'?",
    ),
    ({'space': {'operations': ('none',) * 2}}, 'config.space.operations: an operation is listed twice'),
    ({'weights': {'learning_rate': 0.0}}, 'config.weights.learning_rate: 0.0 is not allowed; it has to be > 0'),
    ({'alphas': {'beta1': 1.0}}, 'config.alphas.beta1: 1.0 is not allowed; it has to be < 1'),
    (
      {'hypergradient': {'name': 'finite_diference'}},
      "config.hypergradient.name: 'finite_diference' is not known; did you mean 'finite_difference'?"
      ' allowed are first_order, finite_difference, exact',
    ),
    ({'hypergradient': {'radius': 0.0}}, 'config.hypergradient.radius: 0.0 is not allowed; it has to be > 0'),
    ({'hypergradient': {'clipping': 'off'}}, "config.hypergradient.clipping: 'off' is not known; allowed are none,"),
    (
      {'hypergradient': {'name': 'unrolled', 'steps': 0}},
      'config.hypergradient.steps: 0 is not allowed; it has to be ≥ 1',
    ),
    (
      {'hypergradient': {'name': 'conjugate_gradient', 'damping': -1.0}},
      'config.hypergradient.damping: -1.0 is not allowed; it has to be > 0',
    ),
    (
      {'hypergradient': {'name': 'exact', 'radius': 0.1}},
      'config.hypergradient.radius: unknown field of exact; it is one of finite_difference',
    ),
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


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'batch_size': 1}, 'config.batch_size: 1 is not allowed; it has to be ≥ 2'),
    ({'task': {'bptt': 1}}, 'config.task.bptt: 1 is not allowed; it has to be ≥ 2'),
    ({'task': {'short_fraction': 1.5}}, 'config.task.short_fraction: 1.5 is not allowed; it has to be ≤ 1'),
    ({'task': {'temporal_activation': -1.0}}, 'config.task.temporal_activation: -1.0 is not allowed; it has to be ≥ 0'),
    ({'augment': {}}, 'config.augment: unknown field of text; it is one of images'),
    ({'network': {'channels': 4}}, 'config.network.channels: unknown field; '),
    ({'network': {'width': 0}}, 'config.network.width: 0 is not allowed; it has to be ≥ 1'),
    ({'space': {'name': 'recurrent', 'nodes': 0}}, 'config.space.nodes: 0 is not allowed; it has to be ≥ 1'),
    ({'space': {'name': 'recurrent', 'operations': ('none',)}}, "config.space.operations: ('none',) has nothing to"),
    (
      {'space': {'name': 'recurrent', 'operations': ('none', 'skip_connect')}},
      "config.space.operations: 'skip_connect' is not an operation; allowed are none, tanh, relu, sigmoid, identity",
    ),
    ({'network': {'dropout': {'x': 1.0}}}, 'config.network.dropout.x: 1.0 is not allowed; it has to be < 1'),
    ({'network': {'dropout': {'hidden': 0.1}}}, 'config.network.dropout.hidden: unknown field; '),
    (
      {'data': {'name': 'cifar10'}},
      "config.data.name: 'cifar10' is not known; allowed are pydoc, ptb, wikitext2, files",
    ),
    ({'space': 'recurren'}, "config.space.name: 'recurren' is not known; did you mean 'recurrent'? allowed are darts"),
    ({'space': 'recurrent', 'task': 'images'}, "config.space.name: 'recurrent' is not allowed; the task images has no"),
    ({'space': 'darts', 'task': 'text'}, "config.space.name: 'darts' is not allowed; the task text has one cell"),
    ({'task': {'network': {}}}, 'config.task.network: it is called config.network'),
  ],
)
def test_settings_of_a_recurrent_search_have_their_limits(config, message):
  with pytest.raises(ValueError, match=f'^{re.escape(message)}[^\n]*$'):
    read({'space': 'recurrent', **config})


def test_space_tells_which_search():
  assert read({}) == read({'space': 'darts'}) == read({'space': {}, 'task': 'images'}) == Search()
  assert read({'space': {'name': 'recurrent'}, 'task': {'bptt': 20}}).task == TextTask(bptt=20)
  assert read({'space': 'recurrent', 'data': {'dir': 'x'}}).task.data == TextSource('ptb', 'x')
  with pytest.raises(ValueError, match='^config.task.bptt: unknown field of images; it is one of text$'):
    read({'task': {'bptt': 20}})
  with pytest.raises(ValueError, match='^config.space.operations: .tanh. is not an operation'):
    read({'space': {'operations': ('none', 'tanh')}})


def test_groups_of_a_recurrent_search_keep_its_defaults():
  found = read(
    {
      'space': 'recurrent',
      'weights': {'learning_rate': 10},
      'alphas': {'beta2': 0.99},
      'strategy': {'init_scale': 0.1},
      'hypergradient': {'name': 'exact'},
      'network': {'dropout': {'x': 0.5}},
    }
  )
  assert found.weights == Weights(10.0, 20.0, 0.0, 5e-7, 0.25)
  assert found.alphas == Alphas(3e-3, 0.9, 0.99, 1e-3)
  assert found.strategy == DartsStrategy(init_scale=0.1)
  assert (found.hypergradient.clipping, found.hypergradient.clip_outer) == ('constant', True)
  assert dataclasses.asdict(found.task.network.dropout) == {
    'words': 0.0,
    'embedded': 0.2,
    'x': 0.5,
    'h': 0.25,
    'output': 0.75,
  }
  # In a search for convolutional cells they are others.
  assert read({'weights': {'learning_rate': 10}}).weights == Weights(10.0, 0.001, 0.9, 3e-4, 5.0)


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'alphas': {'order': 'weights'}}, "config.alphas.order: 'weights' is not known; did you mean 'weights_first'?"),
    ({'alphas': {'every': 0}}, 'config.alphas.every: 0 is not allowed; it has to be ≥ 1'),
    ({'alphas': {'from_epoch': 50}}, 'config.alphas.from_epoch: 50 is not allowed; there are 50 epochs'),
    (
      {'epochs': 4, 'alphas': {'from_epoch': 2, 'warmup_epochs': 2.5}},
      'config.alphas.warmup_epochs: 2.5 is not allowed; there are 2 epochs from config.alphas.from_epoch on',
    ),
    (
      {'alphas': {'order': 'weights_first'}, 'hypergradient': {'name': 'joint'}},
      "config.alphas.order: 'weights_first' is not allowed; with joint both move at once",
    ),
  ],
)
@pytest.mark.parametrize('space', ['darts', 'recurrent'])
def test_times_of_alphas_have_their_limits(space, config, message):
  with pytest.raises(ValueError, match=f'^{re.escape(message)}'):
    read({'space': space, **config})


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
    value = as_config(value)
  if not hasattr(value, 'items'):
    return {path}
  return {name for key, inner in value.items() for name in names(inner, f'{path}.{key}')}


@pytest.mark.parametrize('module', [cifar, digits, mnist])
def test_configs_build_and_those_of_the_papers_have_every_field(module):
  config = module.get_config()
  settings = build(Search, config)
  missing = names(settings) - names(config)
  # What estimators share is as the other one has it.
  shared = {f'.hypergradient.{name}' for name in ('clipping', 'clip_outer', 'virtual_step')}
  assert missing == {cifar: set(), mnist: shared, digits: shared | {'.strategy.init_scale'}}[module]
  assert settings.task.source == module.__name__.removeprefix('configs.').replace('cifar', 'cifar10')


def test_cifar_config_is_the_published_protocol():
  # [DARTS §3.1.1, §A.1]
  config = build(Search, cifar.get_config())
  assert config.epochs == 50
  assert config.batch_size == 64
  assert config.strategy == DartsStrategy(init_scale=1e-3, temperature=(1.0, 1.0))
  data, network = Data('cifar10', 'data', '', False, validation_fraction=0.5), Network(16, 8, 'cifar', 3)
  assert config.task == ImageTask(data, Augment(crop_padding=4, flip=True, cutout=0), network)
  assert config.space == Darts(nodes=4, operations=CANDIDATES)
  assert dataclasses.asdict(config.weights) == {
    'learning_rate': 0.025,
    'final_learning_rate': 0.001,
    'momentum': 0.9,
    'weight_decay': 3e-4,
    'clip_norm': 5.0,
    'warmup_epochs': 0.0,
    'reference_batch_size': 0,
    'nesterov': False,
  }
  assert dataclasses.asdict(config.alphas) == {
    'learning_rate': 3e-4,
    'beta1': 0.5,
    'beta2': 0.999,
    'weight_decay': 1e-3,
    'warmup_epochs': 0.0,
    'reference_batch_size': 0,
    'order': 'alphas_first',
    'every': 1,
    'from_epoch': 0,
  }
  assert (config.hypergradient.name, config.hypergradient.radius) == ('finite_difference', 0.01)
  # The defaults of a search are the same.
  assert config == Search()


@pytest.mark.parametrize('module', [ptb, text])
def test_configs_of_recurrent_searches_have_every_field_and_build(module):
  config = module.get_config()
  settings = read(config)
  assert names(config) == names(settings)
  assert isinstance(settings.task, TextTask)
  assert settings.task.source == {ptb: 'ptb', text: 'pydoc'}[module]


def test_ptb_config_is_the_published_protocol():
  # [DARTS §3.1.2, §A.1]
  config = read(ptb.get_config())
  task = config.task
  assert (task.network.width, config.batch_size, task.bptt) == (300, 256, 35)
  assert config.space == Recurrent(8, ACTIVATIONS)
  dropout = task.network.dropout
  assert (dropout.x, dropout.h, dropout.embedded, dropout.words, dropout.output) == (0.75, 0.25, 0.2, 0.0, 0.75)
  assert config.epochs == 50
  assert config.strategy == DartsStrategy(init_scale=1e-3, temperature=(1.0, 1.0))
  assert task.data == TextSource('ptb', 'data')
  assert dataclasses.asdict(config.weights) == {
    'learning_rate': 20.0,
    'final_learning_rate': 20.0,
    'momentum': 0.0,
    'weight_decay': 5e-7,
    'clip_norm': 0.25,
    'warmup_epochs': 0.0,
    'reference_batch_size': 0,
    'nesterov': False,
  }
  assert dataclasses.asdict(config.alphas) == {
    'learning_rate': 3e-3,
    'beta1': 0.9,
    'beta2': 0.999,
    'weight_decay': 1e-3,
    'warmup_epochs': 0.0,
    'reference_batch_size': 0,
    'order': 'alphas_first',
    'every': 1,
    'from_epoch': 0,
  }
  assert (task.short_fraction, task.temporal_activation) == (0.05, 1e-3)
  # The inner gradient is clipped with a constant factor, and v to the same norm.
  hypergradient = config.hypergradient
  assert (hypergradient.name, hypergradient.radius) == ('finite_difference', 0.01)
  assert (hypergradient.clipping, hypergradient.clip_outer) == ('constant', True)
  # The defaults of a recurrent search are the same.
  assert config == read({'space': 'recurrent'})


ROOTS = (Search, Training, LanguageTraining, Selection, TrialSearch, Laboratory)


def numbers(kind, path=(), chosen=()):
  """(names of the fields on the way, type, limits, groups that have to be named) of every number of settings."""
  types = typing.get_type_hints(kind)
  for field in dataclasses.fields(kind):
    found, place = types[field.name], (*path, field.name)
    if 'kinds' in field.metadata:
      for name, each in field.metadata['kinds'].items():
        # What is one of text goes with the space of text.
        named = ((*path, 'space'), 'recurrent') if name == 'text' else (place, name)
        for where, *rest in numbers(each, place, (*chosen, named)):
          beside = field.metadata['beside'] and len(where) > len(place) + 1
          yield (*path, *where[len(place) :]) if beside else where, *rest
    elif dataclasses.is_dataclass(found):
      yield from numbers(found, place, chosen)
    found = (*typing.get_args(found), found)[0]
    if found in (int, float):
      yield place, types[field.name], field.metadata, chosen


def nested(names, value, chosen=()):
  found = {}
  for path, content in (*(((*path, 'name'), name) for path, name in chosen), (names, value)):
    *groups, last = path
    group = found
    for name in groups:
      group = group.setdefault(name, {})
    group[last] = content
  return found


@pytest.mark.parametrize('root', ROOTS)
def test_every_number_has_limits_at_both_ends(root):
  found = list(numbers(root))
  assert len(found) > 20
  for names, kind, limits, chosen in found:
    path = '.'.join(('config', *names))
    ends = limits.keys() & {'above', 'at_least'}, limits.keys() & {'below', 'at_most'}
    assert 'choices' in limits or all(ends), path
    for value in (2**31, 10**12, 10**400, -1, 1e300, -1e300, math.inf):
      if limits.get('at_most', 0) < abs(value) or value < 0:
        with pytest.raises(ValueError, match=f'^{path}: [^\n]{{1,200}}$'):
          build(root, nested(names, (value,) if typing.get_origin(kind) is tuple else value, chosen))


@pytest.mark.parametrize(
  ('kind', 'config', 'message'),
  [
    (Search, {'epochs': 2**31}, 'config.epochs: 2147483648 is not allowed; it has to be ≤ 20000'),
    (Search, {'network': {'layers': 10**12}}, 'config.network.layers: 1000000000000 is not allowed; it'),
    (Search, {'space': {'nodes': 1000}}, 'config.space.nodes: 1000 is not allowed; it has to be ≤ 20'),
    (Search, {'space': {'operations': ('none',) * 10**6}}, 'config.space.operations: 1000000 values are'),
    (Search, {'epochs': 10**5000}, 'config.epochs: 0x'),
    (Search, {'epochs': 'x' * 10**6}, "config.epochs: 'xxx"),
    (Search, {3: 1}, 'config.3: unknown field; allowed are seed, '),
    (Search, {'channels': 4}, 'config.channels: unknown field; did you mean config.network.channels?'),
    (Search, {'task': {'cutout': 1}}, 'config.task.cutout: unknown field; did you mean config.augment.cutout?'),
    (Search, {'network': {'epochs': 1}}, 'config.network.epochs: unknown field; did you mean config.epochs?'),
    (
      Search,
      {'learning_rate': 1.0},
      'config.learning_rate: unknown field; did you mean config.weights.learning_rate or config.alphas.learning_rate?',
    ),
    # In the recurrent space the network is another one.
    (Search, {'space': 'recurrent', 'width': 3}, 'config.width: unknown field; did you mean config.network.width?'),
    (Search, {'space': 'recurrent', 'channels': 3}, 'config.channels: unknown field; allowed are seed, '),
    (Search, {'hypergradient': {'radius': 1e-60}}, 'config.hypergradient.radius: 1e-60 is not allowed'),
    (Search, {'weights': {'momentum': 1 - 1e-12}}, 'config.weights.momentum: 0.999999999999 is not'),
    (Search, {'weights': {'learning_rate': 10**400}}, 'config.weights.learning_rate: inf is not a finite number'),
    (Laboratory, {'batch_sizes': (64, 2**40)}, 'config.batch_sizes: 1099511627776 is not allowed'),
    (Search, {'seed': 2**32 - 1, 'mesh': {'seed': 2}}, 'config.seed: 4294967295 is not allowed; with the 2 searches'),
    (Selection, {'search': {'seed': 2**32 - 3}}, 'config.search.seed: 4294967293 is not allowed; with the 4 searches'),
    (Selection, {'training': {'seed': 2**32 - 2}}, 'config.training.seed: 4294967294 is not allowed; with'),
  ],
)
def test_what_no_device_could_do_is_refused_at_once(kind, config, message):
  with pytest.raises(ValueError, match=f'^{re.escape(message)}[^\n]{{0,200}}$'):
    build(kind, config)


def test_a_field_of_a_strategy_that_is_one_of_another_group_is_told_by_every_command():
  for config, message in (
    ({'strategy': {'channels': 3}}, 'config.strategy.channels: unknown field; did you mean config.network.channels?'),
    (
      {'strategy': {'name': 'random_search', 'workers': 3}, 'evaluator': 'scratch'},
      'config.strategy.workers: unknown field; did you mean config.workers?',
    ),
  ):
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$') as caught:
      searches.read(config)
    # Worker processes send errors to their parent.
    received = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(received, ValueError)
    assert str(received) == message


def test_a_group_that_cannot_say_its_name_is_one_line():
  config = ConfigDict({'channels': 3, 'strategy': {}})
  config.strategy.name = required_placeholder(str)
  for reader in (read, searches.read):
    with pytest.raises(ValueError, match=r'^config\.[^\n]*$'):
      reader(config)


@pytest.mark.parametrize('group', ['space', 'task', 'strategy', 'hypergradient'])
@pytest.mark.parametrize('value', [[], None, 3, {'name': None}, {'name': []}, 'recurent'])
def test_a_group_without_a_known_name_is_refused(group, value):
  message = rf'config\.{group}(: .* is neither a name nor a group of fields|\.name: .* is not known; [^\n]+)'
  with pytest.raises(ValueError, match=f'^{message}$'):
    read({group: value})


def test_names_of_earlier_versions_are_told_how_they_are_called_now():
  for given in ('convolutional', {'name': 'convolutional'}, ConfigDict({'name': 'convolutional'})):
    with pytest.raises(ValueError, match=r"^config\.search\.space: 'convolutional' is called 'darts' now$"):
      build(Selection, {'search': {'space': given}})


def test_config_that_cannot_be_computed():
  config = ConfigDict({'epochs': 2})
  config.batch_size = placeholder(int, required=True)
  with pytest.raises(ValueError, match='^config: [^\n]*required'):
    read(config)
