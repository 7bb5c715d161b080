"""Batches of a dataset that lies on the devices: in random order for training, all of it for an evaluation."""

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
  """Mean loss in nats, and shares of images whose class has the largest, or one of the five largest logits; `[]`."""

  loss: Array
  accuracy: Array
  top5_accuracy: Array


def epoch_indices(key: Array, purpose: int, epoch: Array, position: Array, batch_size: int, num_images: int) -> Array:
  """`[B]` indices of a batch's images: the next ones of a random order, another one in every epoch.

  Args:
    key: typed key of the run; the order of an epoch is a function of it, the epoch and the purpose. Not consumed.
    purpose: a number that no other draw from the key is made with.
    epoch: `[]` int32.
    position: `[]` int32, batches of this epoch before this one; what its batches leave over is another part of the
      images every time.
    batch_size: B.
    num_images: of the dataset.
  """
  order = jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, epoch), purpose), num_images)
  return lax.dynamic_slice(order, (position * batch_size,), (batch_size,))


def tally(logits: Array, labels: Array, counts: Array) -> Evaluation:
  """Sums over the images of a batch that count.

  Args:
    logits: `[B, num_classes]`.
    labels: `[B]`.
    counts: `[B]` bool.
  """
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  # How many classes are before the right one; those with the same logit are if their index is smaller.
  own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
  earlier = jnp.arange(logits.shape[-1]) < labels[:, None]
  # Written so that NaN is behind all others.
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
  """Loss and accuracy on all examples, without augmentation; or, of each device, what its part of them adds to these.

  Args:
    logits_of: `[B, H, W, C]` normalised images of `dtype` → `[B, num_classes]`.
    examples: raw images and labels.
    batch_size: B.
    mean: `[C]`, in raw pixel units.
    std: likewise.
    dtype: of the images that `logits_of` gets.
    share: of the indices of a batch, those that this device evaluates; or all of them, divided among devices.
  """
  total = len(examples.labels)
  # The last batch is filled up with repetitions that do not count.
  indices = np.arange(-(-total // batch_size) * batch_size).reshape(-1, batch_size)

  def add(sums: Evaluation, chosen: Array) -> tuple[Evaluation, None]:
    chosen = share(chosen)
    place, counts = chosen % total, chosen < total
    logits = logits_of(normalise(examples.images[place], mean, std).astype(dtype))
    return jax.tree.map(jnp.add, sums, tally(logits, examples.labels[place], counts)), None

  sums, _ = lax.scan(add, Evaluation(*[jnp.zeros(())] * len(Evaluation._fields)), jnp.asarray(indices))
  return jax.tree.map(lambda s: s / total, sums)
