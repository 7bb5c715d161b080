"""Image datasets that stay in files, read one record at a time in any order: image folders and `array_record`."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from darts_jax.data import tfds

ENDINGS = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
EVALUATION = ('val', 'validation', 'valid', 'test')
TRAIN = 'train'

# Records whose content tells them from others.
_SAMPLE = 256


class Records(Protocol):
  """Encoded images in a fixed order, indexed by 0..N - 1; can be pickled, and used by several threads at once."""

  @property
  def classes(self) -> tuple[str, ...]:
    """Names of the classes, indexed by label."""

  @property
  def labels(self) -> np.ndarray | None:
    """[N] int32, or None where every record would have to be read for them."""

  def __len__(self) -> int: ...

  def load(self, index: int) -> tuple[bytes, int]:
    """Returns the encoded image, which may be damaged, and its label; a ValueError names a record without either."""

  def name(self, index: int) -> str:
    """Returns what tells the user which record this is."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Folder:
  root: pathlib.Path
  # Bytes of one length take a tenth of the memory of a list of paths, and are sent to worker processes at once.
  paths: np.ndarray
  labels: np.ndarray
  classes: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.paths)

  def load(self, index: int) -> tuple[bytes, int]:
    path = pathlib.Path(self.name(index))
    try:
      return path.read_bytes(), int(self.labels[index])
    except OSError as error:
      raise ValueError(f'{path}: cannot be read: {error.strerror}') from error

  def name(self, index: int) -> str:
    return str(self.root / os.fsdecode(self.paths[index]))


def image_folder(path: str | os.PathLike[str], split_names: str | Sequence[str] = TRAIN) -> Records:
  """Lists the images `PATH/<split>/<class>/**`, of any folder depth below their class.

  Classes are the folders of `PATH/train` in sorted order, also for other splits, and within a class the images are in
  the order of their paths, so that neither order depends on the file system. Names that start with a dot are passed
  over, as are files whose name does not end like that of an image (`ENDINGS`, in either case).

  Args:
    path: `config.data.dir`, the folder that holds one folder a split.
    split_names: name of the split, or several (such as `EVALUATION`) of which the first one that is there is read.

  Returns:
    The images of the split; the name of a record is its path.

  Raises:
    ValueError: naming the path, if it or the split is not a folder, there is only one class or one without images,
      the split has a class that the training images lack, or a folder cannot be read.
  """
  root = pathlib.Path(path).expanduser()
  try:
    if not root.is_dir():
      raise ValueError(f'{root}: not a folder')
    train = _split_folder(root, (TRAIN,))
    classes = _class_names(train)
    if len(classes) == 1:
      raise ValueError(f'{train}: holds one class, {classes[0]}; at least two are needed')
    folder = _split_folder(root, (split_names,) if isinstance(split_names, str) else split_names)
    paths, labels = [], []
    for name in _class_names(folder):
      if name not in classes:
        raise ValueError(f'{folder / name}: a class that {train} lacks')
      images = _images_below(folder, name)
      if not images:
        raise ValueError(f'{folder / name}: a class without images; their names end in {", ".join(ENDINGS)}')
      paths += images
      labels += [classes.index(name)] * len(images)
  except OSError as error:
    raise ValueError(f'{error.filename}: cannot be read: {error.strerror}') from error
  return _Folder(folder, np.array([os.fsencode(name) for name in paths]), np.array(labels, np.int32), classes)


def _split_folder(root: pathlib.Path, names: Sequence[str]) -> pathlib.Path:
  for name in names:
    if (root / name).is_dir():
      return root / name
  raise ValueError(f'{root}: holds no folder {" or ".join(names)}; images are looked for in <split>/<class>/')


def _class_names(folder: pathlib.Path) -> tuple[str, ...]:
  names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith('.')))
  if not names:
    raise ValueError(f'{folder}: holds no folder of a class; images are looked for in {folder.name}/<class>/')
  return names


def _images_below(folder: pathlib.Path, name: str) -> list[str]:
  """Paths relative to the folder of the split."""

  def fail(error: OSError) -> None:
    raise error  # A folder that cannot be listed would be passed over.

  found = []
  for parent, folders, files in os.walk(folder / name, onerror=fail):
    folders[:] = [inner for inner in folders if not inner.startswith('.')]
    below = parent.removeprefix(f'{folder}/')
    found += [f'{below}/{file}' for file in files if file.lower().endswith(ENDINGS) and not file.startswith('.')]
  return sorted(found)


def fingerprint(records: Records) -> dict[str, Any]:
  """JSON values that tell records from others: their number, paths and labels, and the content of some of them.

  Of more than `_SAMPLE` records the content of so many is read, evenly spread, since all of it can take an hour.

  Raises:
    ValueError: a record cannot be read.
  """
  listing, content = hashlib.sha256(), hashlib.sha256()
  if isinstance(records, _Folder):
    listing.update(records.paths.tobytes())
    listing.update(records.labels.tobytes())
  for index in np.unique(np.linspace(0, len(records) - 1, _SAMPLE, dtype=np.int64)):
    image, label = records.load(int(index))
    content.update(f'{label} {len(image)} '.encode())
    content.update(image)
  found = {'images': len(records), 'content': content.hexdigest()[:16]}
  return {**found, 'paths': listing.hexdigest()[:16]} if isinstance(records, _Folder) else found


@dataclasses.dataclass(frozen=True, eq=False)
class _Prepared:
  folder: pathlib.Path
  split: str
  source: Any
  classes: tuple[str, ...]
  labels: None = None

  def __len__(self) -> int:
    return len(self.source)

  def load(self, index: int) -> tuple[bytes, int]:
    try:
      record = self.source[index]
      image, label = record['image'], int(record['label'])
    except Exception as error:  # Of several packages, each with errors of its own.
      raise ValueError(f'{self.folder}: {self.name(index)} cannot be read: {error}') from error
    if not 0 <= label < len(self.classes):
      raise ValueError(
        f'{self.folder}: the label of {self.name(index)} is {label}; it has to be in 0..{len(self.classes) - 1}'
      )
    return image, label

  def name(self, index: int) -> str:
    return f'{self.split}[{index}]'


def tfds_directory(path: str | os.PathLike[str], name: str, split: str | Sequence[str] = TRAIN) -> Records:
  """Opens a split of a dataset that TensorFlow Datasets prepared in the `array_record` format, without TensorFlow.

  Args:
    path: `config.data.dir`, the folder of the version, the one above it, or the one above `<name>/<version>`.
    name: of the dataset. Its feature `image` is an image of any size, `label` a class.
    split: name of the split, or several (such as `EVALUATION`) of which the first one that is there is read.

  Returns:
    The records in their stored order, without `labels`; the name of a record is `split[index]`.

  Raises:
    ValueError: naming the folder, if there is no such dataset or split, it has other features, it is damaged, or
      the packages that read it are not installed.
  """
  directory = pathlib.Path(path).expanduser()
  folder = tfds.find(name, directory)
  if folder is None:
    raise ValueError(f'{directory}: holds no tensorflow-datasets array_record folder {name}/<version>/')
  try:
    import tensorflow_datasets  # An optional extra, slow to import.

    builder = tensorflow_datasets.builder_from_directory(folder, file_format=tfds.FORMAT)
    features = dict(builder.info.features)
    is_image = isinstance(features.get('image'), tensorflow_datasets.features.Image)
    classes = getattr(features.get('label'), 'names', None)
    available = tuple(builder.info.splits)
    splits = [wanted for wanted in ((split,) if isinstance(split, str) else split) if wanted in available]
    if is_image and classes and splits:
      decoders = {'image': tensorflow_datasets.decode.SkipDecoding()}
      return _Prepared(folder, splits[0], builder.as_data_source(splits[0], decoders=decoders), tuple(classes))
  except ImportError as error:
    raise ValueError(f'{folder}: reading it needs: pip install darts_jax[tfds] ({error})') from error
  except Exception as error:  # Of several packages, each with errors of its own.
    raise ValueError(f'{folder}: cannot be read by tensorflow-datasets: {error}') from error
  if not splits:
    wanted = split if isinstance(split, str) else ' or '.join(split)
    raise ValueError(f'{folder}: has no split {wanted}; it has {", ".join(available)}')
  raise ValueError(
    f"{folder}: its features are {', '.join(sorted(features))}; needed: an image 'image', a class 'label'"
  )
