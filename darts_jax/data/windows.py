"""The rows of a text in columns that the steps of a training read: consecutive windows of random length."""

import dataclasses
import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np

from darts_jax.streams import Stream

# Number of epochs per call, so that one program of moderate size serves any number of epochs.
_CHUNK = 64

# Smallest number of rows of a window, so that it passes a hidden state from one row to the next.
_SHORTEST = 2
# Smallest drawn length.
_SHORTEST_DRAWN = 5


@dataclasses.dataclass(frozen=True)
class Windows:
  """Windows of the rows of `[N, B]` columns, one per step.

  A window that starts at row r and has length l has rows r..r + l - 1 as inputs, and r + 1..r + l as targets.

  Attributes:
    starts: [S] int32, first row of the inputs of every step of the run.
    lengths: [S] int32, number of rows of every step.
    epoch_ends: for every epoch, the number of steps from the beginning of the run to its end.
    capacity: upper limit of the lengths.
  """

  starts: np.ndarray
  lengths: np.ndarray
  epoch_ends: tuple[int, ...]
  capacity: int


def draw(
  seed: int,
  num_rows: int,
  epochs: int,
  *,
  bptt: int,
  short_fraction: float = 0.05,
  spread: float = 0.0,
  max_excess: int = 20,
) -> Windows:
  """Draws windows of random length for a training [AWD-LSTM §4.1].

  A base length is `bptt`, or `bptt / 2` with probability `short_fraction`. With `spread > 0`, the length is the integer
  part of a draw from N(base, spread²), at least 5 and at most `bptt + max_excess`; with `spread = 0` it is the integer
  part of the base, at least 2. In every epoch, consecutive windows start at row 0. The last one is cut to the remaining
  rows, and a single remaining row is not read, so that every window has at least 2 rows, and epochs differ in their
  number of steps.

  Args:
    seed: seed of the run. The windows of an epoch depend only on the seed, the epoch and the following arguments except
      `epochs`, and are the same on every device.
    num_rows: N.
    epochs: number of epochs of the run.
    bptt: usual length in rows, at least 2.
    short_fraction: probability of the short base, in [0, 1].
    spread: standard deviation in rows.
    max_excess: largest number of rows by which a drawn length may exceed `bptt`.

  Raises:
    ValueError: there are too few rows, or `bptt` is too small, for a window.
  """
  if bptt < _SHORTEST:
    raise ValueError(f'a bptt of {bptt} is too short for a window; it has to be at least {_SHORTEST}')
  if num_rows <= _SHORTEST:
    raise ValueError(f'{num_rows} rows are too few for a window; there have to be at least {_SHORTEST + 1}')
  shortest, probabilities = _distribution(bptt, short_fraction, spread, max_excess)
  longest = shortest + len(probabilities)
  # Enough draws even if all lengths are as short as possible.
  num_draws = -(-(num_rows - 1) // shortest)
  starts, lengths, counts = [], [], []
  for first in range(0, epochs, _CHUNK):
    bits = _bits(jax.random.key(seed), jnp.uint32(first), num_draws)[: epochs - first]
    # In double precision on the host: a length that depended on a device's rounding would shift all later steps.
    uniform = (np.asarray(bits) + 0.5) / 2**32
    drawn = shortest + np.searchsorted(probabilities, uniform, side='right')
    begins = np.cumsum(drawn, axis=1) - drawn
    left = num_rows - 1 - begins
    read = left >= _SHORTEST
    starts.append(begins[read])
    lengths.append(np.minimum(drawn, left)[read])
    counts.append(read.sum(axis=1))
  return Windows(
    _joined(starts),
    _joined(lengths),
    tuple(np.cumsum(_joined(counts)).tolist()),
    capacity=min(longest, num_rows - 1),
  )


def consecutive(num_rows: int, bptt: int) -> Windows:
  """Windows of one pass over a text, in which every row except the first is a target exactly once, in order.

  Args:
    num_rows: N.
    bptt: length in rows, at least 1; the last window may be shorter.

  Raises:
    ValueError: there are too few rows for a target.
  """
  if num_rows < 2:
    raise ValueError(f'{num_rows} rows are too few for a window; there have to be at least 2')
  starts = np.arange(0, num_rows - 1, bptt, dtype=np.int32)
  lengths = np.minimum(bptt, num_rows - 1 - starts).astype(np.int32)
  return Windows(starts, lengths, (len(starts),), capacity=min(bptt, num_rows - 1))


def _distribution(bptt: int, short_fraction: float, spread: float, max_excess: int) -> tuple[int, np.ndarray]:
  """The shortest length, and P(length ≤ k) for k from the shortest length to the longest but one."""
  if spread > 0:
    longest = bptt + max_excess
    shortest = min(_SHORTEST_DRAWN, longest)
    usual, short = (
      np.array([statistics.NormalDist(base, spread).cdf(k + 1) for k in range(shortest, longest)])
      for base in (bptt, bptt / 2)
    )
    return shortest, (1 - short_fraction) * usual + short_fraction * short
  # Without short windows, `bptt` is the shortest length, so that fewer draws are needed.
  shortest = max(_SHORTEST, bptt // 2) if short_fraction > 0 else bptt
  return shortest, np.full(bptt - shortest, short_fraction)


@functools.partial(jax.jit, static_argnames='num_draws')
def _bits(key: jax.Array, first_epoch: jax.Array, num_draws: int) -> jax.Array:
  """Random bits, [_CHUNK, num_draws] uint32, for `_CHUNK` epochs from the first one on."""

  def of_epoch(epoch: jax.Array) -> jax.Array:
    return jax.random.bits(jax.random.fold_in(jax.random.fold_in(key, epoch), Stream.WINDOWS), (num_draws,), jnp.uint32)

  return jax.vmap(of_epoch)(first_epoch + jnp.arange(_CHUNK, dtype=jnp.uint32))


def _joined(parts: list[np.ndarray]) -> np.ndarray:
  return np.concatenate([np.zeros(0, np.int32), *parts], dtype=np.int32, casting='same_kind')
