"""The arrays of an image dataset, and checks that they can be trained on."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

#: Smallest standard deviation and largest pixel value with which normalisation in float32 is safe from over- and
#: underflow.
SMALLEST, LARGEST = 1e-30, 1e30
# Smallest standard deviation, in float32 steps at the mean; about that of 8-bit pixels in steps of 1.
_STEPS = 100
# Bytes of the part of a dataset that a check looks at, since the whole need not fit into memory.
_PART = 2**24
_CENTRE = "subtract the mean first, such as x - x_train.mean(axis=(0, 1, 2), dtype='float64')"


class Arrays(NamedTuple):
  """Images and labels as read from a source.

  Attributes:
    x_train: [N, H, W, C] uint8 or floating point, raw pixel values.
    y_train: [N] integer class ids.
    x_test: [M, H, W, C] with the dtype of `x_train`; None without a test set.
    y_test: [M] integer class ids; None without a test set.
  """

  x_train: np.ndarray
  y_train: np.ndarray
  x_test: np.ndarray | None = None
  y_test: np.ndarray | None = None


def validate(arrays: Arrays, source: str, num_classes: int | None = None) -> None:
  """Checks that the arrays are a dataset that can be trained on.

  Args:
    arrays: the arrays.
    source: the file or folder that they were read from, for error messages.
    num_classes: number of classes; None to require that the training labels number the classes from 0 without gaps.

  Raises:
    ValueError: a dtype or rank is wrong; arrays are empty; the axes of images are in another order; the numbers of
      images and labels differ; shape or dtype differ between training and test; a pixel is NaN or infinite; a label is
      out of range; there are fewer than two classes, or a class without a training image; or a channel is constant over
      the training images.
  """
  x_train, y_train, x_test, y_test = arrays
  _check_images(x_train, 'x_train', source)
  _check_axes(x_train.shape, y_train.shape, source)
  _check_labels(y_train, 'y_train', source, len(x_train), num_classes)
  if num_classes is None:
    _check_classes(y_train, source)
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
    if not any(np.any(part[..., channel] != value) for part in _parts(x_train)):
      hint = f', or if it varies in float64, {_CENTRE}' if x_train.dtype.kind == 'f' else ''
      raise ValueError(
        f'{source}: channel {channel} of x_train is {value} everywhere; it has to vary to be normalised: leave it out'
        f'{hint}'
      )


def _parts(images: np.ndarray) -> Iterator[np.ndarray]:
  """Yields consecutive parts of images of at most some megabytes, which may lie in a file."""
  length = max(1, _PART // max(1, images[:1].nbytes))
  for first in range(0, len(images), length):
    yield images[first : first + length]


def check_range(arrays: Arrays, mean: Sequence[float], std: Sequence[float], source: str) -> None:
  """Checks that images can be normalised in float32 without overflow or loss of precision.

  Args:
    arrays: a valid dataset.
    mean: [C], means of the training images in double precision.
    std: [C], standard deviations of the training images in double precision.
    source: the file or folder that the arrays were read from, for error messages.

  Raises:
    ValueError: the values of a channel are too large, too small, too far from the mean, or too close to it for float32;
      the message names the channel.
  """
  for name, images in (('x_train', arrays.x_train), ('x_test', arrays.x_test)):
    if images is None or images.dtype == np.uint8:
      continue
    lows, highs = images.min(axis=(0, 1, 2)).tolist(), images.max(axis=(0, 1, 2)).tolist()
    for channel, (low, high) in enumerate(zip(lows, highs, strict=True)):
      farthest = max(high - mean[channel], mean[channel] - low)
      if std[channel] < SMALLEST or max(abs(low), abs(high)) > LARGEST or farthest > LARGEST * std[channel]:
        raise ValueError(
          f'{source}: channel {channel} of {name} is in {low:.3g}..{high:.3g}, that of x_train has a standard deviation'
          f' of {std[channel]:.3g}; float32 cannot normalise it; scale the images, such as x / np.abs(x_train).max()'
        )
      if name == 'x_train' and std[channel] < _STEPS * float(np.spacing(np.float32(abs(mean[channel])))):
        raise ValueError(
          f'{source}: channel {channel} of x_train has a standard deviation of {std[channel]:.3g} about its mean of'
          f' {mean[channel]:.9g}, where float32 has too few digits to tell pixels apart; {_CENTRE}'
        )


def _check_images(images: np.ndarray, name: str, source: str) -> None:
  if images.dtype != np.uint8 and images.dtype.kind != 'f':
    raise ValueError(
      f'{source}: {name} has dtype {images.dtype}; allowed: uint8 or floating point{_how_to_convert(images)}'
    )
  if images.ndim != 4:
    how = ': x.reshape(-1, H, W, C)' if images.ndim == 2 else ''
    raise ValueError(f'{source}: {name} has shape {images.shape}; allowed: [N, H, W, C] or [N, H, W]{how}')
  if not images.size:
    raise ValueError(f'{source}: {name} is empty, its shape is {images.shape}')
  if images.dtype.kind == 'f':
    first = 0
    for part in _parts(images):
      finite = np.isfinite(part)
      if not finite.all():
        number, *place = (int(index) for index in np.unravel_index(np.argmin(finite), part.shape))
        value, position = part[(number, *place)], [first + number, *place]
        raise ValueError(f'{source}: {name}{position} is {value}; pixel values have to be finite in {images.dtype}')
      first += len(part)


def _how_to_convert(images: np.ndarray) -> str:
  if images.dtype.kind not in 'biu' or not images.size:
    return ''
  fits = images.dtype.kind == 'b' or (images.min() >= 0 and images.max() <= np.iinfo(np.uint8).max)
  return f": x.astype('{'uint8' if fits else 'float32'}')"


def _check_axes(shape: tuple[int, ...], label_shape: tuple[int, ...], source: str) -> None:
  _, channels, height, width = shape
  smaller, larger = sorted((height, width))
  # Read as [N, H, W, C], images [N, C, H, W] have few rows and many channels: as many as columns if they are square,
  # three rows if they are RGB.
  is_square, is_rgb = height == width, channels == 3
  # Grey images that are wider than high look like a single row with more channels than columns.
  is_wide = channels == 1 and width > height >= 4
  if channels < smaller and (is_square or is_rgb or is_wide or (larger <= 2 * smaller and 4 * channels <= smaller)):
    axes, order = '[N, C, H, W]', '(0, 2, 3, 1)'
  elif label_shape == shape[3:] != shape[:1]:
    axes, order = '[H, W, C, N]', '(3, 0, 1, 2)'
  else:
    return
  raise ValueError(
    f'{source}: x_train has shape {shape}, which looks like {axes}; allowed: [N, H, W, C]: x.transpose{order}'
  )


def _check_labels(labels: np.ndarray, name: str, source: str, num_images: int, num_classes: int | None) -> None:
  if labels.shape != (num_images,):
    how = ''
    if labels.ndim == 2 and len(labels) == num_images:
      how = ': y[:, 0]' if labels.shape[1] == 1 else ': y.argmax(axis=1), if they are one-hot'
    raise ValueError(
      f'{source}: {name} has shape {labels.shape}; one label for each of {num_images} images is needed{how}'
    )
  if labels.dtype.kind not in 'iu':
    how = ': np.searchsorted(np.unique(y_train), y)' if labels.dtype.kind in 'US' else ''
    if labels.dtype.kind == 'b' or (labels.dtype.kind == 'f' and (labels == np.rint(labels)).all()):
      how = ": y.astype('int32')"
    raise ValueError(f'{source}: {name} has dtype {labels.dtype}; labels have to be integers{how}')
  largest = np.iinfo(np.int32).max - 1 if num_classes is None else num_classes - 1
  outside = np.flatnonzero((labels < 0) | (labels > largest))
  if outside.size:
    raise ValueError(f'{source}: {name}[{outside[0]}] is {labels[outside[0]]}; labels have to be in 0..{largest}')


def _check_classes(labels: np.ndarray, source: str) -> None:
  classes = np.unique(labels)
  if len(classes) == 1:
    raise ValueError(f'{source}: every label in y_train is {classes[0]}; at least two classes are needed')
  missing = int(classes[-1]) + 1 - len(classes)
  if missing:
    first = np.flatnonzero(classes != np.arange(len(classes)))[0]
    raise ValueError(
      f'{source}: class {first} has no training image, as {missing} of the classes 0..{classes[-1]} in y_train; leave'
      ' out what has no class, and number the others from 0 without gaps: np.searchsorted(np.unique(y_train), y)'
    )
