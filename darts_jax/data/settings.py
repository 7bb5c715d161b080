"""The settings of data that searches and trainings share."""

import dataclasses
from collections.abc import Sequence

from darts_jax import limits
from darts_jax.data import images, text
from darts_jax.data.corpus import Corpus
from darts_jax.data.records import TRAIN, Records, image_folder, tfds_directory
from darts_jax.settings import setting

#: Datasets of image files: `data.dir`/train/CLASS/…, with other splits beside train; and what TFDS prepared as
#: `array_record`, called `data.dataset`.
IN_FILES = ('image_folder', 'tfds')


@dataclasses.dataclass(frozen=True)
class Source:
  """Which images.

  Attributes:
    name: `digits`, `mnist`, `cifar10`, `cifar100`, `npz` for the file `path`, or `image_folder` or `tfds` for image
      files in `dir`.
    dir: folder with prepared data, archives, unpacked archives or image files.
    path: the file of `npz`.
    download: whether to fetch what is not found, checked by SHA-256, into `dir`.
    num_images: if not 0, the number of training images that are used, drawn at random once and for all.
    dataset: name of the dataset of `tfds`.
    image_size: pixels a side that images in files are cropped and resized to.
    num_threads: that read image files, in each process or worker.
    num_workers: processes that read them; 0 to read in this one.
  """

  name: str = setting('cifar10', choices=(*images.NAMES, *IN_FILES))
  dir: str = setting('data')
  path: str = setting('')
  download: bool = setting(False)
  num_images: int = setting(0, at_least=0, at_most=limits.COUNT)
  dataset: str = setting('')
  image_size: int = setting(32, at_least=1, at_most=limits.IMAGE_SIZE)
  num_threads: int = setting(8, at_least=0, at_most=limits.WORKERS)
  num_workers: int = setting(0, at_least=0, at_most=limits.WORKERS)

  def __post_init__(self) -> None:
    if self.name == 'tfds' and not self.dataset:
      raise ValueError("config.dataset: '' is not allowed; name the dataset, such as imagenet2012")

  @property
  def title(self) -> str:
    """What messages call the dataset."""
    return {'image_folder': self.dir, 'tfds': self.dataset}.get(self.name, self.name)

  def open(self, split: str | Sequence[str] = TRAIN) -> Records:
    """The image files of a split, or of the first that is there of several. Raises ValueErrors that name the field."""
    try:
      if self.name == 'tfds':
        return tfds_directory(self.dir, self.dataset, split)
      return image_folder(self.dir, split)
    except ValueError as error:
      raise ValueError(f'config.data.dir: {error}') from error

  def load(self) -> images.Images:
    """The dataset, of images that are not in files. Raises ValueErrors that name the field."""
    found = images.load(self.name, directory=self.dir, path=self.path, download=self.download)
    return images.part(found, self.num_images) if self.num_images else found


@dataclasses.dataclass(frozen=True)
class TextSource:
  """Which text.

  Attributes:
    name: `pydoc`, or `ptb`, `wikitext2` or `files` for text files in `dir`.
    dir: folder with one file each for training, validation and test.
  """

  name: str = setting('ptb', choices=text.NAMES)
  dir: str = setting('data')

  def load(self) -> Corpus:
    """The corpus. Raises ValueErrors that name the field or file."""
    return text.load(self.name, self.dir)


@dataclasses.dataclass(frozen=True)
class Augment:
  """Augmentation in training: pixels of padding before a crop, mirroring, side of the cutout square (0: none)."""

  crop_padding: int = setting(4, at_least=0, at_most=limits.CROP_PADDING)
  flip: bool = setting(True)
  cutout: int = setting(0, at_least=0, at_most=limits.CUTOUT)
