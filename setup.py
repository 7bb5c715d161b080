"""Declares the package, its dependencies and its extras; tool settings are in pyproject.toml.

The lower bound of a dependency is the oldest version that the tests pass with, the upper bound the next one that may
change its interface.
"""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent


def version() -> str:
  """The version that `darts_jax/__init__.py` states, read without importing the package."""
  [found] = re.findall(r"^__version__ = '(.+)'$", (ROOT / 'darts_jax' / '__init__.py').read_text(), re.MULTILINE)
  return found


CORE = [
  'absl-py>=2.5,<3',
  'chex>=0.1.92,<0.2',
  'flax>=0.12.8,<0.13',
  'jax>=0.10.2,<0.13',
  'jaxlib>=0.10.2,<0.13',
  'matplotlib>=3.11,<4',
  'ml-collections>=1.1,<2',
  'numpy>=2.4,<3',
  'optax>=0.2.8,<0.3',
  'orbax-checkpoint>=0.12.8,<0.13',
  'safetensors>=0.8,<0.9',
  'scikit-learn>=1.9,<2',
  'shtab>=1.13,<2',
  'tqdm>=4.70,<5',
  # JAX compresses the programs that it caches with this, if it is there: to a tenth of the size, and faster than zlib.
  'zstandard>=0.25,<1; python_version < "3.14"',
]

# Reads prepared data sets of TensorFlow Datasets; needs no TensorFlow.
TFDS = [
  'array_record>=0.8.6,<0.9',
  'pillow>=13,<14',
  'tensorflow-datasets>=4.9.10,<5',
]

# Writes networks to files for other programs, and runs these files to see that they are right.
EXPORT = [
  'flatbuffers>=25.12.19,<26',
  'onnx>=1.23.2,<2',
  'onnxruntime>=1.31.1,<2',
]

# Streams images from files instead of holding them in memory.
STREAM = [
  'grain>=0.2.18,<0.3',
  'pillow>=13,<14',
]

# Compiles for TPUs that are not there: libtpu, in the version that goes with the JAX that is installed.
PODS = ['jax[tpu]']

# The same for GPUs and TPUs, where there are wheels: JAX's plugin without CUDA's libraries. The tests have them in a
# folder of their own, since JAX sets up every plugin that it finds.
ACCELERATORS = [
  f'{package}; sys_platform == "linux" and platform_machine == "x86_64"' for package in ('jax[cuda12-local]', *PODS)
]

TEST = [
  'hypothesis>=6.170,<7',
  'mypy>=2.4,<3',
  'pytest>=9.2,<10',
  'pytest-xdist>=3.8,<4',
  'ruff>=0.17.5,<0.18',
  'tensorboardX>=2.6.5,<3',
]

setup(
  name='darts_jax',
  version=version(),
  description='Differentiable architecture search in JAX and Flax',
  author='The darts_jax authors',
  license_expression='Apache-2.0',
  license_files=['LICENSE'],
  python_requires='>=3.11',
  # In a wheel the configs are a part of the package; see darts_jax/configs/__init__.py.
  packages=[*find_packages(include=('darts_jax', 'darts_jax.*')), 'darts_jax.configs'],
  package_dir={'darts_jax.configs': 'configs'},
  entry_points={'console_scripts': ['darts-jax = darts_jax.commands.main:main']},
  package_data={'darts_jax': ['py.typed', 'spaces/published.json', 'spaces/robust_s1.json']},
  install_requires=CORE,
  extras_require={
    'accelerators': ACCELERATORS,
    'cuda': ['jax[cuda13]'],
    'export': EXPORT,
    'pods': PODS,
    'stream': STREAM,
    'test': [*TEST, *EXPORT, *STREAM, *TFDS],
    'tfds': TFDS,
    'tpu': ['jax[tpu]'],
  },
)
