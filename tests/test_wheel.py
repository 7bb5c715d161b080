"""What `pip install` gives: a command and its configs, outside of a checkout."""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
BUILD = 'import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])'


def run(*command, cwd, **environment):
  kept = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
  done = subprocess.run(
    command, cwd=cwd, env=kept | environment, capture_output=True, text=True, timeout=300, check=False
  )
  assert done.returncode == 0, done.stderr
  return done


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """Built from the source distribution, as an index would."""
  folder = tmp_path_factory.mktemp('wheel')
  source = folder / 'source'
  ignored = shutil.ignore_patterns('.*', 'runs', 'build', 'dist', '*.egg-info', '__pycache__')
  shutil.copytree(ROOT, source, ignore=ignored)
  run(sys.executable, '-c', BUILD, 'build_sdist', str(folder), cwd=source)
  [archive] = folder.glob('*.tar.gz')
  with tarfile.open(archive) as opened:
    opened.extractall(folder, filter='data')
  run(sys.executable, '-c', BUILD, 'build_wheel', str(folder), cwd=folder / archive.name.removesuffix('.tar.gz'))
  [found] = folder.glob('*.whl')
  return found


def test_a_wheel_has_the_configs_and_is_small(wheel):
  assert wheel.stat().st_size <= 2**20
  with zipfile.ZipFile(wheel) as opened:
    names = set(opened.namelist())
    for path in (ROOT / 'configs').glob('*.py'):
      assert opened.read(f'darts_jax/configs/{path.name}') == path.read_bytes()
  modules = {str(path.relative_to(ROOT)) for path in (ROOT / 'darts_jax').rglob('*.py')}
  # In a checkout it finds the folder of the configs.
  assert modules - names == {'darts_jax/configs/__init__.py'}
  assert {name.partition('/')[0].partition('-')[0] for name in names} == {'darts_jax'}


def test_a_search_runs_where_the_wheel_is_installed(wheel, tmp_path):
  venv.create(tmp_path / 'fresh')
  python = tmp_path / 'fresh' / 'bin' / 'python'
  install = 'install', '--quiet', '--no-deps', '--no-index', '--disable-pip-version-check', str(wheel)
  run(sys.executable, '-m', 'pip', '--python', str(python), *install, cwd=tmp_path)
  # The other packages are those of this environment; a path that is added this way does not add an editable package.
  [site] = (tmp_path / 'fresh' / 'lib').glob('python*/site-packages')
  (site / 'others.pth').write_text('\n'.join({sysconfig.get_path('purelib'), sysconfig.get_path('platlib')}))
  command = str(python.with_name('darts-jax'))
  place = run(str(python), '-c', 'import darts_jax; print(darts_jax.__file__)', cwd=tmp_path).stdout
  assert place.startswith(str(site))
  assert 'digits_eval ' in run(command, 'configs', cwd=tmp_path).stdout
  flags = ' '.join(flag for flag in os.environ['XLA_FLAGS'].split() if 'device_count' not in flag)
  small = (
    *('--config.epochs=1', '--config.batch_size=256', '--config.space.nodes=1', '--config.network.channels=2'),
    *("--config.space.operations=('none','skip_connect')", '--config.hypergradient=first_order'),
  )
  done = run(command, 'search', '--config=digits', *small, cwd=tmp_path, XLA_FLAGS=flags)
  assert done.stdout.startswith('genotype: {')
  assert {path.name for path in (tmp_path / 'runs' / 'digits').iterdir()} >= {'genotype.json', 'report.html'}
