"""An evaluator that trains every recurrent architecture from scratch, as a language model."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

from darts_jax.spaces.base import Space
from darts_jax.strategies.sampled import Outcome
from darts_jax.training import comparison, language
from darts_jax.training.language import LanguageTraining
from darts_jax.trials.evaluators.scratch import FromScratch, named


@dataclasses.dataclass(frozen=True)
class ScratchText(FromScratch[LanguageTraining]):
  """Trains language models; the reward is the negative validation loss of the best epoch, in nats per token."""

  measure: ClassVar[str] = 'negative_valid_loss'

  def fingerprint(self, space: Space[Any]) -> Any:
    """See `Evaluator`."""
    with named():
      language.check(self.training)
      return self.training.data.load().fingerprint

  def test(self, outcome: Outcome) -> Mapping[str, float]:
    """Trains the architecture again, with the same seed and so to the same weights, and tests it on the test text."""
    if not self.training.data.test:
      return {}
    with named():
      arch = outcome.proposal.arch
      result = comparison.train_language(self.training, arch, self._pick(arch))
    return {'test_loss': result.test_loss, 'test_perplexity': result.test_perplexity}

  def _train(self, settings: LanguageTraining, arch: Any, folder: pathlib.Path) -> tuple[float, int]:
    result = comparison.train_language(settings, arch, folder)
    return -result.valid_loss, result.num_weights

  def _reward(self, epoch: Mapping[str, Any]) -> float:
    return -float(epoch['valid_loss'])


@dataclasses.dataclass(frozen=True)
class ScratchTextSettings(LanguageTraining):
  """The settings of every training, see `LanguageTraining`; by default the seed is that of the search."""

  def open(self, folder: pathlib.Path) -> ScratchText:
    """See `EvaluatorSettings`."""
    return ScratchText(self, folder)
