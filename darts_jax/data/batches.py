"""Batches of a dataset on the devices: in random order for training, in stored order for evaluation."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from darts_jax.data.augment import Statistics, normalise

Array = jax.Array


class Examples(NamedTuple):
  """Images `[B, H, W, C]` and their labels `[B]` int32."""

  images: Array
  labels: Array


class Evaluation(NamedTuple):
  """Results of an evaluation, `[]` each.

  Attributes:
    loss: mean loss in nats.
    accuracy: fraction of images whose class has the largest logit.
    top5_accuracy: fraction of images whose class has one of the five largest logits.
  """

  loss: Array
  accuracy: Array
  top5_accuracy: Array


def epoch_indices(key: Array, purpose: int, epoch: Array, position: Array, batch_size: int, num_images: int) -> Array:
  """Indices of the images of a batch, `[B]`, from a random order that differs between epochs.

  Args:
    key: typed key of the run; the order of an epoch is a function of the key, the epoch and the purpose. Not consumed.
    purpose: a number that no other draw from the key uses.
    epoch: `[]` int32.
    position: `[]` int32, number of batches before this one in the epoch. Images that do not fill a batch are left out,
      other ones in every epoch.
    batch_size: B.
    num_images: number of images in the dataset.
  """
  order = jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, epoch), purpose), num_images)
  return lax.dynamic_slice(order, (position * batch_size,), (batch_size,))


def tally(logits: Array, labels: Array, counts: Array) -> Evaluation:
  """Sums of losses and of correct predictions over the images of a batch that count.

  Args:
    logits: `[B, num_classes]`.
    labels: `[B]`.
    counts: `[B]` bool, whether an image counts.
  """
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  # The rank is the number of classes before the right one; equal logits are ordered by index.
  own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
  earlier = jnp.arange(logits.shape[-1]) < labels[:, None]
  # Written with negations, so that a right class with a NaN logit has the last rank.
  rank = jnp.sum(~(logits < own) & ~((logits == own) & ~earlier), axis=-1)
  return Evaluation(jnp.sum(losses * counts), jnp.sum((rank < 1) & counts), jnp.sum((rank < 5) & counts))


def evaluate(
  logits_of: Callable[[Array], Array],
  examples: Examples,
  batch_size: int,
  mean: Statistics,
  std: Statistics,
  dtype: jax.typing.DTypeLike,
  share: Callable[[Array], Array],
) -> Evaluation:
  """Loss and accuracy on all examples, without augmentation.

  On each of several devices within `jax.shard_map`: the device's contribution, the sum over its examples divided by
  the number of all examples.

  Args:
    logits_of: function from `[B, H, W, C]` normalised images of `dtype` to `[B, num_classes]` logits.
    examples: raw images and labels.
    batch_size: B.
    mean: `[C]`, in raw pixel units.
    std: `[C]`, in raw pixel units.
    dtype: dtype of the images that `logits_of` gets.
    share: function from the indices of a batch to those that this device evaluates; or to the same indices, sharded
      over devices.
  """
  total = len(examples.labels)
  # The last batch is filled up with repeated images that do not count.
  indices = np.arange(-(-total // batch_size) * batch_size).reshape(-1, batch_size)

  def add(sums: Evaluation, chosen: Array) -> tuple[Evaluation, None]:
    chosen = share(chosen)
    place, counts = chosen % total, chosen < total
    logits = logits_of(normalise(examples.images[place], mean, std).astype(dtype))
    return jax.tree.map(jnp.add, sums, tally(logits, examples.labels[place], counts)), None

  sums, _ = lax.scan(add, Evaluation(*[jnp.zeros(())] * len(Evaluation._fields)), jnp.asarray(indices))
  return jax.tree.map(lambda s: s / total, sums)
