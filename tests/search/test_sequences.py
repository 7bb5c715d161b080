"""Searches for recurrent cells: what is read at which step, and with which keys."""

import dataclasses
import itertools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darts_jax.data import windows
from darts_jax.data.corpus import columns
from darts_jax.data.sequences import Text
from darts_jax.runtime.mesh import make_mesh
from darts_jax.search import Search, Searcher
from darts_jax.search.settings import BatchNorm
from darts_jax.search.state import SearchState
from darts_jax.search.step import BatchLoss
from darts_jax.settings import build
from darts_jax.tasks.base import Halves

BATCH, BPTT = 8, 5
SPACE = {'name': 'recurrent', 'nodes': 1, 'operations': ('none', 'tanh')}
TASK = {'bptt': BPTT, 'short_fraction': 0.5}
SEARCH = build(Search, {'epochs': 3, 'batch_size': BATCH, 'space': SPACE, 'task': TASK, 'network': {'width': 4}})


def make_searcher(settings, corpus):
  """A search, and its texts on the devices."""
  data = settings.task.halves(corpus, settings, settings.seed)
  searcher = Searcher.open(settings, corpus, make_mesh(1))
  return searcher, searcher.place([data])


def test_sequences_are_cut_with_targets_one_row_later():
  rows = np.arange(1, 15, dtype=np.int32).reshape(7, 2)
  plan = windows.Windows(np.array([0, 3, 5, 2], np.int32), np.array([3, 3, 1, 2], np.int32), (4,), 4)
  text = jax.device_put(Text.cut(rows, plan))
  for number, (start, length) in enumerate(zip(plan.starts, plan.lengths, strict=True)):
    first, found = text.window(jnp.int32(number))
    assert found.tokens.shape == found.targets.shape == (4, 2)
    assert (first, found.length) == (start, length)
    np.testing.assert_array_equal(found.tokens[:length], rows[start : start + length])
    np.testing.assert_array_equal(found.targets[:length], rows[start + 1 : start + length + 1])


@pytest.fixture(scope='module')
def drawn(corpus):
  """With dropout: the batches of all steps; hidden states carried to them are the step, plus a half for α."""
  searcher, data = make_searcher(SEARCH, corpus)
  shape = searcher.learner.carried().train.shape

  @jax.jit
  def batches(step):
    carried = Halves(jnp.full(shape, 1.0 + step), jnp.full(shape, 1.5 + step))
    state: Any = types.SimpleNamespace(key=jax.random.key(0), step=step, carried=carried)
    return searcher.batches(state, data), searcher.learner.step_metrics(searcher.moment(state), data)

  found = [jax.device_get(batches(jnp.int32(step))) for step in range(searcher.epoch_ends[-1])]
  for halves, step_metrics in found:
    assert step_metrics == {'sequence_length': halves.train.sequences.length}
  return searcher, data, [halves for halves, _ in found]


def test_sequences_of_alphas_follow_each_other_where_they_move(corpus):
  settings = dataclasses.replace(SEARCH, alphas=dataclasses.replace(SEARCH.alphas, every=2, from_epoch=1))
  searcher, data = make_searcher(settings, corpus)
  batches, state = jax.jit(searcher.batches), searcher.init(jax.random.key(0))
  start, text = searcher.epoch_ends[0], data.valid
  moving = [step for step in range(start, searcher.epoch_ends[-1]) if step % 2]
  assert len(moving) > 2
  for number, step in enumerate(moving):
    _, expected = text.window(number % len(text.starts))
    found = batches(state.replace(step=jnp.int32(step)), data).valid.sequences
    np.testing.assert_array_equal(found.tokens, expected.tokens)


def test_sequences_of_the_weights_follow_each_other(corpus, drawn):
  searcher, data, batches = drawn
  rows = columns(corpus.train, BATCH)
  ends = searcher.epoch_ends
  assert len(ends) == SEARCH.epochs
  orders = []
  for first, end in itertools.pairwise((0, *ends)):
    sequences = [halves.train.sequences for halves in batches[first:end]]
    tokens = np.concatenate([each.tokens[: each.length] for each in sequences])
    targets = np.concatenate([each.targets[: each.length] for each in sequences])
    # All of the text, but perhaps a row at its end.
    assert len(rows) - 2 <= len(tokens) <= len(rows) - 1
    np.testing.assert_array_equal(tokens, rows[: len(tokens)])
    np.testing.assert_array_equal(targets, rows[1 : len(tokens) + 1])
    lengths = [int(each.length) for each in sequences]
    assert set(lengths[:-1]) == {BPTT, BPTT // 2}
    orders.append(tuple(lengths))
    # Zeros at the beginning of an epoch, what was carried after.
    for step, halves in enumerate(batches[first:end], start=first):
      np.testing.assert_array_equal(halves.train.hidden, np.full((BATCH, 4), 0.0 if step == first else 1.0 + step))
  assert len(set(orders)) == SEARCH.epochs
  assert data.train.capacity == data.valid.capacity == BPTT


def test_text_of_alpha_begins_again_at_its_end(corpus, drawn):
  *_, batches = drawn
  rows = columns(corpus.valid, BATCH)
  assert len(rows) == 12
  # Eleven rows have another after them: two sequences of five, and one of one.
  for step, halves in enumerate(batches):
    start, length = [(0, 5), (5, 5), (10, 1)][step % 3]
    sequences, hidden, _ = halves.valid
    assert sequences.length == length
    np.testing.assert_array_equal(sequences.tokens[:length], rows[start : start + length])
    np.testing.assert_array_equal(sequences.targets[:length], rows[start + 1 : start + length + 1])
    np.testing.assert_array_equal(hidden, np.full((BATCH, 4), 0.0 if start == 0 else 1.5 + step))
  assert len(batches) > 6


def test_every_step_and_half_has_its_own_masks(drawn):
  *_, batches = drawn
  dropout = SEARCH.task.network.dropout
  for name in ('embedded', 'x', 'h', 'output'):
    masks = np.array([getattr(half.masks, name) for halves in batches for half in halves])
    assert len({mask.tobytes() for mask in masks}) == len(masks)
    rate = getattr(dropout, name)
    # Five standard deviations.
    assert abs(np.mean(masks == 0) - rate) < 5 * np.sqrt(rate * (1 - rate) / masks.size)
  # No words are dropped in the paper's search.
  assert all(np.all(half.masks.words == 1) for halves in batches for half in halves)


def test_text_that_is_too_short_is_refused(corpus):
  for part, said in zip(Halves._fields, ('training', 'validation'), strict=True):
    short = dataclasses.replace(corpus, **{part: corpus.train[: 3 * BATCH - 1]})
    message = f'config.batch_size: 8 is too large; the {said} text of counting has 23 tokens, which are enough for 7 co'
    with pytest.raises(ValueError, match=f'^{message}'):
      make_searcher(SEARCH, short)
    enough = dataclasses.replace(corpus, **{part: corpus.train[: 3 * BATCH]})
    SEARCH.task.halves(enough, SEARCH, SEARCH.seed)


def test_statistics_of_single_columns_are_refused(corpus):
  settings = dataclasses.replace(SEARCH, batch_size=2, batch_norm=BatchNorm(1))
  message = '^config.batch_norm.group_size: 1 is not allowed; batch normalisation would make a single number'
  with pytest.raises(ValueError, match=message):
    make_searcher(settings, corpus)


def test_what_is_drawn_in_a_step_has_a_purpose_of_its_own(corpus, purposes):
  """Dropout masks of either half, the relaxation, and that of an evaluation."""
  searcher, data = make_searcher(SEARCH, corpus)

  def draw(state):
    searcher.batches(state, data)
    BatchLoss.at(state, searcher.learner.objective, searcher.searched, 'float32')
    searcher.searched.look(state.alphas, state.step, state.key)

  alphas = searcher.searched.init(jax.random.key(1))
  state = SearchState(jnp.int32(0), jax.random.key(0), None, None, alphas, None, None, searcher.learner.carried())
  found = purposes(draw, state)
  assert len(found) == len(set(found)) == 4
