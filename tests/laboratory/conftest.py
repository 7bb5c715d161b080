"""Made-up results of the laboratory."""

import copy
import math
from typing import Any

import pytest

_RADII = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]
#: Round-off in float32 up to 1e-4 in the network and 1e-2 in its twin, kinks from 1e-4 to 1e-2, and ε² from 1e-4 on.
_ERRORS = {
  'network': {
    'float64': [1e-8, 5e-9, 1e-3, 1e-2, 2e-2, 2e-2, 6e-1],
    'float32': [10.0, 1.0, 1e-1, 1.2e-2, 2e-2, 2e-2, 6e-1],
  },
  'twin': {
    'float64': [1e-8, 1e-9, 5e-9, 5e-7, 5e-5, 5e-3, 5e-1],
    'float32': [10.0, 1.0, 1e-1, 1e-2, 1e-3, 5e-3, 5e-1],
  },
}


def _comparison(error: float | None, cosine: float | None, sign: float | None, rank: float | None) -> dict[str, Any]:
  return {'error': error, 'cosine': cosine, 'sign': sign, 'rank': rank}


def _row(estimator: str, precision: str, error: float | None, cosine: float | None, **reports: Any) -> dict[str, Any]:
  term = _comparison(error, cosine, None if cosine is None else 0.875, None if cosine is None else 0.625)
  return {
    'estimator': estimator,
    'precision': precision,
    'one_step': {'term': term, 'whole': _comparison(0.0123, 0.9876, 0.96, 0.789)},
    'unrolled': {'term': _comparison(1.234, -0.4321, 0.48, -0.125), 'whole': _comparison(0.0456, 0.9654, 0.94, 0.756)},
    'seconds': 0.0412,
    'bytes': 23_400_000,
    'forward': 4,
    'backward': 3,
    'residual': None,
    'epsilon': None,
    'disagreement': None,
    **reports,
  }


def _genotype() -> dict[str, Any]:
  pairs = [['sep_conv_3x3', 0], ['skip_connect', 1], ['max_pool_3x3', 2], ['sep_conv_3x3', 1]]
  return {'normal': pairs, 'normal_concat': [2, 3], 'reduce': pairs, 'reduce_concat': [2, 3]}


def _toy() -> dict[str, Any]:
  trajectories = []
  for rate in (0.5, 0.0):
    rest = 2 / (1 + 2 * rate)
    away = [math.exp(-0.1 * i) if i < 400 else 0.0 for i in range(401)]
    alphas = [rest + (2.0 - rest) * x + 0.5 * x * (1 - x) for x in away]
    weights = [rest + (-2.0 - rest) * x for x in away]
    trajectories.append({'learning_rate': rate, 'alphas': alphas, 'weights': weights, 'rest': rest})
  return {'trajectories': trajectories, 'rows': [{'estimator': 'exact', 'estimate': -1.0, 'expected': -1.0}]}


_RESULTS: dict[str, Any] = {
  'setting': {
    'jax': '0.10.2',
    'device': 'cpu: made up, 2 cores',
    'seed': 7,
    'estimators': {'first_order': {}, 'finite_difference': {'radius': 0.01}, 'exact': {}, 'unrolled': {'steps': 4}},
    'seconds': 210.3,
  },
  'toy': _toy(),
  'quadratic': {
    'weights': 20,
    'alphas': 6,
    'condition': 100.0,
    'rows': [
      {
        'estimator': 'neumann',
        'precision': precision,
        'error': 1.5e-16,
        'distance': 0.812,
        'cosine': 0.7123,
        'residual': 0.0345,
      }
      for precision in ('float64', 'float32')
    ],
    'convergence': {
      'unrolled': {'passes': [4, 7, 301], 'distance': [0.99, 0.98, 0.34]},
      'conjugate_gradient': {'passes': [5, 7, 13, 43], 'distance': [0.9, 0.6, 0.3, 0.04]},
    },
  },
  'supernet': {
    'data': 'digits',
    'state': 'initialisation',
    'weights': 26742,
    'alphas': 50,
    'batch_size': 32,
    'operations': 5,
    'channels': 4,
    'layers': 3,
    'nodes': 2,
    'reference_steps': 4,
    'outer_norm': 0.31,
    'term_fraction': 0.012,
    'rows': [
      _row('first_order', 'float32', 1.0, None),
      _row('finite_difference', 'float32', 0.713, 0.7042, epsilon=0.0487, disagreement=0.612),
      _row('exact', 'float32', 2.31e-6, 1.0),
      _row('neumann', 'float32', 2.5, -0.25, residual=0.0311),
      _row('exact', 'float64', 0.0, 1.0),
      _row('exact', 'bfloat16', 0.0402, 0.9991),
    ],
    'radius': {
      'paper': 0.01,
      **{
        network: {precision: {'radii': _RADII, 'errors': errors} for precision, errors in curves.items()}
        for network, curves in _ERRORS.items()
      },
    },
    'batches': {
      'reference_images': 1024,
      'lines': [
        {
          'estimator': estimator,
          'batch_size': batch_size,
          'images': [batch_size, 2 * batch_size, 4 * batch_size],
          'term': [None] * 3 if estimator == 'first_order' else [0.1, 0.2, 0.3],
          'whole': [0.5, 0.6, 0.7],
        }
        for estimator in ('first_order', 'exact')
        for batch_size in (32, 128)
      ],
    },
    'along': {
      'source': '16 steps of a search',
      'steps': [0, 8, 16],
      'term_fraction': [0.01, 0.02, 0.03],
      'outer_norm': [0.3, 0.2, 0.1],
      'loss': [2.3, 1.9, 1.5],
      'estimators': {
        'first_order': {'term': [None] * 3, 'whole': [1.0, 0.0, 0.5], 'error': [1.0] * 3},
        'finite_difference': {'term': [0.7, None, 0.8], 'whole': [0.99] * 3, 'error': [0.7, 0.6, 0.5]},
      },
    },
    'unrolled': {
      'steps': [1, 2, 4],
      'seconds': [0.06, 0.1, 0.18],
      'bytes': [20_000_000, 30_000_000, 50_000_000],
      'gradient_seconds': 0.02,
      'gradient_bytes': 10_000_000,
    },
  },
  'search': [
    {
      'estimator': estimator,
      'genotype': _genotype(),
      'valid_loss': 0.312,
      'valid_accuracy': 0.9713,
      'seconds': 31.2,
      'shared_edges': 5,
      'edges': 8,
    }
    for estimator in ('exact', 'first_order')
  ],
}


@pytest.fixture(scope='session')
def untouched() -> dict[str, Any]:
  """Results with every part, which all tests share."""
  return copy.deepcopy(_RESULTS)


@pytest.fixture
def results() -> dict[str, Any]:
  """Results with every part, which a test may change."""
  return copy.deepcopy(_RESULTS)
