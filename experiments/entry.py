"""What every experiment's command has in common: flags, one-line errors, exit codes."""

import pathlib
import sys
from collections.abc import Callable
from typing import Any

from absl import flags
from ml_collections import config_flags

FLAGS = flags.FLAGS


def launch(run: Callable[[Any, pathlib.Path], int], usage: str) -> None:
  """Parses the command line, calls `run(config, workdir)` and exits with what it returns.

  A ValueError, which is what users can cause, is printed as one line and exits with 2; without `--config` so does the
  usage.
  """
  config = config_flags.DEFINE_config_file('config', None, 'Path of the config file, such as configs/digits.py.')
  workdir = flags.DEFINE_string(
    'workdir', None, 'Where the run is written, and resumed from; runs/NAME of the config file by default.'
  )
  try:
    rest = FLAGS(sys.argv)
    if len(rest) > 1:
      raise ValueError(f'{rest[1]}: unexpected argument; {usage}')
    if config.value is None:
      raise ValueError(f'--config: missing; {usage}')
    name = pathlib.Path(config_flags.get_config_filename(FLAGS['config'])).stem
    code = run(config.value, pathlib.Path(workdir.value or f'runs/{name}'))
  except (ValueError, flags.Error, AttributeError, KeyError, TypeError, OSError) as error:
    if not isinstance(error, ValueError | flags.Error) and config.present and FLAGS.is_parsed():
      raise
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    code = 2
  sys.exit(code)
