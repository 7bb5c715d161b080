"""Modules of one's own, by `--import`: the commands of docs/operations.md from a folder outside of the package."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / 'docs' / 'operations.md').read_text(encoding='utf-8')
#: Flags that make the networks small.
SMALL = (
  *('--config.epochs=1', '--config.network.channels=4', '--config.network.layers=3', '--config.batch_size=256'),
  *('--config.log_every=5',),
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """With the module of the document, and a link to the configs."""
  found = tmp_path_factory.mktemp('mine')
  [example] = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)
  (found / 'mine.py').write_text(example)
  (found / 'configs').symlink_to(ROOT / 'configs')
  return found


def run(folder, command, *more):
  words = [word.strip('"') for word in re.findall(r'(?:[^\s"]|"[^"]*")+', command.replace('\\\n', ' '))]
  arguments = [sys.executable, *[word.replace('="', '=') for word in words[1:]], *more]
  # Compiled as quickly as the tests are.
  quick = ' '.join(flag for flag in os.environ['XLA_FLAGS'].split() if 'device_count' not in flag)
  own = {'PYTHONPATH': str(ROOT), 'XLA_FLAGS': quick}
  environment = {**own, 'PATH': '/usr/bin:/bin', 'HOME': str(pathlib.Path.home())}
  return subprocess.run(
    arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
  )


def test_the_commands_of_the_document(folder):
  [block] = re.findall(r'```sh\n(.*?)```', TEXT, re.DOTALL)
  search, train, describe, export = re.split(r'(?<!\\)\n', block.strip())
  small_space = '--config.space.nodes=1', '--config.hypergradient=first_order'
  done = run(folder, search, *SMALL, *small_space)
  assert done.returncode == 0, done.stderr
  config = json.loads((folder / 'runs' / 'mine' / 'config.json').read_text())
  assert config['space']['operations'][2:] == ['pointwise', 'squeeze', 'attention']
  assert set(re.findall(r"'(\w+)', \d", done.stdout)) <= set(config['space']['operations'])
  # One that is sure to have an operation of one's own.
  genotype = {
    f'{cell}{end}': value
    for cell in ('normal', 'reduce')
    for end, value in (('', [['squeeze', 0], ['attention', 1]]), ('_concat', [2]))
  }
  (folder / 'runs' / 'mine' / 'genotype.json').write_text(json.dumps(genotype))
  done = run(folder, train, *SMALL)
  assert done.returncode == 0, done.stderr
  assert 'test accuracy: ' in done.stdout
  done = run(folder, describe)
  assert "('attention', 1)" in done.stdout
  done = run(folder, export)
  assert 'its logits differ from the network’s by' in done.stdout, done.stderr
  done = run(folder, export.replace('mine.stablehlo', 'mine.onnx'))
  assert done.returncode == 2
  assert done.stderr == (
    'error: --format: onnx: the operation squeeze cannot be written so; stablehlo and safetensors hold any network\n'
  )
  # Without the module nobody knows them.
  done = run(folder, describe.replace('--import=mine ', ''))
  assert done.returncode == 2
  assert "'squeeze' is not an operation; " in done.stderr


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (None, 'bad: no such module; it is looked for in the current folder, and where Python does'),
    ('import nowhere', 'bad: {}, line 1: ModuleNotFoundError: No module named'),
    ('\n1 / 0', 'bad: {}, line 2: ZeroDivisionError: division by zero'),
    ('def', 'bad: SyntaxError: '),
    ('raise SystemExit(3)', 'bad: {}, line 1: SystemExit: 3'),
  ],
)
def test_modules_that_cannot_be_imported_are_one_line(ask, tmp_path, monkeypatch, content, message):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', list(sys.path))
  monkeypatch.delitem(sys.modules, 'bad', raising=False)
  if content is not None:
    (tmp_path / 'bad.py').write_text(content)
  answer = ask(f'--config={ROOT / "configs" / "digits.py"}', '--import=bad', run=lambda config, workdir: 0)
  assert answer.code == 2
  assert answer.errors.startswith(f'error: --import: {message.format(tmp_path / "bad.py")}')
  assert answer.errors.count('\n') == 1
