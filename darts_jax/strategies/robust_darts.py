"""RobustDARTS: DARTS that stops, or goes back and regularises more, when the curvature of L_val rises [RobustDARTS].

Architectures degenerate when the search comes to regions in which λ, the largest eigenvalue of ∂²L_val/∂α², is large
[§4]. The search ends before λ has grown too much [§4.3], or goes on from there with a larger decay of the weights [§5].
Drop path, too, regularises the weights, throughout the search [§5.1].

Sources: [RobustDARTS] arXiv 1909.09656; the authors' code, github.com/automl/RobustDARTS, whose rule for when λ has
grown this is, and whose drop path. In the paper λ has grown when an earlier mean is less than 3/4 of the present one.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from darts_jax import limits
from darts_jax.settings import setting
from darts_jax.spaces.cells import CellSpace
from darts_jax.spaces.mixing import Mixing
from darts_jax.strategies.darts import Darts
from darts_jax.strategies.relaxed import Arch, Cells, Memory, Probe, Time, Turn


@dataclasses.dataclass(frozen=True)
class RobustDarts(Darts):
  """DARTS with early stopping or adaptive regularisation.

  λ is evaluated after every `frequency`-th epoch, the first one included. Its mean at an evaluation is that of the
  latest `window` evaluations, or of all while there are fewer, from half a window on; it belongs to the epoch in the
  middle of a window. When it is more than `factor` times the mean of `lag` evaluations ago, λ has risen since the epoch
  that the earlier mean belongs to. The search returns that epoch's architecture, or goes on from its end with the next
  of `weight_decays`; after the last of these it goes on to its end, whatever λ does.

  The memory is `{'curvature': [[epoch, λ], …], 'raised': n}`, n the weight decays that have been taken. A search that
  goes back forgets the evaluations that it leaves behind.

  Attributes:
    frequency: epochs from one evaluation to the next.
    window: evaluations that a mean is of.
    lag: evaluations between the means that are compared.
    factor: the quotient of means from which on λ has risen.
    first_epoch: the first epoch, counted from 0, that the search may return to.
    ridge: is added to λ; the authors' code has `config.alphas.weight_decay`, whose second derivative it is.
    weight_decays: of the weights after each time that λ has risen; none to stop at the first time.
    drop_path: the probability that an edge is dropped for an image in the last epoch; it grows from 0 in the first one
      by the same amount from epoch to epoch. All edges may be dropped, those of identities, too.
  """

  name: ClassVar[str] = 'robust_darts'

  frequency: int = setting(2, at_least=1, at_most=limits.EPOCHS)
  window: int = setting(5, at_least=1, at_most=limits.EPOCHS)
  lag: int = setting(4, at_least=1, at_most=limits.EPOCHS)
  factor: float = setting(1.3, at_least=1, at_most=limits.FACTOR)
  first_epoch: int = setting(10, at_least=0, at_most=limits.EPOCHS)
  ridge: float = setting(0.0, at_least=0, at_most=limits.FACTOR)
  weight_decays: tuple[float, ...] = setting((), at_least=0, at_most=limits.FACTOR)
  drop_path: float = setting(0.0, at_least=0, below=1)

  @property
  def span(self) -> int:
    """Epochs from the one that is returned to, to the evaluation that says so."""
    return self.frequency * (self.window // 2 + self.lag)

  def check(self, space: CellSpace) -> None:
    """Raises a ValueError if the networks of the space cannot drop edges."""
    if self.drop_path and space.task != 'images':
      raise ValueError(
        f'config.strategy.drop_path: {self.drop_path} is not allowed; networks of the space {space.name} have no drop'
        ' path, so it has to be 0'
      )

  def mix(self, arch: Arch, space: CellSpace, cells: Cells, time: Time, key: Any, purpose: Any) -> dict[str, Mixing]:
    """The softmax of every edge over the operations that it has, and the rate of drop path of the epoch."""
    mixing = super().mix(arch, space, cells, time, key, purpose)
    if not self.drop_path:
      return mixing
    rate = self.drop_path * time.epoch.astype(jnp.float32) / max(time.epochs - 1, 1)
    return {name: each._replace(drop=jnp.full(cells[name].num_edges, rate)) for name, each in mixing.items()}

  def start(self) -> Memory:
    """Nothing is known."""
    return {'curvature': [], 'raised': 0}

  def means(self, values: Sequence[float]) -> list[float]:
    """The mean at every evaluation that has one, the latest last."""
    first = (self.window + 1) // 2
    return [float(np.mean(values[max(end - self.window, 0) : end])) for end in range(first, len(values) + 1)]

  def turn(self, memory: Memory, arch: Arch, space: CellSpace, epoch: int, probe: Probe) -> Turn:
    """Evaluates λ if its time has come, and stops or goes back if it has risen."""
    del arch, space
    if epoch % self.frequency:
      return Turn(memory)
    curvature = probe.curvature() + self.ridge
    known, raised = [*memory['curvature'], [epoch, curvature]], memory['raised']
    means, to_epoch = self.means([value for _, value in known]), epoch - self.span
    measures = {'curvature': curvature} | ({'curvature_mean': means[-1]} if means else {})
    after = {'curvature': known, 'raised': raised}
    if self._is_settled(memory) or to_epoch < self.first_epoch or means[-1] <= self.factor * means[-1 - self.lag]:
      return Turn(after, measures=measures)
    grown = f'epoch {epoch + 1} has ended: the mean curvature is {means[-1]:.3g}, and was {means[-1 - self.lag]:.3g}'
    if not self.weight_decays:
      message = f'{grown}; the search stops, with the architecture of epoch {to_epoch + 1}'
      return Turn(after, messages=(message,), then='stop', to_epoch=to_epoch, measures=measures)
    after = {'curvature': [each for each in known if each[0] <= to_epoch], 'raised': raised + 1}
    message = f'{grown}; back to epoch {to_epoch + 1}, with a weight decay of {self.weight_decays[raised]:g}'
    return Turn(after, messages=(message,), then='back', to_epoch=to_epoch, measures=measures)

  def may_return_to(self, memory: Memory, epoch: int) -> tuple[int, ...]:
    """Epochs with an evaluation, as far back as later ones may return to."""
    if self._is_settled(memory):
      return ()
    first = max(self.first_epoch, epoch + 1 - self.span)
    return tuple(each for each in range(first, epoch + 1) if each % self.frequency == 0)

  def weight_decay(self, memory: Memory, usual: float) -> float | None:
    """The usual one, and then one after the other of `weight_decays`."""
    if not self.weight_decays:
      return None
    return self.weight_decays[memory['raised'] - 1] if memory['raised'] else usual

  def _is_settled(self, memory: Memory) -> bool:
    """Whether the search goes on to its end."""
    return bool(self.weight_decays) and memory['raised'] == len(self.weight_decays)
