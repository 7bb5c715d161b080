"""Sets JAX up before any test imports it: eight CPU devices, and compiled programs kept for the next run."""

import os
import pathlib
from collections.abc import Iterator

import pytest

CACHE = pathlib.Path('~/.cache/darts_jax/tests').expanduser()
DEVICES = 'xla_force_host_platform_device_count'

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
if DEVICES not in os.environ.get('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --{DEVICES}=8'.strip()
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  try:
    # What lies there will be run, so nobody else may write to it.
    CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
  except OSError:
    pass
  else:
    os.environ['JAX_COMPILATION_CACHE_DIR'] = str(CACHE)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')


def pytest_configure(config: pytest.Config) -> None:
  # Two workers share the cache, and an entry that one is still writing is only compiled anew by the other.
  config.addinivalue_line('filterwarnings', 'ignore:Error (reading|writing) persistent compilation cache')


@pytest.fixture
def x64() -> Iterator[None]:
  """Makes float64 the default dtype of JAX for one test."""
  import jax

  with jax.enable_x64(True):
    yield
