"""Corpora of plain text files, and by name."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from darts_jax.data import pydoc
from darts_jax.data.corpus import END, UNKNOWN, Corpus
from darts_jax.runtime.files import read_bytes, user_path

NAMES = ('pydoc', 'ptb', 'wikitext2', 'files')

#: Names of the files with the training, validation and test text; the first that are all there are read.
NAMINGS = tuple(
  tuple(pattern.format(split) for split in ('train', 'valid', 'test'))
  for pattern in ('{}.txt', 'ptb.{}.txt', 'wiki.{}.tokens')
)

_CHOICES = ' or '.join(', '.join(naming) for naming in NAMINGS)
# What the published archives unpack to, for those who unpack them in `config.data.dir`.
_FOLDERS = {'ptb': ('ptb',), 'wikitext2': ('wikitext2', 'wikitext-2')}


def load(name: str, directory: str = 'data') -> Corpus:
  """Loads a corpus.

  Args:
    name: `config.data.name`. 'pydoc' is the English of Python's own help texts, some 50,000 tokens that differ from
      one version of Python to the next. 'ptb' (Penn Treebank), 'wikitext2' and 'files' are read from plain text files
      and differ in name only.
    directory: `config.data.dir`, where the three files lie, named as in `NAMINGS`; those of 'ptb' may lie in a folder
      `ptb` in there, those of 'wikitext2' in `wikitext2` or `wikitext-2`. Tokens are separated by white space, and
      `<eos>` ends every line, empty ones included.

  Returns:
    The corpus. Its vocabulary is that of the training text; other tokens of the other two are `<unk>`.

  Raises:
    ValueError: naming the field or file, if a corpus is unknown, not found, or not plain text, or if a token is not
      in the vocabulary and `<unk>` is not either.
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
  texts = [_tokens(path) for path in paths]
  vocabulary = tuple(dict.fromkeys(texts[0]))
  ids = {token: index for index, token in enumerate(vocabulary)}
  return Corpus(name, vocabulary, *(_encode(text, ids, path) for text, path in zip(texts, paths, strict=True)))


def _find(name: str, directory: str) -> list[pathlib.Path]:
  """The files of the first complete naming."""
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


def _tokens(path: pathlib.Path) -> list[str]:
  # `str.splitlines` would end lines at other signs, too, such as form feeds.
  return _read(path).replace('\n', f' {END} ').split()


def _read(path: pathlib.Path) -> str:
  """A text whose last line is ended, too."""
  content = read_bytes(path)
  null = content.find(b'\0')
  if null >= 0:
    raise ValueError(f'{path}:{_line(content, null)}: a zero byte; the file has to be plain text in UTF-8')
  try:
    text = content.decode('utf-8-sig')  # Without a byte order mark, which would be part of the first token.
  except UnicodeDecodeError as error:
    raise ValueError(
      f'{path}:{_line(content, error.start)}: not UTF-8; the file has to be plain text in UTF-8'
    ) from error
  if not text.strip():
    raise ValueError(f'{path}: no tokens; the file has to hold text')
  return text if text.endswith('\n') else f'{text}\n'


def _encode(tokens: Sequence[str], ids: Mapping[str, int], path: pathlib.Path) -> np.ndarray:
  unknown = ids.get(UNKNOWN, -1)
  encoded = np.fromiter((ids.get(token, unknown) for token in tokens), np.int32, len(tokens))
  if unknown < 0 and encoded.min() < 0:
    token = tokens[int(np.argmin(encoded))]
    line = next(number for number, line in enumerate(_read(path).split('\n'), 1) if token in line.split())
    raise ValueError(
      f'{path}:{line}: token {token!r} is not in the vocabulary, which is that of the training text; {UNKNOWN} would '
      'stand for it, but is not there either'
    )
  return encoded


def _line(content: bytes, position: int) -> int:
  return content.count(b'\n', 0, position) + 1
