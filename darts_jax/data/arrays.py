"""The arrays of an image dataset, and the checks that every dataset passes before it is used."""

from typing import NamedTuple

import numpy as np


class Arrays(NamedTuple):
  """Images and labels as read from a source.

  Attributes:
    x_train: [N, H, W, C] uint8 or floating point, raw pixel values.
    y_train: [N] integer class ids.
    x_test: [M, H, W, C] of the dtype of `x_train`, or None where there is no test set.
    y_test: [M] integer class ids, None together with `x_test`.
  """

  x_train: np.ndarray
  y_train: np.ndarray
  x_test: np.ndarray | None = None
  y_test: np.ndarray | None = None


def validate(arrays: Arrays, source: str, num_classes: int | None = None) -> None:
  """Checks that the arrays are a dataset that can be trained on.

  Args:
    arrays: what was read.
    source: the file or folder it was read from, which errors name.
    num_classes: labels have to be below it; None allows every class id that the training labels hold.

  Raises:
    ValueError: on wrong dtypes or ranks, empty arrays, images and labels of different number, images that differ in
      shape or dtype between training and test, NaN or infinity, labels out of range, a class that occurs in the test
      labels only, or a channel that is constant over the training images.
  """
  x_train, y_train, x_test, y_test = arrays
  _check_images(x_train, 'x_train', source)
  _check_labels(y_train, 'y_train', source, len(x_train), num_classes)
  if x_test is not None and y_test is not None:
    _check_images(x_test, 'x_test', source)
    _check_labels(y_test, 'y_test', source, len(x_test), num_classes)
    if x_train.shape[1:] != x_test.shape[1:]:
      raise ValueError(
        f'{source}: images of x_train have shape {x_train.shape[1:]}, those of x_test {x_test.shape[1:]}; '
        'they have to be equal'
      )
    if x_train.dtype != x_test.dtype:
      raise ValueError(f'{source}: x_train has dtype {x_train.dtype}, x_test {x_test.dtype}; they have to be equal')
    unseen = np.setdiff1d(y_test, y_train)
    if unseen.size:
      raise ValueError(f'{source}: class {unseen[0]} occurs in y_test but not in y_train')
  for channel, value in enumerate(x_train[0, 0, 0]):
    if (x_train[..., channel] == value).all():
      raise ValueError(f'{source}: channel {channel} of x_train is {value} everywhere; it has to vary to be normalised')


def _check_images(images: np.ndarray, name: str, source: str) -> None:
  if images.dtype != np.uint8 and images.dtype.kind != 'f':
    raise ValueError(f'{source}: {name} has dtype {images.dtype}; allowed: uint8 or floating point')
  if images.ndim != 4:
    raise ValueError(f'{source}: {name} has shape {images.shape}; allowed: [N, H, W, C] or [N, H, W]')
  if not images.size:
    raise ValueError(f'{source}: {name} is empty, its shape is {images.shape}')
  if images.dtype.kind == 'f':
    finite = np.isfinite(images)
    if not finite.all():
      position = tuple(int(index) for index in np.unravel_index(np.argmin(finite), images.shape))
      raise ValueError(
        f'{source}: {name}{list(position)} is {images[position]}; pixel values have to be finite in {images.dtype}'
      )


def _check_labels(labels: np.ndarray, name: str, source: str, num_images: int, num_classes: int | None) -> None:
  if labels.dtype.kind not in 'iu':
    raise ValueError(f'{source}: {name} has dtype {labels.dtype}; labels have to be integers')
  if labels.shape != (num_images,):
    raise ValueError(f'{source}: {name} has shape {labels.shape}; one label for each of {num_images} images is needed')
  largest = np.iinfo(np.int32).max - 1 if num_classes is None else num_classes - 1
  outside = np.flatnonzero((labels < 0) | (labels > largest))
  if outside.size:
    raise ValueError(f'{source}: {name}[{outside[0]}] is {labels[outside[0]]}; labels have to be in 0..{largest}')
