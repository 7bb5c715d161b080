"""Checked settings: frozen dataclasses that are built from a config, with errors that name the field."""

import dataclasses
import difflib
import math
import operator
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from darts_jax.limits import SEEDS
from darts_jax.runtime.files import as_unicode, one_line

T = TypeVar('T')

#: Key under which a group keeps the fields it had before its `name` was changed; no field can have this name.
REPLACED = '(replaced)'

# Most values of a tuple, most characters of a value in a message, and most fields that a message proposes.
_MAX_ITEMS, _MAX_SHOWN, _MAX_HINTS = 100, 100, 3
_FLOAT32 = np.finfo(np.float32)
# Stands for the value of a field that a config does not have.
_MISSING = object()


def setting(default: Any, **limits: Any) -> Any:
  """A field of a settings dataclass, with limits of its value.

  Args:
    default: value of the field where a config does not set it.
    **limits: numbers `above`, `at_least`, `below` and `at_most`, and a collection `choices`. The limits of a field that
      is a tuple apply to each of its values.
  """
  if dataclasses.is_dataclass(default):
    return dataclasses.field(default_factory=lambda: default, metadata=limits)
  return dataclasses.field(default=default, metadata=limits)


def variant(
  kinds: Mapping[str, type[Any]],
  default: Any,
  others: Mapping[str, Any] = types.MappingProxyType({}),
  *,
  kept: bool = True,
  beside: bool = False,
) -> Any:
  """A field of a settings dataclass whose value is one of several dataclasses; the group's `name` selects it.

  In a config, the group is a `name` with fields of that dataclass, or the name alone. More kinds may be registered in
  `kinds` later.

  Args:
    kinds: dataclasses by name.
    default: value of the field where a config does not set it. If a config selects another kind, that kind takes from
      `default` the values of the fields that both classes inherit from a common base class.
    others: settings by name, to use instead of `kinds[name]()` as the defaults of a kind that is not the default.
    kept: whether a group whose name is changed (see `as_kind`) keeps the fields that both kinds have.
    beside: whether the groups among the fields of the kind stand beside the group in a config instead of inside it. A
      class has at most one such field.
  """
  metadata = {'kinds': kinds, 'others': others, 'kept': kept, 'beside': beside}
  return dataclasses.field(default_factory=lambda: default, metadata=metadata)


def name_in(kinds: Mapping[str, Any], group: Any, usual: str) -> str:
  """The `name` of a group in a config if it is one of `kinds`, else `usual`; `build` refuses unknown names later."""
  name = name_of(group)
  return name if name in kinds else usual


def name_of(group: Any) -> str:
  """The `name` field of a config group, or the group itself if it is a text; empty if there is no name."""
  name = group if isinstance(group, str) else _field(group, 'name')
  return name if isinstance(name, str) else ''


def _field(config: Any, name: str) -> Any:
  """A field of a config; None if the config has no such field, or cannot say."""
  try:
    return config.get(name) if hasattr(config, 'items') else None
  except Exception:  # A `ConfigDict` may compute fields from others, or lack required ones.
    return None


def as_kind(group: Mapping[str, Any], name: str) -> dict[str, Any]:
  """Changes the name of a variant's config; `build` keeps the fields that the kind of the new name also has."""
  if name == group.get('name'):
    return dict(group.items())
  fields = group.get(REPLACED, group)
  return {'name': name, REPLACED: {field: value for field, value in fields.items() if field != 'name'}}


def name_alone(group: Any) -> Any:
  """The name of a group that has no other fields; any other value as it is."""
  fields = {*group} - {REPLACED} if hasattr(group, 'items') else set()
  return group['name'] if fields == {'name'} else group


def as_config(settings: Any) -> dict[str, Any]:
  """The nested config from which `build` makes these settings again; variants have their `name` in it.

  Raises:
    ValueError: the class of a variant is not registered.
  """
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
      if field.metadata['beside']:
        found |= {each: found[field.name].pop(each) for each in _groups(type(value))}
    else:
      found[field.name] = as_config(value) if dataclasses.is_dataclass(value) else value
  return found


def build(kind: type[T], config: Mapping[str, Any], path: str = 'config', base: T | None = None) -> T:
  """Builds a settings dataclass from a config of the same structure, such as a `ConfigDict`.

  Args:
    kind: a dataclass whose fields are made by `setting` and `variant`; nested dataclasses are nested configs. If it has
      a class method `prepared(config, path, base)`, the config and the base that it returns are used instead.
    config: values by field name; fields that are left out have their default. The class attribute `renamed` maps
      earlier names of fields to their new names; an earlier name is refused with a message that has the new one.
    path: path of the config, for messages.
    base: settings whose values are the defaults of fields that are left out; by default the class's own defaults.

  Raises:
    ValueError: a field is unknown, of another type than declared, or outside its limits; one line naming it.
  """
  return build_from(kind, *_prepared(kind, config, path, base))


def _prepared(
  kind: type[T], config: Mapping[str, Any], path: str, base: T | None
) -> tuple[dict[str, Any], str, T | None]:
  """Config, path and base as `build_from` takes them."""
  fields = items(config, path)
  _check_renamed(getattr(kind, 'renamed', {}), fields, path)
  prepared = getattr(kind, 'prepared', None)
  if prepared is not None:
    fields, base = prepared(fields, path, base)
  return fields, path, base


class _UnknownField(ValueError):
  """A config has a field that its settings do not have.

  Attributes:
    path: of the group that has it.
    name: of the field.
  """

  def __init__(self, path: str, name: object, advice: str) -> None:
    """Says which fields there are."""
    super().__init__(f'{path}.{one_line(name)}: unknown field; {advice}')
    self.path, self.name = path, name

  def __reduce__(self) -> tuple[type[ValueError], tuple[str]]:
    """Worker processes hand it on as an ordinary ValueError."""
    return ValueError, (str(self),)


def build_from(kind: type[T], config: Mapping[str, Any], path: str, base: T | None) -> T:
  """Builds settings as `build` does, but without the check of renamed fields and without `prepared`."""
  try:
    return _build_from(kind, config, path, base)
  except _UnknownField as error:
    # Groups inside this one that have such a field; the caller looks in those around it.
    elsewhere = [*_places(kind, error.name, config, path, base)][:_MAX_HINTS]
    if not elsewhere:
      raise
    raise ValueError(str(_UnknownField(error.path, error.name, f'did you mean {" or ".join(elsewhere)}?'))) from error


def _places(
  kind: type[Any], name: object, config: Any, path: str, base: Any, around: str | None = None
) -> Iterator[str]:
  """Yields the paths of the fields of a name in all groups of a config.

  Args:
    kind: class of the settings.
    name: name of the field.
    config: config of the settings, which names the kinds of its variants.
    path: path of the settings in the whole config.
    base: see `build`.
    around: path of the groups that stand beside these settings, if not `path`; see `variant`.
  """
  hints = typing.get_type_hints(kind)
  for field in dataclasses.fields(kind):
    kinds, inner = field.metadata.get('kinds'), hints[field.name]
    is_group = kinds is not None or dataclasses.is_dataclass(inner)
    place = f'{around if is_group and around else path}.{field.name}'
    if field.name == name:
      yield place
    if not is_group:
      continue
    group = _field(config, field.name)
    default = _default(field) if base is None else getattr(base, field.name)
    if kinds is not None:
      named = name_in(kinds, group, '')
      inner = kinds[named] if named else type(default)
    if dataclasses.is_dataclass(inner):
      own = default if type(default) is inner else None
      yield from _places(
        typing.cast(type[Any], inner), name, group, place, own, path if field.metadata.get('beside') else None
      )


def _default(field: dataclasses.Field[Any]) -> Any:
  """Default of a field; None if it has none."""
  if field.default is not dataclasses.MISSING:
    return field.default
  return None if field.default_factory is dataclasses.MISSING else field.default_factory()


def _build_from(kind: type[T], config: Mapping[str, Any], path: str, base: T | None) -> T:
  """Builds settings as `build_from` does; raises `_UnknownField` for an unknown field."""
  hints = typing.get_type_hints(kind)
  fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
  values = {} if base is None else {name: getattr(base, name) for name in fields}
  opened = next((field for field in fields.values() if field.metadata.get('beside')), None)
  groups = {} if opened is None else _owners(opened.metadata['kinds'])
  beside = {name: value for name, value in config.items() if name not in fields and name in groups}
  given = {name: value for name, value in config.items() if name not in beside}
  if opened is not None:
    given.setdefault(opened.name, {})
  for name, value in given.items():
    if name not in fields:
      close = difflib.get_close_matches(str(name), (*fields, *groups), 1)
      hint = f'did you mean {path}.{close[0]}?' if close else f'allowed are {", ".join((*fields, *groups)) or "none"}'
      raise _UnknownField(path, name, hint)
    kind_of_field: Any = hints[name]
    if dataclasses.is_dataclass(kind_of_field) and isinstance(value, typing.cast(type[Any], kind_of_field)):
      values[name] = value
    elif 'kinds' in fields[name].metadata or dataclasses.is_dataclass(hints[name]):
      # A group may have other defaults in this class than in its own.
      default = _default(fields[name]) if base is None else getattr(base, name)
      if 'kinds' in fields[name].metadata:
        around = beside if fields[name] is opened else {}
        values[name] = _build_variant(fields[name].metadata, value, path, name, default, around)
      else:
        values[name] = build(typing.cast(type[Any], hints[name]), value, f'{path}.{name}', default)
    else:
      values[name] = _checked(value, hints[name], fields[name].metadata, f'{path}.{name}')
  try:
    return kind(**values)
  except ValueError as error:
    # Messages of `__post_init__` begin with `config.FIELD`, or with the field's name alone.
    message = str(error)
    message = f'config.{message}' if message.partition(':')[0] in fields else message
    raise ValueError(rename(message, path)) from error


def _groups(kind: type[Any]) -> list[str]:
  """The fields of a settings dataclass that are groups."""
  hints = typing.get_type_hints(kind)
  return [
    field.name
    for field in dataclasses.fields(kind)
    if 'kinds' in field.metadata or dataclasses.is_dataclass(hints[field.name])
  ]


def _owners(kinds: Mapping[str, type[Any]]) -> dict[str, list[str]]:
  """Names of the kinds that have a group, by the name of the group."""
  found: dict[str, list[str]] = {}
  for name, kind in kinds.items():
    for group in _groups(kind):
      found.setdefault(group, []).append(name)
  return found


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


def _build_variant(
  metadata: Mapping[str, Any], config: Any, parent: str, field: str, default: Any, beside: Mapping[str, Any]
) -> Any:
  """The settings of the kind that a config names; see `variant`."""
  kinds: Mapping[str, type[Any]] = metadata['kinds']
  path = f'{parent}.{field}'
  if isinstance(config, str):
    config = {'name': config}
  if not isinstance(config, Mapping) and not hasattr(config, 'items'):
    raise ValueError(f'{path}: {_shown(config)} is neither a name nor a group of fields')
  values = items(config, path)
  # A kind may go by several names.
  usual = next(name for name, kind in kinds.items() if kind is type(default))
  name = values.pop('name', usual)
  if not isinstance(name, str) or name not in kinds:
    close = difflib.get_close_matches(str(name), kinds, 1)
    hint = f'did you mean {close[0]!r}? ' if close else ''
    raise ValueError(f'{path}.name: {_shown(name)} is not known; {hint}allowed are {", ".join(kinds)}')
  kind = kinds[name]
  own = {each.name for each in dataclasses.fields(kind)}
  before = values.pop(REPLACED, {})
  if metadata['kept']:
    values = {each: value for each, value in before.items() if each in own} | values
  for each in values:
    others = [other for other in kinds if each in {one.name for one in dataclasses.fields(kinds[other])}]
    if each not in own and others:
      raise ValueError(f'{path}.{each}: unknown field of {name}; it is one of {", ".join(others)}')
  base = default if kind is type(default) else _with_shared(metadata['others'].get(name, kind()), default)
  if metadata['beside']:
    groups, hints = _groups(kind), typing.get_type_hints(kind)
    for each in values.keys() & set(groups):
      raise ValueError(f'{path}.{each}: it is called {parent}.{each}')
    for each, value in beside.items():
      if each not in groups:
        raise ValueError(f'{parent}.{each}: unknown field of {name}; it is one of {", ".join(_owners(kinds)[each])}')
      values[each] = build(hints[each], value, f'{parent}.{each}', getattr(base, each))
    # Its groups stand where the caller knows them.
    return _build_from(kind, *_prepared(kind, values, path, base))
  return build(kind, values, path, base)


def _with_shared(settings: Any, other: Any) -> Any:
  """Copies the fields that both settings inherit from a common base class from `other` to `settings`."""
  shared = [
    parent for parent in type(other).__mro__ if isinstance(settings, parent) and dataclasses.is_dataclass(parent)
  ]
  names = {field.name for parent in shared for field in dataclasses.fields(parent)}
  return dataclasses.replace(settings, **{each: getattr(other, each) for each in names})


def _check_renamed(renamed: Mapping[str, str], config: Mapping[str, Any], path: str) -> None:
  """Raises a ValueError with the new name if the config has a field by its name in an earlier version."""
  for old, new in renamed.items():
    group: Any = config
    for name in old.split('.'):
      group = items(group, path).get(name, _MISSING) if hasattr(group, 'items') else _MISSING
    if group is not _MISSING:
      raise ValueError(f'{path}.{old}: it is called {path}.{new} now')


def items(config: Any, path: str) -> dict[str, Any]:
  """The fields of a group of a config.

  Raises:
    ValueError: `config` is no group, or a field has no value; one line that begins with `path`.
  """
  if not isinstance(config, Mapping) and not hasattr(config, 'items'):
    raise ValueError(f'{path}: {_shown(config)} is not a group of fields')
  try:
    return dict(config.items())
  except Exception as error:  # A `ConfigDict` may compute fields from others, or lack required ones.
    raise ValueError(f'{path}: {one_line(error)}') from error


def check_seeds(first: int, number: int, what: str, path: str) -> None:
  """Raises a ValueError unless `number` consecutive seeds from `first` are allowed.

  Args:
    first: the first seed.
    number: number of runs.
    what: plural noun for the runs, for the message.
    path: path of the field with the first seed, for the message.
  """
  if first + number > SEEDS:
    raise ValueError(f'{path}: {first} is not allowed; with the {number} {what} seeds have to be < {SEEDS}')


def rename(message: str, path: str) -> str:
  """Replaces `config.` by `path.` in a message about fields of a config."""
  return re.sub(r'\bconfig\.', f'{path}.', message)


def differences(old: Any, new: Any, path: str = 'config') -> list[str]:
  """One line `field: old value → new value` for each field in which two configs, as JSON values, differ."""
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
      # Rounding to float32 may move the value onto or across the limit.
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
  """The value in float32 as devices use it: subnormal numbers are flushed to 0."""
  with np.errstate(over='ignore', under='ignore'):
    rounded = float(np.float32(value))
  return 0.0 if abs(rounded) < _FLOAT32.smallest_normal else rounded


def _shown(value: Any) -> str:
  """A value of any type as text for a message, shortened if it is long."""
  try:
    text = one_line(repr(value))
  except Exception:  # Python does not print numbers of thousands of digits, and values of a config can be anything.
    text = f'{value:#x}' if type(value) is int else f'something of type {type(value).__name__}'
  return text if len(text) <= _MAX_SHOWN else f'{text[:_MAX_SHOWN]}…'
