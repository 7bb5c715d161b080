"""Image datasets that stay in files, read one record at a time in any order: image folders and `array_record`."""

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
# Bytes of an encoded image.
_MAX_ENCODED = 2**28

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
    return read_bytes(pathlib.Path(self.name(index)), _MAX_ENCODED), int(self.labels[index])

  def name(self, index: int) -> str:
    return str(self.root / os.fsdecode(self.paths[index]))


def image_folder(path: str | os.PathLike[str], split_names: str | Sequence[str] = TRAIN) -> Records:
  """Lists the images `PATH/<split>/<class>/**`, of any folder depth below their class.

  Classes are the folders of `PATH/train` in sorted order, also for other splits, and within a class the images are in
  the order of their paths, so that neither order depends on the file system. Names that start with a dot are passed
  over, as are files whose name does not end like that of an image (`ENDINGS`, in either case). Links to folders are
  followed, but each folder is read once, at its own place if that is in the split.

  Args:
    path: `config.data.dir`, the folder that holds one folder a split.
    split_names: name of the split, or several (such as `EVALUATION`) of which the first one that is there is read.

  Returns:
    The images of the split; the name of a record is its path.

  Raises:
    ValueError: naming the path, if it or the split is not a folder, there is only one class or one without images,
      two classes are the same folder or share a folder or an image by links, the split has a class that the training
      images lack, or a folder cannot be read.
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
  """Paths relative to the folder of the split, by class."""
  own: dict[str, str] = {}
  for name in names:
    other = own.setdefault(os.path.realpath(folder / name), name)
    if other != name:
      raise ValueError(f'{folder / name}: the same folder as {folder / other}; an image has one class')
  # A link to a folder that a class lies in leads to other classes and splits.
  split = folder.resolve()
  places = _Places(
    {*own, str(split), *(str(above) for path in (split, *map(pathlib.Path, own)) for above in path.parents)}
  )
  found: dict[str, list[str]] = {name: [] for name in names}
  files: list[tuple[str, str]] = []
  tops = [(name, str(folder / name)) for name in names]
  is_linked = False
  # What can be reached without a link comes before the first link.
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
  """Folders that are read, by their real paths: each at one place."""

  def __init__(self, passed_over: Collection[str]) -> None:
    # The class that a folder is read for, by which path if that leads through a link.
    self._owners: dict[str, tuple[str, str] | None] = dict.fromkeys(passed_over)
    self._classes: dict[str, str] = {}

  def is_new(self, real: str, name: str, path: str, *, is_linked: bool) -> bool:
    """Whether a folder is to be read now, for a class; a ValueError if links lead to it from another one, too."""
    if real not in self._owners:
      self._owners[real] = (name, path) if is_linked else None
      self._classes[real] = name
      return True
    owner = self._owners[real]
    if owner is not None and owner[0] != name:
      raise ValueError(f'{path}: the same folder as {owner[1]}; an image has one class')
    return False

  def class_of(self, real: str) -> str | None:
    """The class that a folder was read for; None if it was not."""
    return self._classes.get(real)

  def add_class(self, real: str, name: str) -> None:
    """Says that a folder is that of a class."""
    self._classes[real] = name


def _check_linked(files: Sequence[tuple[str, str]], places: _Places) -> None:
  """Raises a ValueError for an image, of (class, path), that is a link to one of another class."""
  owners: dict[str, tuple[str, str]] = {}
  for name, path in files:
    real = os.path.realpath(path)
    other, place = owners.setdefault(real, (name, path))
    if other == name:
      other, place = places.class_of(str(pathlib.Path(real).parent)) or name, real
    if other != name:
      raise ValueError(f'{path}: the same file as {place}; an image has one class')


def _walk(name: str, top: str, places: _Places, *, is_linked: bool) -> tuple[list[str], list[str], list[str]]:
  """Images of a class below a folder, those of them that are links, and links to folders."""
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
  except OSError:  # A link to itself, for one, which is told when it is read.
    return False


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
      the packages that read it are not installed; or it has one class only.
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
    # Stored images of floats have the bits of these for colours.
    dtype = np.dtype(image.np_dtype) if is_image else None
    classes = getattr(features.get('label'), 'names', None)
    available = tuple(builder.info.splits)
    splits = [wanted for wanted in ((split,) if isinstance(split, str) else split) if wanted in available]
    if dtype in (np.uint8, np.uint16) and classes and len(classes) > 1 and splits:
      decoders = {'image': tensorflow_datasets.decode.SkipDecoding()}
      return _Prepared(folder, splits[0], builder.as_data_source(splits[0], decoders=decoders), tuple(classes))
  except ImportError as error:
    raise ValueError(f'{folder}: reading it needs: pip install darts_jax[tfds] ({error})') from error
  except Exception as error:  # Of several packages, each with errors of its own.
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
