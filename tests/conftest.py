"""Sets JAX up before any test imports it: eight CPU devices, and compiled programs kept for the next run."""

import contextlib
import gc
import html.parser
import os
import pathlib
from collections.abc import Callable, Iterator

import pytest

CACHE = pathlib.Path('~/.cache/darts_jax/tests').expanduser()
DEVICES = 'xla_force_host_platform_device_count'

# Most of the time of a first run is compilation, which takes a third of it without LLVM's optimisations and with the
# plainer way of writing kernels; what XLA makes of a program before, and what is computed, stays the same.
QUICK = ('--xla_backend_optimization_level=0', '--xla_cpu_use_fusion_emitters=false')

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
for flag in (f'--{DEVICES}=8', *QUICK):
  if flag.partition('=')[0] not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flag}'.strip()
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  try:
    # What lies there will be run, so nobody else may write to it.
    CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
  except OSError:
    pass
  else:
    os.environ['JAX_COMPILATION_CACHE_DIR'] = str(CACHE)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')

# Tracing makes millions of objects that stay; to look for cycles among them as often as Python does by itself takes a
# tenth of the time.
gc.set_threshold(100_000, 20, 10)


def pytest_configure(config: pytest.Config) -> None:
  # Two workers share the cache, and an entry that one is still writing is only compiled anew by the other.
  config.addinivalue_line('filterwarnings', 'ignore:Error (reading|writing) persistent compilation cache')


@pytest.fixture(scope='session')
def make_guard() -> Callable[[Callable[[], str | None]], type]:
  """Makes a class that stands in for `InterruptGuard`; the name of the signal is what a function returns."""

  def make(requested: Callable[[], str | None]) -> type:
    class Guard(contextlib.AbstractContextManager):
      def __exit__(self, *exception: object) -> None:
        pass

      @property
      def requested(self) -> str | None:
        return requested()

    return Guard

  return make


@pytest.fixture
def x64() -> Iterator[None]:
  """Makes float64 the default dtype of JAX for one test."""
  import jax

  with jax.enable_x64(True):
    yield


_VOID = {'meta', 'br', 'img', 'hr', 'link', 'input'}


class _Page(html.parser.HTMLParser):
  """Checks that tags are closed in the order they were opened, and collects what a browser would see."""

  def __init__(self, text: str):
    super().__init__()
    self.open: list[str] = []
    self.tags: list[str] = []
    self.attributes: list[tuple[str, str]] = []
    self.texts: list[str] = []
    self.feed(text)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.handle_startendtag(tag, attrs)
    if tag not in _VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes.extend((name, value or '') for name, value in attrs)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.texts.append(data)

  @property
  def text(self) -> str:
    return ' '.join(' '.join(self.texts).split())


@pytest.fixture(scope='session')
def parse_page() -> type[_Page]:
  """Reads an HTML page, and fails where its tags do not match."""
  return _Page
