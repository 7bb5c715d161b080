"""RobustDARTS: DARTS that stops, or goes back and regularises more, when the curvature of L_val rises [RobustDARTS].

Architectures degenerate when the search reaches regions with a large λ, the largest eigenvalue of ∂²L_val/∂α² [§4]. The
search therefore returns to an epoch before λ rose and ends there [§4.3], or continues from it with a larger weight
decay [§5]. Drop path also regularises the weights, throughout the search [§5.1].

Sources: [RobustDARTS] arXiv 1909.09656; the authors' code, github.com/automl/RobustDARTS, which has this criterion for
a rise of λ, and this drop path. In the paper, λ has risen when an earlier mean is less than 3/4 of the present one.
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

  λ is evaluated after epochs 0, `frequency`, 2 · `frequency`, … The mean at an evaluation is over the latest `window`
  evaluations, or over all of them if there are fewer, but at least half a window; it belongs to the epoch in the middle
  of the window. If it is more than `factor` times the mean of `lag` evaluations ago, λ has risen since the epoch of the
  earlier mean. The search then returns the architecture of that epoch, or continues from its end with the next of
  `weight_decays`. After the last of these it continues to its end, whatever λ does.

  The memory is `{'curvature': [[epoch, λ], …], 'raised': n}`, where n is the number of weight decays used so far. When
  the search goes back, the evaluations of later epochs are removed.

  Attributes:
    frequency: epochs from one evaluation to the next.
    window: number of evaluations in a mean.
    lag: number of evaluations between the two means that are compared.
    factor: λ has risen if the later mean is more than `factor` times the earlier one.
    first_epoch: the first epoch, counted from 0, to which the search may return.
    ridge: constant that is added to λ; the authors' code adds `config.alphas.weight_decay`, the second derivative of
      the L2 penalty.
    weight_decays: weight decays to use one after the other each time λ rises; if empty, the search stops the first
      time.
    drop_path: probability in the last epoch that an edge is dropped for an image; it grows linearly from 0 in the first
      epoch. All edges may be dropped, also identities.
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
    """Number of epochs from the epoch that the search returns to, to the evaluation that finds the rise."""
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
    """The memory without evaluations."""
    return {'curvature': [], 'raised': 0}

  def means(self, values: Sequence[float]) -> list[float]:
    """The mean of λ at every evaluation that has one, in order; `values` are all evaluations."""
    first = (self.window + 1) // 2
    return [float(np.mean(values[max(end - self.window, 0) : end])) for end in range(first, len(values) + 1)]

  def turn(self, memory: Memory, arch: Arch, space: CellSpace, epoch: int, probe: Probe) -> Turn:
    """Evaluates λ after every `frequency`-th epoch, and stops or goes back if it has risen."""
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
    """The epochs with an evaluation to which the search may return after a later evaluation."""
    if self._is_settled(memory):
      return ()
    first = max(self.first_epoch, epoch + 1 - self.span)
    return tuple(each for each in range(first, epoch + 1) if each % self.frequency == 0)

  def weight_decay(self, memory: Memory, usual: float) -> float | None:
    """The usual weight decay until λ rises, then the values of `weight_decays` one after the other."""
    if not self.weight_decays:
      return None
    return self.weight_decays[memory['raised'] - 1] if memory['raised'] else usual

  def _is_settled(self, memory: Memory) -> bool:
    """Whether all weight decays have been used, so that the search continues to its end."""
    return bool(self.weight_decays) and memory['raised'] == len(self.weight_decays)
