"""Settings of data, shared by searches and trainings."""

import dataclasses
from collections.abc import Sequence

from darts_jax import limits
from darts_jax.data import images, text
from darts_jax.data.corpus import Corpus
from darts_jax.data.records import TRAIN, Records, image_folder, tfds_directory
from darts_jax.settings import setting

#: Names of datasets that stay in files: image folders `data.dir`/train/CLASS/…, with other splits next to `train`; and
#: the dataset `data.dataset` that TFDS has prepared as `array_record`.
IN_FILES = ('image_folder', 'tfds')


@dataclasses.dataclass(frozen=True)
class Source:
  """Settings of a dataset of images.

  Attributes:
    name: `digits`, `mnist`, `cifar10`, `cifar100`, `arrays` for arrays that are passed in Python, `npz` for the file
      `path`, or `image_folder` or `tfds` for image files in `dir`.
    dir: folder with prepared data, archives, unpacked archives or image files.
    path: path of the file for `npz`.
    download: whether to download missing data into `dir`, verified by SHA-256.
    num_images: number of training images that are used, a random subset that is the same for every seed; 0 for all.
    dataset: name of the dataset for `tfds`.
    image_size: side in pixels to which images in files are cropped and resized.
    num_threads: number of threads that read image files, in each process or worker.
    num_workers: number of processes that read image files; 0 to read in this process.
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
    """Name of the dataset, for messages."""
    return {'image_folder': self.dir, 'tfds': self.dataset}.get(self.name, self.name)

  def open(self, split: str | Sequence[str] = TRAIN) -> Records:
    """Opens the image files of a split.

    Args:
      split: name of the split, or several names, of which the first existing one is read.

    Raises:
      ValueError: the files cannot be used; the message names the field.
    """
    try:
      if self.name == 'tfds':
        return tfds_directory(self.dir, self.dataset, split)
      return image_folder(self.dir, split)
    except ValueError as error:
      raise ValueError(f'config.data.dir: {error}') from error

  def load(self) -> images.Images:
    """Loads a dataset that is not one of `IN_FILES`.

    Raises:
      ValueError: the dataset cannot be loaded; the message names the field or file.
    """
    found = images.load(self.name, directory=self.dir, path=self.path, download=self.download)
    return images.part(found, self.num_images) if self.num_images else found


@dataclasses.dataclass(frozen=True)
class TextSource:
  """Settings of a text.

  Attributes:
    name: `pydoc`, or `ptb`, `wikitext2` or `files` for text files in `dir`.
    dir: folder with one file each for training, validation and test.
  """

  name: str = setting('ptb', choices=text.NAMES)
  dir: str = setting('data')

  def load(self) -> Corpus:
    """Loads the corpus.

    Raises:
      ValueError: the text cannot be loaded; the message names the field or file.
    """
    return text.load(self.name, self.dir)


@dataclasses.dataclass(frozen=True)
class Augment:
  """Settings of augmentation in training; see `darts_jax.data.augment.augment`.

  Attributes:
    crop_padding: pixels of padding before a random crop; 0 for no crop.
    flip: whether to mirror images at random.
    cutout: side of the cutout square in pixels; 0 for no cutout.
  """

  crop_padding: int = setting(4, at_least=0, at_most=limits.CROP_PADDING)
  flip: bool = setting(True)
  cutout: int = setting(0, at_least=0, at_most=limits.CUTOUT)
