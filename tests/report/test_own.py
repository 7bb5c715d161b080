"""A space and a strategy that the package does not know get a whole page, drawn from what their search has written."""

import dataclasses
import json
import re
from typing import ClassVar

import jax
import numpy as np
import pytest

from darts_jax import report, spaces
from darts_jax.report import workdir
from darts_jax.search.records import AlphaHistory
from darts_jax.search.searched import Searched
from darts_jax.spaces import CellSpace, CellSpec, Edge, Look, Mixing
from darts_jax.strategies.relaxed import Relaxed, Turn

KEY = jax.random.key(0)


class Ladder(CellSpace):
  """Two kinds of cells: rungs whose nodes keep both of their edges, one of which has two candidates, and a top."""

  name = 'ladder'
  look = Look(titles={'rung': 'The rung', 'top': 'The top'}, inputs=('left', 'right'), output='up', legend='A ladder.')

  @property
  def cells(self):
    operations = ('none', 'wood', 'rope', 'steel')
    nodes = tuple((Edge(0, ('wood', 'rope')), Edge(node - 1, operations)) for node in (2, 3, 4))
    top = ((Edge(0, ('flat', 'round')),),)
    return {
      'rung': CellSpec(nodes, operations, num_inputs=2, outputs=(3, 4), output='mean', kept=None),
      'top': CellSpec(top, ('flat', 'round'), num_inputs=1, outputs=(1,), output='last', kept=1),
    }


@dataclasses.dataclass(frozen=True)
class Weakest(Relaxed):
  """Mixes by squares, drops the weakest operation of every edge after every epoch, and weighs the edges of the top."""

  name = 'weakest'
  draws: ClassVar[bool] = False
  legend: ClassVar[str] = 'After every epoch the weakest operation & its weight are gone.'

  def init(self, space, key):
    return [np.linspace(1, 2, spec.num_edges * len(spec.operations)) for spec in space.cells.values()]

  def mix(self, arch, space, cells, time, key, purpose):
    found = {}
    for values, (name, spec) in zip(arch, space.cells.items(), strict=True):
      there = [[operation in edge.operations for operation in spec.operations] for _, edge in cells[name].edges]
      weights = np.square(values).reshape(spec.num_edges, -1) * np.array(there)
      edges = np.ones(spec.num_edges) if name == 'top' else None
      found[name] = Mixing(weights / weights.sum(axis=1, keepdims=True), edges)
    return found

  def start(self):
    return 0

  def cells(self, space, memory):
    found = {}
    for name, spec in space.cells.items():
      nodes = tuple(
        tuple(Edge(edge.source, edge.operations[min(memory, len(edge.operations) - 1) :]) for edge in node)
        for node in spec.nodes
      )
      found[name] = dataclasses.replace(spec, nodes=nodes)
    return found

  def turn(self, memory, arch, space, epoch, probe):
    return Turn(memory + 1, {'loss_of_it': {name: np.arange(spec.num_edges) / 8 for name, spec in space.cells.items()}})

  def read(self, arch, space, memory):
    chosen = self.cells(space, memory)
    return space.genotype(
      {
        name: cell.discrete([[(edge.operations[0], edge.source) for edge in node] for node in cell.nodes])
        for name, cell in chosen.items()
      }
    )


@pytest.fixture
def folder(tmp_path):
  """A search of three epochs, of whose rungs an edge is decided after the first, and all others after the third."""
  searched = Searched.start(Weakest(), Ladder(), (30,))
  history = AlphaHistory(tmp_path, searched, None)
  arch = searched.init(KEY)
  history.append(0, 0, arch, KEY, searched, {})
  records = []
  for epoch in range(3):
    searched, turned = searched.turn(arch, epoch)
    history.append(10 * (epoch + 1), epoch + 1, arch, KEY, searched, turned.scores)
    step = {'kind': 'step', 'step': 10 * epoch + 5, 'epoch': epoch, 'entropy_rung': 1.0, 'entropy_top': 0.5}
    done = {'kind': 'epoch', 'step': 10 * (epoch + 1), 'epoch': epoch, 'train_loss': 1.0, 'valid_loss': 1.5}
    records += [step, done]
  (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
  (tmp_path / 'genotype.json').write_text(json.dumps(Ladder().to_json(searched.read(arch))))
  return tmp_path


@pytest.mark.parametrize('known', [False, True])
def test_the_page_of_a_space_and_a_strategy_of_ones_own(folder, parse_page, monkeypatch, known):
  if known:
    monkeypatch.setitem(spaces.SPACES, 'ladder', Ladder)
  parsed = parse_page(report.write(folder).read_text())
  rung, top = ('The rung', 'The top') if known else ('rung', 'top')
  labels = [value for name, value in parsed.attributes if name == 'aria-label']
  for cell in (rung, top):
    assert f'{cell}: mixing weights of every edge over time.' in labels
    assert f'{cell}: scores and decisions of its edges over time.' in labels
  assert f'{top}: the weight of every edge in its node over time.' in labels
  assert not any('edge in its node' in label for label in labels if label.startswith(rung))
  names = ('left', 'right', '0', '1', '2') if known else ('0', '1', '2', '3', '4')
  kept = [(0, 2, 'rope'), (1, 2, 'steel'), (0, 3, 'rope'), (2, 3, 'steel'), (0, 4, 'rope'), (3, 4, 'steel')]
  drawn = '; '.join(f'{names[source]} to {names[target]} by {operation}' for source, target, operation in kept)
  assert f'{rung}: {drawn}.' in labels
  assert f'{top}: {"left" if known else "0"} to {"right" if known else "1"} by round.' in labels
  assert 'After every epoch the weakest operation & its weight are gone.' in parsed.text
  assert ('A ladder.' in parsed.text) == known
  # The edges that had two candidates are decided first.
  table = parsed.text.partition('Removed with it ')[2]
  assert table.startswith(
    f'1 {rung} {names[0]} → {names[2]} rope 0.000 – 1 {rung} {names[0]} → {names[3]} rope 0.250 –'
  )
  assert 'Loss of it' in parsed.texts
  assert '3 of 6 edges decided' in parsed.text
  assert ('Train it from scratch' in parsed.text) == known
  assert ("space: 'ladder' is not known" in parsed.text) == (not known)
  [copied] = [json.loads(text) for text in parsed.texts if re.match(r'\{\s*"space"', text)]
  assert copied == json.loads((folder / 'genotype.json').read_text())


def test_edges_that_lost_some_of_their_operations_have_the_others(folder):
  found = workdir.read(folder).history
  assert found.cells == Ladder().cells
  left = [[edge.operations for _, edge in found.cell('rung', i).edges][:2] for i in range(4)]
  assert left == [
    [('wood', 'rope'), ('none', 'wood', 'rope', 'steel')],
    [('rope',), ('wood', 'rope', 'steel')],
    [('rope',), ('rope', 'steel')],
    [('rope',), ('steel',)],
  ]
  for i, column in enumerate((0, 1, 2, 3)):
    weights = found.mixing['rung'][i, 1]
    assert (weights[:column] == 0).all()
    # The squares of 1 + k / 23 for the fifth to eighth of 24 values.
    squares = np.square(1 + np.arange(4, 8) / 23)[column:]
    np.testing.assert_allclose(weights[column:], squares / squares.sum(), rtol=1e-6)
