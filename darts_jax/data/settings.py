"""The settings of data that searches and trainings share."""

import dataclasses

from darts_jax import limits
from darts_jax.data import images, text
from darts_jax.data.corpus import Corpus
from darts_jax.settings import setting


@dataclasses.dataclass(frozen=True)
class Source:
  """Which images.

  Attributes:
    name: `digits`, `mnist`, `cifar10`, `cifar100`, or `npz` for the file `path`.
    dir: folder with prepared data, archives or unpacked archives.
    path: the file of `npz`.
    download: whether to fetch what is not found, checked by SHA-256, into `dir`.
    num_images: if not 0, the number of training images that are used, drawn at random once and for all.
  """

  name: str = setting('cifar10', choices=images.NAMES)
  dir: str = setting('data')
  path: str = setting('')
  download: bool = setting(False)
  num_images: int = setting(0, at_least=0, at_most=limits.COUNT)

  def load(self) -> images.Images:
    """The dataset. Raises ValueErrors that name the field."""
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
