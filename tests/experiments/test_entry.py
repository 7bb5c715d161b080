"""What the command line answers to mistakes, and to results."""

import dataclasses
import errno
import io
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from darts_jax import search, trials
from darts_jax.commands import entry
from darts_jax.runtime import platforms
from darts_jax.runtime.lock import locked
from darts_jax.runtime.terminal import show
from darts_jax.spaces import darts

ROOT = pathlib.Path(__file__).parents[2]
DIGITS = f'--config={ROOT / "configs" / "digits.py"}'
RANDOM = f'--config={ROOT / "configs" / "digits_random.py"}'
COMMAND = entry.Command(lambda *_, **__: 0, 'how it is called', 'an example')
USAGE = 'usage: test how it is called'
TWO = '--distributed', '--num_processes=2', '--coordinator=localhost:1'


def check_refused(answer, *parts: str) -> None:
  """One line on stderr that holds all parts, exit code 2, and no folder of a run."""
  assert answer.code == 2
  assert answer.output == ''
  assert answer.errors.startswith('error: ')
  assert answer.errors.endswith('\n')
  assert answer.errors.count('\n') == 1
  for part in parts:
    assert part in answer.errors
  assert not pathlib.Path('runs').exists()


@pytest.mark.parametrize(
  ('arguments', 'parts'),
  [
    ([], ['--config: missing', USAGE]),
    (['--config='], ['--config: missing', USAGE]),
    (['--config'], ['Missing value for flag --config']),
    (['--config.epochs=1'], ['--config: missing']),
    (['--config=nowhere.py'], ['--config: nowhere.py: no such file']),
    (['--config=.'], ['--config: .: no such file']),
    ([DIGITS, '--workdri=x'], ["Unknown command line flag 'workdri'"]),
    ([DIGITS, '--coordinator=localhost:1'], ['--coordinator: localhost:1 is given without --distributed']),
    ([DIGITS, '--process_id=0'], ['--process_id: 0 is given without --distributed']),
    ([DIGITS, '--num_processes=two'], ['--num_processes=two', 'invalid literal for int']),
    ([DIGITS, '--distributed', '--timeout=0'], ['--timeout: 0 is not allowed; it has to be ≥ 1']),
    ([DIGITS, '--distributed', '--num_processes=0'], ['--num_processes: 0 is not allowed; it has to be ≥ 1']),
    ([DIGITS, *TWO, '--process_id=2'], ['--process_id: 2 is not allowed; it has to be one of 0 to 1']),
    ([DIGITS, *TWO, '--process_id=1', '--coordinator=here'], ["--coordinator: 'here' is not allowed", 'host:port']),
    ([DIGITS, *TWO, '--process_id=1', '--coordinator=here:99999'], ["--coordinator: 'here:99999' is not allowed"]),
    (
      [DIGITS, *TWO, '--process_id=1', '--coordinator=a.invalid:1', '--timeout=1'],
      ['--coordinator: a.invalid:1: no such host'],
    ),
    ([DIGITS, 'more'], ['more: unexpected argument', USAGE]),
    ([DIGITS, '--config.batchsize=16'], ['config.batchsize: unknown field; did you mean config.batch_size?']),
    ([DIGITS, '--config.network.chanels=8'], ['config.network.chanels', 'did you mean config.network.channels?']),
    ([DIGITS, '--config.zzz=8'], ['config.zzz: unknown field; allowed are seed, space, task, strategy']),
    (
      [DIGITS, '--config.optimizer.name=sgd'],
      ['config.optimizer: unknown field; allowed are seed, space'],
    ),
    ([DIGITS, '--config.1=2'], ['--config.1=2: no such field']),
    ([DIGITS, '--config.a-b=1'], ['--config.a-b=1: no such field']),
    (
      [DIGITS, '--config.strategy=rando'],
      ["'rando'", 'allowed are darts, sgas, gdas, pc_darts, robust_darts, random_search'],
    ),
    ([DIGITS, '--config.sgas.criterion=2'], ['config.sgas.criterion: it is called config.strategy.criterion now']),
    ([DIGITS, '--config.sgas.zzz=2'], ['config.sgas: it is called config.strategy now']),
    ([DIGITS, '--config.temperature.final', '2.0'], ['config.temperature.final: it is called config.strategy.temp']),
    ([DIGITS, '--config.alphas.init_scale=1.0'], ['config.alphas.init_scale: it is called config.strategy.init_scale']),
    ([DIGITS, '--config.strategy.criterion=2'], ['config.strategy.criterion: unknown field of darts; it is one of']),
    ([DIGITS, f'--workdir={"a/" * 1900}'], ['--workdir: a/a/', ' has 1900 parts; there may be up to 256']),
    ([DIGITS, '--config.epochs.number=3'], ['--config.epochs.number=3: no such field']),
    ([DIGITS, '--config.space.operations[0]=none'], ['--config.space.operations[0]=none: no such field']),
    (
      [DIGITS, '--config.network=8'],
      ['config.network: a group of fields cannot be set as a whole; its fields are config.network.channels'],
    ),
    ([DIGITS, '--config.epochs=abc'], ['--config.epochs=abc', 'int']),
    ([DIGITS, '--config.epochs=1.5'], ['--config.epochs=1.5', 'int']),
    ([DIGITS, '--config.epochs'], ['--config.epochs']),
    ([DIGITS, '--config.weights.momentum=big'], ['--config.weights.momentum=big', 'float']),
    ([DIGITS, '--config.weights.momentum=nan'], ['config.weights.momentum: nan is not a finite number']),
    ([DIGITS, '--config.data.download=maybe'], ['--config.data.download=maybe', 'boolean']),
    ([DIGITS, '--config.epochs=0'], ['config.epochs: 0 is not allowed; it has to be ≥ 1']),
    (
      [DIGITS, '--config.hypergradient.name=second_order'],
      ["config.hypergradient.name: 'second_order'", 'first_order, finite_difference, exact'],
    ),
    (
      [DIGITS, '--config.data.name=cifar11'],
      ["config.data.name: 'cifar11'", "did you mean 'cifar10'?", 'digits, mnist, cifar10, cifar100, npz'],
    ),
    (
      [DIGITS, "--config.space.operations=('none', 'sep_conv_4x4')"],
      ["config.space.operations: 'sep_conv_4x4' is not an operation; did you mean"],
    ),
    ([DIGITS, '--config.space.operations=none'], ["config.space.operations: ('none',) has nothing to choose"]),
    ([DIGITS, '--config.network.channels=5'], ['config.network.channels: 5', 'even']),
    ([DIGITS, '--config.batch_size=720'], ['config.batch_size: 720', 'digits', '719 images']),
    ([DIGITS, '--config.batch_size=12'], ['config.batch_size: 12 does not divide evenly over 8 devices']),
    ([DIGITS, '--config.data.path=mine.npz'], ["config.data.path is 'mine.npz'", "config.data.name is 'digits'"]),
    ([DIGITS, '--config.data.name=npz'], ['config.data.path is not set']),
    ([DIGITS, '--config.data.name=npz', '--config.data.path=no.npz'], ['no.npz (config.data.path): cannot be read']),
    ([DIGITS, '--config.data.name=cifar10', '--config.data.dir=no'], ["config.data.dir 'no' holds no cifar10", '.gz']),
    ([DIGITS, '--config.data.name=mnist', '--config.data.dir=no'], ["config.data.dir 'no' holds no mnist", '.gz']),
    ([DIGITS, '--workdir=~nosuchuser/run'], ['--workdir: ~nosuchuser/run: no home folder is known of that user']),
    ([DIGITS, '--workdir=gs://bucket/run'], ['--workdir: gs://bucket/run is a URL; allowed are paths']),
    ([DIGITS, '--workdir=w\udcffx'], ["--workdir: 'w\\udcffx' is not UTF-8"]),
    ([DIGITS, '--config.data.dir=d\udcff'], ["config.data.dir: 'd\\udcff' is not UTF-8"]),
    ([DIGITS, f'--workdir={"x" * 300}'], ['is no usable path (File name too long)']),
    (['--config=~nosuchuser/digits.py'], ['--config: ~nosuchuser/digits.py: no home folder is known']),
    (
      [DIGITS, '--config.data.name=npz', '--config.data.path=~nosuchuser/x.npz'],
      ['config.data.path: ~nosuchuser'],
    ),
    ([DIGITS, '--config.data.name=mnist', '--config.data.dir=s3://bucket'], ['config.data.dir: s3://bucket is a URL']),
    ([DIGITS, '--config.data.name=npz', '--config.data.path=/dev/zero'], ['not a file, but a device']),
    ([DIGITS, '--config.epochs=2147483648'], ['config.epochs: 2147483648 is not allowed; it has to be ≤ 20000']),
    ([DIGITS, '--config.network.layers=1000000000000'], ['config.network.layers: 1000000000000 is not allowed']),
    ([DIGITS, '--config.network.channels=1000000000000'], ['config.network.channels: 1000000000000 is not allowed']),
    ([DIGITS, '--config.augment.crop_padding=1000000'], ['config.augment.crop_padding: 1000000 is not allowed']),
    ([DIGITS, '--config.augment.cutout=4294967296'], ['config.augment.cutout: 4294967296 is not allowed']),
    (
      [DIGITS, '--config.hypergradient=unrolled', '--config.hypergradient.steps=1000000'],
      ['config.hypergradient.steps: 1000000 is not allowed'],
    ),
    (
      [DIGITS, '--config.hypergradient.name=exact', '--config.hypergradient.radius=1.0'],
      ['config.hypergradient.radius: unknown field of exact; it is one of finite_difference'],
    ),
    ([DIGITS, '--config.weights.learning_rate=1e300'], ['config.weights.learning_rate: 1e+300 is not allowed']),
    ([DIGITS, '--distributed', '--timeout=99999999999'], ['--timeout: 99999999999 is not allowed; it has to be ≥ 1']),
    ([RANDOM, '--config.trials=0'], ['config.trials: 0 is not allowed; it has to be ≥ 1']),
    (
      [RANDOM, '--config.epochs=3'],
      ['config.epochs: unknown field of random_search; it is one of darts, ', 'have config.evaluator.epochs'],
    ),
    ([RANDOM, '--config.evaluator.data.validation_fraction=0.0'], ['config.evaluator.data.validation_fraction: 0.0']),
  ],
)
def test_mistakes_on_the_command_line_are_one_line(ask, arguments, parts):
  check_refused(ask(*arguments), *parts)


GOOD = """
from configs import digits

def get_config():
  config = digits.get_config()
  {}
  return config
"""


@pytest.mark.parametrize(
  ('content', 'parts'),
  [
    ('def get_config(:\n', ['SyntaxError', 'line 1']),
    ('epochs = 3\n', ['mine.py: has no get_config() that returns']),
    ('def get_config():\n  return 3\n', ['mine.py: has no get_config() that returns']),
    ('def get_config():\n  pass\n', ['mine.py: has no get_config() that returns']),
    ('get_config = 3\n', ['mine.py: TypeError']),
    ('def get_config(which):\n  return which\n', ['mine.py: TypeError', 'which']),
    ('\nimport no_such_module\n', ['mine.py, line 2: ModuleNotFoundError', 'no_such_module']),
    ('def get_config():\n  return 1 / 0\n', ['mine.py, line 2: ZeroDivisionError']),
    (GOOD.format('config.batchsize = 16'), ['config.batchsize: unknown field; did you mean config.batch_size?']),
    (GOOD.format('config.network.chanels = 16'), ['did you mean config.network.channels?']),
    (GOOD.format('config.epochs = "many"'), ['mine.py, line 6: TypeError', 'epochs', 'many', 'int']),
    (GOOD.format('config = config.copy_and_resolve_references(); del config["epochs"]; config.epochs = "many"'),
      ["config.epochs: 'many' is not of type int"]),
    (GOOD.format('config = config.copy_and_resolve_references(); del config["space"]; config.space = []'),
      ['config.space: [] is neither a name nor a group of fields']),
    (GOOD.format('config.data.name = "npz"; config.data.path = "a\\0b.npz"'),
      ["config.data.path: 'a\\x00b.npz' has a zero byte"]),
    (GOOD.format('config.sgas = {"criterion": 2}'),
      ['config.sgas.criterion: it is called config.strategy.criterion now']),
    (GOOD.format('config.network = None'), ['config.network: None is not a group of fields']),
  ],
)  # fmt: skip
def test_mistakes_in_a_config_file_are_one_line(ask, content, parts):
  pathlib.Path('mine.py').write_text(content)
  check_refused(ask('--config=mine.py'), *parts)


def write_npz(path: str, **changes: np.ndarray) -> None:
  rng = np.random.default_rng(0)
  arrays = {'x_train': rng.integers(0, 256, (64, 8, 8, 1), np.uint8), 'y_train': np.arange(64) % 4}
  np.savez(path, **(arrays | changes))


@pytest.mark.parametrize(
  ('changes', 'parts'),
  [
    ({'y_train': np.arange(64) - 1}, ['y_train[0] is -1', '0..']),
    ({'y_train': np.arange(63) % 4}, ['y_train', '(63,)', '64 images']),
    ({'y_train': np.arange(64) / 4}, ['y_train', 'float64', 'integers']),
    ({'x_test': np.ones((3, 8, 4, 1), np.uint8), 'y_test': np.zeros(3, int)}, ['(8, 8, 1)', '(8, 4, 1)', 'equal']),
    ({'x_train': np.full((64, 8, 8, 1), np.nan)}, ['x_train[0, 0, 0, 0] is nan', 'finite']),
    ({'x_train': np.full((64, 8, 8, 1), 1e300)}, ['x_train[0, 0, 0, 0] is inf', 'float32']),
    ({'x_train': np.array([None] * 64)}, ['x_train cannot be read']),
  ],
)
def test_unfit_images_are_one_line_that_names_the_file(ask, changes, parts):
  write_npz('mine.npz', **changes)
  check_refused(ask(DIGITS, '--config.data.name=npz', '--config.data.path=mine.npz'), 'mine.npz', *parts)


def test_truncated_npz_is_one_line_that_names_it(ask):
  write_npz('mine.npz')
  path = pathlib.Path('mine.npz')
  path.write_bytes(path.read_bytes()[:-100])
  check_refused(ask(DIGITS, '--config.data.name=npz', '--config.data.path=mine.npz'), 'mine.npz', 'not a whole npz')


@pytest.mark.parametrize(
  ('name', 'path', 'parts'),
  [
    ('cifar10', 'cifar-10-binary.tar.gz', ['SHA-256 is', 'fetch it again']),
    ('cifar10', 'cifar-10-python.tar.gz', ['SHA-256 is', 'fetch it again']),
    ('cifar10', 'cifar-10-batches-bin/data_batch_1.bin', ['3 bytes, expected 30730000', 'truncated']),
    ('mnist', 'train-images-idx3-ubyte.gz', ['holds no mnist']),
  ],
)
def test_damaged_or_missing_archives_are_one_line_that_names_them(ask, name, path, parts):
  found = pathlib.Path('data') / path
  found.parent.mkdir(parents=True)
  found.write_bytes(b'abc')
  place = "'data'" if 'holds no mnist' in parts else str(found)
  check_refused(ask(DIGITS, f'--config.data.name={name}', '--config.data.dir=data'), place, *parts)


@pytest.mark.parametrize('workdir', ['file', 'file/run'])
def test_directory_that_cannot_be_written_is_one_line(ask, workdir):
  pathlib.Path('file').write_text('mine')
  check_refused(ask(DIGITS, f'--workdir={workdir}'), f'--workdir: {workdir} cannot be written')
  assert pathlib.Path('file').read_text() == 'mine'


def test_errors_of_the_program_keep_their_traceback(monkeypatch):
  def broken(config, workdir):
    raise TypeError('no user could have caused this')

  monkeypatch.setattr(sys, 'argv', ['search.py', DIGITS])
  with pytest.raises(TypeError, match='no user could have caused this'):
    entry.launch(COMMAND._replace(run=broken), 'test')


@pytest.mark.parametrize(
  ('content', 'parts'),
  [
    ('import sys; sys.exit(3)', ['--config: own.py, line 1: SystemExit: 3']),
    ('raise SystemExit', ['--config: own.py, line 1: SystemExit']),
    ('def get_config(): exit()', ['--config: own.py, line 1: SystemExit']),
    (
      'class E(Exception):\n  def __str__(self): raise TypeError\ndef get_config(): raise E',
      ['--config: own.py, line 3: E\n'],
    ),
    ('values = {"epochs": cd.required_placeholder(int)}', ['config.epochs: is required and has no value; give it one']),
    ('values = {"data": cd.ConfigDict({"dir": cd.required_placeholder(str)})}', ['config.data.dir: is required']),
    (
      'from ml_collections import config_dict as cd\n'
      'x = cd.FieldReference(2)\nc = cd.ConfigDict({"epochs": cd.FieldReference(4) // x})\nx.set(0)\n'
      'def get_config(): return c',
      ['config.epochs: has no value (ZeroDivisionError'],
    ),
    ('values = {"epochs": cd.placeholder(int)}', ['config.epochs: None is not of type int']),
    ('values = {5: 6}', ['config: 5 is no name of a field']),
    ('values = {5: 6, "epochs": 1}', ['config: its fields have names of several types']),
    (
      'class X:\n  def __repr__(self): raise RuntimeError\nvalues = {"epochs": X()}',
      ['config.epochs: something of type X is not of type int'],
    ),
  ],
)
def test_unfit_configs_are_one_line(ask, content, parts):
  head, tail = 'from ml_collections import config_dict as cd', 'def get_config(): return cd.ConfigDict(values)'
  has_values = 'values' in content
  pathlib.Path('own.py').write_text(f'{head}\n{content}\n{tail}\n' if has_values else f'{content}\n')
  check_refused(ask('--config=own.py'), *parts)


class Collected:
  """What gets the signal where Python passes exceptions over."""

  def __del__(self):
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize('is_lost', [False, True])
def test_sigterm_before_a_run_begins_leaves_nothing_behind(ask, is_lost):
  def run(config, workdir, **others):
    with locked(workdir):
      assert workdir.exists()
      if is_lost:
        Collected()
        threading.Event().wait(60)
      else:
        os.kill(os.getpid(), signal.SIGTERM)

  before = signal.getsignal(signal.SIGTERM)
  answer = ask(DIGITS, run=run)
  assert (answer.code, answer.errors.partition(';')[0]) == (130, 'stopped')
  assert not pathlib.Path('runs').exists()
  assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
  ('error', 'code', 'start'),
  [
    (ValueError('UNKNOWN: Gloo AllGather failed: Connection reset by peer'), 1, 'lost touch with the others'),
    (jax.errors.JaxRuntimeError('UNAVAILABLE: another task died'), 1, 'lost touch with the others'),
    (ValueError('config.epochs: 0 is not allowed'), 2, 'config.epochs: 0 is not allowed'),
  ],
)
def test_what_the_runtime_says_of_lost_processes_is_told_whatever_its_class(ask, monkeypatch, error, code, start):
  def run(*_, **others):
    raise error

  left = []
  monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
  monkeypatch.setattr(entry.processes, 'leave', left.append)
  answer = ask(DIGITS, run=run)
  assert (answer.code, left) == (code, [code])
  assert answer.errors.startswith(f'error: process 0: {start}')


class Output(io.StringIO):
  """Standard output that cannot be written."""

  def __init__(self, error):
    super().__init__()
    self._error = error

  def write(self, text):
    raise self._error


@pytest.mark.parametrize(
  ('error', 'code', 'said'),
  [
    (BrokenPipeError(errno.EPIPE, 'Broken pipe'), 0, ''),
    (
      OSError(errno.ENOSPC, 'No space left on device'),
      2,
      'error: standard output cannot be written (No space left on device)\n',
    ),
  ],
)
def test_output_that_nobody_reads_is_no_error_and_lost_output_is_one(ask, monkeypatch, error, code, said):
  monkeypatch.setattr(sys, 'stdout', Output(error))
  answer = ask(DIGITS, run=lambda config, workdir, **others: show('a result') or 0)
  assert (answer.code, answer.errors) == (code, said)
  assert ask('--help').code == code


def test_other_broken_pipes_are_errors_of_the_program(monkeypatch):
  def broken(config, workdir):
    raise BrokenPipeError(errno.EPIPE, 'Broken pipe')

  monkeypatch.setattr(sys, 'argv', ['search.py', DIGITS])
  with pytest.raises(BrokenPipeError):
    entry.launch(COMMAND._replace(run=broken), 'test')


def test_errors_are_errors_when_nobody_can_be_told(ask, monkeypatch):
  monkeypatch.setattr(sys, 'stderr', Output(OSError(errno.ENOSPC, 'No space left on device')))
  assert ask('--config=nowhere.py').code == 2
  monkeypatch.setattr(sys, 'stderr', None)
  assert ask('--config=nowhere.py').code == 2
  sys.stderr.close()


@pytest.mark.parametrize('flag', ['--help', '-h'])
def test_help_is_the_usage(ask, flag):
  code, output, errors = ask(flag)
  assert (code, errors) == (None, '')
  lines = output.splitlines()
  assert (lines[0], lines[2], lines[-1]) == (USAGE, 'Searches for an architecture.', 'example: test an example')
  assert re.findall(r'^  --([\w.]+)', output, re.MULTILINE) == [
    *('config', 'workdir', 'import', 'distributed', 'coordinator', 'num_processes', 'process_id', 'timeout'),
    'config.FIELD',
  ]


def test_config_and_directory_reach_the_program(ask):
  received = []

  def run(config, workdir):
    received.append((config.epochs, config.space.operations, config.data.download, config.seed, workdir))
    return 7

  # Flags come in any order, values after = or a space; a field that the file leaves out can be set.
  pathlib.Path('mine.py').write_text(GOOD.format('del config.seed'))
  operations = "--config.space.operations=('none', 'skip_connect')"
  answer = ask(
    operations, '--config.epochs', '2', '--config.data.download', '--config=mine.py', '--config.seed=3', run=run
  )
  assert answer == (7, '', '')
  ask('--config', DIGITS.removeprefix('--config='), '--workdir=here', '--noconfig.data.download', run=run)
  assert received[0] == (2, ('none', 'skip_connect'), True, 3, pathlib.Path('runs/mine'))
  assert received[1][2:] == (False, 0, pathlib.Path('here'))


GENOTYPE = darts.genotype(
  (('skip_connect', 0), ('max_pool_3x3', 1)), (2,), (('skip_connect', 0), ('skip_connect', 1)), (2,)
)


def test_result_is_printed(ask, monkeypatch):
  result = search.Result(GENOTYPE, 0.5, 0.9759, None, True, False, pathlib.Path('runs/digits/report.html'))
  monkeypatch.setattr(search, 'run_side_by_side', lambda config, workdir: [result])
  answer = ask(DIGITS)
  assert answer.code == 0
  assert answer.output.splitlines() == [
    "genotype: {'normal': [['skip_connect', 0], ['max_pool_3x3', 1]], 'normal_concat': [2],"
    " 'reduce': [['skip_connect', 0], ['skip_connect', 1]], 'reduce_concat': [2]}",
    'validation accuracy in the supernet: 97.59%',
    'report: runs/digits/report.html',
  ]


def test_results_of_searches_side_by_side_are_printed(ask, monkeypatch):
  text = search.Result(GENOTYPE, 0.0, float('nan'), None, True, False, pathlib.Path('runs/seed_0/report.html'))
  text = dataclasses.replace(text, history=({'valid_perplexity': 1.0},))
  results = [text, dataclasses.replace(text, valid_loss=1.0, report=pathlib.Path('runs/seed_1/report.html'))]
  monkeypatch.setattr(search, 'run_side_by_side', lambda config, workdir: results)
  assert [line for line in ask(DIGITS).output.splitlines() if not line.startswith('genotype')] == [
    'validation perplexity of the supernet: 1.00',
    'report: runs/seed_0/report.html',
    'validation perplexity of the supernet: 2.72',
    'report: runs/seed_1/report.html',
  ]


def test_search_that_diverged_exits_with_1(ask, monkeypatch):
  def diverge(config, workdir):
    raise search.Diverged('step 3: a loss or gradient is not finite')

  monkeypatch.setattr(search, 'run_side_by_side', diverge)
  assert ask(DIGITS) == (1, '', 'error: step 3: a loss or gradient is not finite\n')


def test_search_that_was_stopped_exits_like_an_interrupted_program(ask, monkeypatch):
  result = search.Result(GENOTYPE, 0.5, 0.5, None, False, True, pathlib.Path('report.html'))
  monkeypatch.setattr(search, 'run_side_by_side', lambda config, workdir: [result])
  assert ask(DIGITS) == (130, '', '')


def found(finished):
  return trials.TrialsResult(
    *(GENOTYPE, 0.9759, 'valid_accuracy', {'test_accuracy': 0.9876}, (), finished),
    pathlib.Path('runs/digits_random/report.html'),
  )


def test_result_of_a_search_by_proposals_is_printed(ask, monkeypatch):
  received = []

  def run(config, workdir, note):
    received.append((config.trials, workdir))
    note('trial 3, 4 of 5: failed')
    return found(True)

  monkeypatch.setattr(trials.search, 'run', run)
  answer = ask(RANDOM, '--config.trials=5')
  assert (answer.code, answer.errors) == (0, '== trial 3, 4 of 5: failed\n')
  assert answer.output.splitlines() == [
    "genotype: {'normal': [['skip_connect', 0], ['max_pool_3x3', 1]], 'normal_concat': [2],"
    " 'reduce': [['skip_connect', 0], ['skip_connect', 1]], 'reduce_concat': [2]}",
    'validation accuracy of the best architecture: 97.59%',
    'test accuracy: 98.76%',
    'report: runs/digits_random/report.html',
  ]
  assert received == [(5, pathlib.Path('runs/digits_random'))]


def test_search_by_proposals_that_failed_or_was_stopped_says_so_by_its_exit_code(ask, monkeypatch):
  def fail(config, workdir, note):
    raise trials.Failed('all 6 evaluations failed')

  monkeypatch.setattr(trials.search, 'run', fail)
  assert ask(RANDOM) == (1, '', 'error: all 6 evaluations failed\n')
  monkeypatch.setattr(trials.search, 'run', lambda config, workdir, note: found(False))
  assert ask(RANDOM) == (130, '', '')


@pytest.mark.parametrize('arguments', [[], ['--distributed', '--num_processes=1', '--process_id=0']])
def test_platform_without_devices_is_named_with_what_is_there(tmp_path, arguments):
  if arguments:
    with socket.socket() as free:
      free.bind(('localhost', 0))
      arguments = [*arguments, f'--coordinator=localhost:{free.getsockname()[1]}']
  command = [sys.executable, '-m', 'experiments.search', '--config=configs/digits.py', f'--workdir={tmp_path / "run"}']
  # There may be GPUs where tests are made, but no machine has these.
  environment = {**os.environ, 'JAX_PLATFORMS': 'nowhere'}
  done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, check=False)
  assert done.returncode == 2
  line = done.stderr.splitlines()[-1]
  assert 'JAX_PLATFORMS: there are no devices of nowhere; there is cpu; installed plugins: ' in line
  assert 'Traceback' not in done.stderr
  assert not (tmp_path / 'run').exists()


def test_plugin_that_is_missing_is_a_platform_without_devices(monkeypatch):
  def devices():
    # What JAX says of a platform that it knows but has no plugin for.
    raise AssertionError

  monkeypatch.setattr(platforms.jax, 'devices', devices)
  with pytest.raises(ValueError, match='JAX_PLATFORMS: there are no devices of '):
    platforms.check_devices()


@pytest.mark.parametrize('value', ['0', '-1', '1e3', '٣٤٥٦', '99999999999', '9' * 5000])
def test_flags_are_numbers_within_limits(value):
  with pytest.raises(ValueError, match=r'^--layers: .* is not allowed; it has to be a whole number ≥ 1 and ≤ 200$'):
    entry.whole_number('layers', value, 200)


def test_memory_that_is_not_enough_is_one_line(ask):
  def run(config, workdir):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\nand more')

  check_refused(ask(DIGITS, run=run), 'out of memory (RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.)')
