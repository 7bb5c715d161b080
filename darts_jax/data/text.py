"""Corpora for language models as arrays of token ids: text that Python brings along, or a user's plain text files."""

import dataclasses
import hashlib
import pathlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

NAMES = ('pydoc', 'ptb', 'wikitext2', 'files')
UNKNOWN, END = '<unk>', '<eos>'

#: Names of the files with the training, validation and test text; the first that are all there are read.
NAMINGS = tuple(
  tuple(pattern.format(split) for split in ('train', 'valid', 'test'))
  for pattern in ('{}.txt', 'ptb.{}.txt', 'wiki.{}.tokens')
)

_CHOICES = ' or '.join(', '.join(naming) for naming in NAMINGS)
# What the published archives unpack to, for those who unpack them in `config.data.dir`.
_FOLDERS = {'ptb': ('ptb',), 'wikitext2': ('wikitext2', 'wikitext-2')}

# A word of `pydoc` that the training text has less often is unknown.
_MIN_COUNT = 3
# Share of the validation split, and of the test split, in the tokens of `pydoc`; and the largest share of one topic in
# either of them, so that they are about more than one thing.
_HELD_OUT = 0.1
_LARGEST = 0.4


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Tokens of a text, split into three parts.

  Attributes:
    name: what a report calls it.
    vocabulary: the tokens by id, in the order of their first occurrence in the training text.
    train: [N] int32 ids.
    valid: [M] int32 ids.
    test: [K] int32 ids.
  """

  name: str
  vocabulary: tuple[str, ...]
  train: np.ndarray
  valid: np.ndarray
  test: np.ndarray

  @property
  def fingerprint(self) -> dict[str, Any]:
    """JSON values that tell these tokens from others, whatever the corpus is called."""
    words = hashlib.sha256('\n'.join(self.vocabulary).encode())

    def digest(ids: np.ndarray) -> dict[str, Any]:
      digested = words.copy()
      digested.update(ids.astype('<i4').tobytes())
      return {'tokens': len(ids), 'sha256': digested.hexdigest()[:16]}

    splits = {'train': self.train, 'valid': self.valid, 'test': self.test}
    return {'vocabulary': len(self.vocabulary), **{name: digest(ids) for name, ids in splits.items()}}


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
  return _pydoc() if name == 'pydoc' else _files(name, directory)


def columns(tokens: np.ndarray, batch_size: int) -> np.ndarray:
  """Lays a text out in columns that are read side by side, from top to bottom.

  Args:
    tokens: [N] ids.
    batch_size: B.

  Returns:
    [N // B, B] int32, C-contiguous; column b is the b-th of B consecutive pieces. What is left over is dropped.
  """
  num_rows = len(tokens) // batch_size
  return np.ascontiguousarray(tokens[: num_rows * batch_size].reshape(batch_size, num_rows).T, np.int32)


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
  root = pathlib.Path(directory).expanduser()
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
  try:
    content = path.read_bytes()
  except OSError as error:
    raise ValueError(f'{path}: cannot be read: {error}') from error
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


def _pydoc() -> Corpus:
  splits = pydoc_splits()
  texts = [[token for topic in split.values() for token in topic] for split in splits]
  counts = Counter(texts[0])
  known = {token for token, count in counts.items() if count >= _MIN_COUNT} | {UNKNOWN, END}
  texts = [[token if token in known else UNKNOWN for token in text] for text in texts]
  # Every word may be frequent enough.
  vocabulary = tuple(dict.fromkeys([*texts[0], UNKNOWN]))
  ids = {token: index for index, token in enumerate(vocabulary)}
  train, valid, test = (np.array([ids[token] for token in text], np.int32) for text in texts)
  return Corpus('pydoc', vocabulary, train, valid, test)


def pydoc_splits() -> tuple[dict[str, list[str]], ...]:
  """The tokens of Python's help texts by topic, for training, validation and test.

  Sections of the language reference are topics of their own and again part of larger topics. A paragraph therefore
  counts only where it occurs first, larger topics before smaller ones, and what is left without one is no topic.

  Raises:
    ValueError: if this Python comes without its help texts.
  """
  try:
    from pydoc_data.topics import topics
  except ImportError as error:
    raise ValueError(
      "config.data.name is 'pydoc', but this Python comes without its help texts (module pydoc_data.topics); install "
      f'them or take one of {", ".join(name for name in NAMES if name != "pydoc")}'
    ) from error
  seen: set[tuple[str, ...]] = set()
  tokens: dict[str, list[str]] = {}
  for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
    for paragraph in prose(topics[name]):
      if paragraph not in seen:
        seen.add(paragraph)
        tokens.setdefault(name, []).extend(paragraph)
  splits = partition({name: len(topic) for name, topic in tokens.items()})
  return tuple({name: tokens[name] for name in names} for names in splits)


def partition(sizes: Mapping[str, int]) -> tuple[list[str], list[str], list[str]]:
  """Splits topics so that validation and test get a tenth of the tokens each, or as nearly as whole topics allow.

  Args:
    sizes: tokens of a topic by its name.

  Returns:
    The names for training, validation and test. Their order mixes themes and lengths: it is that of a hash of the
    names, the same everywhere.
  """
  train: list[str] = []
  held_out: tuple[list[str], list[str]] = [], []
  budget = sum(sizes.values()) * _HELD_OUT
  rooms = [budget, budget]
  for name in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest()):
    split = int(np.argmax(rooms))
    # Many topics are short, so those that still fit leave next to no room in the end.
    if sizes[name] <= min(rooms[split], _LARGEST * budget):
      held_out[split].append(name)
      rooms[split] -= sizes[name]
    else:
      train.append(name)
  return train, *held_out


# Of text that Sphinx writes: list items and footnotes, and where one paragraph ends although no empty line follows.
_BULLET = re.compile(r'(?:[*•-]|\d+\.|[a-z]\.|\[\d+\])\s+(?=\S)')
_LITERAL_OR_EMPHASIS = re.compile(r'"[^"]*"|\*+[^*]+\*+')
_WORD = re.compile(r"[(“‘]*[A-Za-z]+(?:[-'’/][A-Za-z]+)*[)”’]*[.,:;!?)]*")
_SIGNS = re.compile(r'[(“‘)”’.,:;!?…—–-]+')
_ENDS_PROSE = re.compile(r'[.:;!?][)"”’]*$')
_SENTENCE = re.compile(r'(?<=[.!?])(?<![Ee]\.g\.)(?<![Ii]\.e\.)[)"”]*\s+(?=[(*“]*[A-Z]|"\S)')
# Also between quotes asterisks are signs of Python, and beside letters those before them are.
_EMPHASIS = re.compile(r'(?<![\w*])(\*{1,2})(?=[^\s*])([^*"]*[^\s*"])\1(?!\*)')
_FOOTNOTE = re.compile(r'\s+\[\d+\]')
_MARKUP = str.maketrans({'"': None, '`': None, '“': None, '”': None, '‘': "'", '’': "'", '…': '...'})
_TOKEN = re.compile(r"e\.g\.|i\.e\.|\d+(?:\.\d+)*|'s\b|\w+(?:'(?!s\b)\w+)*|\.{3}|[^\w\s]")


def prose(text: str) -> list[tuple[str, ...]]:
  """Tokens of the paragraphs of prose in text that Sphinx writes, without code, grammar, tables and headings.

  Args:
    text: paragraphs separated by empty lines or another indentation, with `*` for emphasis and `"` for literals.

  Returns:
    A tuple for every paragraph: words in lower case and signs, without markup, and `<eos>` after every sentence.
  """
  return [
    tuple(token for sentence in _SENTENCE.split(paragraph) for token in (*_words(sentence), END))
    for paragraph in _paragraphs(text)
    if _is_prose(paragraph)
  ]


def _words(sentence: str) -> list[str]:
  return _TOKEN.findall(_EMPHASIS.sub(r'\2', sentence).translate(_MARKUP).lower())


def _paragraphs(text: str) -> Iterator[str]:
  lines: list[str] = []
  indentation = 0
  for line in text.split('\n'):
    content = line.lstrip()
    column = len(line) - len(content)
    bullet = _BULLET.match(content)
    if lines and (not content or bullet or column != indentation):
      yield _joined(lines)
      lines = []
    if content:
      start = bullet.end() if bullet else 0
      indentation = column + start
      lines.append(content[start:].rstrip())
  if lines:
    yield _joined(lines)


def _joined(lines: list[str]) -> str:
  joined = ''.join(line if line.endswith('-') else f'{line} ' for line in lines).rstrip()
  return _FOOTNOTE.sub('', joined)


def _is_prose(paragraph: str) -> bool:
  """Whether it ends as a sentence does and, inline literals aside, consists of words; code hardly does both."""
  if not _ENDS_PROSE.search(paragraph) or (paragraph.endswith(':') and paragraph[0].islower()):
    return False
  words = [word for word in _LITERAL_OR_EMPHASIS.sub('', paragraph).split() if not _SIGNS.fullmatch(word)]
  plain = sum(_WORD.fullmatch(word) is not None for word in words)
  return plain >= max(4, 0.75 * len(words))
