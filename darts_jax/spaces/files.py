"""The spaces by name, and architectures in files: JSON, printed genotypes, and the published architectures."""

import codecs
import functools
import json
import os
import pathlib
import types
from collections.abc import Mapping
from importlib import resources
from typing import Any

from darts_jax.runtime.durable import write_whole
from darts_jax.runtime.files import one_line, parse_json, read_bytes, user_path
from darts_jax.spaces import notation
from darts_jax.spaces.cells import CellSpace, Genotype
from darts_jax.spaces.checks import suggest
from darts_jax.spaces.darts import Darts
from darts_jax.spaces.look import Look
from darts_jax.spaces.nasbench201 import NasBench201, last_printed
from darts_jax.spaces.recurrent import Recurrent
from darts_jax.spaces.robust import Robust

#: The spaces by name; a user may add others.
SPACES: dict[str, type[CellSpace]] = {
  'darts': Darts,
  'recurrent': Recurrent,
  'nasbench201': NasBench201,
  'robust': Robust,
}

# JSON of these spaces does not name the space; it is recognised by a field.
_FIELDS = {'recurrent': 'recurrent', 'normal': 'darts'}
# Largest size of a file with a genotype, which may be a long log.
_MAX_BYTES = 2**26


@functools.cache
def _default(space: type[CellSpace]) -> CellSpace:
  return space()


def _named(name: Any) -> CellSpace:
  if not isinstance(name, str) or name not in SPACES:
    raise ValueError(f'space: {name!r} is not known; {suggest(name, SPACES)}')
  return _default(SPACES[name])


def space_of(genotype: Genotype) -> CellSpace:
  """The space of an architecture, with its default settings; raises a ValueError if it is not among `SPACES`."""
  if not isinstance(genotype, Genotype):
    raise ValueError(f'genotype: {one_line(repr(genotype))} is not an architecture; it has to be a Genotype')
  return _named(genotype.space)


def kind_of(genotype: Genotype) -> str:
  """An adjective for an architecture in messages, such as `convolutional`."""
  return space_of(genotype).kind or genotype.space


def look_of(space: str) -> Look:
  """Names and legend for drawings of the cells of a space; the default `Look` if it is not among `SPACES`."""
  return SPACES[space].look if space in SPACES else Look()


def to_json(genotype: Genotype) -> Any:
  """The genotype as JSON values, in the form of its space."""
  return space_of(genotype).to_json(genotype)


def from_json(values: Any) -> Genotype:
  """A genotype from JSON values; its space is recognised by the fields.

  Raises:
    ValueError: a field is missing, unknown or of the wrong form, or the genotype is not valid.
  """
  fields: Mapping[str, Any] = values if isinstance(values, Mapping) else {}
  # JSON of NAS-Bench-201 is a text.
  usual = NasBench201.name if isinstance(values, str) else Darts.name
  name = next((space for field, space in _FIELDS.items() if field in fields), fields.get('space', usual))
  return _named(name).from_json(values)


def save(genotype: Genotype, path: str | os.PathLike[str]) -> None:
  """Writes a genotype as JSON; the file is complete or absent, never half-written."""
  write_whole(pathlib.Path(path), (json.dumps(to_json(genotype)) + '\n').encode())


def to_text(genotype: Genotype) -> str:
  """A genotype as DARTS and related programs print it: `Genotype(normal=[('skip_connect', 0), …], …)`.

  An architecture of NAS-Bench-201 has the benchmark's notation; architectures of other spaces are printed as JSON.
  """
  values = to_json(genotype)
  if isinstance(values, str):
    return values
  return notation.to_text(values) if genotype.space in _FIELDS.values() else json.dumps(values)


def load(path: str | os.PathLike[str]) -> Genotype:
  """Reads a genotype from a file: JSON, or a text such as the log of a search, of which the last genotype is taken.

  In JSON the genotype is the whole value or its field `genotype`. In a text it is printed as by `to_text`, on one line
  or several, or as a dictionary; see `darts_jax.spaces.notation`.

  Raises:
    ValueError: the file is missing or unreadable, or holds no valid genotype; one line that names it.
  """
  path = user_path(path, 'genotype')
  content = read_bytes(path, _MAX_BYTES)
  try:
    return from_json(_fields_of(_decoded(content)))
  except ValueError as error:
    raise ValueError(f'{path}: {one_line(error)}') from error


def _decoded(content: bytes) -> str:
  """The text of a file in UTF-8 or UTF-16, with or without a byte order mark."""
  is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
  return content.decode('utf-16' if is_utf16 else 'utf-8-sig', errors='replace')


def _fields_of(text: str) -> Any:
  """The values for `from_json`, from JSON or from a text that contains a genotype."""
  try:
    values = parse_json(text.encode())
  except ValueError as not_json:
    if not notation.is_printed(text) and (printed := last_printed(text)) is not None:
      return printed
    try:
      return notation.parse(text)
    except ValueError as error:
      raise ValueError(f'not JSON ({not_json}); {error}') from error
  return values['genotype'] if isinstance(values, dict) and isinstance(values.get('genotype'), dict | str) else values


@functools.cache
def published() -> Mapping[str, Genotype]:
  """The published genotypes by name; the table in the README lists their sources and accuracies."""
  text = resources.files('darts_jax.spaces').joinpath('published.json').read_text()
  return types.MappingProxyType({name: from_json(values) for name, values in json.loads(text).items()})


def resolve(name_or_path: str) -> Genotype:
  """A genotype from the name of a published one, from a printed genotype (see `to_text`), or from a file (see `load`).

  Raises:
    ValueError: there is no such name or file, or the genotype is not valid.
  """
  if name_or_path in published():
    return published()[name_or_path]
  # Architectures of NAS-Bench-201 begin with `|`, which paths do not.
  if notation.is_printed(name_or_path) or name_or_path.startswith('|'):
    try:
      return from_json(name_or_path if name_or_path.startswith('|') else _fields_of(name_or_path))
    except ValueError as error:
      raise ValueError(f'genotype: {one_line(error)}') from error
  if not user_path(name_or_path, 'genotype').exists():
    raise ValueError(
      f'genotype: {name_or_path!r} is neither a file nor a published architecture; {suggest(name_or_path, published())}'
    )
  return load(name_or_path)
