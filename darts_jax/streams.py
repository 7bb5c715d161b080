"""The random streams of searches and trainings."""

import enum


class Stream(enum.IntEnum):
  """Number that the typed key of a step or an epoch is folded with, so that each purpose draws from its own stream.

  The key of a step is `fold_in(key, step)` and that of an epoch `fold_in(key, epoch)`, where `key` is that of the run.
  Streams of steps and of epochs of one run have different numbers, since the two keys may be equal. A task of one's own
  may use any of these for what it draws itself, except `MIX` and `LOOK`, and numbers from 1,000 to 65,535.

  Searches and trainings have keys of their own, and so have tasks; hence some members share a number.
  """

  # Searches.
  #: Samples of a strategy that draws its mixing weights, of a step.
  MIX = 0
  #: Order of the examples of the weights' half, of an epoch.
  ORDER = 1
  #: Choice of the examples of the architecture's half, of a step.
  VALID = 2
  #: Augmentation of the batch of the weights' half, of a step.
  AUGMENT_TRAIN = 3
  #: Augmentation of the batch of the architecture's half, of a step.
  AUGMENT_VALID = 4
  #: Drop path and noise in the batch of the weights' half, of a step.
  DRAW_TRAIN = 5
  #: Drop path and noise in the batch of the architecture's half, of a step.
  DRAW_VALID = 6
  #: Samples of mixing weights that are shown or evaluated between two steps.
  LOOK = 2**16
  #: Drop path in the supernet, of the key of an image from the two streams before.
  IMAGE_DROP_PATH = 0
  #: Noise in a network, of the key of an image.
  IMAGE_NOISE = 1

  # Searches of text, whose batches follow each other through the text.
  #: Dropout masks of the batch of the weights' half, of a step.
  MASKS_TRAIN = 1
  #: Dropout masks of the batch of the architecture's half, of a step.
  MASKS_VALID = 2
  #: Lengths of the windows of an epoch.
  WINDOWS = 0x77696E64

  # Trainings; the order of examples is `ORDER`.
  #: Drop path of images and dropout masks of text, of a step.
  DROPOUT = 0
  #: Augmentation of a batch, of a step.
  AUGMENT = 2
  #: Noise of the operation `noise`, of a step.
  NOISE = 3
