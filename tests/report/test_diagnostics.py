"""Warnings at, below and above their thresholds, on made-up searches."""

import math

import numpy as np
import pytest

from darts_jax.report import diagnostics
from darts_jax.spaces import Genotype, darts, published, recurrent


def _with_skips(count: int, in_reduce: int = 0) -> Genotype:
  def pairs(skips):
    return tuple(('skip_connect' if i < skips else 'sep_conv_3x3', i % 2) for i in range(8))

  return darts.genotype(pairs(count), (2, 3, 4, 5), pairs(in_reduce), (2, 3, 4, 5))


@pytest.mark.parametrize(('count', 'warned'), [(0, False), (2, False), (3, True), (8, True)])
def test_three_skip_connections_in_the_normal_cell_are_too_many(count, warned):
  found = diagnostics.warnings([], _with_skips(count))
  assert [f'{count} skip connections' in text for text in found] == [True] * warned


def test_skip_connections_of_the_reduction_cell_do_not_count():
  assert diagnostics.warnings([], _with_skips(2, in_reduce=8)) == []


@pytest.mark.parametrize(
  ('count', 'total', 'warned'), [(5, 8, False), (6, 8, True), (8, 8, True), (2, 3, False), (3, 4, True)]
)
def test_identities_in_three_quarters_of_a_recurrent_cell_are_too_many(count, total, warned):
  pairs = tuple(('identity' if i < count else 'tanh', 0) for i in range(total))
  found = diagnostics.warnings([], recurrent.genotype(pairs, tuple(range(1, total + 1))))
  assert [text.startswith(f'{count} of the {total} nodes of the recurrent cell') for text in found] == [True] * warned


@pytest.mark.parametrize('name', ['RNN_DARTS_V1', 'RNN_DARTS_V2', 'RNN_ENAS'])
def test_published_recurrent_cells_are_not_warned_of(name):
  assert diagnostics.warnings([], published()[name]) == []


def test_no_architecture_no_warning():
  assert diagnostics.warnings([]) == []


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf, 'nan', 'inf', '-inf', 'NaN', 'Infinity'], ids=repr)
def test_non_finite_values_are_told_with_their_first_step(value):
  records = [
    {'kind': 'step', 'step': 7, 'train_loss': 1.0},
    {'kind': 'step', 'step': 1234, 'train_loss': value},
    {'kind': 'step', 'step': 1235, 'train_loss': value},
  ]
  assert diagnostics.warnings(records) == ['train_loss was not finite at step 1,234, and 1 more time.']


def test_a_perplexity_is_told_where_its_loss_does_not_say_it():
  records = [
    {'kind': 'step', 'step': 1, 'train_loss': 800.0, 'train_perplexity': 'inf'},
    {'kind': 'epoch', 'step': 2, 'epoch': 0, 'valid_loss': 'nan', 'valid_perplexity': 'nan'},
  ]
  assert diagnostics.warnings(records) == [
    'train_perplexity was not finite at step 1.',
    'valid_loss was not finite at step 2.',
  ]


def test_text_is_not_taken_for_a_number():
  records = [{'kind': 'event', 'step': 1, 'event': 'compiled', 'message': 'nan'}]
  assert diagnostics.warnings(records) == []


def test_a_non_finite_event_is_told_without_a_value():
  (text,) = diagnostics.warnings([{'kind': 'event', 'step': 9, 'event': 'non_finite', 'message': 'loss'}])
  assert 'step 9' in text


def test_entropy_of_uniform_and_of_two_equal_weights():
  uniform = np.full((1, 3, 8), 1 / 8)
  halves = np.zeros((1, 3, 8))
  halves[..., :2] = 0.5
  both = diagnostics.entropy(np.concatenate([uniform, halves]))
  np.testing.assert_allclose(both, [math.log(8), math.log(2)])


def test_entropy_leaves_out_decided_edges():
  weights = np.zeros((1, 2, 4))
  weights[0, 0, 3] = 1.0
  weights[0, 1] = 0.25
  np.testing.assert_allclose(diagnostics.entropy(weights), [math.log(4)])
  weights[0, 1] = [0.0, 1.0, 0.0, 0.0]
  assert np.isnan(diagnostics.entropy(weights)).all()


def _two_operations(entropy_share: float) -> np.ndarray:
  """[1, 2] weights whose entropy is the given share of log 2, by bisection of H(p) = -p log p - (1-p) log(1-p)."""
  low, high = 1e-12, 0.5
  for _ in range(200):
    p = (low + high) / 2
    share = -(p * math.log(p) + (1 - p) * math.log(1 - p)) / math.log(2)
    low, high = (p, high) if share < entropy_share else (low, p)
  return np.array([[1 - p, p]])


@pytest.mark.parametrize(('share', 'warned'), [(0.11, False), (0.09, True)])
def test_entropy_under_a_tenth_of_uniform_is_a_collapse(share, warned):
  mixing = {'normal': np.stack([np.full((1, 2), 0.5), _two_operations(share)])}
  found = diagnostics.warnings([], None, mixing, [0.0, 10.0], 50)
  assert len(found) == warned
  assert all('normal cell' in text and 'epoch 10 of 50' in text and f'{share:.0%}' in text for text in found)


def _collapse_at(*snapshots: int, total: int) -> np.ndarray:
  weights = np.full((total, 1, 2), 0.5)
  weights[list(snapshots)] = _two_operations(0.01)
  return weights


@pytest.mark.parametrize(
  ('collapsed', 'num_epochs', 'onset'),
  [
    ((3, 4), 5, '3 of 5'),
    ((4,), 5, '4 of 5'),
    ((4,), 4, None),  # collapsed when the search ended: nothing was lost
    ((2,), 5, None),  # recovered
    ((1, 3, 4), 5, '3 of 5'),  # recovered once
    ((0, 1, 2, 3, 4), 5, '0 of 5'),
    ((4,), None, '4:'),
  ],
)
def test_a_collapse_counts_from_when_it_stayed_and_only_while_epochs_remain(collapsed, num_epochs, onset):
  found = diagnostics.warnings([], None, {'reduce': _collapse_at(*collapsed, total=5)}, range(5), num_epochs)
  assert len(found) == (onset is not None)
  assert all(f'since epoch {onset}' in text and 'reduce cell' in text for text in found)


def test_decided_edges_are_no_collapse_and_hide_none():
  # Thirteen of fourteen edges are decided or removed. Their entropy is zero; that of the last is that of eight equal
  # weights, a fourteenth of which would be a collapse.
  weights = np.zeros((1, 14, 8))
  weights[0, :8, 3] = 1.0
  weights[0, 13] = 1 / 8
  assert diagnostics.MIN_ENTROPY_SHARE > 1 / 14
  assert diagnostics.warnings([], None, {'normal': weights}, [10.0], 50) == []
  # A weight of 0.99 on one of eight has an entropy of 0.0756 nats, 4 % of log 8.
  weights[0, 13] = [0.99] + [0.01 / 7] * 7
  (found,) = diagnostics.warnings([], None, {'normal': weights}, [10.0], 50)
  assert 'normal cell have collapsed since epoch 10 of 50: their mean entropy is 0.08 nats, 4% of' in found
  # At the end, nothing is undecided.
  weights[0, 13] = 0.0
  assert diagnostics.warnings([], None, {'normal': weights}, [10.0], 50) == []


def test_alphas_that_are_not_finite_are_told():
  weights = np.full((2, 1, 2), 0.5)
  weights[1, 0, 0] = math.nan
  assert diagnostics.warnings([], None, {'normal': weights}, [0, 1], 2) == [
    'Mixing weights of the normal cell are not finite.'
  ]


@pytest.mark.parametrize(('train', 'valid', 'warned'), [(0.99, 0.75, False), (0.99, 0.73, True), (0.5, 0.9, False)])
def test_a_gap_of_a_quarter_between_training_and_validation_is_overfitting(train, valid, warned):
  records = [
    {'kind': 'epoch', 'step': 10, 'epoch': 0, 'train_accuracy': 1.0, 'valid_accuracy': 0.0},
    {'kind': 'epoch', 'step': 20, 'epoch': 1, 'train_accuracy': train, 'valid_accuracy': valid},
  ]
  assert ['overfits' in text for text in diagnostics.warnings(records)] == [True] * warned


def test_damaged_checkpoints_are_counted():
  event = {'kind': 'event', 'step': 3, 'event': 'damaged_checkpoint', 'message': ''}
  assert diagnostics.warnings([event, event]) == ['2 checkpoints were damaged; see the log of events.']


@pytest.mark.parametrize(('count', 'said'), [(0, []), (1, ['diverged once and']), (3, ['diverged 3 times and'])])
def test_rollbacks_of_a_training_are_counted(count, said):
  event = {'kind': 'event', 'step': 3, 'event': 'rolled_back', 'message': ''}
  found = diagnostics.training_warnings([event] * count)
  assert len(found) == len(said)
  assert all(
    part in text and 'a lower learning rate is steadier' in text for part, text in zip(said, found, strict=True)
  )


def _checked(*values: float | str) -> list[dict[str, float | int | str]]:
  records = [
    {'kind': 'step', 'step': i, 'second_order_fraction': 0.02, 'disagreement': v} for i, v in enumerate(values)
  ]
  return [*records, {'kind': 'step', 'step': 99, 'second_order_fraction': 0.02}]


@pytest.mark.parametrize(
  ('values', 'warned'), [((0.24, 0.25, 3.0), False), ((0.1, 0.26, 3.0), True), ((), False), (('nan',), False)]
)
def test_a_finite_difference_that_depends_on_its_radius_is_told(values, warned):
  found = [text for text in diagnostics.warnings(_checked(*values)) if 'depends on its radius' in text]
  assert len(found) == warned
  if warned:
    assert 'the second-order term, which has 2.00% of the norm of ∇α L_val, by 26%' in found[0]
