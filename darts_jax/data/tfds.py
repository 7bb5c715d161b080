"""Reads datasets that TensorFlow Datasets has prepared in its `array_record` format, without TensorFlow."""

import pathlib
import re
from typing import Any

import numpy as np

from darts_jax.data.arrays import Arrays
from darts_jax.data.decoding import open_image
from darts_jax.data.official import Official
from darts_jax.runtime.files import one_line, read_object

FORMAT = 'array_record'


def read(dataset: Official, directory: pathlib.Path) -> Arrays | None:
  """Looks for a prepared dataset in a folder (see `find`), and reads it.

  TensorFlow Datasets stores images in a shuffled order. If records have their position as `id`, as in the CIFAR
  datasets, the official order is restored; MNIST stays in the stored order, which is the same on every machine.

  Args:
    dataset: the dataset.
    directory: the folder, such as the `data_dir` of TensorFlow Datasets.

  Returns:
    uint8 images [N, H, W, C] and int32 labels [N], or None if there is no such dataset in this format.

  Raises:
    ValueError: the dataset is damaged, or the packages that read it are not installed.
  """
  prepared = find(dataset.name, directory)
  if prepared is None:
    return None
  try:
    import tensorflow_datasets  # An optional extra, slow to import.

    builder = tensorflow_datasets.builder_from_directory(prepared, file_format=FORMAT)
    # The library's own decoder would open images in any format.
    decoders = {'image': tensorflow_datasets.decode.SkipDecoding()}
    train, test = (_split(builder.as_data_source(split, decoders=decoders)) for split in ('train', 'test'))
  except ImportError as error:
    raise ValueError(f'{prepared}: reading it needs: pip install darts_jax[tfds] ({error})') from error
  except Exception as error:  # Several packages read the dataset, each with its own exceptions.
    raise ValueError(f'{prepared}: cannot be read by tensorflow-datasets: {error}') from error
  for split, (images, _), num_images in (('train', train, dataset.num_train), ('test', test, dataset.num_test)):
    expected = (num_images, *dataset.image_shape)
    if images.shape != expected:
      raise ValueError(f'{prepared}: the images of split {split} have shape {images.shape}, expected {expected}')
  return Arrays(*train, *test)


def find(name: str, directory: pathlib.Path) -> pathlib.Path | None:
  """Finds the newest version of a dataset that is prepared in the `array_record` format.

  Args:
    name: name of the dataset, as in its `dataset_info.json`.
    directory: the folder of the version, its parent, or the folder that has `<name>/<version>`.

  Returns:
    The folder of the version, or None if there is none.

  Raises:
    ValueError: the name is not valid, or a `dataset_info.json` cannot be read; the message names the field or file.
  """
  if not re.fullmatch(r'\w[\w.-]*', name):
    raise ValueError(f'config.data.dataset: {one_line(repr(name))} is no name of a dataset, such as imagenet2012')
  found = []
  for pattern in ('dataset_info.json', '*/dataset_info.json', f'{name}/*/dataset_info.json'):
    for path in directory.glob(pattern):
      try:
        info = read_object(path)
        formats = {info.get('fileFormat'), *info.get('alternativeFileFormats', ())}
        version = tuple(int(number) for number in info.get('version', '0').split('.'))
      except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f'{path}: not the description of a prepared dataset: {one_line(error)}') from error
      if info.get('name') == name and FORMAT in formats:
        found.append((version, path.parent))
  return max(found)[1] if found else None


def _split(source: Any) -> tuple[np.ndarray, np.ndarray]:
  records = list(source.__getitems__(list(range(len(source)))))
  if records and 'id' in records[0]:
    records.sort(key=lambda record: record['id'])
  images = np.stack([np.atleast_3d(np.asarray(open_image(record['image']))) for record in records])
  return images, np.asarray([record['label'] for record in records], np.int32)
