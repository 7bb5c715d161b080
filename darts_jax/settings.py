"""Settings checked before anything runs: frozen dataclasses built from a config, with errors that name the field."""

import dataclasses
import difflib
import math
import operator
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from darts_jax.limits import SEEDS
from darts_jax.runtime.files import as_unicode, one_line

T = TypeVar('T')

#: Key of the fields that a group had before its name was changed; no field of a config can have this name.
REPLACED = '(replaced)'

# Values of a tuple, and characters of a value in a message.
_MAX_ITEMS, _MAX_SHOWN = 100, 100
_FLOAT32 = np.finfo(np.float32)
# A field that a config does not have.
_MISSING = object()


def setting(default: Any, **limits: Any) -> Any:
  """A field of a settings dataclass with what its value may be.

  Args:
    default: its value where a config does not set it.
    **limits: `above` or `at_least` a number, `below` or `at_most` a number, `choices`: a collection. Of a tuple, they
      are those of its values.
  """
  if dataclasses.is_dataclass(default):
    return dataclasses.field(default_factory=lambda: default, metadata=limits)
  return dataclasses.field(default=default, metadata=limits)


def variant(
  kinds: Mapping[str, type[Any]], default: Any, others: Mapping[str, Any] = types.MappingProxyType({})
) -> Any:
  """A field of a settings dataclass that is one of several dataclasses: a group whose `name` says which.

  A config gives the group as fields of that dataclass and its name, or as the name alone. Kinds may be added later on.

  Args:
    kinds: dataclasses by name.
    default: what the field is where a config does not set it. Another kind has the values of those of its fields that
      both inherit.
    others: by name what another kind is before that, where it is not what its class says.
  """
  return dataclasses.field(default_factory=lambda: default, metadata={'kinds': kinds, 'others': others})


def as_kind(group: Mapping[str, Any], name: str) -> dict[str, Any]:
  """The config of a variant by another name; `build` takes those of its fields that the kind of that name has, too."""
  if name == group.get('name'):
    return dict(group.items())
  fields = group.get(REPLACED, group)
  return {'name': name, REPLACED: {field: value for field, value in fields.items() if field != 'name'}}


def name_alone(group: Any) -> Any:
  """The name of a group that has no other fields; anything else as it is."""
  fields = {*group} - {REPLACED} if hasattr(group, 'items') else set()
  return group['name'] if fields == {'name'} else group


def as_config(settings: Any) -> dict[str, Any]:
  """The nested config of which `build` makes the same settings; a variant has its name."""
  found: dict[str, Any] = {}
  for field in dataclasses.fields(settings):
    value = getattr(settings, field.name)
    if 'kinds' in field.metadata:
      # A kind may go by several names.
      name = next((name for name, kind in field.metadata['kinds'].items() if kind is type(value)), None)
      if name is None:
        kinds = ', '.join(field.metadata['kinds'])
        raise ValueError(f'config.{field.name}: {type(value).__name__} is not registered; there are {kinds}')
      found[field.name] = {'name': name, **as_config(value)}
    else:
      found[field.name] = as_config(value) if dataclasses.is_dataclass(value) else value
  return found


def build(kind: type[T], config: Mapping[str, Any], path: str = 'config', base: T | None = None) -> T:
  """Builds a settings dataclass from a config of the same structure, such as a `ConfigDict`.

  Args:
    kind: a dataclass whose fields are made by `setting`; nested dataclasses are nested configs.
    config: values by field name; fields that are left out have their default. A field that the class attribute
      `renamed` has by its earlier name is refused with the name that it has now.
    path: where the config hangs, for messages.
    base: what fields that are left out have instead of the default of the class.

  Raises:
    ValueError: a field is unknown, of another type than declared, or outside its limits; one line naming it.
  """
  if not isinstance(config, Mapping) and not hasattr(config, 'items'):
    raise ValueError(f'{path}: {_shown(config)} is not a group of fields')
  hints = typing.get_type_hints(kind)
  fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
  values = {} if base is None else {name: getattr(base, name) for name in fields}
  _check_renamed(getattr(kind, 'renamed', {}), config, path)
  for name, value in _items(config, path):
    if name not in fields:
      close = difflib.get_close_matches(str(name), fields, 1)
      hint = f'did you mean {path}.{close[0]}?' if close else f'allowed are {", ".join(fields) or "none"}'
      raise ValueError(f'{path}.{one_line(name)}: unknown field; {hint}')
    if 'kinds' in fields[name].metadata or dataclasses.is_dataclass(hints[name]):
      # A group's defaults may be others here than where it is declared.
      default = getattr(base, name) if base is not None else typing.cast(Any, fields[name].default_factory)()
      if 'kinds' in fields[name].metadata:
        values[name] = _build_variant(fields[name].metadata, value, f'{path}.{name}', default)
      else:
        values[name] = build(typing.cast(type[Any], hints[name]), value, f'{path}.{name}', default)
    else:
      values[name] = _checked(value, hints[name], fields[name].metadata, f'{path}.{name}')
  try:
    return kind(**values)
  except ValueError as error:
    # Settings name their fields as if they were a whole config.
    raise ValueError(rename(str(error), path)) from error


def check(settings: Any) -> None:
  """Checks settings that were made without `build`, in their `__post_init__`.

  Raises:
    ValueError: a field is of another type than declared, or outside its limits; one line naming it.
  """
  hints = typing.get_type_hints(type(settings))
  for field in dataclasses.fields(settings):
    # Groups check themselves.
    if 'kinds' not in field.metadata and not dataclasses.is_dataclass(hints[field.name]):
      _checked(getattr(settings, field.name), hints[field.name], field.metadata, f'config.{field.name}')


def _build_variant(metadata: Mapping[str, Any], config: Any, path: str, default: Any) -> Any:
  """The settings of the kind that a config names; see `variant`."""
  kinds: Mapping[str, type[Any]] = metadata['kinds']
  if isinstance(config, str):
    config = {'name': config}
  if not isinstance(config, Mapping) and not hasattr(config, 'items'):
    raise ValueError(f'{path}: {_shown(config)} is neither a name nor a group of fields')
  values = dict(_items(config, path))
  [usual] = [name for name, kind in kinds.items() if kind is type(default)]
  name = values.pop('name', usual)
  if not isinstance(name, str) or name not in kinds:
    close = difflib.get_close_matches(str(name), kinds, 1)
    hint = f'did you mean {close[0]!r}? ' if close else ''
    raise ValueError(f'{path}.name: {_shown(name)} is not known; {hint}allowed are {", ".join(kinds)}')
  kind = kinds[name]
  own = {field.name for field in dataclasses.fields(kind)}
  values = {field: value for field, value in values.pop(REPLACED, {}).items() if field in own} | values
  for field in values:
    others = [other for other in kinds if field in {each.name for each in dataclasses.fields(kinds[other])}]
    if field not in own and others:
      raise ValueError(f'{path}.{field}: unknown field of {name}; it is one of {", ".join(others)}')
  if kind is type(default):
    return build(kind, values, path, default)
  # Of a base class that both have.
  shared = [parent for parent in type(default).__mro__ if parent in kind.__mro__ and dataclasses.is_dataclass(parent)]
  names = {field.name for parent in shared for field in dataclasses.fields(parent)}
  base = metadata['others'].get(name, kind())
  return build(kind, values, path, dataclasses.replace(base, **{each: getattr(default, each) for each in names}))


def _check_renamed(renamed: Mapping[str, str], config: Mapping[str, Any], path: str) -> None:
  """Raises a ValueError that says how a field of an earlier version is called now, if the config has one."""
  for old, new in renamed.items():
    group: Any = config
    for name in old.split('.'):
      group = dict(_items(group, path)).get(name, _MISSING) if hasattr(group, 'items') else _MISSING
    if group is not _MISSING:
      raise ValueError(f'{path}.{old}: it is called {path}.{new} now')


def _items(config: Mapping[str, Any], path: str) -> list[tuple[str, Any]]:
  try:
    return list(config.items())
  except Exception as error:  # Fields of a `ConfigDict` can be computed from others, and required ones be missing.
    raise ValueError(f'{path}: {one_line(error)}') from error


def build_by_space(kinds: Mapping[str, type[T]], config: Mapping[str, Any]) -> T:
  """Builds the settings of the search space that `config.space` names; convolutional if it names none.

  Args:
    kinds: settings dataclasses by search space.
    config: see `build`.

  Raises:
    ValueError: as `build`; or the space is unknown.
  """
  fields = dict(_items(config, 'config'))
  space = name_alone(fields.get('space', 'convolutional'))
  if not isinstance(space, str) or space not in kinds:
    raise ValueError(f'config.space: {_shown(space)} is not known; allowed are {", ".join(kinds)}')
  return build(kinds[space], {**fields, 'space': space})


def check_seeds(first: int, number: int, what: str, path: str) -> None:
  """Raises a ValueError unless runs can have so many consecutive seeds; `what` they are, `path` names the first one."""
  if first + number > SEEDS:
    raise ValueError(f'{path}: {first} is not allowed; with the {number} {what} seeds have to be < {SEEDS}')


def rename(message: str, path: str) -> str:
  """A message about fields `config.…`, where that config hangs at another path."""
  return re.sub(r'\bconfig\.', f'{path}.', message)


def differences(old: Any, new: Any, path: str = 'config') -> list[str]:
  """The fields in which two configs, given as JSON values, differ: `field: old value → new value` each."""
  if isinstance(old, Mapping) and isinstance(new, Mapping):
    names = dict.fromkeys([*old, *new])
    return [line for name in names for line in differences(old.get(name), new.get(name), f'{path}.{one_line(name)}')]
  return [] if old == new else [f'{path}: {_shown(old)} → {_shown(new)}']


def _checked(value: Any, kind: Any, limits: Mapping[str, Any], path: str) -> Any:
  if typing.get_origin(kind) is tuple:
    if not isinstance(value, list | tuple):
      raise ValueError(f'{path}: {_shown(value)} is not a tuple')
    if len(value) > _MAX_ITEMS:
      raise ValueError(f'{path}: {len(value)} values are not allowed; there are up to {_MAX_ITEMS}')
    inner, *others = typing.get_args(kind)
    if others != [Ellipsis] and len(value) != 1 + len(others):
      raise ValueError(f'{path}: {_shown(value)} has {len(value)} values; there have to be {1 + len(others)}')
    return tuple(_checked(item, inner, limits, path) for item in value)
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    try:
      value = float(value)
    except OverflowError:
      value = math.inf if value > 0 else -math.inf
  if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
    raise ValueError(f'{path}: {_shown(value)} is not of type {kind.__name__}')
  if isinstance(value, str) and as_unicode(value) != value:
    raise ValueError(f'{path}: {_shown(value)} is not UTF-8')
  if 'choices' in limits and value not in limits['choices']:
    close = difflib.get_close_matches(str(value), map(str, limits['choices']), 1)
    hint = f'did you mean {close[0]!r}? ' if close else ''
    allowed = ', '.join(map(str, limits['choices']))
    raise ValueError(f'{path}: {_shown(value)} is not known; {hint}allowed are {allowed}')
  if isinstance(value, float) and not math.isfinite(value):
    raise ValueError(f'{path}: {value} is not a finite number')
  for name, (holds, sign) in _BOUNDS.items():
    if name in limits and not holds(value, limits[name]):
      raise ValueError(f'{path}: {_shown(value)} is not allowed; it has to be {sign} {limits[name]}')
  if isinstance(value, float):
    rounded = _as_float32(value)
    if not math.isfinite(rounded):
      raise ValueError(f'{path}: {value} is not allowed; float32 ends at {_FLOAT32.max:.1e}')
    for name in ('above', 'below'):
      # What is computed would be on the other side of it.
      if name in limits and not _BOUNDS[name][0](rounded, limits[name]):
        sign = _BOUNDS[name][1]
        raise ValueError(f'{path}: {value} is not allowed; it has to be {sign} {limits[name]} in float32, too')
  return value


_BOUNDS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
  'above': (operator.gt, '>'),
  'at_least': (operator.ge, '≥'),
  'below': (operator.lt, '<'),
  'at_most': (operator.le, '≤'),
}


def _as_float32(value: float) -> float:
  """What a device computes with: numbers that are closer to 0 than normal ones are 0 there."""
  with np.errstate(over='ignore', under='ignore'):
    rounded = float(np.float32(value))
  return 0.0 if abs(rounded) < _FLOAT32.smallest_normal else rounded


def _shown(value: Any) -> str:
  """A value in a message, whatever it is."""
  try:
    text = one_line(repr(value))
  except Exception:  # Python does not print numbers of thousands of digits, and values of a config can be anything.
    text = f'{value:#x}' if type(value) is int else f'something of type {type(value).__name__}'
  return text if len(text) <= _MAX_SHOWN else f'{text[:_MAX_SHOWN]}…'
