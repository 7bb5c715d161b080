"""A corpus of the English prose in Python's own help texts, which needs no download and is free to use."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from darts_jax.data.corpus import END, UNKNOWN, Corpus

# Words that occur less often in the training text are unknown.
_MIN_COUNT = 3
# Fraction of the tokens in the validation split, and in the test split; and the largest fraction of one topic in either
# of them, so that each has several topics.
_HELD_OUT = 0.1
_LARGEST = 0.4


def load() -> Corpus:
  """Loads the corpus, split by topic; words that occur less than three times in the training text are `<unk>`.

  Raises:
    ValueError: this Python comes without its help texts.
  """
  texts = [[token for topic in split.values() for token in topic] for split in splits()]
  counts = Counter(texts[0])
  known = {token for token, count in counts.items() if count >= _MIN_COUNT} | {UNKNOWN, END}
  texts = [[token if token in known else UNKNOWN for token in text] for text in texts]
  # `<unk>` is added, since it does not occur if every word is frequent enough.
  vocabulary = tuple(dict.fromkeys([*texts[0], UNKNOWN]))
  ids = {token: index for index, token in enumerate(vocabulary)}
  train, valid, test = (np.array([ids[token] for token in text], np.int32) for text in texts)
  return Corpus('pydoc', vocabulary, train, valid, test)


def splits() -> tuple[dict[str, list[str]], ...]:
  """The tokens of Python's help texts by topic, for training, validation and test.

  Sections of the language reference are topics of their own, and also parts of larger topics. A paragraph therefore
  belongs only to the largest topic that has it, and topics without paragraphs are left out.

  Raises:
    ValueError: this Python comes without its help texts.
  """
  try:
    from pydoc_data.topics import topics
  except ImportError as error:
    raise ValueError(
      "config.data.name is 'pydoc', but this Python comes without its help texts (module pydoc_data.topics); install "
      'them or take one of ptb, wikitext2, files'
    ) from error
  seen: set[tuple[str, ...]] = set()
  tokens: dict[str, list[str]] = {}
  for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
    for paragraph in prose(topics[name]):
      if paragraph not in seen:
        seen.add(paragraph)
        tokens.setdefault(name, []).extend(paragraph)
  parts = partition({name: len(topic) for name, topic in tokens.items()})
  return tuple({name: tokens[name] for name in names} for names in parts)


def partition(sizes: Mapping[str, int]) -> tuple[list[str], list[str], list[str]]:
  """Splits topics so that validation and test get about a tenth of the tokens each.

  Args:
    sizes: number of tokens of each topic, by name.

  Returns:
    The names of the topics for training, validation and test, ordered by a hash of the name, which mixes themes and
    lengths and is the same on every platform.
  """
  train: list[str] = []
  held_out: tuple[list[str], list[str]] = [], []
  budget = sum(sizes.values()) * _HELD_OUT
  rooms = [budget, budget]
  for name in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest()):
    split = int(np.argmax(rooms))
    # Many topics are short, so that the last ones fill the budget almost completely.
    if sizes[name] <= min(rooms[split], _LARGEST * budget):
      held_out[split].append(name)
      rooms[split] -= sizes[name]
    else:
      train.append(name)
  return train, *held_out


# Beginnings of list items and footnotes in text that Sphinx writes; a paragraph ends there without an empty line.
_BULLET = re.compile(r'(?:[*•-]|\d+\.|[a-z]\.|\[\d+\])\s+(?=\S)')
_LITERAL_OR_EMPHASIS = re.compile(r'"[^"]*"|\*+[^*]+\*+')
_WORD = re.compile(r"[(“‘]*[A-Za-z]+(?:[-'’/][A-Za-z]+)*[)”’]*[.,:;!?)]*")
_SIGNS = re.compile(r'[(“‘)”’.,:;!?…—–-]+')
_ENDS_PROSE = re.compile(r'[.:;!?][)"”’]*$')
_SENTENCE = re.compile(r'(?<=[.!?])(?<![Ee]\.g\.)(?<![Ii]\.e\.)[)"”]*\s+(?=[(*“]*[A-Z]|"\S)')
# Asterisks between quotes, or directly after letters, are Python code and not emphasis.
_EMPHASIS = re.compile(r'(?<![\w*])(\*{1,2})(?=[^\s*])([^*"]*[^\s*"])\1(?!\*)')
_FOOTNOTE = re.compile(r'\s+\[\d+\]')
_MARKUP = str.maketrans({'"': None, '`': None, '“': None, '”': None, '‘': "'", '’': "'", '…': '...'})
_TOKEN = re.compile(r"e\.g\.|i\.e\.|\d+(?:\.\d+)*|'s\b|\w+(?:'(?!s\b)\w+)*|\.{3}|[^\w\s]")


def prose(text: str) -> list[tuple[str, ...]]:
  """Extracts the paragraphs of prose from text that Sphinx writes, without code, grammar, tables and headings.

  Args:
    text: paragraphs separated by empty lines or another indentation, with `*` for emphasis and `"` for literals.

  Returns:
    The tokens of every paragraph: words in lower case and punctuation, without markup, and `<eos>` after every
    sentence.
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
  """Whether a paragraph ends like a sentence and, apart from inline literals, consists of words, unlike most code."""
  if not _ENDS_PROSE.search(paragraph) or (paragraph.endswith(':') and paragraph[0].islower()):
    return False
  words = [word for word in _LITERAL_OR_EMPHASIS.sub('', paragraph).split() if not _SIGNS.fullmatch(word)]
  plain = sum(_WORD.fullmatch(word) is not None for word in words)
  return plain >= max(4, 0.75 * len(words))
