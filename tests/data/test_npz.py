import pickle

import numpy as np
import pytest

from darts_jax.data import arrays as arrays_of_images
from darts_jax.data import images, npz


def dataset(dtype=np.uint8, **changes):
  rng = np.random.default_rng(0)
  arrays = {
    'x_train': rng.integers(0, 256, (7, 5, 6, 2)).astype(dtype),
    'y_train': np.array([0, 1, 2, 3, 0, 1, 2]),
    'x_test': rng.integers(0, 256, (3, 5, 6, 2)).astype(dtype),
    'y_test': np.array([3, 0, 0]),
    **changes,
  }
  return {name: array for name, array in arrays.items() if array is not None}


def load(path, arrays, save=np.savez):
  save(path, **arrays)
  return images.load('npz', path=str(path))


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
@pytest.mark.parametrize('label_dtype', [np.int64, np.uint8, np.dtype('>i4')])
def test_uint8(tmp_path, save, label_dtype):
  arrays = dataset(y_train=np.array([0, 1, 2, 3, 0, 1, 2], label_dtype), y_test=np.array([3, 0, 0], label_dtype))

  loaded = load(tmp_path / 'own.npz', arrays, save)

  for name, array in arrays.items():
    np.testing.assert_array_equal(getattr(loaded, name), array)
  assert loaded.x_train.dtype == loaded.x_test.dtype == np.uint8
  assert loaded.y_train.dtype == loaded.y_test.dtype == np.int32
  assert loaded.num_classes == 4
  np.testing.assert_allclose(loaded.mean, arrays['x_train'].reshape(-1, 2).mean(axis=0), rtol=1e-12)
  np.testing.assert_allclose(loaded.std, arrays['x_train'].reshape(-1, 2).std(axis=0), rtol=1e-12)


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
def test_floating_point_becomes_float32(tmp_path, dtype):
  arrays = dataset(dtype)

  loaded = load(tmp_path / 'own.npz', arrays)

  assert loaded.x_train.dtype == loaded.x_test.dtype == np.float32
  np.testing.assert_array_equal(loaded.x_train, arrays['x_train'])


def test_statistics_of_many_images_are_those_of_all(tmp_path):
  x = np.random.default_rng(0).normal([1000, -5], [0.5, 20], (150, 5, 6, 2)).astype(np.float32)

  loaded = load(tmp_path / 'own.npz', {'x_train': x, 'y_train': np.arange(150) % 2})

  np.testing.assert_allclose(loaded.mean, x.astype(np.float64).mean(axis=(0, 1, 2)), rtol=1e-12)
  np.testing.assert_allclose(loaded.std, x.astype(np.float64).std(axis=(0, 1, 2)), rtol=1e-9)


def test_without_test_set_and_channels(tmp_path):
  x = np.random.default_rng(0).integers(0, 256, (7, 5, 6), np.uint8)

  loaded = load(tmp_path / 'own.npz', {'x_train': x, 'y_train': np.arange(7)})

  np.testing.assert_array_equal(loaded.x_train, x[..., None])
  assert loaded.x_test is None
  assert loaded.y_test is None


def with_value(value, dtype=np.float32):
  x = dataset(dtype)['x_train']
  x[2, 1, 3, 1] = value
  return x


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'y_train': None}, r"array y_train is missing; the file holds \['x_test', 'x_train', 'y_test'\]"),
    ({'x_train': None}, 'array x_train is missing'),
    ({'y_test': None}, 'array y_test is missing'),
    ({'x_test': None}, 'array x_test is missing'),
    (
      {'x_train': dataset(np.int64)['x_train']},
      r"x_train has dtype int64; allowed: uint8 or floating point: x.astype\('uint8'\)",
    ),
    ({'x_train': np.zeros((7, 60), np.uint8)}, r'x_train has shape \(7, 60\).*: x.reshape\(-1, H, W, C\)'),
    ({'x_train': np.zeros((0, 5, 6, 2), np.uint8)}, 'x_train is empty'),
    ({'x_test': np.zeros((3, 5, 0, 2), np.uint8)}, 'x_test is empty'),
    ({'x_train': with_value(np.nan), 'x_test': None, 'y_test': None}, r'x_train\[2, 1, 3, 1\] is nan; pixel values'),
    ({'x_train': with_value(-np.inf), 'x_test': None, 'y_test': None}, r'x_train\[2, 1, 3, 1\] is -inf; pixel values'),
    ({'x_train': with_value(1e300, np.float64)}, r'x_train\[2, 1, 3, 1\] is inf; pixel values .* finite in float32'),
    ({'x_train': np.full((7, 5, 6, 2), [3, 7], np.uint8)}, 'channel 0 of x_train is 3 everywhere'),
    ({'x_test': np.zeros((3, 6, 5, 2), np.uint8)}, r'have shape \(5, 6, 2\), those of x_test \(6, 5, 2\)'),
    ({'x_test': dataset(np.float32)['x_test']}, 'x_train has dtype uint8, x_test float32'),
    ({'y_train': np.array([0, 1, 2, 3, 0, 1, -2])}, r'y_train\[6\] is -2; labels have to be in 0..'),
    ({'y_train': np.array([0, 2**32 + 1, 2, 3, 0, 1, 2])}, r'y_train\[1\] is 4294967297; labels have to be in 0..'),
    ({'y_train': np.arange(7) / 2}, 'y_train has dtype float64; labels have to be integers'),
    ({'y_train': np.arange(7.0)}, r"y_train has dtype float64; labels have to be integers: y.astype\('int32'\)"),
    ({'y_train': np.ones(7, bool)}, r"y_train has dtype bool; labels have to be integers: y.astype\('int32'\)"),
    ({'y_train': np.array(list('abcdabc'))}, r'dtype <U1; labels have to be integers: np.searchsorted\('),
    ({'y_train': np.arange(6)}, r'y_train has shape \(6,\); one label for each of 7 images'),
    ({'y_test': np.zeros((3, 1), int)}, r'y_test has shape \(3, 1\); one label .* of 3 images is needed: y\[:, 0\]'),
    (
      {'y_train': np.eye(7)},
      r'y_train has shape \(7, 7\); one label .* is needed: y.argmax\(axis=1\), if they are one',
    ),
    ({'y_train': np.ones(7, int)}, 'every label in y_train is 1; at least two classes are needed'),
    (
      {'y_train': np.arange(1, 8)},
      r'class 0 has no training image, as 1 of the classes 0..7 in y_train; .*searchsorted',
    ),
    ({'y_train': np.array([0, 1, 255, 0, 3, 1, 1])}, 'class 2 has no training image, as 252 of the classes 0..255 in'),
    (
      {'y_train': np.array([0, 1, 2, 2 * 10**9, 0, 1, 2])},
      'class 3 has no training image, as 1999999997 of the classes 0..2000000000 in y_train',
    ),
    (
      {'x_train': dataset(np.uint16)['x_train'] + 300},
      r"x_train has dtype uint16; allowed: uint8 or floating point: x.astype\('float32'\)",
    ),
    ({'y_test': np.array([0, 4, 0])}, 'class 4 occurs in y_test but not in y_train'),
    ({'y_train': np.array([0, 1, None, 3, 0, 1, 2])}, 'array y_train cannot be read: Object arrays'),
  ],
)
def test_unfit_arrays(tmp_path, changes, message):
  with pytest.raises(ValueError, match=rf'^[^\n]*own.npz( \(config.data.path\))?: [^\n]*{message}[^\n]*$'):
    load(tmp_path / 'own.npz', dataset(**changes))


def test_parts_of_images_are_looked_at_as_the_whole_is(tmp_path, monkeypatch):
  monkeypatch.setattr(arrays_of_images, '_PART', 1)
  with pytest.raises(ValueError, match=r'x_train\[2, 1, 3, 1\] is nan; pixel values'):
    load(tmp_path / 'nan.npz', dataset(x_train=with_value(np.nan), x_test=None, y_test=None))
  still = np.full((7, 5, 6, 2), [3, 7], np.uint8)
  with pytest.raises(ValueError, match='channel 0 of x_train is 3 everywhere'):
    load(tmp_path / 'still.npz', dataset(x_train=still))
  still[6, 4, 5] = 0
  assert load(tmp_path / 'one.npz', dataset(x_train=still)).num_classes == 4


@pytest.mark.parametrize(
  'shape',
  [
    (7, 3, 32, 32),
    (7, 1, 28, 28),
    (7, 4, 8, 8),
    (7, 8, 16, 16),
    (7, 3, 24, 40),
    (7, 1, 24, 40),
    (7, 4, 48, 64),
    (7, 1, 20, 60),
  ],
)
def test_channels_before_rows_are_refused_with_the_remedy(tmp_path, shape):
  x = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  arrays = {'x_train': x, 'y_train': np.arange(7)}

  with pytest.raises(
    ValueError, match=r'looks like \[N, C, H, W\]; allowed: \[N, H, W, C\]: x.transpose\(0, 2, 3, 1\)$'
  ):
    load(tmp_path / 'own.npz', arrays)

  assert load(tmp_path / 'own.npz', {**arrays, 'x_train': x.transpose(0, 2, 3, 1)}).x_train.shape[3] == shape[1]


def test_images_on_the_last_axis_are_refused_with_the_remedy(tmp_path):
  x = np.random.default_rng(0).integers(0, 256, (8, 8, 3, 7), np.uint8)

  with pytest.raises(ValueError, match=r'looks like \[H, W, C, N\]; allowed: .*: x.transpose\(3, 0, 1, 2\)$'):
    load(tmp_path / 'own.npz', {'x_train': x, 'y_train': np.arange(7)})


@pytest.mark.parametrize(
  'shape', [(7, 8, 8, 12), (7, 4, 16, 3), (7, 1, 128, 9), (7, 9, 9, 103), (7, 8, 12, 4), (7, 1, 60, 20), (7, 1, 2, 3)]
)
def test_many_channels_and_oblong_images_are_read(tmp_path, shape):
  x = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

  assert load(tmp_path / 'own.npz', {'x_train': x, 'y_train': np.arange(7)}).x_train.shape == shape


@pytest.mark.parametrize('scale', [1e-41, 1e-35, 1e34])
def test_images_that_float32_cannot_normalise_are_refused(tmp_path, scale):
  x = np.float32(scale * dataset(np.float64)['x_train'])

  with pytest.raises(
    ValueError, match=r'own.npz: channel 0 of x_train is in .*float32 cannot normalise it; scale the '
  ):
    load(tmp_path / 'own.npz', dataset(x_train=x, x_test=None, y_test=None))

  found = load(tmp_path / 'own.npz', dataset(x_train=x / np.abs(x).max(), x_test=None, y_test=None))
  expected = dataset(np.float64)['x_train'] / 255
  np.testing.assert_allclose(found.std, expected.std(axis=(0, 1, 2)), rtol=0.01)


@pytest.mark.parametrize(
  ('offset', 'message'),
  [
    (1e5, 'channel 0 of x_train has a standard deviation of 0.289 about its mean of 100000.5.*, where float32 has too'),
    (1e7, 'channel 0 of x_train has a standard deviation of 0.5.* where float32 has too few digits to tell pixels'),
    (
      1e12,
      r'channel 0 of x_train is 999999995904.0 everywhere; .*, or if it varies in float64, subtract the mean first',
    ),
  ],
)
def test_pixels_that_float32_cannot_tell_apart_are_refused_with_the_remedy(tmp_path, offset, message):
  x = np.random.default_rng(0).uniform(0, 1, (60, 5, 6, 1))
  x = np.rint(255 * x) / 255 + offset
  arrays = {'x_train': x, 'y_train': np.arange(60) % 2}

  with pytest.raises(ValueError, match=rf'own.npz: {message}') as error:
    load(tmp_path / 'own.npz', arrays)

  remedy = str(error.value).partition('such as ')[2]
  found = load(tmp_path / 'own.npz', {**arrays, 'x_train': eval(remedy, {'x': x, 'x_train': x})})
  assert len(np.unique(found.x_train)) == len(np.unique(x))


def test_pixels_of_8_bits_far_from_zero_are_kept(tmp_path):
  x = np.arange(480).reshape(16, 5, 6, 1) % 256 / 255 + 1e4

  found = load(tmp_path / 'own.npz', {'x_train': x, 'y_train': np.arange(16) % 2})

  assert found.x_train.dtype == np.float32
  assert len(np.unique(found.x_train)) == 256


def test_test_images_that_float32_cannot_normalise_are_refused(tmp_path):
  arrays = dataset(np.float32)

  with pytest.raises(ValueError, match='channel 1 of x_test is in .*that of x_train has a standard deviation of'):
    load(tmp_path / 'own.npz', {**arrays, 'x_test': arrays['x_test'] * np.float32([1, 1e36])})


def test_missing_file(tmp_path):
  with pytest.raises(ValueError, match=r'absent.npz \(config.data.path\): cannot be read'):
    images.load('npz', path=str(tmp_path / 'absent.npz'))


def test_single_array(tmp_path):
  np.save(tmp_path / 'own.npy', np.zeros(3))
  with pytest.raises(ValueError, match=r'own.npy \(config.data.path\): a single array'):
    images.load('npz', path=str(tmp_path / 'own.npy'))


@pytest.mark.parametrize('content', [b'', b'some text', pickle.dumps([1, 2])])
def test_not_an_npz_file(tmp_path, content):
  (tmp_path / 'own.npz').write_bytes(content)
  with pytest.raises(ValueError, match=r'own.npz \(config.data.path\): not a whole npz file'):
    images.load('npz', path=str(tmp_path / 'own.npz'))


def test_truncated_file(tmp_path):
  path = tmp_path / 'own.npz'
  np.savez(path, **dataset())
  path.write_bytes(path.read_bytes()[:-500])
  with pytest.raises(ValueError, match=r'own.npz \(config.data.path\): not a whole npz file'):
    images.load('npz', path=str(path))


def test_damaged_array(tmp_path):
  path = tmp_path / 'own.npz'
  arrays = dataset()
  np.savez(path, **arrays)
  damaged = path.read_bytes().replace(arrays['x_test'].tobytes(), bytes(arrays['x_test'].nbytes))
  path.write_bytes(damaged)
  with pytest.raises(ValueError, match=r'own.npz \(config.data.path\): array x_test cannot be read: Bad CRC-32'):
    images.load('npz', path=str(path))


def test_images_that_are_almost_blank(tmp_path):
  x = np.zeros((100, 400, 400, 1), np.float64)
  x[0, 0, 0, 0] = 1
  np.savez_compressed(tmp_path / 'own.npz', x_train=x, y_train=np.arange(100) % 2)
  assert (tmp_path / 'own.npz').stat().st_size < x.nbytes / 500
  assert npz.read(tmp_path / 'own.npz').x_train.sum() == 1


def test_archive_that_unpacks_to_much_more(tmp_path, monkeypatch):
  monkeypatch.setattr(npz, '_UNPACKED', 2**20)
  np.savez_compressed(tmp_path / 'own.npz', x_train=np.zeros((100, 400, 400, 1), np.uint8), y_train=np.arange(100) % 2)
  with pytest.raises(ValueError, match=r'^[^\n]*: refused: [0-9]+ bytes that unpack to [0-9]+; written without'):
    images.load('npz', path=str(tmp_path / 'own.npz'))
