"""Whole searches for recurrent cells, stopped and gone on with; what they write, and what they refuse."""

import contextlib
import copy
import functools
import io
import math
import os
import pathlib
import re
import signal
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from darts_jax import search, spaces
from darts_jax.commands import search as command
from darts_jax.runtime import loop as loops
from darts_jax.runtime import metrics
from darts_jax.runtime.checkpoint import Checkpoints
from darts_jax.runtime.mesh import make_mesh
from darts_jax.runtime.progress import Progress
from darts_jax.search import loop
from darts_jax.search.state import SearchState

pytestmark = pytest.mark.usefixtures('undrawn', 'same_programs')


def set_up(patch: pytest.MonkeyPatch) -> None:
  """Searches in this process: on one device, and with programs kept as the tests have set it up."""
  patch.setattr(loop, 'make_mesh', lambda seeds: make_mesh(1))
  patch.setattr(loop, 'enable_cache', lambda: None)


def write_corpus(folder: pathlib.Path) -> None:
  """Sentences that count on from a word, of nine words and an end."""
  rng = np.random.default_rng(0)
  for name, sentences in (('train', 60), ('valid', 14), ('test', 4)):
    lines = [' '.join(f'word{(first + i) % 9}' for i in range(6)) for first in rng.integers(9, size=sentences)]
    (folder / f'{name}.txt').write_text('\n'.join(lines) + '\n')


OPERATIONS = ('none', 'tanh', 'identity')


def make_config(folder: pathlib.Path) -> dict[str, Any]:
  return {
    'epochs': 2,
    'batch_size': 8,
    'task': {'bptt': 6, 'short_fraction': 0.4},
    'log_every': 4,
    'data': {'name': 'files', 'dir': str(folder)},
    'space': {'name': 'recurrent', 'nodes': 2, 'operations': OPERATIONS},
    'network': {
      'width': 6,
      'dropout': {'embedded': 0.0, 'x': 0.1, 'h': 0.1, 'output': 0.1},
    },
    'weights': {'learning_rate': 3.0, 'final_learning_rate': 3.0},
    'hypergradient': {'name': 'first_order'},
  }


class Killed(BaseException):
  """Ends a search as a kill does: nothing is saved any more."""


def kill() -> None:
  raise Killed


class Searches(NamedTuple):
  """The same search twice: one was left alone; one was killed in its second epoch, and terminated there later on.

  Of the latter, the checkpoints after each of its three processes, and what the last one printed.
  """

  config: dict[str, Any]
  whole: pathlib.Path
  result: search.Result
  ends: list[int]
  stopped: pathlib.Path
  checkpoints: list[list[int]]
  output: str


@pytest.fixture(scope='module')
def searches(tmp_path_factory) -> Searches:
  folder = tmp_path_factory.mktemp('text')
  write_corpus(folder)
  config, whole, stopped = make_config(folder), folder / 'whole', folder / 'stopped'
  update = Progress.update
  happenings: dict[int, Any] = {}

  def update_and_act(self, step, values):
    update(self, step, values)
    happenings.pop(step, lambda: None)()

  with pytest.MonkeyPatch.context() as patch:
    set_up(patch)
    result = search.run(config, whole)
    assert result.finished
    ends = [line['step'] for line in metrics.read(whole) if line['kind'] == 'epoch']

    patch.setattr(loops, '_SECONDS_A_CALL', 0.0)  # One step a call.
    patch.setattr(Progress, 'update', update_and_act)
    checkpoints = Checkpoints(stopped / 'checkpoints')
    found = []
    happenings[ends[0] + 2] = kill
    with pytest.raises(Killed):
      search.run(config, stopped)
    found.append(checkpoints.steps())
    # In the middle of the text, where hidden states have been handed on.
    happenings[ends[0] + 5] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    assert command.run(config, stopped) == 130
    found.append(checkpoints.steps())
    with contextlib.redirect_stdout(io.StringIO()) as output:
      assert command.run(config, stopped) == 0
    found.append(checkpoints.steps())
  return Searches(config, whole, result, ends, stopped, found, output.getvalue())


def test_stopped_search_goes_on_from_its_last_checkpoint(searches):
  first, second = searches.ends
  assert searches.checkpoints == [[first], [first, first + 5], [first, first + 5, second]]
  events = [line for line in metrics.read(searches.stopped) if line['kind'] == 'event']
  assert [event['step'] for event in events if event['event'] == 'resumed'] == [first, first + 5]


def leaves(state: SearchState) -> dict[str, np.ndarray]:
  state = state.replace(key=jax.random.key_data(state.key))
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(state)}


def test_stopped_search_ends_bit_for_bit_like_an_uninterrupted_one(searches):
  template = jax.eval_shape(lambda: searches.result.state)
  restored = Checkpoints(searches.stopped / 'checkpoints').restore(template)
  found, expected = leaves(restored.state), leaves(searches.result.state)
  assert restored.step == searches.ends[-1]
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(found[name], value, err_msg=name)
  # Hidden states of both texts are among them.
  carried = [leaf for name, leaf in found.items() if 'carried' in name]
  assert [bool(np.all(leaf)) for leaf in carried] == [True, True]
  assert (searches.stopped / 'genotype.json').read_text() == (searches.whole / 'genotype.json').read_text()
  with np.load(searches.stopped / 'alphas.npz') as a, np.load(searches.whole / 'alphas.npz') as b:
    assert sorted(a.files) == sorted(b.files)
    for name in b.files:
      np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_directory_holds_the_recurrent_architecture(searches):
  found = spaces.load(searches.stopped / 'genotype.json')
  assert found.space == 'recurrent'
  assert found == searches.result.genotype
  with np.load(searches.stopped / 'alphas.npz') as file:
    assert file['step'].tolist() == [0, *searches.ends]
    assert file['recurrent'].shape == (3, 3, 3)
    assert file['edges_recurrent'].tolist() == [[0, 1], [0, 2], [1, 2]]
    assert tuple(file['operations']) == OPERATIONS
    weights = np.exp(file['recurrent'][-1])
  # Node 1 has no choice but of its activation, the better of two; node 2 has one of its source, too.
  best = weights[:, 1:] / weights.sum(axis=1, keepdims=True)
  source = int(np.argmax(best[1:].max(axis=1)))
  rows = (0, 0), (1 + source, source)
  assert found.cell('recurrent').pairs == tuple(
    (OPERATIONS[1 + int(np.argmax(best[row]))], source) for row, source in rows
  )
  assert found.cell('recurrent').outputs == (1, 2)
  assert searches.output.splitlines() == [
    f'genotype: {spaces.to_json(found)}',
    f'validation perplexity of the supernet: {math.exp(searches.result.valid_loss):.2f}',
    f'report: {searches.stopped / "report.html"}',
  ]
  assert math.isnan(searches.result.valid_accuracy)


def test_log_holds_every_measure_of_a_text(searches):
  logs = [metrics.read(workdir) for workdir in (searches.whole, searches.stopped)]
  epochs, others = ([line for line in log if line['kind'] == 'epoch'] for log in logs)
  rows = 7 * 60 // 8
  for line, other, first in zip(epochs, others, (0, *searches.ends[:-1]), strict=True):
    assert line['valid_perplexity'] == pytest.approx(math.exp(line['valid_loss']))
    assert line['train_perplexity'] == pytest.approx(math.exp(line['train_loss']))
    # Three activations that weigh about the same.
    assert line['entropy_recurrent'] == pytest.approx(np.log(3), abs=1e-2)
    # All rows are read once, but for the last or the last two.
    assert rows - 2 <= round(line['sequence_length'] * (line['step'] - first), 3) <= rows - 1
    assert line['tokens_per_second'] > 0
    assert not line.keys() & {'images_per_second', 'skip_connections', 'train_accuracy', 'valid_accuracy'}
    assert other.keys() == line.keys()
    assert other['valid_loss'] == line['valid_loss']
    # Sums over the same steps in calls of other lengths differ by rounding.
    assert other['train_loss'] == pytest.approx(line['train_loss'], rel=1e-6)
  for log in logs:
    assert [line['step'] for line in log if line['kind'] == 'step'] == [*range(4, searches.ends[-1] + 1, 4)]


def test_page_speaks_of_perplexity(searches, parse_page):
  page = parse_page((searches.stopped / 'report.html').read_text())
  assert 'perplexity' in page.text.lower()
  assert 'accuracy' not in page.text.lower()
  for activation, _ in searches.result.genotype.cell('recurrent').pairs:
    assert activation in page.text


def test_another_text_is_another_search(searches, monkeypatch):
  set_up(monkeypatch)
  path = searches.whole.parent / 'valid.txt'
  text = path.read_text()
  path.write_text(text.replace('word3', 'word4', 1))
  message = rf'^--workdir: {searches.stopped} holds a search with another config \(config.dataset.valid.sha256: [^\n]*$'
  with pytest.raises(ValueError, match=message):
    command.run(searches.config, searches.stopped)
  path.write_text(text)
  assert command.run(searches.config, searches.stopped) == 0


@pytest.fixture
def config(tmp_path, monkeypatch) -> dict[str, Any]:
  set_up(monkeypatch)
  write_corpus(tmp_path)
  return make_config(tmp_path)


def change(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
  config = copy.deepcopy(config)
  *groups, name = path.split('.')
  functools.reduce(lambda group, key: group[key], groups, config)[name] = value
  return config


@pytest.mark.parametrize(
  ('path', 'value', 'message'),
  [
    ('space', 'recurent', "config.space.name: 'recurent' is not known; did you mean 'recurrent'? allowed are darts"),
    (
      'space.operations',
      ('none', 'sep_conv_3x3'),
      "config.space.operations: 'sep_conv_3x3' is not an operation; allowed are none, tanh, relu, sigmoid, identity",
    ),
    ('batch_size', 40, 'config.batch_size: 40 is too large; the validation text of files has 98 tokens'),
    ('data.dir', '/nowhere', "config.data.dir '/nowhere' is not a folder"),
    ('data.name', 'cifar10', "config.data.name: 'cifar10' is not known"),
    ('network.channels', 4, 'config.network.channels: unknown field'),
    ('task.bptt', 1, 'config.task.bptt: 1 is not allowed; it has to be ≥ 2'),
  ],
)
def test_what_cannot_be_searched_is_one_line_and_leaves_nothing(config, tmp_path, path, value, message):
  with pytest.raises(ValueError, match=f'^{re.escape(message)}[^\n]*$'):
    command.run(change(config, path, value), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('part', ['train', 'valid', 'test'])
def test_split_that_is_missing_is_named(config, tmp_path, part):
  (tmp_path / f'{part}.txt').unlink()
  with pytest.raises(ValueError, match=f'^config.data.dir .* but not {part}.txt'):
    command.run(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
