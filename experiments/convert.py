"""Converts a checkpoint of the published PyTorch code into a working directory that darts_jax.load reads.

python -m experiments.convert --weights=FILE --genotype=NAME|PATH --dataset=cifar10|cifar100|imagenet --workdir=DIR
"""

from darts_jax import training
from darts_jax.data.official import IMAGENET_MEAN, IMAGENET_STD, OFFICIAL
from darts_jax.interop import weights as weight_files
from darts_jax.runtime.files import user_path
from experiments.entry import Flag, convolutional, launch_flags, require

USAGE = (
  'usage: python -m experiments.convert --weights=FILE --genotype=NAME|PATH --dataset=cifar10|cifar100|imagenet'
  ' --workdir=DIR'
)
#: Classes, image shape, mean and standard deviation, in raw pixel values, by dataset.
_DATASETS = {
  **{
    name: (OFFICIAL[name].num_classes, OFFICIAL[name].image_shape, OFFICIAL[name].mean, OFFICIAL[name].std)
    for name in ('cifar10', 'cifar100')
  },
  'imagenet': (1000, (224, 224, 3), IMAGENET_MEAN, IMAGENET_STD),
}
FLAGS = (
  Flag('weights', None, 'A state dict: .pt or .pth, which is read without executing it, .npz or .safetensors.'),
  Flag('genotype', None, 'A published architecture, such as DARTS_V2, or the path of a genotype.json.'),
  Flag('dataset', None, 'What the network was trained on, which says how images are normalised.'),
  Flag('workdir', None, 'Where the network is written.'),
)


def run(weights: str | None, genotype: str | None, dataset: str | None, workdir: str | None) -> int:
  """Converts and says what was found; returns the exit code."""
  require(USAGE, weights=weights, genotype=genotype, dataset=dataset, workdir=workdir)
  if dataset not in _DATASETS:
    raise ValueError(f'--dataset: {dataset!r} is not known; allowed are {", ".join(_DATASETS)}')
  found = convolutional(str(genotype))
  net, variables = weight_files.import_reference(str(weights), found)
  if (net.stem == 'imagenet') != (dataset == 'imagenet'):
    raise ValueError(f'--dataset: {dataset} does not go with {weights}, which has the stem for {net.stem}')
  num_classes, shape, mean, std = _DATASETS[str(dataset)]
  if net.num_classes != num_classes:
    raise ValueError(f'--dataset: {dataset} has {num_classes} classes, the network in {weights} {net.num_classes}')
  model = training.Model(
    found,
    net.channels,
    net.num_layers,
    net.num_classes,
    net.stem,
    net.auxiliary,
    net.auxiliary_norm,
    net.stem_multiplier,
    shape,
    mean,
    std,
  )
  folder = user_path(str(workdir), '--workdir')
  training.write(model, variables, folder)
  print(f'{net.channels} channels, {net.num_layers} cells, {net.num_classes} classes, stem for {net.stem}')
  print(f'parameters: {model.num_weights:,}, without the auxiliary head')
  print(f'apply, variables = darts_jax.load({str(folder)!r})')
  return 0


if __name__ == '__main__':
  launch_flags(run, USAGE, FLAGS)
