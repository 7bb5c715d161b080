"""A search for a recurrent cell whose trials are trainings of language models."""

import json

import numpy as np
import pytest

from configs import text_random
from darts_jax import searches, spaces
from darts_jax.runtime import metrics
from darts_jax.settings import build
from darts_jax.strategies.sampled import Proposal
from darts_jax.training import comparison
from darts_jax.training.language import LanguageResult
from darts_jax.training.language import loop as language_loop
from darts_jax.trials import TrialSearch
from darts_jax.trials.evaluators.base import evaluate
from darts_jax.trials.evaluators.scratch_text import ScratchText

pytestmark = pytest.mark.usefixtures('same_programs')

SPACE = spaces.Recurrent(nodes=1, operations=('tanh', 'identity'))


@pytest.fixture
def config(tmp_path):
  """One node, and text of a few words."""
  rng = np.random.default_rng(0)
  for name, lines in (('train', 60), ('valid', 12), ('test', 12)):
    words = rng.integers(0, 6, (lines, 9))
    (tmp_path / f'{name}.txt').write_text('\n'.join(' '.join(f'w{word}' for word in line) for line in words) + '\n')
  found = text_random.get_config()
  found.trials = 2
  found.space.update(nodes=1, operations=('tanh', 'identity'))
  found.evaluator.update(epochs=2, batch_size=8, bptt=5, log_every=5, valid_batch_size=2, seed=7)
  found.evaluator.data.update(name='files', dir=str(tmp_path))
  found.evaluator.network.width = 4
  return found


def test_the_reward_is_the_negative_validation_loss_and_the_pick_alone_is_tested(
  config, tmp_path, monkeypatch, parse_page
):
  monkeypatch.setattr(language_loop, 'enable_cache', lambda: None)
  workdir = tmp_path / 'run'
  result = searches.run(config, workdir)
  for outcome in result.outcomes:
    folder = workdir / 'trials' / str(outcome.proposal.number)
    losses = [line['valid_loss'] for line in metrics.read(folder) if line['kind'] == 'epoch']
    assert (-outcome.reward, [-value for value in outcome.curve]) == (pytest.approx(min(losses)), losses)
    assert all(line['kind'] != 'test' for line in metrics.read(folder))
    assert json.loads((folder / 'config.json').read_text())['seed'] == 7
  assert result.reward == max(outcome.reward for outcome in result.outcomes)
  [test] = [line for line in metrics.read(workdir / 'pick') if line['kind'] == 'test']
  assert result.test == {'test_loss': test['loss'], 'test_perplexity': test['perplexity']}
  assert result.lines[0] == f'negative validation loss of the best architecture: {result.reward:.6g}'
  page = parse_page(result.report.read_text())
  assert f'Best negative validation loss {result.reward:.6g} trial' in page.text
  assert 'log_probabilities, hidden = apply(variables, tokens, hidden)' in page.text
  assert searches.run(config, workdir) == result


def test_a_part_of_the_budget_is_a_part_of_the_epochs(config, tmp_path, monkeypatch):
  calls = []

  def run(settings, folder, genotype):
    calls.append(settings)
    folder.mkdir(parents=True)
    (folder / 'metrics.jsonl').write_text('')
    return LanguageResult(*[float('nan')] * 2, 8.0, 2.5, 30, True, False, folder / 'report.html')

  monkeypatch.setattr(comparison.language, 'run', run)
  evaluator = ScratchText(build(TrialSearch, config).evaluator, tmp_path / 'trials')
  arch = SPACE.sample(np.random.default_rng(0))
  outcome = evaluate(evaluator, Proposal(3, arch, budget=0.5))
  assert (outcome.reward, outcome.measures, outcome.curve) == (-2.5, {'parameters': 30.0}, ())
  assert (calls[0]['epochs'], calls[0]['data']['test']) == (1, False)


def test_images_are_for_another_evaluator(config, tmp_path):
  fields = config.to_dict()
  with pytest.raises(
    ValueError, match='^config.evaluator.name: its trainings are on text; architectures of the space da'
  ):
    searches.run({**fields, 'space': 'darts'}, tmp_path / 'run')
  config.evaluator.data.dir = str(tmp_path / 'nowhere')
  with pytest.raises(ValueError, match='^config.evaluator.data.dir'):
    searches.run(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
