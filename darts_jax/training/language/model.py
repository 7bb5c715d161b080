"""Description of a trained language model without its weights: architecture, width, vocabulary."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from darts_jax import limits, spaces
from darts_jax.nets.cost import language_parts_of
from darts_jax.nets.recurrent import LanguageModel
from darts_jax.spaces import Genotype
from darts_jax.training.workdir import SPACE, Described, check_numbers


@dataclasses.dataclass(frozen=True)
class RecurrentModel(Described):
  """A language model and its words; all fields but the genotype are JSON values.

  Attributes:
    genotype: the architecture.
    width: width of embedding and hidden states.
    vocabulary: the words; the id of a word is its index, so `{word: i for i, word in enumerate(vocabulary)}` gives ids.
  """

  kind: ClassVar[str] = 'language model'

  genotype: Genotype
  width: int
  vocabulary: tuple[str, ...]

  @property
  def num_weights(self) -> int:
    """Number of parameters of the network; decoder and embedding share their weights."""
    [(_, cell)] = self.genotype.cells
    return sum(part.weights for part in language_parts_of(cell, self.width, len(self.vocabulary)))

  def network(self, precision: str = 'float32') -> LanguageModel:
    """The Flax module; see `LanguageModel` for the precision."""
    [(_, cell)] = self.genotype.cells
    return LanguageModel(cell, len(self.vocabulary), self.width, precision=precision)

  def to_dict(self) -> dict[str, Any]:
    """The description as JSON values."""
    return {SPACE: 'recurrent', **dataclasses.asdict(self), 'genotype': spaces.to_json(self.genotype)}

  @classmethod
  def from_dict(cls, values: Mapping[str, Any]) -> Self:
    """See the base class."""
    fields = cls.fields(values, SPACE)
    found = spaces.from_json(fields['genotype'])
    if found.space != spaces.Recurrent.name:
      raise ValueError(f'genotype: a {spaces.kind_of(found)} architecture; a recurrent one is needed')
    width, vocabulary = fields['width'], fields['vocabulary']
    check_numbers({'width': width}, 1, {'width': limits.WIDTH})
    if not isinstance(vocabulary, list) or not vocabulary or not all(isinstance(word, str) for word in vocabulary):
      raise ValueError('vocabulary: not a list of words')
    return cls(found, width, tuple(vocabulary))
