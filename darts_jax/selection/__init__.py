"""From several architectures to one trained network, without a look at the test images until the end.

`run` is the paper's protocol of searches and trainings.
"""

from darts_jax.runtime.loop import Diverged
from darts_jax.selection.page import markdown
from darts_jax.selection.random_cells import random_genotype
from darts_jax.selection.settings import Selection
from darts_jax.selection.stages import run
from darts_jax.training.comparison import Interrupted

__all__ = ['Diverged', 'Interrupted', 'Selection', 'markdown', 'random_genotype', 'run']
