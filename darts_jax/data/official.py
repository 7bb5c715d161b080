"""Facts about the published image datasets: shapes, statistics, URLs and checksums."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Official:
  """A published dataset.

  Attributes:
    name: name of the dataset, as in `config.data.name`.
    image_shape: shape (H, W, C) of an image.
    num_classes: number of classes; labels are 0..num_classes - 1.
    num_train: number of training images.
    num_test: number of test images.
    mean: mean of each channel, in raw pixel units.
    std: standard deviation of each channel, in raw pixel units.
    url: URL of the folder with the downloads, ending in a slash.
    downloads: names of the files to download.
    sha256: hexadecimal digests of the published files, by file name.
  """

  name: str
  image_shape: tuple[int, int, int]
  num_classes: int
  num_train: int
  num_test: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  url: str
  downloads: tuple[str, ...]
  sha256: Mapping[str, str]


# Statistics of CIFAR-10, which the published experiments of DARTS use for both CIFAR datasets.
_CIFAR_MEAN = tuple(255 * mean for mean in (0.4914, 0.4822, 0.4465))
_CIFAR_STD = tuple(255 * std for std in (0.2470, 0.2435, 0.2616))
#: The customary statistics of ImageNet, in raw pixel units.
IMAGENET_MEAN = tuple(255 * mean for mean in (0.485, 0.456, 0.406))
IMAGENET_STD = tuple(255 * std for std in (0.229, 0.224, 0.225))

_CIFAR_URL = 'https://www.cs.toronto.edu/~kriz/'

# The digests of the binary archives and of MNIST are from TensorFlow Datasets, and those of the python archives from
# Keras.
_CIFAR10 = Official(
  name='cifar10',
  image_shape=(32, 32, 3),
  num_classes=10,
  num_train=50000,
  num_test=10000,
  mean=_CIFAR_MEAN,
  std=_CIFAR_STD,
  url=_CIFAR_URL,
  downloads=('cifar-10-binary.tar.gz',),
  sha256={
    'cifar-10-binary.tar.gz': 'c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd',
    'cifar-10-python.tar.gz': '6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce',
  },
)

_CIFAR100 = Official(
  name='cifar100',
  image_shape=(32, 32, 3),
  num_classes=100,
  num_train=50000,
  num_test=10000,
  mean=_CIFAR_MEAN,
  std=_CIFAR_STD,
  url=_CIFAR_URL,
  downloads=('cifar-100-binary.tar.gz',),
  sha256={
    'cifar-100-binary.tar.gz': '58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec',
    'cifar-100-python.tar.gz': '85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7',
  },
)

_MNIST_SHA256 = {
  'train-images-idx3-ubyte.gz': '440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609',
  'train-labels-idx1-ubyte.gz': '3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c',
  't10k-images-idx3-ubyte.gz': '8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6',
  't10k-labels-idx1-ubyte.gz': 'f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6',
}

_MNIST = Official(
  name='mnist',
  image_shape=(28, 28, 1),
  num_classes=10,
  num_train=60000,
  num_test=10000,
  mean=(255 * 0.1307,),
  std=(255 * 0.3081,),
  url='https://ossci-datasets.s3.amazonaws.com/mnist/',
  downloads=tuple(_MNIST_SHA256),
  sha256=_MNIST_SHA256,
)

OFFICIAL = {dataset.name: dataset for dataset in (_MNIST, _CIFAR10, _CIFAR100)}
