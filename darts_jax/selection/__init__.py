"""The paper's protocol [DARTS §3.2]: several searches, selection by validation, training and test of the selected cell.

`run` performs it. Test images are read only by the final trainings.
"""

from darts_jax.runtime.loop import Diverged
from darts_jax.selection.page import markdown
from darts_jax.selection.random_cells import random_genotype
from darts_jax.selection.settings import Selection
from darts_jax.selection.stages import run
from darts_jax.selection.versus import against_random
from darts_jax.training.comparison import Interrupted

__all__ = ['Diverged', 'Interrupted', 'Selection', 'against_random', 'markdown', 'random_genotype', 'run']
