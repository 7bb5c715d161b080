import numpy as np
import pytest
from sklearn.datasets import load_digits

from darts_jax.data import images


def test_digits_are_scikit_learns():
  digits = images.load('digits')
  expected = load_digits()

  assert digits.x_train.dtype == digits.x_test.dtype == np.uint8
  assert digits.y_train.dtype == digits.y_test.dtype == np.int32
  assert digits.x_train.shape == (1438, 8, 8, 1)
  assert digits.x_test.shape == (359, 8, 8, 1)
  np.testing.assert_array_equal(digits.x_test[..., 0], expected.images[4::5])
  np.testing.assert_array_equal(digits.y_test, expected.target[4::5])
  np.testing.assert_array_equal(digits.x_train[4:8, ..., 0], expected.images[5:9])
  np.testing.assert_array_equal(digits.y_train[4:8], expected.target[5:9])
  assert digits.num_classes == 10


def test_digits_are_normalised_by_the_training_images():
  digits = images.load('digits')

  normalised = (digits.x_train - np.array(digits.mean)) / np.array(digits.std)

  np.testing.assert_allclose(normalised.mean(), 0, atol=1e-12)
  np.testing.assert_allclose(normalised.std(), 1, rtol=1e-12)


def test_unknown_name():
  with pytest.raises(
    ValueError, match=r"config.data.name is 'cifar'; allowed: digits, mnist, cifar10, cifar100, npz, arrays$"
  ):
    images.load('cifar')


def test_path_is_for_npz_only():
  with pytest.raises(ValueError, match=r"config.data.path is 'a.npz', but config.data.name is 'digits'"):
    images.load('digits', path='a.npz')


def test_npz_needs_a_path():
  with pytest.raises(ValueError, match=r'config.data.path is not set'):
    images.load('npz')


def test_split_is_a_partition():
  weights, architecture = images.split(1001, 0.3, seed=5)

  assert len(architecture) == 300
  np.testing.assert_array_equal(np.sort(np.concatenate([weights, architecture])), np.arange(1001))


def test_split_is_random():
  weights, architecture = images.split(10000, 0.5, seed=0)

  # The mean of 5000 draws without replacement from 0..9999 has a standard deviation of 28.9.
  assert abs(architecture.mean() - 4999.5) < 4 * 28.9
  # The expected number of neighbours in order is 1.
  assert np.sum(np.diff(weights) == 1) < 10
  assert not np.array_equal(architecture, images.split(10000, 0.5, seed=1)[1])


def test_split_is_that_of_the_seed():
  weights, architecture = images.split(8, 0.5, seed=3)

  np.testing.assert_array_equal(architecture, np.random.Generator(np.random.PCG64(3)).permutation(8)[:4])
  np.testing.assert_array_equal(weights, np.random.Generator(np.random.PCG64(3)).permutation(8)[4:])


@pytest.mark.parametrize('fraction', [0.0, 1.0, -0.5, 1.5, 1e-9, float('nan'), float('inf')])
def test_split_leaves_no_part_empty(fraction):
  with pytest.raises(ValueError, match=rf'config.data.validation_fraction is {fraction}.*100 training images'):
    images.split(100, fraction, seed=0)


def test_split_refuses_a_negative_seed():
  with pytest.raises(ValueError, match='seed of the split is -1'):
    images.split(100, 0.5, seed=-1)


def test_digest_tells_pixels_labels_and_shapes_apart():
  pixels, labels = np.arange(32, dtype=np.uint8).reshape(2, 4, 4, 1), np.array([0, 1], np.int32)
  found = images.digest(pixels, labels)
  changed = {
    'pixels': images.digest(pixels[::-1], labels),
    'labels': images.digest(pixels, labels[::-1]),
    'kind': images.digest(pixels.reshape(2, 2, 8, 1), labels),
  }
  for name, other in changed.items():
    assert {key for key in found if found[key] != other[key]} == {name}
