"""Texts in columns and windows on the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.runtime.mesh import make_mesh
from darts_jax.settings import build
from darts_jax.training.language import LanguageTraining
from darts_jax.training.language.texts import divide, mean_loss

CONFIG = {'epochs': 3, 'batch_size': 8, 'valid_batch_size': 4, 'bptt': 6, 'short_fraction': 0.5, 'spread': 0.0}


@pytest.fixture(scope='module')
def texts(corpus):
  return divide(corpus, build(LanguageTraining, CONFIG))


@pytest.mark.parametrize(('part', 'num_columns', 'left_over'), [('train', 8, 2), ('valid', 4, 1), ('test', 1, 0)])
def test_the_windows_of_a_part_hold_its_columns_in_order(texts, corpus, part, num_columns, left_over):
  tokens = getattr(corpus, part)
  text = texts.place(part, make_mesh(8 if part == 'train' else 1))
  window = jax.jit(text.window)
  rows = (len(tokens) - left_over) // num_columns
  column = tokens[: rows * num_columns].reshape(num_columns, rows).T
  found = {'tokens': [], 'targets': []}
  ends = (0, *texts.windows[part].epoch_ends)
  assert ends[-1] == len(text.starts)
  for index in range(ends[1]):
    start, batch = window(jnp.int32(index))
    assert int(start) == sum(map(len, found['tokens']))
    length = int(batch.length)
    assert batch.tokens.shape == (texts.windows[part].capacity, num_columns)
    found['tokens'].append(np.asarray(batch.tokens[:length]))
    found['targets'].append(np.asarray(batch.targets[:length]))
  read = sum(map(len, found['tokens']))
  # In training a single row that is left is not read.
  assert read in (rows - 1, rows - 2) if part == 'train' else read == rows - 1
  np.testing.assert_array_equal(np.concatenate(found['tokens']), column[:read])
  np.testing.assert_array_equal(np.concatenate(found['targets']), column[1 : read + 1])


def test_the_mean_loss_is_that_of_targets_and_not_of_windows(texts):
  windows = texts.windows['valid']
  assert windows.lengths.tolist() == [6, 3]
  assert mean_loss(jnp.array([2.0, 5.0]), windows) == 3.0


def test_a_test_text_that_is_not_to_be_read_is_not_there(corpus):
  assert divide(corpus, build(LanguageTraining, {**CONFIG, 'data': {'test': False}})).parts == ('valid',)


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    (
      {'batch_size': 81},
      'config.batch_size: 81 is too large; the training text of mine has 242 tokens, which are enough for 80 columns',
    ),
    (
      {'valid_batch_size': 21},
      'config.valid_batch_size: 21 is too large; the validation text of mine has 41 tokens, which are enough for 20'
      ' columns',
    ),
    (
      {'test_batch_size': 22},
      'config.test_batch_size: 22 is too large; the test text of mine has 43 tokens, which are enough for 21 columns',
    ),
  ],
)
def test_a_text_that_is_too_short_names_the_field(corpus, changes, said):
  with pytest.raises(ValueError, match=f'^{said}$'):
    divide(corpus, build(LanguageTraining, {**CONFIG, **changes}))
  # One column less is enough.
  ((field, value),) = changes.items()
  divide(corpus, build(LanguageTraining, {**CONFIG, field: value - 1}))
