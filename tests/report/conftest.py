"""Small made-up searches and a training, as files."""

import json
import math
import pathlib
from collections.abc import Sequence

import numpy as np
import pytest

from darts_jax import spaces
from darts_jax.spaces import darts

_LEGEND = 'The score is <made> up.'
_HOSTILE = '</td></table><script>alert("1")</script><img src=http://example.com/x.png>&amp;'


def _metrics() -> list[dict]:
  """Three epochs of four steps; the loss of step 6 is not finite, steps 9 and 10 are repeated after a resume."""
  records: list[dict] = [{'kind': 'event', 'step': 0, 'event': 'compiled', 'message': 'in 61.3 s'}]
  for step in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 9, 10, 11, 12]:
    epoch = (step - 1) // 4
    records.append(
      {
        'kind': 'step',
        'step': step,
        'epoch': epoch,
        'train_loss': 'nan' if step == 6 else 2.0 / step,
        'train_accuracy': 0.05 * step,
        'valid_loss': 2.5 / step,
        'valid_accuracy': 0.04 * step,
        'learning_rate': 0.025,
        'weights_gradient_norm': 1.0 + step,
        'alphas_gradient_norm': 0.1 / step,
        'entropy_normal': 2.0,
        'entropy_reduce': 1.9,
        'skip_connections': 2,
        'images_per_second': 800.0 + step,
      }
    )
    if step % 4 == 0:
      records.append(
        {
          'kind': 'epoch',
          'step': step,
          'epoch': epoch,
          'train_loss': 1.0,
          'train_accuracy': 0.9,
          'valid_loss': 1.1,
          'valid_accuracy': 0.8 + 0.01 * epoch + 0.0065,
          'seconds': 60.0,
        }
      )
  records.insert(13, {'kind': 'event', 'step': 8, 'event': 'resumed', 'message': f'from {_HOSTILE}'})
  records.append({'kind': 'event', 'step': 12, 'event': 'finished', 'message': ''})
  return records


def _alphas_of(architecture: spaces.Genotype, space: spaces.CellSpace, strength: float) -> dict[str, np.ndarray]:
  """`[E, O]` raw α in which the operations of the edges of an architecture stand out by `strength`."""
  alphas = {}
  for cell, spec in space.cells.items():
    rows = {(edge.source, target): row for row, (target, edge) in enumerate(spec.edges)}
    alphas[cell] = np.zeros((spec.num_edges, len(spec.operations)))
    for target, edge in architecture.cell(cell).edges:
      alphas[cell][rows[edge.source, target], spec.operations.index(edge.operations[0])] = strength
  return alphas


def _written(
  space: spaces.CellSpace, architectures: Sequence[spaces.Genotype], left: dict[str, np.ndarray], alphas: dict
) -> dict[str, np.ndarray]:
  """What `alphas.npz` of a search by DARTS or SGAS holds besides scores, with snapshots four steps apart.

  `left` and α are `[T, E, O]` by kind of cell; mixing weights are the softmax of α over what is left.
  """
  arrays = {'step': 4 * np.arange(len(architectures)), 'epoch': np.arange(len(architectures))}
  cells = {}
  for name, spec in space.cells.items():
    exponentials = np.where(left[name], np.exp(alphas[name]), 0)
    total = exponentials.sum(axis=-1, keepdims=True)
    arrays[f'mixing_{name}'] = exponentials / np.where(total == 0, 1, total)
    arrays[f'left_{name}'] = left[name]
    arrays[name] = np.where(left[name], alphas[name], -math.inf)
    arrays[f'edges_{name}'] = np.array([(edge.source, target) for target, edge in spec.edges])
    nodes = [[[edge.source, edge.operations] for edge in edges] for edges in spec.nodes]
    fields = ('operations', 'num_inputs', 'outputs', 'output', 'kept')
    cells[name] = {'nodes': nodes, **{field: getattr(spec, field) for field in fields}}
    arrays['operations'] = np.array(spec.operations)
  found = []
  for architecture in architectures:
    pairs = {
      name: {
        'nodes': [[[edge.operations[0], edge.source] for edge in edges] for edges in cell.nodes],
        'outputs': cell.outputs,
      }
      for name, cell in architecture.cells
    }
    found.append(json.dumps(pairs))
  return {
    **arrays,
    'topology': np.array(json.dumps({'space': space.name, 'legend': _LEGEND, 'cells': cells})),
    'genotype': np.array([json.dumps(spaces.to_json(architecture)) for architecture in architectures]),
    'cells': np.array(found),
    'not_settled': np.array([''] * len(architectures)),
  }


@pytest.fixture(scope='session')
def hostile() -> str:
  """Text that the made-up search has among its settings and messages."""
  return _HOSTILE


@pytest.fixture
def search_folder(tmp_path) -> pathlib.Path:
  """The folder of a made-up search that ended at DARTS_V2, by way of P-DARTS' cells and those of DARTS_V1."""
  config = {
    'dataset': 'CIFAR-10',
    'seed': 3,
    'num_epochs': 3,
    'estimator': 'exact',
    'note': _HOSTILE,
    'weights': {'learning_rate': 0.025, _HOSTILE: None},
  }
  (tmp_path / 'config.json').write_text(json.dumps(config))
  (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in _metrics()))
  published = spaces.published()
  spaces.save(published['DARTS_V2'], tmp_path / 'genotype.json')
  _save_alphas(tmp_path, spaces.Darts(), ('PDARTS', 'DARTS_V1', 'DARTS_V2', 'DARTS_V2'))
  return tmp_path


@pytest.fixture
def recurrent_search_folder(tmp_path) -> pathlib.Path:
  """The folder of a made-up search on text that ended at RNN_DARTS_V2, by way of the cells of RNN_DARTS_V1."""
  config = {
    'space': {'name': 'recurrent'},
    'task': {'name': 'text'},
    'seed': 5,
    'epochs': 3,
    'data': {'name': 'files', 'dir': '/texts/novels'},
    'network': {'width': 30},
    'hypergradient': {'name': 'exact'},
  }
  records: list[dict] = []
  for step in range(1, 13):
    means = {
      'train_loss': 7.0 - 0.25 * step,
      'train_perplexity': math.exp(7.0 - 0.25 * step),
      'weights_gradient_norm': 0.2,
      'clipped': 0.5,
      'alphas_gradient_norm': 0.01,
      'second_order_fraction': 0.02,
      'learning_rate': 20.0 - step,
      'sequence_length': 35 - step,
      'tokens_per_second': 20_000.0 + step,
      'entropy_recurrent': 1.6 - 0.01 * step,
    }
    epoch = (step - 1) // 4
    records.append({'kind': 'step', 'step': step, 'epoch': epoch, **means, 'valid_loss': 7.5 - 0.25 * step})
    if step % 4 == 0:
      evaluated = {'valid_loss': 7.1 - epoch, 'valid_perplexity': math.exp(7.1 - epoch), 'seconds': 9.0}
      records.append({'kind': 'epoch', 'step': step, 'epoch': epoch, **means, **evaluated})
  records.append({'kind': 'event', 'step': 12, 'event': 'finished', 'message': '3 epochs done'})
  (tmp_path / 'config.json').write_text(json.dumps(config))
  (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
  spaces.save(spaces.published()['RNN_DARTS_V2'], tmp_path / 'genotype.json')
  names = ('RNN_DARTS_V1', 'RNN_DARTS_V1', 'RNN_DARTS_V2', 'RNN_DARTS_V2')
  _save_alphas(tmp_path, spaces.Recurrent(), names)
  return tmp_path


@pytest.fixture(scope='session')
def deciding_search() -> tuple[dict[str, np.ndarray], list[tuple]]:
  """A made-up search that decides eight edges of either cell, one after every second of 17 epochs.

  What its `alphas.npz` holds, and in their order its decisions: snapshot, cell, edge, operation, score, edges removed.
  """
  return _decide(spaces.Darts(), num_snapshots=18, first=2, every=2)


@pytest.fixture
def deciding_search_folder(tmp_path, deciding_search) -> pathlib.Path:
  """The folder of that search."""
  _save_deciding_search(tmp_path, *deciding_search)
  return tmp_path


def _decide(space: spaces.CellSpace, num_snapshots: int, first: int, every: int) -> tuple[dict[str, np.ndarray], list]:
  """What `alphas.npz` of a search by criterion 2 [SGAS §3] holds whose α drift apart, and its decisions in order."""
  rng = np.random.default_rng(0)
  spec = next(iter(space.cells.values()))
  real = [column for column, operation in enumerate(spec.operations) if operation != 'none']
  edges = [(edge.source, target) for target, edge in spec.edges]
  scores: dict[str, list[np.ndarray]] = {}
  raw, left, found = ({cell: [] for cell in space.cells} for _ in range(3))
  told: list[tuple] = []
  for cell in space.cells:
    drift, past = rng.normal(size=(len(edges), len(spec.operations))), None
    fixed: dict[int, int] = {}
    undecided = set(range(len(edges)))
    for snapshot in range(num_snapshots):
      alphas = 1.5 * snapshot / num_snapshots * drift + 0.05 * rng.normal(size=drift.shape)
      weights = np.exp(alphas) / np.exp(alphas).sum(axis=1, keepdims=True)
      importance = weights[:, real].sum(axis=1)
      chances = weights[:, real] / importance[:, None]
      certainty = 1 + (chances * np.log(chances)).sum(axis=1) / math.log(len(real))
      stability = np.zeros(len(edges)) if past is None else np.minimum(chances, past).sum(axis=1)
      criteria, past = {'importance': importance, 'certainty': certainty, 'stability': stability}, chances
      criteria['score'] = np.prod([(c - c.min()) / max(np.ptp(c), 1e-12) for c in criteria.values()], axis=0)
      if snapshot >= first and (snapshot - first) % every == 0 and undecided:
        row = max(undecided, key=lambda row: criteria['score'][row])
        fixed[row] = real[chances[row].argmax()]
        undecided.remove(row)
        full = sum(edges[other][1] == edges[row][1] for other in fixed) == 2
        gone = sorted(other for other in undecided if full and edges[other][1] == edges[row][1])
        undecided -= set(gone)
        operation, removed = spec.operations[fixed[row]], tuple(edges[other] for other in gone)
        told.append((snapshot, cell, edges[row], operation, criteria['score'][row], removed))
      there = np.zeros(alphas.shape, bool)
      there[sorted(undecided)] = True
      there[list(fixed), list(fixed.values())] = True
      raw[cell].append(alphas)
      left[cell].append(there)
      found[cell].append(
        spaces.complete(weights, spec, {row: spec.operations[column] for row, column in fixed.items()})
      )
      for name, values in criteria.items():
        scores.setdefault(f'{name}_{cell}', []).append(values)
  architectures = [space.genotype({cell: found[cell][i] for cell in space.cells}) for i in range(num_snapshots)]
  arrays = _written(space, architectures, *({cell: np.stack(each[cell]) for cell in each} for each in (left, raw)))
  series = {name: np.stack(values) for name, values in scores.items()}
  names = np.array(['importance', 'certainty', 'stability', 'score'])
  return {**arrays, **series, 'scores': names}, sorted(told, key=lambda decision: decision[0])


def _save_deciding_search(folder: pathlib.Path, arrays: dict[str, np.ndarray], told: list[tuple]) -> None:
  """Writes the files of a search with these α and decisions."""
  config = {'dataset': 'CIFAR-10', 'seed': 7, 'num_epochs': len(arrays['step']) - 1, 'strategy': 'sgas'}
  epochs = [
    {'kind': 'epoch', 'step': 4 * epoch + 4, 'epoch': epoch, 'train_loss': 1.0, 'valid_loss': 1.1, 'seconds': 60.0}
    for epoch in range(len(arrays['step']) - 1)
  ]
  (folder / 'config.json').write_text(json.dumps(config))
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in epochs))
  np.savez(folder / 'alphas.npz', **arrays)
  by_node = sorted(told, key=lambda decision: decision[2][::-1])
  normal, reduce = (
    tuple((operation, edge[0]) for _, cell, edge, operation, *_ in by_node if cell == name)
    for name in ('normal', 'reduce')
  )
  spaces.save(darts.genotype(normal, (2, 3, 4, 5), reduce, (2, 3, 4, 5)), folder / 'genotype.json')


def _save_alphas(folder: pathlib.Path, space: spaces.CellSpace, names: Sequence[str]) -> None:
  """Writes `alphas.npz` with a snapshot for each of the published architectures, four steps apart."""
  published = spaces.published()
  snapshots = [_alphas_of(published[name], space, 1.0 + i) for i, name in enumerate(names)]
  alphas = {cell: np.stack([snapshot[cell] for snapshot in snapshots]) for cell in space.cells}
  left = {cell: np.ones(values.shape, bool) for cell, values in alphas.items()}
  np.savez(folder / 'alphas.npz', **_written(space, [published[name] for name in names], left, alphas))
