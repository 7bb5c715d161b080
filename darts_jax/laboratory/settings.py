"""The settings of the hypergradient laboratory."""

import dataclasses

from darts_jax import limits
from darts_jax.hypergradient import BILEVEL, ESTIMATORS
from darts_jax.hypergradient.settings import HYPERGRADIENTS, Hypergradient
from darts_jax.search.settings import Search, check_alone, placed_task
from darts_jax.settings import setting

PROBLEMS = ('quadratic', 'supernet')
PRECISIONS = ('float32', 'float64', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class Quadratic:
  """Settings of the random quadratic bilevel problem.

  Attributes:
    weights: number of weights.
    alphas: number of α.
    condition: condition number of the inner Hessian.
  """

  weights: int = setting(20, at_least=1, at_most=1000)
  alphas: int = setting(6, at_least=1, at_most=1000)
  condition: float = setting(100.0, at_least=1, at_most=1e12)


#: Settings of every estimator by name. The search's own estimator uses `search.hypergradient` instead, and the fields
#: that all estimators share are those of `search.hypergradient`, too.
Estimators = dataclasses.make_dataclass(
  'Estimators', [(name, HYPERGRADIENTS[name], setting(HYPERGRADIENTS[name]())) for name in BILEVEL], frozen=True
)


@dataclasses.dataclass(frozen=True)
class Laboratory:
  """Settings of a run of the laboratory.

  Attributes:
    problems: any of `quadratic` and `supernet`; the paper's toy problem is always solved.
    estimators: names of the estimators, in the order of the tables.
    precisions: precisions in which the supernet is measured; the references are always computed in float64.
    reference_steps: T of the unrolled gradient that is the second reference.
    repeats: number of timed calls of every estimator.
    radii: number of radii of the finite difference, spaced evenly in the logarithm from 1e-7 to 1.
    batch_sizes: batch sizes that are compared with the search's own.
    images: number of images in the largest mean over batches; the reference is a mean over twice as many images, in
      other batches.
    search_steps: number of steps of the search along which estimators are compared.
    compare_every: number of search steps from one comparison to the next.
    unrolled_steps: numbers T of inner steps of the unrolled gradients whose cost is measured.
    quadratic: see `Quadratic`.
    fields: see `Estimators`.
    search: settings of the supernet, its data and its estimator.
  """

  problems: tuple[str, ...] = setting(PROBLEMS)
  estimators: tuple[str, ...] = setting(BILEVEL)
  precisions: tuple[str, ...] = setting(PRECISIONS)
  reference_steps: int = setting(4, at_least=1, at_most=limits.INNER_STEPS)
  repeats: int = setting(3, at_least=1, at_most=limits.STEPS)
  radii: int = setting(22, at_least=2, at_most=limits.RUNS)
  batch_sizes: tuple[int, ...] = setting((128,), at_least=1, at_most=limits.BATCH)
  images: int = setting(512, at_least=1, at_most=limits.STEPS)
  search_steps: int = setting(40, at_least=1, at_most=limits.STEPS)
  compare_every: int = setting(8, at_least=1, at_most=limits.STEPS)
  unrolled_steps: tuple[int, ...] = setting((1, 2, 4, 8), at_least=1, at_most=limits.INNER_STEPS)
  quadratic: Quadratic = setting(Quadratic())
  fields: Estimators = setting(Estimators())  # type: ignore[valid-type]
  search: Search = setting(Search())

  def __post_init__(self) -> None:
    methods = [('estimators', name) for name in self.estimators]
    methods.append(('search.hypergradient.name', self.search.hypergradient.name))
    for where, name in methods:
      if name in ESTIMATORS and name not in BILEVEL:
        raise ValueError(f'config.{where}: {name!r} estimates no hypergradient; allowed are {", ".join(BILEVEL)}')
    for field, allowed in (('problems', PROBLEMS), ('estimators', BILEVEL), ('precisions', PRECISIONS)):
      unknown = [name for name in getattr(self, field) if name not in allowed]
      if unknown:
        raise ValueError(f'config.{field}: {unknown[0]!r} is not known; allowed are {", ".join(allowed)}')
    check_alone(self.search, 'config.search')
    placed_task(self.search, 'config.search')
    if not self.estimators:
      raise ValueError('config.estimators: () is empty; at least one is compared')
    if not self.precisions:
      raise ValueError('config.precisions: () is empty; at least one is measured')
    for each in dataclasses.fields(Estimators):
      for shared in dataclasses.fields(Hypergradient):
        if getattr(getattr(self.fields, each.name), shared.name) != shared.default:
          raise ValueError(
            f'config.fields.{each.name}.{shared.name}: all estimators have that of'
            f' config.search.hypergradient.{shared.name}; set it there'
          )
    for name in self.estimators:
      own = name == self.search.hypergradient.name
      try:
        self.hypergradient(name).estimator()
      except ValueError as error:
        path = 'config.search.hypergradient' if own else f'config.fields.{name}'
        raise ValueError(str(error).replace('config.hypergradient', path)) from error
    largest = max((*self.batch_sizes, self.search.batch_size))
    if self.images < largest:
      raise ValueError(f'config.images: {self.images} is not allowed; the largest batch has {largest} images')

  def hypergradient(self, name: str) -> Hypergradient:
    """The settings of an estimator; the fields that all estimators share are those of the search."""
    own = self.search.hypergradient
    if own.name == name:
      return own
    found: Hypergradient = dataclasses.replace(own.other(name), **getattr(self.fields, name).fields)
    return found
