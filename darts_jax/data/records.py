"""Image datasets that stay in files and are read record by record, in any order: image folders and `array_record`."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Collection, Sequence
from typing import Any, Protocol

import numpy as np

from darts_jax.data import tfds
from darts_jax.runtime.files import read_bytes, user_path

ENDINGS = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
EVALUATION = ('val', 'validation', 'valid', 'test')
TRAIN = 'train'
# Largest size in bytes of an encoded image.
_MAX_ENCODED = 2**28

# Number of records whose content is part of a fingerprint.
_SAMPLE = 256


class Records(Protocol):
  """Encoded images in a fixed order, indexed by 0..N - 1; objects can be pickled and are thread-safe."""

  @property
  def classes(self) -> tuple[str, ...]:
    """Names of the classes, indexed by label."""

  @property
  def labels(self) -> np.ndarray | None:
    """[N] int32; None if they are only known by reading every record."""

  def __len__(self) -> int: ...

  def load(self, index: int) -> tuple[bytes, int]:
    """Returns the encoded image, which may be damaged, and its label; raises a ValueError if it cannot be read."""

  def name(self, index: int) -> str:
    """Returns a name of the record, for messages."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Folder:
  root: pathlib.Path
  # An array of bytes takes a tenth of the memory of a list of paths, and is sent to worker processes quickly.
  paths: np.ndarray
  labels: np.ndarray
  classes: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.paths)

  def load(self, index: int) -> tuple[bytes, int]:
    return read_bytes(pathlib.Path(self.name(index)), _MAX_ENCODED), int(self.labels[index])

  def name(self, index: int) -> str:
    return str(self.root / os.fsdecode(self.paths[index]))


def image_folder(path: str | os.PathLike[str], split_names: str | Sequence[str] = TRAIN) -> Records:
  """Lists the images `PATH/<split>/<class>/**`, at any depth below the folder of their class.

  Classes are the folders of `PATH/train` in sorted order, also for other splits, and the images of a class are sorted
  by path, so that the order does not depend on the file system. Names that start with a dot are ignored, and so are
  files whose suffix is not that of an image (`ENDINGS`, in lower or upper case). Links to folders are followed, but
  each folder is read once, without a link if possible.

  Args:
    path: `config.data.dir`, the folder that has one folder per split.
    split_names: name of the split, or several names (such as `EVALUATION`), of which the first existing one is read.

  Returns:
    The images of the split; the name of a record is its path.

  Raises:
    ValueError: the path or the split is not a folder; there is only one class, or a class without images; two classes
      are the same folder, or share a folder or an image through links; the split has a class that the training images
      lack; or a folder cannot be read. The message names the path.
  """
  root = user_path(path, 'config.data.dir')
  try:
    if not root.is_dir():
      raise ValueError(f'{root}: not a folder')
    train = _split_folder(root, (TRAIN,))
    classes = _class_names(train)
    if len(classes) == 1:
      raise ValueError(f'{train}: holds one class, {classes[0]}; at least two are needed')
    folder = _split_folder(root, (split_names,) if isinstance(split_names, str) else split_names)
    paths, labels = [], []
    names = _class_names(folder)
    for name in names:
      if name not in classes:
        raise ValueError(f'{folder / name}: a class that {train} lacks')
    for name, images in _images_below(folder, names).items():
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


def _images_below(folder: pathlib.Path, names: Sequence[str]) -> dict[str, list[str]]:
  """Paths of the images of a split by class, relative to the folder of the split."""
  own: dict[str, str] = {}
  for name in names:
    other = own.setdefault(os.path.realpath(folder / name), name)
    if other != name:
      raise ValueError(f'{folder / name}: the same folder as {folder / other}; an image has one class')
  # Folders that contain a class are not entered through links, since they contain other classes and splits, too.
  split = folder.resolve()
  places = _Places(
    {*own, str(split), *(str(above) for path in (split, *map(pathlib.Path, own)) for above in path.parents)}
  )
  found: dict[str, list[str]] = {name: [] for name in names}
  files: list[tuple[str, str]] = []
  tops = [(name, str(folder / name)) for name in names]
  is_linked = False
  # Folders that can be reached without links are read first.
  while tops:
    links: list[tuple[str, str]] = []
    for name, top in tops:
      images, linked, further = _walk(name, top, places, is_linked=is_linked)
      found[name] += [path.removeprefix(f'{folder}/') for path in images]
      files += [(name, path) for path in linked]
      links += [(name, path) for path in further]
    is_linked = True
    tops = [(name, path) for name, path in links if places.is_new(os.path.realpath(path), name, path, is_linked=True)]
  _check_linked(files, places)
  return {name: sorted(paths) for name, paths in found.items()}


class _Places:
  """The folders that have been read, by real path, so that each is read once."""

  def __init__(self, passed_over: Collection[str]) -> None:
    # The class for which a folder was read, and the path, if it leads through a link.
    self._owners: dict[str, tuple[str, str] | None] = dict.fromkeys(passed_over)
    self._classes: dict[str, str] = {}

  def is_new(self, real: str, name: str, path: str, *, is_linked: bool) -> bool:
    """Whether a folder has not been read yet, and marks it as read for a class.

    Args:
      real: real path of the folder.
      name: the class.
      path: path by which the folder was reached.
      is_linked: whether this path leads through a link.

    Raises:
      ValueError: the folder was read for another class, through a link.
    """
    if real not in self._owners:
      self._owners[real] = (name, path) if is_linked else None
      self._classes[real] = name
      return True
    owner = self._owners[real]
    if owner is not None and owner[0] != name:
      raise ValueError(f'{path}: the same folder as {owner[1]}; an image has one class')
    return False

  def class_of(self, real: str) -> str | None:
    """The class for which a folder was read; None if it was not read."""
    return self._classes.get(real)

  def add_class(self, real: str, name: str) -> None:
    """Records that a folder belongs to a class."""
    self._classes[real] = name


def _check_linked(files: Sequence[tuple[str, str]], places: _Places) -> None:
  """Raises a ValueError if an image is a link to an image of another class.

  Args:
    files: classes and paths of images that are links.
    places: the folders that have been read.
  """
  owners: dict[str, tuple[str, str]] = {}
  for name, path in files:
    real = os.path.realpath(path)
    other, place = owners.setdefault(real, (name, path))
    if other == name:
      other, place = places.class_of(str(pathlib.Path(real).parent)) or name, real
    if other != name:
      raise ValueError(f'{path}: the same file as {place}; an image has one class')


def _walk(name: str, top: str, places: _Places, *, is_linked: bool) -> tuple[list[str], list[str], list[str]]:
  """Walks through the folders below `top`; returns images, the images among them that are links, and links to folders.

  Args:
    name: class of the images.
    top: path of the folder.
    places: the folders that have been read; gets further ones.
    is_linked: whether `top` was reached through a link.
  """
  images, linked, links = [], [], []
  waiting = [(top, os.path.realpath(top))]
  places.add_class(waiting[0][1], name)
  while waiting:
    parent, real = waiting.pop()
    with os.scandir(parent) as entries:
      visible = sorted((entry for entry in entries if not entry.name.startswith('.')), key=lambda entry: entry.name)
    for entry in visible:
      path = f'{parent}/{entry.name}'
      if _is_folder(entry):
        if entry.is_symlink():
          links.append(path)
        elif places.is_new(f'{real}/{entry.name}', name, path, is_linked=is_linked):
          waiting.append((path, f'{real}/{entry.name}'))
      elif entry.name.lower().endswith(ENDINGS):
        images.append(path)
        if entry.is_symlink():
          linked.append(path)
  return images, linked, links


def _is_folder(entry: os.DirEntry[str]) -> bool:
  try:
    return entry.is_dir()
  except OSError:  # For example a link to itself, which causes an error when it is read.
    return False


def fingerprint(records: Records) -> dict[str, Any]:
  """JSON values that identify records: their number, paths and labels, and the content of some of them.

  Only the content of `_SAMPLE` evenly spaced records is read, since reading all records can take an hour.

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
    except Exception as error:  # Several packages read the record, each with its own exceptions.
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
    path: `config.data.dir`, the folder of the version, its parent, or the folder that has `<name>/<version>`.
    name: name of the dataset. Its feature `image` has to be an image of any size, and `label` a class.
    split: name of the split, or several names (such as `EVALUATION`), of which the first existing one is read.

  Returns:
    The records in their stored order, without `labels`; the name of a record is `split[index]`.

  Raises:
    ValueError: there is no such dataset or split, it has other features or only one class, it is damaged, or the
      packages that read it are not installed. The message names the folder.
  """
  directory = user_path(path, 'config.data.dir')
  folder = tfds.find(name, directory)
  if folder is None:
    raise ValueError(f'{directory}: holds no tensorflow-datasets array_record folder {name}/<version>/')
  try:
    import tensorflow_datasets  # An optional extra, slow to import.

    builder = tensorflow_datasets.builder_from_directory(folder, file_format=tfds.FORMAT)
    features = dict(builder.info.features)
    image: Any = features.get('image')
    is_image = isinstance(image, tensorflow_datasets.features.Image)
    # Images of floats are not supported: they are stored with the bits of the floats as colours.
    dtype = np.dtype(image.np_dtype) if is_image else None
    classes = getattr(features.get('label'), 'names', None)
    available = tuple(builder.info.splits)
    splits = [wanted for wanted in ((split,) if isinstance(split, str) else split) if wanted in available]
    if dtype in (np.uint8, np.uint16) and classes and len(classes) > 1 and splits:
      decoders = {'image': tensorflow_datasets.decode.SkipDecoding()}
      return _Prepared(folder, splits[0], builder.as_data_source(splits[0], decoders=decoders), tuple(classes))
  except ImportError as error:
    raise ValueError(f'{folder}: reading it needs: pip install darts_jax[tfds] ({error})') from error
  except Exception as error:  # Several packages read the dataset, each with its own exceptions.
    raise ValueError(f'{folder}: cannot be read by tensorflow-datasets: {error}') from error
  if not splits:
    wanted = split if isinstance(split, str) else ' or '.join(split)
    raise ValueError(f'{folder}: has no split {wanted}; it has {", ".join(available)}')
  if is_image and dtype not in (np.uint8, np.uint16):
    raise ValueError(f'{folder}: its images are of {dtype}; allowed: uint8, uint16')
  if classes and len(classes) == 1:
    raise ValueError(f'{folder}: has one class, {classes[0]}; at least two are needed')
  raise ValueError(
    f"{folder}: its features are {', '.join(sorted(features))}; needed: an image 'image', a class 'label'"
  )
