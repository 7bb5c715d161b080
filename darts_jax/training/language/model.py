"""What a trained language model is besides its weights: architecture, width, vocabulary."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from darts_jax import genotype as genotypes
from darts_jax.genotype import RecurrentGenotype
from darts_jax.nets.recurrent import LanguageModel, count_weights
from darts_jax.runtime.workdir import write_whole
from darts_jax.training.model import FILE, SPACE


@dataclasses.dataclass(frozen=True)
class RecurrentModel:
  """A language model and its words; all of it JSON values but the genotype.

  Attributes:
    genotype: its cell.
    width: of embedding and states.
    vocabulary: words; the id of a word is its place, so `{word: i for i, word in enumerate(vocabulary)}` gives ids.
  """

  genotype: RecurrentGenotype
  width: int
  vocabulary: tuple[str, ...]

  @property
  def num_weights(self) -> int:
    """Parameters of the network; decoder and embedding share theirs."""
    return count_weights(self.genotype.cell(), self.width, len(self.vocabulary))

  def network(self, precision: str = 'float32') -> LanguageModel:
    """The network; see there for the precision."""
    return LanguageModel(self.genotype.cell(), len(self.vocabulary), self.width, precision=precision)

  def to_dict(self) -> dict[str, Any]:
    """As JSON values."""
    return {SPACE: 'recurrent', **dataclasses.asdict(self), 'genotype': genotypes.to_dict(self.genotype)}

  @classmethod
  def from_dict(cls, values: Mapping[str, Any]) -> 'RecurrentModel':
    """From JSON values.

    Raises:
      ValueError: a field is missing, unknown or of the wrong form, or the genotype is none of a language model.
    """
    names = [SPACE, *(field.name for field in dataclasses.fields(cls))]
    if sorted(values) != sorted(names):
      wrong = sorted(set(values) ^ set(names))
      raise ValueError(f'{wrong[0]}: missing or unknown; a language model has the fields {", ".join(names)}')
    found = genotypes.from_dict(values['genotype'])
    if not isinstance(found, RecurrentGenotype):
      raise ValueError('genotype: a convolutional architecture; a recurrent one is needed')
    width, vocabulary = values['width'], values['vocabulary']
    if not isinstance(width, int) or width < 1:
      raise ValueError(f'width: {width!r} is not a positive integer')
    if not isinstance(vocabulary, list) or not vocabulary or not all(isinstance(word, str) for word in vocabulary):
      raise ValueError('vocabulary: not a list of words')
    return cls(found, width, tuple(vocabulary))


def write(model: RecurrentModel, workdir: pathlib.Path) -> None:
  """Writes `model.json` and, for other commands, `genotype.json` into a folder that exists."""
  genotypes.save(model.genotype, workdir / 'genotype.json')
  write_whole(workdir / FILE, (json.dumps(model.to_dict(), indent=2) + '\n').encode())


def read(workdir: pathlib.Path) -> RecurrentModel:
  """The language model of a training's working directory.

  Raises:
    ValueError: there is none, or it cannot be read.
  """
  path = workdir / FILE
  try:
    return RecurrentModel.from_dict(json.loads(path.read_text()))
  except OSError as error:
    raise ValueError(f'{path}: cannot be read ({error.strerror}); a training writes it into its workdir') from error
  except (TypeError, ValueError) as error:
    raise ValueError(f'{path}: no language model ({error})') from error
