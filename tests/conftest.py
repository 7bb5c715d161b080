"""Sets JAX up before any test imports it: eight CPU devices, and compiled programs kept for the next run."""

import contextlib
import gc
import html.parser
import importlib.metadata
import os
import pathlib
import re
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

CACHE = pathlib.Path('~/.cache/darts_jax/tests').expanduser()
DEVICES = 'xla_force_host_platform_device_count'

# Most of the time of a first run is compilation, which takes a third of it without LLVM's optimisations, with the
# plainer way of writing kernels and with all kernels of a program in one module; what XLA makes of a program before,
# and what is computed, stays the same.
QUICK = ['--xla_backend_optimization_level=0']
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  # XLA ends a process whose flags it does not know.
  QUICK += ['--xla_cpu_use_fusion_emitters=false', '--xla_cpu_parallel_codegen_split_count=1']

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

# Files that take ten seconds and more, the longest first.
LONGEST = (
  *('benchmarks/test_accelerators', 'experiments/test_distributed', 'benchmarks/test_parity', 'search/test_searcher'),
  *('search/test_sgas_loop', 'search/test_text', 'search/test_loop', 'selection/test_selection'),
  *('experiments/test_search', 'experiments/test_hypergradients', 'experiments/test_train', 'search/test_platforms'),
  *('search/test_shards', 'benchmarks/test_plain_convolutional', 'laboratory/test_bench', 'training/test_loop'),
  *('search/test_side_by_side', 'benchmarks/test_start', 'search/test_timing_loop', 'training/test_trainer'),
  *('selection/test_random_search', 'training/language/test_loop', 'benchmarks/test_nasbench201_parity'),
  *('benchmarks/test_strategies_parity', 'search/test_curvature', 'search/test_nasbench201', 'search/test_robust_loop'),
  *('experiments/test_import', 'tasks/test_windows', 'search/test_own_operations', 'test_python', 'tasks/test_arrays'),
  *('test_wheel', 'experiments/test_commands', 'trials/test_executors', 'search/test_gated', 'search/test_resumed'),
)

# Tracing makes millions of objects that stay; to look for cycles among them as often as Python does by itself takes a
# tenth of the time.
gc.set_threshold(100_000, 20, 10)


def pytest_configure(config: pytest.Config) -> None:
  # Two workers share the cache, and an entry that one is still writing is only compiled anew by the other.
  config.addinivalue_line('filterwarnings', 'ignore:Error (reading|writing) persistent compilation cache')


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Workers begin with the longest files, and share evenly what is left in the end."""
  order = {f'tests/{name}.py': number for number, name in enumerate(LONGEST)}
  items.sort(key=lambda item: order.get(item.nodeid.partition('::')[0], len(LONGEST)))


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


@pytest.fixture(scope='session')
def tiny_search() -> Callable[..., dict[str, Any]]:
  """Makes the config of a search that compiles in seconds, and comes to the same in whatever order sums are made."""

  def make(**changes: Any) -> dict[str, Any]:
    return {
      # From some seeds a pixel is so close to a kink of ReLU that rounding decides on which side it is.
      'seed': 3,
      'epochs': 2,
      'batch_size': 128,
      'log_every': 4,
      'data': {'name': 'digits'},
      'augment': {'crop_padding': 1, 'flip': True},
      'space': {'nodes': 1, 'operations': ('none', 'skip_connect', 'avg_pool_3x3')},
      'network': {'channels': 2, 'layers': 3},
      'weights': {'learning_rate': 0.05},
      # Adam makes steps of one length of the smallest gradients, which are rounding; decay keeps them from that.
      'alphas': {'learning_rate': 0.01, 'weight_decay': 0.1},
      'strategy': {'init_scale': 0.1},
      'hypergradient': {'name': 'first_order'},
      'mesh': {'seed': 1},
      **changes,
    }

  return make


def _mutants(content: bytes, number: int) -> Iterator[bytes]:
  rng = np.random.default_rng(0)
  for _ in range(number):
    mutant = bytearray(content)
    for _ in range(rng.integers(1, 4)):
      place, length = int(rng.integers(len(mutant))), int(rng.integers(1, 40))
      match rng.integers(5):
        case 0:
          mutant[place] ^= 1 << rng.integers(8)
        case 1:
          del mutant[place : place + length]
        case 2:
          del mutant[place:]
        case 3:
          mutant[place:place] = rng.bytes(length)
        case _:
          mutant[place:place] = mutant[max(place - length, 0) : place]
      mutant = mutant or bytearray(b'0')
    yield bytes(mutant)


@pytest.fixture(scope='session')
def complaints() -> Callable[..., list[str]]:
  """What a reader says of mutants of a file: bytes changed, cut out, put in or repeated, or the end cut off."""

  def collect(read: Callable[[pathlib.Path], Any], path: pathlib.Path, number: int = 400) -> list[str]:
    found = []
    for mutant in _mutants(path.read_bytes(), number):
      path.write_bytes(mutant)
      try:
        read(path)
      except ValueError as error:
        found.append(str(error))
    # All that is wrong with a file is told in one line that names it.
    assert [line for line in found if str(path) not in line or '\n' in line or len(line) > 1000] == []
    return found

  return collect


@pytest.fixture(scope='module')
def undrawn() -> Iterator[None]:
  """Reports put their figures together and do not draw them, which takes two thirds of the time of a report."""
  from matplotlib.figure import Figure

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Figure, 'savefig', lambda self, file, **how: file.write('<svg></svg>'))
    yield


@pytest.fixture(scope='module')
def same_programs() -> Iterator[None]:
  """Runs of one config in a module have the same compiled functions, which are traced and compiled once.

  A run that resumes in a process of its own would load them from the compilation cache. Not for modules that replace
  traced functions.
  """
  from darts_jax.search import Searcher
  from darts_jax.training import loop
  from darts_jax.training.language import loop as language_loop

  made: dict[Any, Any] = {}

  def reused(make: Callable[..., Any], key: Any, *args: Any) -> Any:
    # Arguments stay alive, since some are known by their identity.
    if key not in made:
      made[key] = make(*args), args
    return made[key][0]

  def mesh_key(mesh: Any) -> str:
    return repr((mesh, [device.id for device in mesh.devices.flat]))

  open_, restage = Searcher.open, Searcher.restage

  def opened(settings: Any, data: Any, mesh: Any) -> Any:
    key = repr(settings), repr(settings.task.fingerprint(data)), mesh_key(mesh)
    return reused(open_, key, settings, data, mesh)

  def restaged(self: Any, searched: Any, first_epoch: int) -> Any:
    return reused(restage, (id(self), repr(searched), first_epoch), self, searched, first_epoch)

  def trainer_of(kind: Any) -> Callable[..., Any]:
    def make(*args: Any) -> Any:
      *others, mesh = args
      return reused(kind, (kind, repr(others), mesh_key(mesh)), *args)

    return make

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Searcher, 'open', opened)
    patch.setattr(Searcher, 'restage', restaged)
    patch.setattr(loop, 'Trainer', trainer_of(loop.Trainer))
    patch.setattr(language_loop, 'LanguageTrainer', trainer_of(language_loop.LanguageTrainer))
    yield


@pytest.fixture
def x64() -> Iterator[None]:
  """Makes float64 the default dtype of JAX for one test."""
  import jax

  with jax.enable_x64(True):
    yield


@pytest.fixture
def purposes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
  """Traces a function of a state; returns all that it folds the keys of steps and epochs with.

  Those are the keys that come of folding `state.key` with a number.
  """
  import jax

  def collect(function: Callable[[Any], Any], state: Any) -> list[int]:
    found: list[int] = []
    roots: list[Any] = []
    numbered: list[Any] = []
    fold_in = jax.random.fold_in

    def watched(key: Any, number: Any) -> Any:
      folded = fold_in(key, number)
      if any(key is each for each in roots):
        numbered.append(folded)
      elif any(key is each for each in numbered):
        found.append(number)
      return folded

    def traced(state: Any) -> None:
      roots.append(state.key)
      function(state)

    with monkeypatch.context() as patch:
      patch.setattr(jax.random, 'fold_in', watched)
      jax.eval_shape(traced, state)
    return found

  return collect


@pytest.fixture
def own() -> Iterator[dict[str, Any]]:
  """The operations of docs/operations.md, as they are there."""
  from darts_jax import nets

  text = (pathlib.Path(__file__).parents[1] / 'docs' / 'operations.md').read_text(encoding='utf-8')
  [example] = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
  names: dict[str, Any] = {}
  with pytest.MonkeyPatch.context() as patch:
    for table in (nets.OPERATIONS, nets.ACTIVATIONS):
      for name in ('pointwise', 'squeeze', 'attention', 'swish'):
        # What is there now is brought back afterwards: nothing.
        patch.setitem(table, name, None)
        del table[name]
    exec(example, names)
    yield names


class Traced(Exception):
  """A method is traced, which ends the trace; its argument is whether edges are channels."""


@pytest.fixture
def edges_are_channels(monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
  """Tells whether a jitted method is traced with edges as channels for a mesh that claims to be of a platform.

  It is given the class whose module calls `traced_for`, the name of the method, the mesh, the platform, a function that
  makes an instance, and the arguments of the method.
  """
  import jax

  from darts_jax.nets.bilinear import as_channels, traced_for

  def find(kind: type, name: str, mesh: Any, platform: str, make: Callable[[], Any], *args: Any) -> bool:
    def stop(*_: Any) -> None:
      raise Traced(as_channels())

    claimed = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform=platform)]))
    monkeypatch.setattr(f'{kind.__module__}.traced_for', lambda of, each: traced_for({mesh: claimed}[of], each))
    monkeypatch.setattr(kind, f'_{name}', stop)
    with pytest.raises(Traced) as traced:
      jax.eval_shape(getattr(make(), name), *args)
    found: bool = traced.value.args[0]
    return found

  return find


@pytest.fixture(scope='session')
def write_table() -> Callable[..., None]:
  """Writes a table of NAS-Bench-201 in which all three accuracies on CIFAR-10 are as given, in percent."""
  from darts_jax.spaces.nasbench201 import NasBench201

  space = NasBench201()
  texts = [space.to_json(arch) for arch in space.all()]

  def write(folder: pathlib.Path, valid_12: Any, test_12: Any, test_200: Any) -> None:
    early = ['cellstr,cifar10-test,cifar10-val,cifar100-test,cifar100-val,imagenet-test,imagenet-val']
    late = [
      'CIFAR10TestAccuracy200Epochs,CIFAR100TestAccuracy200Epochs,ImageNetTestAccuracy200Epochs,ArchitectureString'
    ]
    for text, valid, test, after in zip(texts, valid_12, test_12, test_200, strict=True):
      early.append(f'{text},{test},{valid},40.5,41.5,20.5,21.5')
      late.append(f'{after},50.5,30.5,{text}')
    for name, lines in (('mini_nb201_12ep_acc.csv', early), ('nats_tss_200ep_test_acc.csv', late)):
      (folder / name).write_text('\n'.join(lines) + '\n')

  return write


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
