"""Finds and reads a published dataset in any of its formats, or downloads it."""

import pathlib
from collections.abc import Callable

from darts_jax.data import cifar, mnist, tfds
from darts_jax.data.arrays import Arrays
from darts_jax.data.download import fetch
from darts_jax.data.official import Official
from darts_jax.runtime.files import user_path

_READERS: dict[str, Callable[[Official, pathlib.Path], Arrays | None]] = {
  'mnist': mnist.read,
  'cifar10': cifar.read,
  'cifar100': cifar.read,
}

_CHOICES = {
  'mnist': f'the idx files {", ".join(mnist.FILES)} (plain or .gz)',
  'cifar10': 'cifar-10-binary.tar.gz, cifar-10-python.tar.gz, cifar-10-batches-bin/ or cifar-10-batches-py/',
  'cifar100': 'cifar-100-binary.tar.gz, cifar-100-python.tar.gz, cifar-100-binary/ or cifar-100-python/',
}


def read(dataset: Official, directory: str, download: bool) -> Arrays:
  """Reads a published dataset from the first of: a prepared TensorFlow Datasets folder, archives, files, a download.

  Args:
    dataset: the dataset.
    directory: `config.data.dir`, the folder that is searched, and to which files are downloaded.
    download: `config.data.download`, whether to download the official files if nothing is found.

  Returns:
    uint8 images [N, H, W, C] and int32 labels [N], for training and test.

  Raises:
    ValueError: the dataset is not found, or cannot be read.
  """
  if not directory:
    raise ValueError(
      f'config.data.dir is not set: name the folder in which {dataset.name} lies or is to be downloaded '
      '(config.data.download)'
    )
  root = user_path(directory, 'config.data.dir')
  try:
    arrays = _find(dataset, root)
    if arrays is None and download:
      for name in dataset.downloads:
        if not (root / name).is_file():
          fetch(dataset.url + name, root / name, dataset.sha256[name])
      arrays = _find(dataset, root)
  except OSError as error:
    raise ValueError(f'config.data.dir {directory!r}: cannot be read: {error}') from error
  if arrays is None:
    raise ValueError(
      f'config.data.dir {directory!r} holds no {dataset.name}: put there {_CHOICES[dataset.name]}, or a '
      f'tensorflow-datasets array_record folder {dataset.name}/<version>/, or set config.data.download to True'
    )
  return arrays


def _find(dataset: Official, root: pathlib.Path) -> Arrays | None:
  arrays = tfds.read(dataset, root)
  return _READERS[dataset.name](dataset, root) if arrays is None else arrays
