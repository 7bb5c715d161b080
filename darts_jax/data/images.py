"""Image datasets as arrays in memory: small real digits, MNIST, CIFAR, and a user's own."""

import dataclasses
import hashlib
import math
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from darts_jax.data import npz, sources
from darts_jax.data.arrays import Arrays, check_range, validate
from darts_jax.data.official import OFFICIAL
from darts_jax.data.stream import Batch
from darts_jax.runtime.files import one_line, user_path

NAMES = ('digits', *OFFICIAL, 'npz', 'arrays')

_CHUNK = 64


@dataclasses.dataclass(frozen=True)
class Images:
  """A dataset of images in its canonical order; `(x - mean) / std` normalises an image.

  Attributes:
    name: name of the dataset, as in `config.data.name`.
    x_train: [N, H, W, C] uint8 or float32, raw pixel values.
    y_train: [N] int32 class ids.
    x_test: [M, H, W, C] with the dtype of `x_train`; None without a test set.
    y_test: [M] int32 class ids; None without a test set.
    num_classes: number of classes; class ids are 0..num_classes - 1.
    mean: [C], in raw pixel units.
    std: [C], in raw pixel units.
    damaged: [N] bool, whether a training image could not be decoded; None if all could.
  """

  name: str
  x_train: np.ndarray
  y_train: np.ndarray
  x_test: np.ndarray | None
  y_test: np.ndarray | None
  num_classes: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  damaged: np.ndarray | None = None

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """Shape of an image, `(H, W, C)`."""
    height, width, channels = self.x_train.shape[1:]
    return height, width, channels

  @property
  def num_train(self) -> int:
    """The number of training images."""
    return len(self.y_train)

  def read(self, parts: Sequence[np.ndarray], rows: np.ndarray) -> Generator[Batch, None, None]:
    """Yields batches of training images, see `Listed`."""
    indices = np.concatenate(parts)
    for positions in rows:
      # Rows without an image, at position -1, get an arbitrary image that does not count.
      chosen = indices[positions]
      yield Batch(self.x_train[chosen], self.y_train[chosen], positions >= 0, np.full(len(positions), -1, np.int32))


def from_arrays(x: Any, y: Any, x_test: Any = None, y_test: Any = None) -> Images:
  """Makes a dataset of arrays in memory.

  Args:
    x: training images.
    y: their labels.
    x_test: test images of the same shape and dtype; None if there are none.
    y_test: their labels, None together with `x_test`.

  Raises:
    ValueError: the arrays cannot be trained on; one line.
  """
  given = {'x_train': x, 'y_train': y, 'x_test': x_test, 'y_test': y_test}
  found = {name: _as_array(name, value) for name, value in given.items() if value is not None}
  for name in {'x_train', 'x_test'} & found.keys():
    images = found[name]
    images = images.astype(np.float32, copy=False) if images.dtype.kind == 'f' else images
    found[name] = images[..., None] if images.ndim == 3 else images
  return _own('arrays', Arrays(**found), 'data')


def _as_array(name: str, value: Any) -> np.ndarray:
  try:
    return np.asarray(value)
  # Lists of several lengths, and arrays of other libraries that lie on a device.
  except (TypeError, ValueError) as error:
    raise ValueError(f'data: {name} is no array: {one_line(error)}') from error


def load(name: str, *, directory: str = '', path: str = '', download: bool = False) -> Images:
  """Loads a dataset.

  Args:
    name: `config.data.name`. 'digits' (8×8 grey, 0..16, part of scikit-learn; every fifth image is in the test set),
      'mnist', 'cifar10', 'cifar100' (fine labels), or 'npz'.
    directory: `config.data.dir`, the folder in which MNIST and CIFAR are looked for: as a folder that TensorFlow
      Datasets has prepared in the `array_record` format, as the official archives, or as the unpacked archives.
    path: `config.data.path`, the file of 'npz': arrays x_train and y_train, optionally x_test and y_test; images
      [N, H, W, C] or [N, H, W], uint8 or floating point; integer labels from 0 without gaps.
    download: `config.data.download`, whether to download the official files of MNIST or CIFAR into `directory` if they
      are not found.

  Returns:
    The dataset. Mean and standard deviation are the customary ones for MNIST and CIFAR, and those of the training
    images for 'digits' and 'npz'.

  Raises:
    ValueError: the dataset is unknown, not found, damaged or cannot be trained on; the message names the field or file.
  """
  if name not in NAMES:
    raise ValueError(f'config.data.name is {name!r}; allowed: {", ".join(NAMES)}')
  if name == 'arrays':
    raise ValueError(
      "config.data.name is 'arrays': such data are handed over in Python, as data=(x, y) of darts_jax.search or"
      ' darts_jax.train'
    )
  if path and name != 'npz':
    raise ValueError(f"config.data.path is {path!r}, but config.data.name is {name!r}; a path is for 'npz' only")
  if name == 'npz':
    if not path:
      raise ValueError("config.data.path is not set; config.data.name = 'npz' needs the path of an npz file")
    return _own(name, npz.read(user_path(path, 'config.data.path')), path)
  if name == 'digits':
    return _own(name, _digits(), 'digits')
  dataset = OFFICIAL[name]
  arrays = sources.read(dataset, directory, download)
  validate(arrays, f'{name} in {directory}', dataset.num_classes)
  return Images(name, *arrays, num_classes=dataset.num_classes, mean=dataset.mean, std=dataset.std)


def part(images: Images, number: int) -> Images:
  """The dataset with a random subset of its training images, which is the same for every seed.

  Args:
    images: the dataset.
    number: number of training images to keep.

  Raises:
    ValueError: the dataset has fewer training images, or the subset lacks a class.
  """
  chosen = some(images.name, images.num_train, number, images.y_train)
  return dataclasses.replace(images, x_train=images.x_train[chosen], y_train=images.y_train[chosen])


def some(name: str, num_train: int, number: int, labels: np.ndarray | None) -> np.ndarray:
  """Ascending indices, `[number]`, of a random subset of the training images; see `part`.

  Args:
    name: name of the dataset.
    num_train: number of its training images.
    number: number of training images to keep.
    labels: `[N]` labels of all training images; None if they are not known.

  Raises:
    ValueError: the dataset has fewer training images, or the subset lacks a class.
  """
  if number > num_train:
    raise ValueError(f'config.data.num_images: {number} is not allowed; {name} has {num_train} training images')
  chosen = np.sort(np.random.Generator(np.random.PCG64(0)).permutation(num_train)[:number])
  missing = [] if labels is None else sorted({*labels.tolist()} - {*labels[chosen].tolist()})
  if missing:
    raise ValueError(f'config.data.num_images: {number} leave out class {missing[0]} of {name}; more are needed')
  return chosen


def intact(indices: np.ndarray, damaged: np.ndarray | None) -> np.ndarray:
  """Replaces every index of a damaged image by the next index, cyclically, of an image that is not damaged.

  Args:
    indices: `[N]`, one part of `split`.
    damaged: see `Images`.

  Returns:
    `[N]` indices.

  Raises:
    ValueError: all images are damaged.
  """
  if damaged is None:
    return indices
  good = np.flatnonzero(~damaged[indices])
  if not good.size:
    raise ValueError('config.data.dir: not one of the training images of a half can be decoded')
  return indices[good[np.searchsorted(good, np.arange(len(indices))) % len(good)]]


def split(num_images: int, validation_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Splits the training images at random between the weights and the architecture [DARTS §3.1].

  Args:
    num_images: number of training images, at least 2.
    validation_fraction: fraction of the images, in (0, 1), on which the architecture is trained; rounded to whole
      images.
    seed: any non-negative integer; the split is the same on every platform.

  Returns:
    Indices into the canonical order, int32, in random order: first for the weights, then for the architecture. Every
    image is in exactly one of the two parts.

  Raises:
    ValueError: a part would be empty, or the seed is negative.
  """
  if seed < 0:
    raise ValueError(f'the seed of the split is {seed}; it has to be at least 0')
  num_validation = round(num_images * validation_fraction) if math.isfinite(validation_fraction) else 0
  if not 0 < num_validation < num_images:
    raise ValueError(
      f'config.data.validation_fraction is {validation_fraction}, which leaves one part of {num_images} training '
      'images empty; it has to lie between 0 and 1, such as 0.5'
    )
  order = np.random.Generator(np.random.PCG64(seed)).permutation(num_images).astype(np.int32)
  return order[num_validation:], order[:num_validation]


def _digits() -> Arrays:
  from sklearn import datasets  # Slow to import.

  x, y = datasets.load_digits(return_X_y=True)
  images, labels = x.reshape(-1, 8, 8, 1).astype(np.uint8), y.astype(np.int32)
  test = np.arange(len(labels)) % 5 == 4
  return Arrays(images[~test], labels[~test], images[test], labels[test])


def _own(name: str, arrays: Arrays, source: str) -> Images:
  validate(arrays, source)
  mean, std = _statistics(arrays.x_train)
  check_range(arrays, mean, std, source)
  y_test = None if arrays.y_test is None else arrays.y_test.astype(np.int32)
  return Images(
    name,
    arrays.x_train,
    arrays.y_train.astype(np.int32),
    arrays.x_test,
    y_test,
    num_classes=int(arrays.y_train.max()) + 1,
    mean=mean,
    std=std,
  )


def _statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Per-channel mean and standard deviation in double precision, without converting all images at once."""
  chunks = [images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK)]
  num_pixels = images.size // images.shape[-1]
  mean = sum(chunk.sum(axis=(0, 1, 2), dtype=np.float64) for chunk in chunks) / num_pixels
  variance = sum(((chunk - mean) ** 2).sum(axis=(0, 1, 2)) for chunk in chunks) / num_pixels
  return tuple(mean.tolist()), tuple(np.sqrt(variance).tolist())


def digest(images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
  """JSON values that identify images: their number, shape and dtype, and digests of all pixels and of all labels."""
  pixels, classes = (hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()[:16] for array in (images, labels))
  kind = f'{list(images.shape[1:])} {images.dtype}'
  return {'images': len(labels), 'kind': kind, 'pixels': pixels, 'labels': classes}
