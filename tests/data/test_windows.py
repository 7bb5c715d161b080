import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from darts_jax.data import windows

# Of PTB: rows and length of the search, and of the evaluation.
SEARCH = {'num_rows': 3631, 'bptt': 35}
EVALUATION = {'num_rows': 14525, 'bptt': 35, 'spread': 5.0}


def by_epoch(drawn):
  """Starts and lengths of every epoch."""
  ends = drawn.epoch_ends[:-1]
  return list(zip(np.split(drawn.starts, ends), np.split(drawn.lengths, ends), strict=True))


def whole(drawn):
  """Lengths of all windows that are not the last of an epoch, which may be cut."""
  return np.concatenate([lengths[:-1] for _, lengths in by_epoch(drawn)])


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
  seed=st.integers(0, 2**31 - 1),
  num_rows=st.integers(3, 200),
  epochs=st.integers(1, 5),
  bptt=st.integers(2, 40),
  short_fraction=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
  spread=st.sampled_from([0.0, 0.1, 5.0, 100.0]),
  max_excess=st.integers(0, 20),
)
def test_windows_follow_each_other(seed, num_rows, epochs, bptt, short_fraction, spread, max_excess):
  drawn = windows.draw(
    seed, num_rows, epochs, bptt=bptt, short_fraction=short_fraction, spread=spread, max_excess=max_excess
  )

  assert drawn.starts.dtype == drawn.lengths.dtype == np.int32
  assert len(drawn.starts) == len(drawn.lengths) == drawn.epoch_ends[-1]
  assert len(drawn.epoch_ends) == epochs
  assert drawn.capacity == min(bptt + max_excess if spread else bptt, num_rows - 1)
  assert drawn.lengths.min() >= 2
  assert drawn.lengths.max() <= drawn.capacity
  for starts, lengths in by_epoch(drawn):
    np.testing.assert_array_equal(starts, np.cumsum([0, *lengths[:-1]]))
    # Targets are one row later, and only a single one may be left.
    assert num_rows - 2 <= 1 + lengths.sum() <= num_rows
  if spread:
    assert np.all(whole(drawn) >= min(5, bptt + max_excess))
  else:
    assert set(whole(drawn)) <= {bptt, max(2, bptt // 2)}


def test_all_of_one_length():
  drawn = windows.draw(0, 12, 2, bptt=4, short_fraction=0)

  # Rows 0..3, 4..7 and 8..10; the last row is a target only.
  assert drawn.starts.tolist() == [0, 4, 8] * 2
  assert drawn.lengths.tolist() == [4, 4, 3] * 2
  assert drawn.epoch_ends == (3, 6)
  assert drawn.capacity == 4


def test_single_row_is_left_out():
  assert windows.draw(0, 10, 1, bptt=4, short_fraction=0).lengths.tolist() == [4, 4]


def test_short_ones_are_half_as_long():
  assert windows.draw(0, 12, 1, bptt=7, short_fraction=1).lengths.tolist() == [3, 3, 3, 2]
  # But not of one row.
  assert windows.draw(0, 12, 1, bptt=3, short_fraction=1).lengths.tolist() == [2, 2, 2, 2, 2]


def test_no_epochs():
  drawn = windows.draw(0, 12, 0, bptt=4)

  assert len(drawn.starts) == len(drawn.lengths) == len(drawn.epoch_ends) == 0


def test_fewest_rows():
  drawn = windows.draw(0, 3, 1, bptt=35)

  assert (drawn.starts.tolist(), drawn.lengths.tolist(), drawn.capacity) == ([0], [2], 2)


@pytest.mark.parametrize('num_rows', [0, 2])
def test_too_few_rows(num_rows):
  with pytest.raises(ValueError, match=f'^{num_rows} rows are too few for a window; there have to be at least 3$'):
    windows.draw(0, num_rows, 1, bptt=35)


def test_bptt_too_small():
  with pytest.raises(ValueError, match='^a bptt of 1 is too short for a window; it has to be at least 2$'):
    windows.draw(0, 10, 1, bptt=1)


def test_share_of_short_windows():
  lengths = whole(windows.draw(5, epochs=50, **SEARCH))

  # Some 5,000 Bernoulli draws have a standard deviation of 0.003.
  assert set(lengths) == {17, 35}
  np.testing.assert_allclose(np.mean(lengths == 17), 0.05, atol=0.013)


def test_moments_of_normal_lengths():
  lengths = whole(windows.draw(5, epochs=30, short_fraction=0, **EVALUATION))

  # Integer parts are half a row smaller and of a variance larger by 1/12; some 12,000 draws, four standard errors.
  assert len(lengths) > 12_000
  np.testing.assert_allclose(lengths.mean(), 34.5, atol=4 * 5 / np.sqrt(12_000))
  np.testing.assert_allclose(lengths.std(), np.sqrt(25 + 1 / 12), atol=4 * 5 / np.sqrt(24_000))
  # P(length ≤ 29) = Φ((30 - 35)/5), of the normal table.
  np.testing.assert_allclose(np.mean(lengths <= 29), 0.1587, atol=4 * np.sqrt(0.16 * 0.84 / 12_000))


def test_normal_lengths_around_both_bases():
  lengths = whole(windows.draw(5, epochs=30, short_fraction=0.5, **EVALUATION))

  # Half of P(N(17.5, 5²) < 26) = Φ(1.7) and half of P(N(35, 5²) < 26) = Φ(-1.8).
  expected = 0.5 * 0.9554 + 0.5 * 0.0359
  np.testing.assert_allclose(np.mean(lengths <= 25), expected, atol=4 * np.sqrt(0.25 / 16_000))
  np.testing.assert_allclose(lengths.mean(), (34.5 + 17) / 2, atol=4 * 10.1 / np.sqrt(16_000))


def test_normal_lengths_are_bounded():
  lengths = whole(windows.draw(5, 2000, 4, bptt=20, spread=50.0, max_excess=7))

  assert lengths.min() == 5
  assert lengths.max() == 27
  # Φ((6 - 20)/50) and 1 - Φ((27 - 20)/50) lie at the bounds, apart from the few short bases.
  np.testing.assert_allclose(np.mean(lengths == 5), 0.39, atol=0.12)
  np.testing.assert_allclose(np.mean(lengths == 27), 0.444, atol=0.12)


@pytest.mark.parametrize('settings', [SEARCH, EVALUATION])
def test_more_epochs_begin_alike(settings):
  few, many = windows.draw(3, epochs=3, **settings), windows.draw(3, epochs=70, **settings)
  steps = few.epoch_ends[-1]

  np.testing.assert_array_equal(many.starts[:steps], few.starts)
  np.testing.assert_array_equal(many.lengths[:steps], few.lengths)
  assert many.epoch_ends[:3] == few.epoch_ends
  assert many.capacity == few.capacity


def test_epochs_and_seeds_differ():
  # Beyond as many epochs as are drawn at once, too.
  sequences = [
    tuple(lengths) for seed in (0, 1) for _, lengths in by_epoch(windows.draw(seed, 2000, 130, bptt=35, spread=5.0))
  ]

  assert len(set(sequences)) == 2 * 130


def test_drawing_again_gives_the_same():
  first, again = (windows.draw(9, epochs=2, **EVALUATION) for _ in range(2))

  np.testing.assert_array_equal(first.starts, again.starts)
  assert first.epoch_ends == again.epoch_ends


@hypothesis.given(st.integers(2, 300), st.integers(1, 400))
def test_consecutive_covers_every_target_once(num_rows, bptt):
  found = windows.consecutive(num_rows, bptt)

  assert found.starts.dtype == found.lengths.dtype == np.int32
  targets = np.concatenate([np.arange(s, s + n) + 1 for s, n in zip(found.starts, found.lengths, strict=True)])
  np.testing.assert_array_equal(targets, np.arange(1, num_rows))
  assert found.lengths.min() >= 1
  assert found.lengths.max() == found.capacity == min(bptt, num_rows - 1)
  assert np.all(found.lengths[:-1] == bptt)
  assert found.epoch_ends == (len(found.starts),)


def test_last_consecutive_window_may_have_one_row():
  found = windows.consecutive(10, 4)

  assert found.starts.tolist() == [0, 4, 8]
  assert found.lengths.tolist() == [4, 4, 1]


def test_consecutive_with_too_few_rows():
  with pytest.raises(ValueError, match='^1 rows are too few for a window; there have to be at least 2$'):
    windows.consecutive(1, 35)
