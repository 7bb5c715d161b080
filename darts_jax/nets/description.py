"""The cost of the networks of an architecture, as JSON values."""

from typing import Any

from darts_jax import spaces
from darts_jax.nets import cost
from darts_jax.nets.conv import Network, check_image_size, check_operations
from darts_jax.spaces import Genotype

#: Sizes of the networks of the published evaluations [DARTS §3.2, §3.3]; `image_size` is the side in pixels.
CIFAR = {'channels': 36, 'layers': 20, 'classes': 10, 'image_size': 32, 'image_channels': 3}
IMAGENET = {'channels': 48, 'layers': 14, 'classes': 1000, 'image_size': 224, 'image_channels': 3}
#: Sizes of the language model of the published evaluation on Penn Treebank [DARTS §3.2].
PTB = {'width': 850, 'vocabulary': 10_000}


def classifier_sizes(genotype: Genotype, *, imagenet: bool = False) -> dict[str, int]:
  """Sizes of the image classifier of an architecture in the published evaluations of its space.

  Args:
    genotype: the architecture.
    imagenet: whether it is the network for ImageNet.

  Returns:
    `channels`, `layers`, `classes`, `image_size` (side in pixels) and `image_channels`.
  """
  network = spaces.space_of(genotype).defaults.get('network', {})
  return {name: network.get(name, value) for name, value in (IMAGENET if imagenet else CIFAR).items()}


def describe_classifier(
  genotype: Genotype, *, imagenet: bool = False, auxiliary: bool = False, **sizes: int
) -> dict[str, Any]:
  """Describes the cost of the image classifier of an architecture.

  Args:
    genotype: the architecture.
    imagenet: whether it is the network for ImageNet.
    auxiliary: whether it has an auxiliary head, whose weights are reported separately.
    **sizes: sizes that differ from `classifier_sizes`.

  Returns:
    JSON values: `parameters` and `multiply_adds` of the network, `convention` of counting, `settings`, `genotype` and
    `parts`; with an auxiliary head also `parameters_with_auxiliary_head`.

  Raises:
    ValueError: there is no such network; one line that begins with the name of the size.
  """
  usual = classifier_sizes(genotype, imagenet=imagenet)
  unknown = sorted(sizes.keys() - usual.keys())
  if unknown:
    raise ValueError(f'{unknown[0]}: unknown size of a network for images; allowed are {", ".join(usual)}')
  sizes = {**usual, **sizes}
  channels, layers, classes, image_size, image_channels = sizes.values()
  stem = 'imagenet' if imagenet else 'cifar'
  if channels % 2:
    raise ValueError(f'channels: {channels} is not allowed; it has to be even')
  space = spaces.space_of(genotype)
  plan = space.plan(layers)
  check_image_size(image_size, image_size, plan, stem=stem, auxiliary=auxiliary)
  check_operations(genotype.cells, plan, channels, image_size, image_size, stem=stem)
  net = Network(
    genotype.cells,
    plan,
    channels,
    classes,
    stem,
    auxiliary,
    # The published network for ImageNet lacks this BN.
    auxiliary_norm=not imagenet,
    stem_multiplier=space.defaults.get('network', {}).get('stem_multiplier', 3),
  )
  parts = cost.parts_of(net, image_size, image_size, image_channels)
  head = sum(part.weights for part in parts if part.name == 'auxiliary')
  weights = sum(part.weights for part in parts) - head
  return {
    'parameters': weights,
    **({'parameters_with_auxiliary_head': weights + head} if auxiliary else {}),
    'multiply_adds': sum(part.multiply_adds for part in parts),
    'convention': cost.CONVENTION,
    'settings': {**sizes, 'stem': stem, 'auxiliary': auxiliary},
    'genotype': spaces.to_json(genotype),
    'parts': [part._asdict() for part in parts],
  }


def describe_language_model(
  genotype: Genotype, *, width: int = PTB['width'], vocabulary: int = PTB['vocabulary']
) -> dict[str, Any]:
  """Describes the cost of the language model of a recurrent architecture.

  Args:
    genotype: the architecture.
    width: width of embedding and states; by default as in the published evaluation.
    vocabulary: number of words; by default as in the published evaluation.

  Returns:
    JSON values: `parameters`, `multiply_adds`, `convention` of counting, `settings`, `genotype` and `parts`.
  """
  [(_, cell)] = genotype.cells
  parts = cost.language_parts_of(cell, width, vocabulary)
  return {
    'parameters': sum(part.weights for part in parts),
    'multiply_adds': sum(part.multiply_adds for part in parts),
    'convention': cost.LANGUAGE_CONVENTION,
    'settings': {'width': width, 'vocabulary': vocabulary},
    'genotype': spaces.to_json(genotype),
    'parts': [part._asdict() for part in parts],
  }
