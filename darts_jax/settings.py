"""Settings checked before anything runs: frozen dataclasses built from a config, with errors that name the field."""

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar('T')


def setting(default: Any, **limits: Any) -> Any:
  """A field of a settings dataclass with what its value may be.

  Args:
    default: its value where a config does not set it.
    **limits: `above` or `at_least` a number, `below` or `at_most` a number, `choices`: a collection.
  """
  if dataclasses.is_dataclass(default):
    return dataclasses.field(default_factory=lambda: default, metadata=limits)
  return dataclasses.field(default=default, metadata=limits)


def build(kind: type[T], config: Mapping[str, Any], path: str = 'config', base: T | None = None) -> T:
  """Builds a settings dataclass from a config of the same structure, such as a `ConfigDict`.

  Args:
    kind: a dataclass whose fields are made by `setting`; nested dataclasses are nested configs.
    config: values by field name; fields that are left out have their default.
    path: where the config hangs, for messages.
    base: what fields that are left out have instead of the default of the class.

  Raises:
    ValueError: a field is unknown, of another type than declared, or outside its limits; one line naming it.
  """
  if not isinstance(config, Mapping) and not hasattr(config, 'items'):
    raise ValueError(f'{path}: {config!r} is not a group of fields')
  types = typing.get_type_hints(kind)
  fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
  values = {} if base is None else {name: getattr(base, name) for name in fields}
  for name, value in config.items():
    if name not in fields:
      close = difflib.get_close_matches(name, fields, 1)
      hint = f'did you mean {path}.{close[0]}?' if close else f'allowed are {", ".join(fields)}'
      raise ValueError(f'{path}.{name}: unknown field; {hint}')
    if dataclasses.is_dataclass(types[name]):
      # A group's defaults may be others here than where it is declared.
      default = getattr(base, name) if base is not None else typing.cast(Any, fields[name].default_factory)()
      values[name] = build(typing.cast(type[Any], types[name]), value, f'{path}.{name}', default)
    else:
      values[name] = _checked(value, types[name], fields[name].metadata, f'{path}.{name}')
  try:
    return kind(**values)
  except ValueError as error:
    # Settings name their fields as if they were a whole config.
    raise ValueError(rename(str(error), path)) from error


def build_by_space(kinds: Mapping[str, type[T]], config: Mapping[str, Any]) -> T:
  """Builds the settings of the search space that `config.space` names; convolutional if it names none.

  Args:
    kinds: settings dataclasses by search space.
    config: see `build`.

  Raises:
    ValueError: as `build`; or the space is unknown.
  """
  space = config.get('space', 'convolutional')
  if space not in kinds:
    raise ValueError(f'config.space: {space!r} is not known; allowed are {", ".join(kinds)}')
  return build(kinds[space], config)


def rename(message: str, path: str) -> str:
  """A message about fields `config.…`, where that config hangs at another path."""
  return re.sub(r'\bconfig\.', f'{path}.', message)


def differences(old: Any, new: Any, path: str = 'config') -> list[str]:
  """The fields in which two configs, given as JSON values, differ: `field: old value → new value` each."""
  if isinstance(old, Mapping) and isinstance(new, Mapping):
    names = dict.fromkeys([*old, *new])
    return [line for name in names for line in differences(old.get(name), new.get(name), f'{path}.{name}')]
  return [] if old == new else [f'{path}: {old!r} → {new!r}']


def _checked(value: Any, kind: Any, limits: Mapping[str, Any], path: str) -> Any:
  if typing.get_origin(kind) is tuple:
    if not isinstance(value, list | tuple):
      raise ValueError(f'{path}: {value!r} is not a tuple')
    inner = typing.get_args(kind)[0]
    value = tuple(_checked(item, inner, {}, path) for item in value)
  else:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
      value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
      raise ValueError(f'{path}: {value!r} is not of type {kind.__name__}')
    if isinstance(value, float) and not math.isfinite(value):
      raise ValueError(f'{path}: {value} is not a finite number')
  if 'choices' in limits and value not in limits['choices']:
    close = difflib.get_close_matches(str(value), map(str, limits['choices']), 1)
    hint = f'did you mean {close[0]!r}? ' if close else ''
    raise ValueError(f'{path}: {value!r} is not known; {hint}allowed are {", ".join(map(str, limits["choices"]))}')
  bounds = {
    'above': (lambda limit: value > limit, '>'),
    'at_least': (lambda limit: value >= limit, '≥'),
    'below': (lambda limit: value < limit, '<'),
    'at_most': (lambda limit: value <= limit, '≤'),
  }
  for name, (holds, sign) in bounds.items():
    if name in limits and not holds(limits[name]):
      raise ValueError(f'{path}: {value} is not allowed; it has to be {sign} {limits[name]}')
  return value
