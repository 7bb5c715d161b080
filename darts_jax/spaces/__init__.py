"""Search spaces: architectures, their files, and their derivation from mixing weights. Nothing here imports JAX."""

from darts_jax.spaces.base import Space
from darts_jax.spaces.cells import CellSpace, CellSpec, Edge, Genotype, full_cell
from darts_jax.spaces.darts import Darts
from darts_jax.spaces.decisions import complete, undecided_edges
from darts_jax.spaces.derivation import strongest
from darts_jax.spaces.doubts import Doubts, doubts
from darts_jax.spaces.files import (
  SPACES,
  from_json,
  kind_of,
  load,
  look_of,
  published,
  resolve,
  save,
  space_of,
  to_json,
  to_text,
)
from darts_jax.spaces.look import Look
from darts_jax.spaces.mixing import Mixing
from darts_jax.spaces.plan import BLOCKS, Layer, Plan
from darts_jax.spaces.recurrent import Recurrent

__all__ = [
  'BLOCKS',
  'SPACES',
  'CellSpace',
  'CellSpec',
  'Darts',
  'Doubts',
  'Edge',
  'Genotype',
  'Layer',
  'Look',
  'Mixing',
  'Plan',
  'Recurrent',
  'Space',
  'complete',
  'doubts',
  'from_json',
  'full_cell',
  'kind_of',
  'load',
  'look_of',
  'published',
  'resolve',
  'save',
  'space_of',
  'strongest',
  'to_json',
  'to_text',
  'undecided_edges',
]
