"""The notation in which DARTS and its descendants print architectures: `Genotype(normal=[('skip_connect', 0), …], …)`.

A small parser of literals reads it; nothing is evaluated. This module imports no JAX.
"""

import collections
import re
from collections.abc import Mapping, Sequence
from typing import Any

from darts_jax.runtime.files import one_line

_FIELDS = (('normal', 'normal_concat', 'reduce', 'reduce_concat'), ('recurrent', 'concat'))
# The beginning of a printed genotype, as a call or as a dictionary of its fields in Python or JSON.
_BEGIN = re.compile(r'\bGenotype\w*\s*\(\s*(?=\w+\s*=|\[)|\{(?=\s*u?[\'"](?:normal|reduce|recurrent|concat)\b)')
# White space and comments; possessive quantifiers keep the matching linear.
_BLANK = re.compile(r'(?:\s|#[^\n]*+)*+')
_TOKEN = re.compile(
  r"""(?:[uU]?'(?P<single>[^'\\\n]*)'|[uU]?"(?P<double>[^"\\\n]*)"
  |(?P<number>[+-]?\d{1,9})(?![\w.])|(?P<name>[A-Za-z_][\w.]*)|(?P<mark>[][(){},=:]))""",
  re.VERBOSE,
)
_EQUALS = re.compile(r'\s*=')
#: Calls with one argument that are replaced by it: wrappers that NumPy and PyTorch print, and conversions.
_WRAPPERS = ('int', 'int32', 'int64', 'intp', 'str', 'str_', 'tensor', 'array', 'list', 'tuple')
_MAX_DEPTH, _MAX_RANGE = 10, 1000


def is_printed(text: str) -> bool:
  """Whether a genotype is printed in a text, as a call or as a dictionary."""
  return _BEGIN.search(text) is not None


def parse(text: str) -> dict[str, Any]:
  """The fields of the last genotype that is printed in a text, such as the log of a search, as lists and plain values.

  Raises:
    ValueError: there is none, or it cannot be parsed; one line that names its line.
  """
  # A log may contain millions; only the last one is kept in memory.
  found = collections.deque(_BEGIN.finditer(text), maxlen=1)
  if not found:
    raise ValueError('no Genotype(normal=[…], …) is in it')
  try:
    fields = _Parser(text, found[0].start()).value()
  except ValueError as error:
    line = text.count('\n', 0, found[0].start()) + 1
    raise ValueError(f'the genotype in line {line}: {one_line(error)}') from error
  assert isinstance(fields, dict)
  return fields


def to_text(fields: Mapping[str, Any]) -> str:
  """Prints the fields of a genotype, which are lists of pairs or of nodes."""
  return f'Genotype({", ".join(f"{name}={_as_printed(values)}" for name, values in fields.items())})'


def _as_printed(values: Sequence[Any]) -> str:
  if all(isinstance(value, int) for value in values):
    nodes = range(values[0], values[-1] + 1)
    return repr(nodes if list(nodes) == list(values) else list(values))
  return repr([tuple(pair) for pair in values])


class _Parser:
  """Parses one value at a position of a text; methods raise a ValueError if it is not in the notation."""

  def __init__(self, text: str, position: int) -> None:
    self._text = text
    self._position = position
    self._depth = 0
    self._next()

  def value(self) -> Any:
    kind, value = self._kind, self._value
    self._next()
    if kind in ('single', 'double'):
      return value
    if kind == 'number':
      return int(value)
    self._depth += 1
    if self._depth > _MAX_DEPTH:
      raise ValueError(f'nested more than {_MAX_DEPTH} levels deep')
    if kind == 'name':
      found: Any = self._call(value)
    elif value in ('[', '('):
      found = self._items(']' if value == '[' else ')')[0]
    elif value == '{':
      found = self._items('}', ':')[1]
    else:
      raise self._unexpected(value)
    self._depth -= 1
    return found

  def _call(self, name: str) -> Any:
    self._take('(')
    positional, named = self._items(')', '=')
    kind = name.rpartition('.')[2]
    if kind.startswith('Genotype'):
      fields = next((fields for fields in _FIELDS if len(fields) == len(positional)), ())
      return named | dict(zip(fields, positional, strict=False)) if fields or not positional else self._wrong(name)
    if kind in ('range', 'xrange') and 1 <= len(positional) <= 3 and all(isinstance(n, int) for n in positional):
      numbers = range(*positional)
      return list(numbers) if len(numbers) <= _MAX_RANGE else self._wrong(name)
    if kind in _WRAPPERS and len(positional) == 1:
      return positional[0]
    return self._wrong(name)

  def _items(self, end: str, sign: str = '') -> tuple[list[Any], dict[str, Any]]:
    """Parses values up to the closing bracket `end`: the list of those without a name, and the others by name.

    A name is followed by `sign`: `=` in calls, `:` in dictionaries; empty if there are no names.
    """
    items: list[Any] = []
    named: dict[str, Any] = {}
    while self._value != end or self._kind != 'mark':
      is_name = self._kind == 'name' and _EQUALS.match(self._text, self._position) is not None
      key = self._value
      if sign == ':' or (sign and is_name):
        self._next()
        self._take(sign)
        if key in named:
          raise ValueError(f'{key}: given twice')
        named[key] = self.value()
      else:
        items.append(self.value())
      if self._value == ',' and self._kind == 'mark':
        self._next()
      elif self._value != end or self._kind != 'mark':
        raise self._unexpected(self._value)
    self._next()
    return items, named

  def _next(self) -> None:
    blank = _BLANK.match(self._text, self._position)
    assert blank is not None
    self._position = blank.end()
    found = _TOKEN.match(self._text, self._position)
    self._kind, self._value = '', self._text[self._position : self._position + 20].strip()
    if found is not None and found.lastgroup is not None:
      self._kind, self._value = found.lastgroup, found[found.lastgroup]
      self._position = found.end()

  def _take(self, mark: str) -> None:
    if self._kind != 'mark' or self._value != mark:
      raise self._unexpected(self._value)
    self._next()

  def _unexpected(self, value: str) -> ValueError:
    return ValueError(f'unexpected {value!r}' if value else 'it is cut off')

  def _wrong(self, name: str) -> Any:
    raise ValueError(f'{name}(…) is not understood; a genotype has texts, numbers, lists and ranges')
