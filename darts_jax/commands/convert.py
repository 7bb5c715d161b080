"""Converts a checkpoint of the published PyTorch code into a working directory that darts_jax.load reads.

darts-jax convert --weights=FILE --genotype=NAME|PATH --workdir=DIR
  --dataset=mnist|cifar10|cifar100|imagenet

For a network that was trained on other images, either a config of a training names the images, or flags describe them:

darts-jax convert … --config=cifar_eval [--config.data.FIELD=VALUE ...]
darts-jax convert … --image_size=N|HxW --mean=R,G,B --std=R,G,B [--classes=N] [--image_channels=N]
"""

import dataclasses
import pathlib
import tempfile
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from darts_jax import training
from darts_jax.commands.entry import GENOTYPE_HELP, Command, Flag, convolutional, require
from darts_jax.data.official import IMAGENET_MEAN, IMAGENET_STD, OFFICIAL
from darts_jax.interop import weights as weight_files
from darts_jax.nets.conv import Network, check_image_size
from darts_jax.runtime.files import user_path
from darts_jax.runtime.mesh import make_mesh
from darts_jax.runtime.terminal import show
from darts_jax.settings import build
from darts_jax.spaces import Genotype
from darts_jax.training.feeds import open_feed


@dataclasses.dataclass(frozen=True)
class _Images:
  """The images that a network was trained on.

  Attributes:
    source: the flag that describes them, for messages.
    size: height and width.
    mean: mean of raw pixel values, for every channel or one for all.
    std: standard deviation of raw pixel values, for every channel or one for all.
    num_channels: number of channels; None if it is taken from the network.
    num_classes: number of classes; None if it is taken from the network.
  """

  source: str
  size: tuple[int, int]
  mean: tuple[float, ...]
  std: tuple[float, ...]
  num_channels: int | None = None
  num_classes: int | None = None


_DATASETS = {
  **{
    name: _Images(f'--dataset: {name}', (height, width), found.mean, found.std, channels, found.num_classes)
    for name, found in OFFICIAL.items()
    for height, width, channels in [found.image_shape]
  },
  'imagenet': _Images('--dataset: imagenet', (224, 224), IMAGENET_MEAN, IMAGENET_STD, 3, 1000),
}
# Most classes or channels, and most pixels a side, of a network that can be run.
_LARGEST, _LARGEST_SIZE = 10**6, 4096
FLAGS = (
  Flag('weights', None, 'A state dict: .pt or .pth, which is read without executing it, .npz or .safetensors.'),
  Flag('genotype', None, GENOTYPE_HELP),
  Flag('dataset', None, 'What the network was trained on, which says how images are normalised.'),
  Flag('workdir', None, 'Where the network is written.'),
  Flag('classes', None, 'Classes; the network has to have as many.'),
  Flag('image_size', None, 'Pixels a side of the images, or height and width, such as 32x48.'),
  Flag('image_channels', None, 'Channels of the images; the network has to read as many.'),
  Flag('mean', None, 'Mean of raw pixel values, 0 to 255 for uint8: a number for every channel, or one for all.'),
  Flag('std', None, 'Standard deviation of them, in the same form; the network reads (image − mean) / std.'),
)


def run(
  weights: str | None,
  genotype: str | None,
  dataset: str | None,
  workdir: str | None,
  *,
  classes: str | None = None,
  image_size: str | None = None,
  image_channels: str | None = None,
  mean: str | None = None,
  std: str | None = None,
  config: ConfigDict | None = None,
) -> int:
  """Converts a checkpoint, runs the converted network once, and prints a summary; returns the exit code."""
  require(weights=weights, genotype=genotype, workdir=workdir)
  found = convolutional(str(genotype))
  given: dict[str, Any] = {
    'size': None if image_size is None else _size(image_size),
    'mean': None if mean is None else _numbers('mean', mean),
    'std': None if std is None else _numbers('std', std),
    'num_channels': None if image_channels is None else _whole('image_channels', image_channels),
    'num_classes': None if classes is None else _whole('classes', classes),
  }
  if dataset is None and config is None:
    if image_size is None and mean is None and std is None:
      require(dataset=dataset)
    require(image_size=image_size, mean=mean, std=std)
  images = _described(dataset, config)
  given = {name: value for name, value in given.items() if value is not None}
  images = dataclasses.replace(images, **given)
  net, variables = weight_files.import_reference(str(weights), found)
  if dataset is not None and (net.stem == 'imagenet') != (dataset == 'imagenet'):
    raise ValueError(f'--dataset: {dataset} does not go with {weights}, which has the stem for {net.stem}')
  model = _model(net, variables, found, images, str(weights))
  folder = user_path(str(workdir), '--workdir')
  with tempfile.TemporaryDirectory() as scratch:
    _try_out(model, variables, pathlib.Path(scratch) / 'network', str(weights))
  training.write(model, variables, folder)
  show(f'{net.channels} channels, {net.plan.num_cells} cells, {net.num_classes} classes, stem for {net.stem}')
  show(f'parameters: {model.num_weights:,}, without the auxiliary head')
  height, width, channels = model.image_shape
  shown = ' and '.join(', '.join(f'{number:g}' for number in numbers) for numbers in (model.mean, model.std))
  show(f'images: {height}×{width}×{channels}, raw pixel values with mean and standard deviation {shown}')
  if 'std' in given and max(model.std) <= 1:
    show(
      'note: so small a deviation is of pixel values from 0 to 1; uint8 images need 255 times these --mean and --std'
    )
  show(f'apply, variables = darts_jax.load({str(folder)!r})')
  return 0


def _described(dataset: str | None, config: ConfigDict | None) -> _Images:
  """The images named by --dataset or by the config of a training; without either, an empty description for flags."""
  if dataset is not None and config is not None:
    raise ValueError('--dataset: not allowed beside --config, which names the images')
  if config is not None:
    feed = open_feed(build(training.Training, config), make_mesh(1))
    try:
      height, width, channels = feed.image_shape
      return _Images(f'--config: {feed.name}', (height, width), feed.mean, feed.std, channels, feed.num_classes)
    finally:
      feed.close()
  if dataset is None:
    return _Images('--mean and --std: what is given', (0, 0), (), ())
  if dataset not in _DATASETS:
    raise ValueError(f'--dataset: {dataset!r} is not known; allowed are {", ".join(_DATASETS)}')
  return _DATASETS[dataset]


def _model(net: Network, variables: Any, genotype: Genotype, images: _Images, weights: str) -> training.Model:
  """Describes the network with its images; raises a ValueError if they do not fit."""
  channels = variables['params']['stem' if net.stem == 'cifar' else 'stem0_first'].shape[2]
  for what, said, read in (
    ('classes', images.num_classes, net.num_classes),
    ('channels', images.num_channels, channels),
    ('means', len(images.mean), channels),
    ('standard deviations', len(images.std), channels),
  ):
    if said not in (None, read) and (said != 1 or what in ('classes', 'channels')):
      raise ValueError(
        f'{images.source} has {said} {what}, the network in {weights} {read}; --classes, --image_channels, --mean and'
        ' --std go before what a data set says'
      )
  try:
    check_image_size(*images.size, net.plan, stem=net.stem, auxiliary=net.auxiliary)
  except ValueError as error:
    raise ValueError(f'--{error}') from error
  mean, std = (numbers * channels if len(numbers) == 1 else numbers for numbers in (images.mean, images.std))
  return training.Model(
    genotype,
    net.channels,
    net.plan.num_cells,
    net.num_classes,
    net.stem,
    net.auxiliary,
    net.auxiliary_norm,
    net.stem_multiplier,
    (*images.size, channels),
    mean,
    std,
  )


def _try_out(model: training.Model, variables: Any, folder: pathlib.Path, weights: str) -> None:
  """Writes a network, reads it back and runs it on a random image; raises a ValueError unless logits are finite."""
  training.write(model, variables, folder)
  apply, loaded = training.load(folder)
  draws = np.random.Generator(np.random.PCG64(0)).normal(size=(1, *model.image_shape))
  logits = np.asarray(apply(loaded, (np.array(model.mean) + np.array(model.std) * draws).astype(np.float32)))
  if logits.shape != (1, model.num_classes) or not np.isfinite(logits).all():
    raise ValueError(f'{weights}: the network was read, but its logits of a random image are not finite')


def _whole(name: str, value: str, largest: int = _LARGEST) -> int:
  if not value.isdecimal() or len(value) > 9 or not 1 <= int(value) <= largest:
    raise ValueError(f'--{name}: {value} is not allowed; it has to be a whole number from 1 to {largest}')
  return int(value)


def _size(value: str) -> tuple[int, int]:
  height, _, width = value.lower().replace('×', 'x').partition('x')
  return _whole('image_size', height, _LARGEST_SIZE), _whole('image_size', width or height, _LARGEST_SIZE)


def _numbers(name: str, value: str) -> tuple[float, ...]:
  try:
    numbers = tuple(float(number) for number in value.strip('()[] ').split(','))
  except ValueError as error:
    raise ValueError(f'--{name}: {value} is not allowed; it has to be numbers with commas between them') from error
  if not all(abs(number) <= 1e30 and (number >= 1e-30 or name == 'mean') for number in numbers):
    raise ValueError(f'--{name}: {value} is not allowed; up to 1e30 is, and --std has to be > 0')
  return numbers


COMMAND = Command(
  run,
  '--weights=FILE --genotype=NAME|PATH --workdir=DIR --dataset=mnist|cifar10|cifar100|imagenet, or'
  ' --config=NAME|FILE of a training, or --image_size=N|HxW --mean=NUMBERS --std=NUMBERS'
  ' [--classes=N] [--image_channels=N]',
  '--weights=weights.pt --genotype=DARTS_V2 --dataset=cifar10 --workdir=converted',
  FLAGS,
  config='optional',
)
