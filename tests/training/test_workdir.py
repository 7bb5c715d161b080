"""What a training's working directory says of its network, also after damage."""

import json
import re

import pytest

from darts_jax import spaces
from darts_jax.runtime.lock import locked
from darts_jax.training import Model, write
from darts_jax.training.language.model import RecurrentModel
from darts_jax.training.settings import Training
from darts_jax.training.workdir import read_settings

DARTS = spaces.published()['DARTS_V2']
MODEL = Model(DARTS, 36, 20, 10, 'cifar', True, True, 3, (32, 32, 3), (1.0, 2.0, 3.0), (0.5, 0.25, 4.0))
LANGUAGE_MODEL = RecurrentModel(spaces.published()['RNN_DARTS_V2'], 850, ('the', '<eos>'))


def test_folder_in_use_gets_no_weights_from_elsewhere(tmp_path):
  with locked(tmp_path), pytest.raises(ValueError, match='^--workdir: .* is in use by this process already$'):
    write(MODEL, {}, tmp_path)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('model', [MODEL, LANGUAGE_MODEL], ids=['images', 'text'])
def test_model_is_read_or_refused(tmp_path, complaints, model):
  model.write(tmp_path)
  assert type(model).read(tmp_path) == model
  assert 200 < len(complaints(lambda path: type(model).read(path.parent), tmp_path / 'model.json', 300)) < 300


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('channels', 10**12, 'channels: 1000000000000 is not allowed; it is a whole number from 1 to 2048'),
    ('channels', 35, 'channels: 35 is not allowed; it is even'),
    ('layers', 10**12, 'layers: 1000000000000 is not allowed; it is a whole number from 1 to 200'),
    ('layers', True, 'layers: True is not allowed'),
    ('num_classes', 0, 'num_classes: 0 is not allowed'),
    ('image_shape', [32, 32], 'image_shape: [32, 32] is not height, width and channels'),
    ('image_shape', [32, 2**40, 3], 'width: 1099511627776 is not allowed'),
    ('image_shape', None, 'image_shape: None is not a list of numbers'),
    ('mean', [1.0], 'mean: [1.0] is not a number for each of 3 channels'),
    ('mean', ['a', 1.0, 1.0], "mean: ['a', 1.0, 1.0] is not a number for each of 3 channels"),
    ('std', [1.0, 0.0, 1.0], 'std: [1.0, 0.0, 1.0] is not allowed; it is ≥ 1e-30'),
    ('std', [1.0, 1e39, 1.0], 'std: [1.0, 1e+39, 1.0] is not allowed'),
    ('stem', [], 'stem: [] is not known; allowed are cifar, imagenet'),
    ('auxiliary', 'yes', "auxiliary: 'yes' is neither true nor false"),
    ('genotype', {'normal': [['none', 0]] * 100}, 'normal_concat: missing'),
  ],
)
def test_fields_of_a_model_have_their_limits(tmp_path, field, value, message):
  (tmp_path / 'model.json').write_text(json.dumps({**MODEL.to_dict(), field: value}))
  with pytest.raises(ValueError, match=f'^[^\n]*model.json: no model .*{re.escape(message)}'):
    Model.read(tmp_path)


def test_config_is_read_or_refused(tmp_path, complaints):
  path = tmp_path / 'config.json'
  path.write_text(json.dumps({'epochs': 3, 'data': {'name': 'digits'}, 'network': {'channels': 8}, 'genotype': {}}))
  assert read_settings(Training, tmp_path).network.channels == 8
  assert len(complaints(lambda path: read_settings(Training, path.parent), path, 300)) > 200
