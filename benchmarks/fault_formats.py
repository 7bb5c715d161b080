"""Formats of files for fault injection: undamaged contents, mutations, and the readers of each format."""

import contextlib
import importlib
import io
import json
import pathlib
import pickle
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.fault_judge import Ended, Fault, asks_for_memory, judge_end
from benchmarks.fault_mutants import mutate_bytes, mutate_image, mutate_json, mutate_pickle, mutate_text, mutate_zip

_GOLDENS = pathlib.Path(__file__).parents[1] / 'tests' / 'goldens'


class Format(NamedTuple):
  """A format of files.

  Attributes:
    name: name of the file, in a folder that holds nothing else.
    seeds: makes undamaged contents.
    mutate: damages a content in a way specific to the format.
    read: reads the file from the folder, by all readers of the format.
    is_named: whether errors have to name the file or its folder.
  """

  name: str
  seeds: Callable[[], list[bytes]]
  mutate: Callable[[bytes, np.random.Generator], bytes]
  read: Callable[[pathlib.Path], object]
  is_named: bool = True


def find(*places: str) -> Any:
  """The first function that exists, among names of the form `module:name`."""
  for place in places:
    module, _, name = place.partition(':')
    with contextlib.suppress(ImportError, AttributeError):
      return getattr(importlib.import_module(module), name)
  raise ImportError(f'none of {", ".join(places)}')


_SETTINGS: dict[str, Any] = {
  'data': {'name': 'digits'},
  'space': {'nodes': 1, 'operations': ('none', 'skip_connect', 'max_pool_3x3')},
  'network': {'channels': 2, 'layers': 3},
}


def _saved(arrays: Mapping[str, Any], save: Callable[..., None] = np.savez) -> bytes:
  stream = io.BytesIO()
  save(stream, **arrays)
  return stream.getvalue()


def _image_arrays() -> list[bytes]:
  images, labels = np.arange(6 * 16, dtype=np.uint8).reshape(6, 4, 4, 1), np.array([0, 1, 2] * 2)
  part = {'x_train': images, 'y_train': labels}
  return [
    _saved(part),
    _saved({**part, 'x_test': images, 'y_test': labels}, np.savez_compressed),
    _saved({'x_train': images.astype(np.float32), 'y_train': labels.astype(np.uint8)}),
  ]


def _alphas() -> list[bytes]:
  return [_history({}), _history({'strategy': 'sgas'})]


def _history(settings: Mapping[str, Any]) -> bytes:
  """The content of a history of two epochs."""
  with tempfile.TemporaryDirectory() as folder:
    for step in (0, 6, 12):
      _append(pathlib.Path(folder), settings, step)
    return (pathlib.Path(folder) / 'alphas.npz').read_bytes()


def _append(folder: pathlib.Path, settings: Mapping[str, Any], step: int) -> None:
  """Opens the history of a search as on a resume, and appends a snapshot."""
  read = find('darts_jax.search.settings:read')
  searched = find('darts_jax.search.searched:Searched').from_settings(read({**_SETTINGS, **settings}))
  history = find('darts_jax.search.records:AlphaHistory')(folder, searched, step)
  alphas = {cell: np.zeros((2, 3), np.float32) for cell in ('normal', 'reduce')}
  history.append(step, step // 6, alphas, find('jax.random:key')(0), searched, searched.scores(alphas))


def _metrics() -> list[bytes]:
  lines = [
    {'kind': 'event', 'step': 0, 'event': 'compiled', 'message': 'search step compiled in 1.5 s'},
    {'kind': 'step', 'step': 2, 'epoch': 0, 'train_loss': 1.5, 'entropy_normal': 1.0, 'images_per_second': 9.5},
    {'kind': 'epoch', 'step': 4, 'epoch': 0, 'train_loss': 1.25, 'valid_loss': 'nan', 'seconds': 0.5},
    {'kind': 'test', 'step': 4, 'loss': 1.0, 'accuracy': 0.5},
    {'kind': 'event', 'step': 4, 'event': 'finished', 'message': '1 epochs done'},
  ]
  return [''.join(f'{json.dumps(line)}\n' for line in lines).encode()]


def _architectures() -> list[bytes]:
  names = [name for name in ('DARTS_V2', 'RNN_DARTS_V2') if name in find('darts_jax.spaces:published')()]
  to_json, published = find('darts_jax.spaces:to_json'), find('darts_jax.spaces:published')()
  return [json.dumps(to_json(published[name])).encode() for name in names]


def _printed() -> list[bytes]:
  pairs = "('sep_conv_3x3', 0), ('skip_connect', 1), ('max_pool_3x3', 1), ('dil_conv_5x5', 2)"
  nested = "[('sep_conv_3x3', 0), ('skip_connect', 1)], [('max_pool_3x3', 1), ('dil_conv_5x5', 2)]"
  return [
    f'Genotype(normal=[{pairs}], normal_concat=[2, 3], reduce=[{pairs}], reduce_concat=range(2, 4))\n'.encode(),
    f'genotype = Genotype(normal=[{nested}], normal_concat=range(2, 4), reduce=[{nested}], reduce_concat=[2])'.encode(),
  ]


def _config(kind: str) -> list[bytes]:
  settings = find({'search': 'darts_jax.search.settings:Search', 'training': 'darts_jax.training:Training'}[kind])
  config = find('darts_jax.settings:as_config')(settings())
  return [json.dumps(config if kind == 'search' else {**config, 'genotype': {}, 'dataset': {}}).encode()]


def _model() -> list[bytes]:
  model = find('darts_jax.training:Model')
  genotype = find('darts_jax.spaces:published')()['DARTS_V2']
  made = model(genotype, 4, 3, 10, 'cifar', False, True, 3, (8, 8, 1), (0.5,), (0.25,))
  return [json.dumps(made.to_dict()).encode()]


def _golden(name: str) -> list[bytes]:
  return [(_GOLDENS / name).read_bytes()]


def _safetensors() -> list[bytes]:
  from safetensors.numpy import save

  return [save({'stem.0.weight': np.ones((2, 3), np.float32), 'b': np.arange(4)})]


def _cifar() -> list[bytes]:
  batch = {b'data': np.arange(12, dtype=np.uint8).reshape(2, 6), b'labels': [1, 2], b'batch_label': b'x'}
  return [pickle.dumps(batch, protocol) for protocol in (2, 4)]


def _idx() -> list[bytes]:
  return [struct.pack('>HBBI', 0, 8, 1, 10_000) + bytes(range(10)) * 1000]


def _images() -> list[bytes]:
  from PIL import Image

  pixels = np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3)
  contents = []
  for form in ('PNG', 'JPEG', 'BMP', 'TIFF', 'WEBP'):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    contents.append(stream.getvalue())
  wide = np.arange(144, dtype='>u2').reshape(12, 12).tobytes()
  return [*contents, b'P5 12 12 255\n' + bytes(144), b'P5 12 12 65535\n' + wide]


def _text() -> list[bytes]:
  return [b'the cat sat on <unk>\n the mat\n' * 5, 'ein Bär <unk> im Wald\n'.encode() * 5]


def page(folder: pathlib.Path) -> None:
  """Writes the report of a working directory."""
  find('darts_jax.report:write')(folder)


def _read_alphas(folder: pathlib.Path) -> None:
  page(folder)
  _append(folder, {}, 18)


def _read_metrics(folder: pathlib.Path) -> None:
  page(folder)
  _each(
    lambda: find('darts_jax.runtime.metrics:read')(folder),
    lambda: _open_log(folder),
  )


def _open_log(folder: pathlib.Path) -> None:
  with find('darts_jax.runtime.metrics:MetricsLog')(folder, resume_step=4) as log:
    log.write('step', 6, {'train_loss': 1.0})


def _each(*reads: Callable[[], object]) -> None:
  """Calls all readers, even if one raises a ValueError, and raises the first such error in the end."""
  refusal = None
  for read in reads:
    try:
      read()
    except ValueError as error:
      refusal = error if refusal is None or asks_for_memory(error) else refusal
  if refusal is not None:
    raise refusal


def _read_config(folder: pathlib.Path) -> None:
  page(folder)
  kind = find('darts_jax.training:Training')
  claim = find('darts_jax.runtime.workdir:claim')
  reads: list[Callable[[], object]] = [lambda: claim(folder, {'seed': 1}, 'search')]
  with contextlib.suppress(ImportError):
    read_settings = find('darts_jax.training.workdir:read_settings')
    reads.append(lambda: read_settings(kind, folder))
  _each(*reads)


def _read_genotype(folder: pathlib.Path) -> None:
  """Reads an architecture, and for some of them runs the command `describe`."""
  path = folder / 'genotype.json'
  found = find('darts_jax.spaces:resolve')(str(path))
  sizes = ['--width=4', '--vocabulary=5'] if found.space == 'recurrent' else ['--channels=4', '--layers=3']
  if len(str(found)) % 8 == 0:  # The command takes a second, so it is run for one in eight.
    describe(path, *sizes)


# Where the commands are, in this commit and in earlier ones.
_COMMANDS = 'darts_jax.commands', 'experiments'


def describe(path: pathlib.Path, *more: str) -> None:
  """Runs the command `describe`; raises an AssertionError unless it succeeds or refuses the file in one line."""
  run, flags = (find(*(f'{place}.describe:{name}' for place in _COMMANDS)) for name in ('run', 'FLAGS'))
  fault = command(lambda: launch(run, flags, 'none'), [f'--genotype={path}', *more])
  if fault is not None:
    raise AssertionError(f'describe: {fault.what}')


def launch(run: Callable[..., int], flags: Sequence[Any] = (), config: str = 'required') -> None:
  """Runs a command with the arguments in `sys.argv`, by the entry point of this commit or of an earlier one."""
  try:
    entry = importlib.import_module('darts_jax.commands.entry')
  except ModuleNotFoundError:
    find('experiments.entry:launch' if config == 'required' else 'experiments.entry:launch_flags')(run, 'usage', flags)
  else:
    entry.launch(entry.Command(run, '', '', flags, config), 'faults')


def command(run: Callable[[], object], arguments: list[str]) -> Fault | None:
  """Runs a command with arguments in `sys.argv`; returns the fault in its ending, if any."""
  out, err, before = io.StringIO(), io.StringIO(), sys.argv
  sys.argv = ['faults', *arguments]
  code = 0
  try:
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      run()
  except SystemExit as error:
    code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
  finally:
    sys.argv = before
  return judge_end(Ended(code, out.getvalue(), err.getvalue()), (0, 2))


class _Enough(Exception):
  """Ends a selection once it has begun, and so has read its files."""


def _selection_results() -> list[bytes]:
  method = {
    'name': 'darts',
    'candidates': [{'name': 'seed_0', 'genotype': {}, 'valid_accuracy': 0.5}],
    'pick': 'seed_0',
    'genotype': json.loads(_architectures()[0]),
    'parameters': 100,
    'test_accuracies': [0.5],
    'seconds': {'search': 1.0, 'selection': 1.0, 'evaluation': 1.0},
  }
  return [json.dumps({'settings': {'searches': 1}, 'methods': [method]}).encode()]


def _read_results(folder: pathlib.Path) -> None:
  def begin(message: str) -> None:
    raise _Enough(message)

  training = {'data': {'name': 'digits', 'validation_fraction': 0.1}, 'epochs': 1}
  training |= {'network': {'channels': 2, 'layers': 3, 'auxiliary': False}}
  config = {'searches': 1, 'selection_epochs': 1, 'search': _SETTINGS, 'training': training}
  with contextlib.suppress(_Enough):
    find('darts_jax.selection:run')(config, folder, begin)


def _trials() -> list[bytes]:
  """Contents of the journals of two searches by proposals."""
  contents = []
  for fails in (False, True):
    with tempfile.TemporaryDirectory() as folder:
      _run_trials(pathlib.Path(folder), fails)
      contents.append((pathlib.Path(folder) / 'trials.jsonl').read_bytes())
  return contents


def _run_trials(folder: pathlib.Path, fails: bool = False) -> None:
  """Runs, or resumes from the journal in a folder, a search by proposals with constant outcomes."""
  outcome, failed = (find(f'darts_jax.strategies.sampled:{name}') for name in ('Outcome', 'failed'))

  class Constant(find('darts_jax.trials:Evaluator')):  # type: ignore[misc]
    def __call__(self, proposal: Any) -> Any:
      if fails and proposal.number:
        return failed(proposal, 'diverged', 1.5)
      return outcome(proposal, 'done', 0.5, {'parameters': 9.0}, {}, (0.25, 0.5), 1.5)

  strategy = find('darts_jax.strategies:STRATEGIES')['regularized_evolution'](population=2, sample_size=1)
  settings, executor = find('darts_jax.trials:Trials')(trials=3), find('darts_jax.trials:InProcess')()
  with find('darts_jax.trials:Journal')(folder) as journal:
    find('darts_jax.trials:run')(
      strategy, find('darts_jax.spaces:Darts')(nodes=1), Constant(), settings, executor, journal=journal
    )


def _read_trials(folder: pathlib.Path) -> None:
  (folder / 'config.json').write_text('{"evaluator": {"name": "scratch"}, "trials": 3}')
  page(folder)
  _run_trials(folder)


def _read_weights(folder: pathlib.Path) -> None:
  find('darts_jax.interop.tensors:read')(folder / 'weights')


def _read_cifar(folder: pathlib.Path) -> None:
  path = folder / 'data_batch_1'
  find('darts_jax.data.unpickling:loads')(path.read_bytes(), str(path))


def _read_idx(folder: pathlib.Path) -> None:
  """Reads the test labels of MNIST, with undamaged other files."""
  names, counts = find('darts_jax.data.mnist:FILES'), (60_000, 60_000, 10_000)
  for name, count in zip(names[:3], counts, strict=True):
    shape = (count, 28, 28) if 'images' in name else (count,)
    with (folder / name).open('wb') as file:
      file.write(struct.pack(f'>HBB{len(shape)}I', 0, 8, len(shape), *shape))
      file.write(bytes(range(10)))
      file.truncate(4 + 4 * len(shape) + int(np.prod(shape)))
  find('darts_jax.data.images:load')('mnist', directory=str(folder))


def _read_image(folder: pathlib.Path) -> None:
  decode, box = find('darts_jax.data.stream:decode'), find('darts_jax.data.stream:centre_box')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    found = decode((folder / 'image').read_bytes(), 8, lambda width, height: box(width, height, 8))
  assert found is None or found.shape == (8, 8, 3), found.shape


def _read_text(folder: pathlib.Path) -> None:
  for name in ('valid', 'test'):
    (folder / f'{name}.txt').write_bytes(_text()[0])
  find('darts_jax.data.text:load')('files', str(folder))


def _read_images(folder: pathlib.Path) -> None:
  find('darts_jax.data.images:load')('npz', path=str(folder / 'data.npz'))


def _read_model(folder: pathlib.Path) -> None:
  find('darts_jax.training:Model').read(folder)


def _mutate_weights(content: bytes, draw: np.random.Generator) -> bytes:
  def inner(old: bytes, draw: np.random.Generator) -> bytes:
    return mutate_pickle(old, draw) if old.startswith(b'\x80') else mutate_bytes(old, draw)

  return mutate_zip(content, draw, inner)


#: All formats by name.
FORMATS: dict[str, Format] = {
  'images_npz': Format('data.npz', _image_arrays, mutate_zip, _read_images),
  'alphas': Format('alphas.npz', _alphas, mutate_zip, _read_alphas),
  'metrics': Format('metrics.jsonl', _metrics, mutate_json, _read_metrics),
  'genotype': Format('genotype.json', _architectures, mutate_json, _read_genotype),
  'printed': Format('genotype.json', _printed, mutate_text, _read_genotype),
  'search_config': Format('config.json', lambda: _config('search'), mutate_json, _read_config),
  'training_config': Format('config.json', lambda: _config('training'), mutate_json, _read_config),
  'model': Format('model.json', _model, mutate_json, _read_model),
  'results': Format('results.json', _selection_results, mutate_json, _read_results),
  'trials': Format('trials.jsonl', _trials, mutate_json, _read_trials),
  'torch_zip': Format('weights', lambda: _golden('torch_zip.pt'), _mutate_weights, _read_weights),
  'torch_legacy': Format('weights', lambda: _golden('torch_legacy.pt'), mutate_pickle, _read_weights),
  'weights_npz': Format(
    'weights', lambda: [_saved({'w': np.ones((2, 3)), 'b': np.arange(4)})], mutate_zip, _read_weights
  ),
  'safetensors': Format('weights', _safetensors, mutate_bytes, _read_weights),
  'cifar_pickle': Format('data_batch_1', _cifar, mutate_pickle, _read_cifar),
  'idx': Format('t10k-labels-idx1-ubyte', _idx, mutate_bytes, _read_idx),
  'image': Format('image', _images, mutate_image, _read_image),
  'text': Format('train.txt', _text, mutate_text, _read_text),
}
