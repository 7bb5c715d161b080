"""Checkpoints of the published code become our networks, and what does not fit is named."""

import json
import pathlib
import re
import sys

import numpy as np
import pytest

import darts_jax
from darts_jax.commands import convert, export
from darts_jax.commands.entry import launch
from darts_jax.interop.reference import (
  convert_language_model,
  convert_network,
  convert_supernet,
  infer_network,
  unwrapped,
)
from darts_jax.interop.tensors import read
from darts_jax.interop.weights import import_reference
from darts_jax.nets.conv import Supernet
from darts_jax.nets.recurrent import LanguageModel
from darts_jax.spaces import Darts, Recurrent, darts, from_json, published, save

ROOT = pathlib.Path(__file__).parents[2]
GOLDENS = ROOT / 'tests' / 'goldens'
CASES = ROOT / 'tests' / 'cases'
GOLDEN = GOLDENS / 'cnn_eval_darts_v2.npz'


@pytest.fixture(scope='module')
def golden():
  with np.load(GOLDEN) as file:
    return {name: file[name] for name in file.files}


@pytest.fixture
def tensors(golden):
  return {name[2:]: value for name, value in golden.items() if name.startswith('w/')}


@pytest.fixture(scope='module')
def genotype(golden):
  return from_json(json.loads(str(golden['meta']))['genotype'])


def test_sizes_are_read_off_the_shapes(tensors, genotype):
  net = infer_network(genotype, tensors)
  assert (net.channels, net.plan.num_cells, net.num_classes, net.stem, net.stem_multiplier) == (4, 5, 10, 'cifar', 3)
  assert (net.auxiliary, net.auxiliary_norm) == (True, True)
  without = {name: value for name, value in tensors.items() if not name.startswith('auxiliary')}
  assert not infer_network(genotype, without).auxiliary


def test_imported_network_classifies_as_the_reference_does(tmp_path, golden, tensors, genotype, capsys):
  path = tmp_path / 'model.npz'
  np.savez(path, **tensors)
  workdir = tmp_path / 'run'
  save(genotype, tmp_path / 'cell.json')
  assert convert.run(str(path), str(tmp_path / 'cell.json'), 'cifar10', str(workdir)) == 0
  assert 'parameters: 11,554, without the auxiliary head' in capsys.readouterr().out
  apply, variables = darts_jax.load(workdir)
  model = json.loads((workdir / 'model.json').read_text())
  # The file's images are normalised already; `apply` takes raw ones.
  raw = golden['x'].transpose(0, 2, 3, 1) * np.array(model['std']) + np.array(model['mean'])
  expected = golden['logits_eval']
  np.testing.assert_allclose(apply(variables, raw.astype(np.float32)), expected, atol=1e-4 * np.abs(expected).max())


def test_every_missing_and_unused_tensor_is_named(tensors, genotype):
  net = infer_network(genotype, tensors)
  gone = ['cells.0._ops.0.op.1.weight', 'cells.2.preprocess0.bn.running_var', 'classifier.bias']
  changed = {name: value for name, value in tensors.items() if name not in gone}
  changed |= {
    'cells.0.extra.weight': np.zeros(1),
    'teacher.bias': np.zeros(2),
    'stem.1.num_batches_tracked': np.zeros(()),
  }
  with pytest.raises(ValueError, match='3 tensors of the network are missing: .*; 2 tensors are not part') as error:
    convert_network(net, changed)
  for name in (*gone, 'cells.0.extra.weight', 'teacher.bias'):
    assert name in str(error.value)
  assert 'num_batches_tracked' not in str(error.value)


@pytest.mark.parametrize(
  ('name', 'value', 'said'),
  [
    ('cells.1.preprocess1.op.1.weight', np.zeros((8, 3, 1, 1)), 'cell1/preprocess1/kernel: shape .1, 3, 8. found'),
    (
      'cells.0._ops.0.op.2.weight',
      np.zeros((4, 5, 1, 1)),
      'tensor cells.0._ops.[02].op.2: its shape differs',
    ),
    (
      'cells.0._ops.0.op.2.weight',
      np.zeros((4, 4, 3, 3)),
      'op.2.weight: a 1×1 convolution is expected, shape',
    ),
    ('cells.0._ops.0.op.1.weight', np.zeros((4, 5, 3, 3)), 'op.1.weight: a depthwise convolution is expected'),
    ('stem.1.running_mean', np.full(12, np.nan), 'tensor stem.1.running_mean: a value is not finite'),
    ('classifier.bias', np.zeros((10, 1)), r'tensor classifier.bias: shape \(10, 1\) found, 1 dimensions expected'),
    ('stem.1.running_var', np.zeros(13), r'stem_bn/var: shape \(13,\) found, \(12,\) expected'),
  ],
)
def test_wrong_shapes_are_named(tensors, genotype, name, value, said):
  net = infer_network(genotype, tensors)
  with pytest.raises(ValueError, match=said):
    convert_network(net, {**tensors, name: value})


@pytest.mark.parametrize('dtype', [np.int8, np.int64, np.uint8, bool])
def test_weights_that_are_no_floating_point_numbers_are_refused(tensors, genotype, language_tensors, supernet, dtype):
  net = infer_network(genotype, tensors)
  message = rf'dtype {np.dtype(dtype)} found; floating-point numbers are expected'
  for name in ('cells.0._ops.0.op.1.weight', 'stem.1.running_var'):
    with pytest.raises(ValueError, match=f'^tensor {name}: {message}'):
      convert_network(net, {**tensors, name: tensors[name].astype(dtype)})
  name = 'rnns.0._Ws.4'
  with pytest.raises(ValueError, match=f'^tensor {name}: {message}'):
    convert_language_model(supernet, {**language_tensors, name: language_tensors[name].astype(dtype)})


@pytest.mark.parametrize('name', ['stem.0.weight', 'classifier.weight'])
def test_a_single_number_is_not_called_missing(tensors, genotype, name):
  with pytest.raises(ValueError, match=f'^tensor {name}: a single number; this is no network of the reference$'):
    infer_network(genotype, {**tensors, name: np.array(1.0)})


def test_values_beyond_float32_are_one_line(tmp_path, tensors, genotype, recwarn):
  path = tmp_path / 'model.npz'
  np.savez(path, **{**tensors, 'classifier.bias': np.full(10, 1e300)})
  message = 'params/classifier_bias: a value is too large for float32'
  with pytest.raises(ValueError, match=f'^{re.escape(str(path))}: {message}$'):
    import_reference(path, genotype)
  assert list(recwarn) == []


def test_a_name_does_not_make_a_million_cells(tensors, genotype):
  with pytest.raises(ValueError, match='tensor cells.1000000: there are too few tensors for so many cells'):
    infer_network(genotype, {**tensors, 'cells.1000000.x': np.zeros(1)})


def test_a_network_without_channels_is_refused(genotype, tensors):
  for name in ('stem.0.weight', 'cells.0.preprocess1.op.1.weight'):
    with pytest.raises(ValueError, match='^tensor stem.0.weight: shape .* found, and cells of [04] channels$'):
      infer_network(genotype, {**tensors, name: tensors[name][:0]})


def test_another_architecture_or_dataset_is_refused(tmp_path, tensors):
  path = tmp_path / 'model.npz'
  np.savez(path, **tensors)
  for name, dataset, said in (
    ('DARTS_V1', 'cifar10', 'tensors of the network are missing: .*cells.0._ops.6'),
    ('DARTS_V2', 'imagenet', '--dataset: imagenet does not go with .* the stem for cifar'),
    ('DARTS_V2', 'cifar100', '--dataset: cifar100 has 100 classes, the network in .*model.npz 10'),
    ('DARTS_V2', 'mnist', '--dataset: mnist has 1 channels, the network in .*model.npz 3; .* go before'),
    ('DARTS_V2', 'svhn', "--dataset: 'svhn' is not known; allowed are mnist, cifar10, cifar100, imagenet"),
    ('RNN_DARTS_V2', 'cifar10', 'recurrent architecture'),
  ):
    with pytest.raises(ValueError, match=said):
      convert.run(str(path), name, dataset, str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()
  np.savez(path, weight=np.zeros(3))
  with pytest.raises(
    ValueError, match='tensor stem.0.weight: missing; this is no network of the reference .found: wei'
  ):
    convert.run(str(path), 'DARTS_V2', 'cifar10', str(tmp_path / 'run'))


def test_dense_rows_of_amoebanet_keep_their_axes():
  """1×7 and 7×1 kernels, told apart by marks in one place each."""
  cell = (('conv_7x1_1x7', 0), ('skip_connect', 1))
  found = darts.genotype(cell, (2,), cell, (2,))
  rng = np.random.default_rng(0)
  net = infer_network(
    found,
    {
      'stem.0.weight': np.zeros((6, 3, 3, 3)),
      'cells.0.preprocess1.op.1.weight': np.zeros((2, 6, 1, 1)),
      'classifier.weight': np.zeros((4, 2)),
    },
  )
  shapes = {'1.weight': (2, 2, 1, 7), '2.weight': (2, 2, 7, 1)}
  tensors = {
    'stem.0.weight': rng.normal(size=(6, 3, 3, 3)),
    'classifier.weight': rng.normal(size=(4, 2)),
    'classifier.bias': np.zeros(4),
  }

  def norm(place, size):
    tensors.update({f'{place}.{kind}': np.ones(size) for kind in ('weight', 'bias', 'running_mean', 'running_var')})

  norm('stem.1', 6)
  for i in range(2):
    tensors[f'cells.0.preprocess{i}.op.1.weight'] = rng.normal(size=(2, 6, 1, 1))
    norm(f'cells.0.preprocess{i}.op.2', 2)
  # The only cell is a reduction cell: its skip connection halves the image.
  for name, shape in shapes.items():
    tensors[f'cells.0._ops.0.{name}'] = rng.normal(size=shape)
  norm('cells.0._ops.0.3', 2)
  for i in (1, 2):
    tensors[f'cells.0._ops.1.conv_{i}.weight'] = rng.normal(size=(1, 2, 1, 1))
  norm('cells.0._ops.1.bn', 2)
  params = convert_network(net, tensors)['params']['cell0']['node0']['conv_7x1_1x7']
  for k in range(7):
    np.testing.assert_array_equal(params['across'][0, 0, k], tensors['cells.0._ops.0.1.weight'][:, :, 0, k].T)
    np.testing.assert_array_equal(params['down'][0, 0, k], tensors['cells.0._ops.0.2.weight'][:, :, k, 0].T)


def test_names_of_amoebanet_are_those_of_the_published_code():
  """A checkpoint that the published code has written: each of its tensors is one of the network, none is missing."""
  case = CASES / 'amoebanet.pt'
  net, variables = import_reference(case, published()['AmoebaNet'])
  assert (net.channels, net.plan.num_cells, net.num_classes) == (2, 2, 10)
  tensors = read(case)
  for cell in range(2):
    dense = variables['params'][f'cell{cell}']['node0']['conv_7x1_1x7']
    for ours, place, axes in (('across', 1, (2, 3, 1, 0)), ('down', 2, (3, 2, 1, 0))):
      np.testing.assert_array_equal(dense[ours][0], tensors[f'cells.{cell}._ops.8.{place}.weight'].transpose(axes))
    # Of the edges that leave node 0, 0, 2 and 6 are pools, 4 is separable and 8 dense.
    means = variables['batch_stats'][f'cell{cell}']['node0']['bn0']['mean']
    expected = [tensors[f'cells.{cell}._ops.{name}.running_mean'] for name in ('4.op.3', '8.3')]
    np.testing.assert_array_equal(means, np.concatenate(expected))


@pytest.mark.parametrize(
  'prefix', ['', 'module.', '_orig_mod.', 'module._orig_mod.', '_orig_mod.module.', 'model.', 'any.prefix.at_all.']
)
def test_names_are_freed_of_wrappers(tensors, prefix):
  wrapped = {f'{prefix}{name}': value for name, value in tensors.items()}
  assert unwrapped(wrapped | {'n_averaged': 7}).keys() == {*tensors, 'n_averaged'}
  inside = {name.replace('cells.1.', 'cells.1._orig_mod.'): value for name, value in wrapped.items()}
  assert unwrapped(inside).keys() == tensors.keys()


def test_names_that_wrappers_make_ambiguous_are_refused(tensors):
  two = {f'{prefix}.{name}': value for prefix in ('student', 'teacher') for name, value in tensors.items()}
  with pytest.raises(ValueError, match='^it holds 2 networks: student., teacher.; a file with one of them is needed$'):
    unwrapped(two)
  with pytest.raises(ValueError, match='^tensor module.stem.0.weight: there is another one with this name'):
    unwrapped({'stem.0.weight': 1, 'module.stem.0.weight': 2})


def test_what_stands_beside_the_network_is_named_and_what_counts_is_not(tensors, genotype):
  net = infer_network(genotype, tensors)
  wrapped = {f'model.{name}': value for name, value in tensors.items()}
  convert_network(net, unwrapped(wrapped | {'n_averaged': np.array(7)}))
  with pytest.raises(ValueError, match='^1 tensors are not part of the network: criterion.weight$'):
    convert_network(net, unwrapped(wrapped | {'criterion.weight': np.zeros(3)}))


def test_messages_quote_a_few_names(tensors):
  many = {f'{i}.{"name" * 100}': np.zeros(1) for i in range(1000)}
  with pytest.raises(ValueError, match=r'missing; this is no network .*… and 995 more\)$') as error:
    infer_network(published()['DARTS_V2'], many)
  assert len(str(error.value)) < 700
  net = infer_network(published()['DARTS_V1'], tensors)
  with pytest.raises(
    ValueError, match='tensors of the network are missing: .* and [0-9]+ more; .* not part of'
  ) as error:
    convert_network(net, tensors)
  assert len(str(error.value)) < 700


@pytest.mark.parametrize('name', ['compiled.pt', 'namespace.pth'])
def test_checkpoints_of_other_programs_are_imported(name):
  net, _ = import_reference(CASES / name, published()['DARTS_V2'])
  assert (net.channels, net.plan.num_cells, net.num_classes) == (2, 2, 10)


def test_a_network_on_images_of_ones_own_is_converted_run_and_exported(tmp_path, capsys):
  """37 classes, one colour, sides that differ."""
  tensors = dict(read(CASES / 'classes37.pt'))
  tensors['stem.0.weight'] = tensors['stem.0.weight'].sum(1, keepdims=True)
  np.savez(tmp_path / 'net.npz', **tensors)
  flags = {'classes': '37', 'image_size': '8x12', 'image_channels': '1', 'mean': '100.5', 'std': '50'}
  assert convert.run(str(tmp_path / 'net.npz'), 'DARTS_V2', None, str(tmp_path / 'run'), **flags) == 0
  assert 'images: 8×12×1, raw pixel values with mean and standard deviation 100.5 and 50' in capsys.readouterr().out
  apply, variables = darts_jax.load(tmp_path / 'run')
  assert apply(variables, np.zeros((3, 8, 12, 1), np.uint8)).shape == (3, 37)
  assert export.run(str(tmp_path / 'run'), str(tmp_path / 'net.onnx'), None) == 0


def test_images_are_those_of_a_config(monkeypatch, tmp_path):
  """The config of a training, with fields of the command line."""
  path = tmp_path / 'images.npz'
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (64, 8, 12, 2), dtype=np.uint8)
  np.savez(path, x_train=images, y_train=np.arange(64) % 5)
  found = []
  config = f'--config={ROOT / "configs" / "digits_eval.py"}'
  fields = ('--config.data.name=npz', f'--config.data.path={path}', '--config.batch_size=8', '--classes=5')
  monkeypatch.setattr(sys, 'argv', ['convert.py', config, *fields])
  with pytest.raises(SystemExit) as exited:
    launch(convert.COMMAND._replace(run=lambda **values: found.append(values) or 0), 'convert')
  assert exited.value.code == 0
  assert (found[0]['classes'], found[0]['dataset']) == ('5', None)
  described = convert._described(None, found[0]['config'])
  assert (described.size, described.num_channels, described.num_classes) == ((8, 12), 2, 5)
  np.testing.assert_allclose(described.mean, images.mean((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize(
  ('flags', 'said'),
  [
    ({}, '--dataset: missing$'),
    ({'mean': '1'}, '--image_size: missing$'),
    ({'image_size': '32', 'mean': '1'}, '--std: missing$'),
    ({'image_size': '32x', 'mean': '1', 'std': '0'}, '--std: 0 is not allowed; .* --std has to be > 0'),
    ({'image_size': '32', 'mean': '1;2', 'std': '1'}, '--mean: 1;2 is not allowed; .* with commas between them'),
    ({'image_size': '32', 'mean': '1e99', 'std': '1'}, '--mean: 1e99 is not allowed; up to 1e30 is'),
    ({'image_size': '0', 'mean': '1', 'std': '1'}, '--image_size: 0 is not allowed; .* from 1 to 4096'),
    ({'image_size': '32', 'mean': '1,2', 'std': '1'}, 'has 2 means, the network in .*classes37.pt 3; '),
    (
      {'dataset': 'cifar10', 'classes': '37', 'image_channels': '1'},
      'has 1 channels, the network in .*classes37.pt 3; ',
    ),
    ({'dataset': 'cifar10', 'config': {}}, '--dataset: not allowed beside --config'),
    ({'dataset': 'cifar100', 'classes': '36'}, 'has 36 classes, the network in .*classes37.pt 37; --classes'),
  ],
)
def test_wrong_images_are_one_line(tmp_path, flags, said):
  with pytest.raises(ValueError, match=said):
    convert.run(str(CASES / 'classes37.pt'), 'DARTS_V2', workdir=str(tmp_path / 'run'), **{'dataset': None, **flags})
  assert not (tmp_path / 'run').exists()


def test_a_network_that_gives_no_logits_is_not_written(tmp_path, monkeypatch, capsys):
  read_back = []

  def load(folder):
    read_back.append(sorted(path.name for path in folder.iterdir()))
    return (lambda variables, images: np.full((len(images), 37), np.nan)), None

  monkeypatch.setattr(convert.training, 'load', load)
  with pytest.raises(ValueError, match='classes37.pt: the network was read, but its logits of a random image are not'):
    convert.run(str(CASES / 'classes37.pt'), 'DARTS_V2', 'cifar10', str(tmp_path / 'run'), classes='37')
  assert read_back == [['genotype.json', 'model.json', 'weights.safetensors']]
  assert not (tmp_path / 'run').exists()
  assert capsys.readouterr().out == ''


def test_a_training_is_not_overwritten(tmp_path, tensors):
  path = tmp_path / 'model.npz'
  np.savez(path, **tensors)
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'config.json').write_text('{}')
  with pytest.raises(ValueError, match='--workdir: .* holds a training or search; choose another'):
    convert.run(str(path), 'DARTS_V2', 'cifar10', str(tmp_path / 'run'))


# Language models.


@pytest.fixture
def language_tensors():
  with np.load(GOLDENS / 'rnn_search_tiny.npz') as file:
    return {name[2:]: file[name] for name in file.files if name.startswith('w/')}


@pytest.fixture
def supernet():
  return LanguageModel(Recurrent().cells['recurrent'], 23, 8, norm=True)


def test_weights_of_a_recurrent_supernet_come_to_their_place(language_tensors, supernet):
  tensors = language_tensors | {'rnns.0.bn.num_batches_tracked': np.array(7)}
  variables = convert_language_model(supernet, tensors)
  np.testing.assert_array_equal(variables['params']['embedding'], tensors['encoder.weight'])
  np.testing.assert_array_equal(variables['params']['bias'], tensors['decoder.bias'])
  np.testing.assert_array_equal(variables['params']['first'], tensors['rnns.0._W0'])
  for i in range(8):
    np.testing.assert_array_equal(variables['params']['nodes'][i], tensors[f'rnns.0._Ws.{i}'])
  np.testing.assert_array_equal(variables['batch_stats']['mean'], tensors['rnns.0.bn.running_mean'])
  np.testing.assert_array_equal(variables['batch_stats']['var'], tensors['rnns.0.bn.running_var'])
  assert len(variables['params']) == 4
  assert variables['params']['nodes'].dtype == np.float64


def test_found_cell_has_no_statistics(language_tensors):
  net = LanguageModel(published()['RNN_DARTS_V1'].cell('recurrent'), 23, 8)
  with pytest.raises(ValueError, match='rnns.0.bn.running_mean: not used; rnns.0.bn.running_var: not used$'):
    convert_language_model(net, language_tensors)
  tensors = {name: value for name, value in language_tensors.items() if '.bn.' not in name}
  assert list(convert_language_model(net, tensors)) == ['params']


def test_every_tensor_of_a_language_model_that_does_not_fit_is_named(language_tensors, supernet):
  tensors = dict(language_tensors)
  del tensors['rnns.0._Ws.4'], tensors['rnns.0.bn.running_var']
  tensors['rnns.0._W0'] = np.zeros((16, 8))
  tensors['rnns.1._W0'] = np.zeros((16, 16))
  with pytest.raises(ValueError, match='^tensors that do not fit: [^\n]*$') as error:
    convert_language_model(supernet, tensors)
  assert str(error.value).removeprefix('tensors that do not fit: ').split('; ') == [
    'rnns.0._Ws.4: missing',
    'rnns.0.bn.running_var: missing',
    'rnns.1._W0: not used',
    'rnns.0._W0: shape (16, 8) found, (16, 16) expected',
  ]
  # A cell of another number of nodes.
  smaller = LanguageModel(Recurrent(7).cells['recurrent'], 23, 8, norm=True)
  with pytest.raises(ValueError, match='^tensors that do not fit: rnns.0._Ws.7: not used$'):
    convert_language_model(smaller, language_tensors)


def test_encoder_and_decoder_that_differ_are_refused(language_tensors, supernet):
  changed = language_tensors['decoder.weight'].copy()
  changed[3, 2] += 1e-12
  with pytest.raises(ValueError, match='^tensor decoder.weight: not the same as encoder.weight'):
    convert_language_model(supernet, language_tensors | {'decoder.weight': changed})


@pytest.mark.parametrize('name', ['rnns.0._W0', 'encoder.weight', 'rnns.0.bn.running_var'])
def test_value_of_a_language_model_that_is_not_finite_is_refused(language_tensors, supernet, name):
  changed = language_tensors[name].copy()
  changed.flat[-1] = np.inf
  with pytest.raises(ValueError, match=f'^tensor {name}: a value is not finite$'):
    convert_language_model(supernet, language_tensors | {name: changed})


def test_a_supernet_for_imagenet_is_not_one_of_the_reference():
  space = Darts(1, ('skip_connect',)).cells['normal']
  with pytest.raises(ValueError, match=r"^stem: 'imagenet' is not allowed; the published supernets have"):
    convert_supernet(Supernet((('normal', space), ('reduce', space)), Darts().plan(3), 2, 5, stem='imagenet'), {})
