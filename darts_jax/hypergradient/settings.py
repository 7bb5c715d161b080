"""Settings of all estimators: one dataclass for each, selected by `config.hypergradient.name`."""

import dataclasses
from typing import Any, ClassVar

from darts_jax import limits
from darts_jax.hypergradient.base import Estimator
from darts_jax.hypergradient.catalogue import make
from darts_jax.settings import setting


@dataclasses.dataclass(frozen=True)
class Hypergradient:
  """Settings that all estimators share.

  Attributes:
    clipping: how virtual steps clip the gradient: `none`, not at all, as in the published experiments;
      `differentiated`, as real steps do; or `constant`, like `differentiated` but with a factor that derivatives treat
      as a constant.
    clip_outer: whether v, the outer loss's gradient in the weights, is clipped to `weights.clip_norm` before it is
      multiplied with second derivatives, as in the paper's search for recurrent cells.
    virtual_step: momentum of the virtual steps: `as_optimizer`, the momentum of real steps; or `heavy_ball`, as in the
      released search on NAS-Bench-201, whose real steps have Nesterov's momentum.
  """

  name: ClassVar[str]

  clipping: str = setting('none', choices=('none', 'differentiated', 'constant'))
  clip_outer: bool = setting(False)
  virtual_step: str = setting('as_optimizer', choices=('as_optimizer', 'heavy_ball'))

  @property
  def fields(self) -> dict[str, Any]:
    """Values, by name, of the fields that the estimators do not share."""
    shared = {field.name for field in dataclasses.fields(Hypergradient)}
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in shared}

  def other(self, name: str) -> 'Hypergradient':
    """The settings of the estimator `name`: shared fields as here, its own fields at their defaults.

    If `name` is the name of this estimator, these settings themselves.
    """
    if name == self.name:
      return self
    shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(Hypergradient)}
    return HYPERGRADIENTS[name](**shared)

  def estimator(self) -> Estimator:
    """Makes the estimator.

    Raises:
      ValueError: its fields are not allowed together.
    """
    try:
      return make(self.name, self.fields)
    except ValueError as error:
      raise ValueError(f'config.hypergradient.{error}') from error


@dataclasses.dataclass(frozen=True)
class FirstOrder(Hypergradient):
  """The gradient of the outer loss at the weights as they are."""

  name: ClassVar[str] = 'first_order'


@dataclasses.dataclass(frozen=True)
class FiniteDifference(Hypergradient):
  """The product with second derivatives by a difference of two gradients [DARTS §2.3].

  Attributes:
    radius: length of the step in weight space.
    one_sided: whether to step to one side only.
  """

  name: ClassVar[str] = 'finite_difference'

  radius: float = setting(0.01, above=0, at_most=limits.FACTOR)
  one_sided: bool = setting(False)


@dataclasses.dataclass(frozen=True)
class Exact(Hypergradient):
  """The product with second derivatives by forward over reverse mode."""

  name: ClassVar[str] = 'exact'


@dataclasses.dataclass(frozen=True)
class ExactReverse(Hypergradient):
  """The product with second derivatives by reverse over reverse mode."""

  name: ClassVar[str] = 'exact_reverse'


@dataclasses.dataclass(frozen=True)
class Unrolled(Hypergradient):
  """The gradient through several inner steps.

  Attributes:
    steps: T, the number of inner steps.
  """

  name: ClassVar[str] = 'unrolled'

  steps: int = setting(4, at_least=1, at_most=limits.INNER_STEPS)


@dataclasses.dataclass(frozen=True)
class Truncated(Hypergradient):
  """The gradient through the last of several inner steps.

  Attributes:
    steps: T, the number of inner steps.
    backward_steps: K, the number of inner steps, counted from the last, that are differentiated.
  """

  name: ClassVar[str] = 'truncated'

  steps: int = setting(4, at_least=1, at_most=limits.INNER_STEPS)
  backward_steps: int = setting(2, at_least=1, at_most=limits.INNER_STEPS)


@dataclasses.dataclass(frozen=True)
class Neumann(Hypergradient):
  """The implicit gradient by a Neumann series.

  Attributes:
    terms: K, the number of terms beyond the first.
    step_size: γ.
  """

  name: ClassVar[str] = 'neumann'

  terms: int = setting(5, at_least=0, at_most=limits.INNER_STEPS)
  step_size: float = setting(0.01, above=0, at_most=limits.FACTOR)


@dataclasses.dataclass(frozen=True)
class ConjugateGradient(Hypergradient):
  """The implicit gradient by conjugate gradients.

  Attributes:
    iterations: n, the number of iterations.
    damping: δ, added to the diagonal of the Hessian.
  """

  name: ClassVar[str] = 'conjugate_gradient'

  iterations: int = setting(5, at_least=1, at_most=limits.INNER_STEPS)
  damping: float = setting(10.0, above=0, at_most=limits.FACTOR)


@dataclasses.dataclass(frozen=True)
class Amended(Hypergradient):
  """The amended gradient of DARTS+.

  Attributes:
    amending: η, the factor of the second-order term.
  """

  name: ClassVar[str] = 'amended'

  amending: float = setting(0.1, above=0, at_most=limits.FACTOR)


@dataclasses.dataclass(frozen=True)
class Joint(Hypergradient):
  """No hypergradient: one pass over a training batch gives the gradients of weights and α."""

  name: ClassVar[str] = 'joint'


@dataclasses.dataclass(frozen=True)
class Without(Hypergradient):
  """No hypergradient: α stay as they are."""

  name: ClassVar[str] = 'none'


#: Settings classes by name of the estimator, in the order of `ESTIMATORS`.
HYPERGRADIENTS: dict[str, type[Hypergradient]] = {
  'first_order': FirstOrder,
  'finite_difference': FiniteDifference,
  'exact': Exact,
  'exact_reverse': ExactReverse,
  'unrolled': Unrolled,
  'truncated': Truncated,
  'neumann': Neumann,
  'conjugate_gradient': ConjugateGradient,
  'amended': Amended,
  'joint': Joint,
  'none': Without,
}
