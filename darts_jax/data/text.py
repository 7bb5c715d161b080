"""Loads corpora by name, and from plain text files."""

import array
import io
import pathlib
import re
from collections.abc import Iterable, Iterator

import numpy as np

from darts_jax import limits
from darts_jax.data import pydoc
from darts_jax.data.corpus import END, UNKNOWN, Corpus
from darts_jax.runtime.files import read_bytes, user_path

NAMES = ('pydoc', 'ptb', 'wikitext2', 'files')

#: Names of the files with the training, validation and test text; the first names of which all three files exist are
#: read.
NAMINGS = tuple(
  tuple(pattern.format(split) for split in ('train', 'valid', 'test'))
  for pattern in ('{}.txt', 'ptb.{}.txt', 'wiki.{}.tokens')
)

_CHOICES = ' or '.join(', '.join(naming) for naming in NAMINGS)
# Names of the folders in the published archives, which are also searched in `config.data.dir`.
_FOLDERS = {'ptb': ('ptb',), 'wikitext2': ('wikitext2', 'wikitext-2')}
# Number of characters from which a line counts as long, and largest number of characters of a token in a message.
_LONG, _MAX_SHOWN = 2**16, 100


def load(name: str, directory: str = 'data') -> Corpus:
  """Loads a corpus.

  Args:
    name: `config.data.name`. 'pydoc' is the prose of Python's own help texts, about 50,000 tokens that differ between
      versions of Python. 'ptb' (Penn Treebank), 'wikitext2' and 'files' are read from plain text files.
    directory: `config.data.dir`, the folder with the three files, named as in `NAMINGS`; those of 'ptb' may be in its
      subfolder `ptb`, and those of 'wikitext2' in `wikitext2` or `wikitext-2`. Tokens are separated by white space, and
      every line, also an empty one, ends with `<eos>`.

  Returns:
    The corpus. The vocabulary is that of the training text; other tokens of the other two texts become `<unk>`.

  Raises:
    ValueError: the corpus is unknown, not found or not plain text, has more than `limits.WORDS` different tokens, or
      has a token outside the vocabulary while `<unk>` is not in it. The message names the field or file.
  """
  if name not in NAMES:
    raise ValueError(f'config.data.name is {name!r}; allowed: {", ".join(NAMES)}')
  return pydoc.load() if name == 'pydoc' else _files(name, directory)


def _files(name: str, directory: str) -> Corpus:
  if not directory:
    raise ValueError(f'config.data.dir is not set: name the folder with the text of {name}, {_CHOICES}')
  try:
    paths = _find(name, directory)
  except OSError as error:
    raise ValueError(f'config.data.dir {directory!r}: cannot be read: {error}') from error
  ids: dict[str, int] = {}
  parts = [_encode(path, ids, grow=not i) for i, path in enumerate(paths)]
  return Corpus(name, tuple(ids), *parts)


def _find(name: str, directory: str) -> list[pathlib.Path]:
  """Paths of the three files, with the first of `NAMINGS` for which all exist."""
  root = user_path(directory, 'config.data.dir')
  if not root.is_dir():
    raise ValueError(f'config.data.dir {directory!r} is not a folder: name the one with the text of {name}')
  incomplete = []
  for folder in (root, *(root / below for below in _FOLDERS.get(name, ()))):
    for naming in NAMINGS:
      paths = [folder / file for file in naming]
      missing = [path.name for path in paths if not path.is_file()]
      if not missing:
        return paths
      if len(missing) < len(paths):
        there = [file for file in naming if file not in missing]
        incomplete.append(f'; {folder} has {", ".join(there)} but not {", ".join(missing)}')
  raise ValueError(f'config.data.dir {directory!r} holds no {name}: put there {_CHOICES}{"".join(incomplete)}')


def _encode(path: pathlib.Path, ids: dict[str, int], *, grow: bool) -> np.ndarray:
  """Ids of the tokens of a file.

  Args:
    path: path of the file.
    ids: ids by token; gets new tokens if `grow`.
    grow: whether new tokens are added to the vocabulary; otherwise they become `<unk>`.

  Returns:
    [N] int32.
  """
  encoded = array.array('i')
  unknown = ids.get(UNKNOWN, -1)
  found = False
  for number, line in _lines(path):
    for token in _words(line):
      found = True
      index = ids.setdefault(token, len(ids)) if grow else ids.get(token, unknown)
      if index < 0:
        raise ValueError(
          f'{path}:{number}: token {token[:_MAX_SHOWN]!r} is not in the vocabulary, which is that of the training text;'
          f' {UNKNOWN} would stand for it, but is not there either'
        )
      if index >= limits.WORDS:
        raise ValueError(
          f'{path}:{number}: token {limits.WORDS + 1:,} of the vocabulary; there are up to {limits.WORDS:,}'
        )
      encoded.append(index)
    encoded.append(ids.setdefault(END, len(ids)))
  if not found:
    raise ValueError(f'{path}: no tokens; the file has to hold text')
  return np.array(encoded, np.int32)


def _lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
  """Yields the lines of a text with their numbers; a list of all lines would take many times the file's size."""
  content = read_bytes(path)
  null = content.find(b'\0')
  if null >= 0:
    before = content.count(b'\n', 0, null)
    raise ValueError(f'{path}:{before + 1}: a zero byte; the file has to be plain text in UTF-8')
  # `str.splitlines` would also split lines at other characters, such as form feeds.
  for number, line in enumerate(io.BytesIO(content), 1):
    try:
      # Without a byte order mark, which would be part of the first token.
      yield number, line.decode('utf-8-sig' if number == 1 else 'utf-8')
    except UnicodeDecodeError as error:
      raise ValueError(f'{path}:{number}: not UTF-8; the file has to be plain text in UTF-8') from error


def _words(line: str) -> Iterable[str]:
  """The words of a line; those of a long line are yielded one by one, since a list takes many times its size."""
  return line.split() if len(line) < _LONG else (found[0] for found in re.finditer(r'\S+', line))
