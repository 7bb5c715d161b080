"""The report of a search or a training: one HTML page that opens without a server, a network or scripts."""

import os
import pathlib

from darts_jax.report import page, training, trials, workdir
from darts_jax.runtime.durable import write_whole
from darts_jax.runtime.files import user_path

_FILE = 'report.html'


def write(path: str | os.PathLike[str]) -> pathlib.Path:
  """Writes `report.html` into the working directory of a search or a training, from the files in it alone.

  Reads `config.json`, `metrics.jsonl`, `genotype.json`, `alphas.npz` and, for a search by proposals, `trials.jsonl`.
  Any file may be missing, broken or cut off by a crash: the sections that need it then say so. Equal files give equal
  bytes. The page is written atomically.

  Args:
    path: the working directory.

  Returns:
    The path of `report.html`.

  Raises:
    ValueError: the working directory does not exist, or the page cannot be written.
  """
  folder = user_path(path, 'workdir')
  if not folder.is_dir():
    raise ValueError(f'workdir: {str(folder)!r} is not a folder; name the working directory of a run')
  try:
    return _write(folder)
  except OSError as error:
    raise ValueError(f'--workdir: {folder / _FILE} cannot be written ({error.strerror or error})') from error


def _write(folder: pathlib.Path) -> pathlib.Path:
  report = folder / _FILE
  run = workdir.read(folder)
  if run.is_training:
    text = training.render(run)
  elif trials.is_search(run):
    text = trials.render(run)
  else:
    text = page.render(run)
  write_whole(report, text.encode(), sync=False)
  return report
