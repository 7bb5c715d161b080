"""A small made-up search, as files."""

import json
import pathlib

import numpy as np
import pytest

from darts_jax import genotype

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


def _alphas_of(architecture: genotype.Genotype, strength: float) -> dict[str, np.ndarray]:
  """`[14, 8]` raw α from which DARTS's rule derives the cells: their edges' operations stand out by `strength`."""
  spec = genotype.search_space()
  rows = {(edge.source, target): row for row, (target, edge) in enumerate(spec.edges)}
  alphas = {}
  for cell in ('normal', 'reduce'):
    alphas[cell] = np.zeros((14, 8))
    for target, edge in architecture.cell(cell).edges:
      alphas[cell][rows[edge.source, target], spec.operations.index(edge.operations[0])] = strength
  return alphas


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
  published = genotype.published()
  genotype.save(published['DARTS_V2'], tmp_path / 'genotype.json')
  names = ('PDARTS', 'DARTS_V1', 'DARTS_V2', 'DARTS_V2')
  snapshots = [_alphas_of(published[name], 1.0 + i) for i, name in enumerate(names)]
  spec = genotype.search_space()
  edges = np.array([(edge.source, target) for target, edge in spec.edges])
  np.savez(
    tmp_path / 'alphas.npz',
    step=np.array([0, 4, 8, 12]),
    epoch=np.arange(4),
    operations=np.array(spec.operations),
    normal=np.stack([snapshot['normal'] for snapshot in snapshots]),
    reduce=np.stack([snapshot['reduce'] for snapshot in snapshots]),
    edges_normal=edges,
    edges_reduce=edges,
  )
  return tmp_path
