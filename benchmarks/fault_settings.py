"""Fault injection: settings far out of range, for every config of the project."""

import pathlib
import runpy
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from benchmarks.fault_formats import command, find, launch
from benchmarks.fault_judge import Fault, judge_read

_ROOT = pathlib.Path(__file__).parent.parent


#: Numbers to set; settings with limits refuse most of them, and `judge_settings` checks the ones that are accepted.
NUMBERS = (-1, 0, 2**31, 10**12, 1e39, float('nan'), float('inf'), -float('inf'), 10**400)
_OTHERS: tuple[Any, ...] = (
  (),
  [],
  {},
  '',
  'x' * 10**5,
  None,
  True,
  b'x',
  [1] * 10**5,
  ('none',) * 10**5,
  (10**12,) * 3,
  object,
)
_LARGEST, _LARGEST_SEED = 2**31 - 1, 2**32 - 1
#: Most items of a setting, more than ten times as many as in any config of the project.
_MOST_ITEMS = 10_000


def _leaves(config: Any, path: str = '') -> Iterator[tuple[str, Any]]:
  for name, value in config.items():
    here = f'{path}.{name}' if path else name
    if hasattr(value, 'items'):
      yield here, value
      yield from _leaves(value, here)
    else:
      yield here, value


def configs() -> dict[str, Any]:
  """All configs of the project by name of the file."""
  found = {}
  for path in sorted((_ROOT / 'configs').glob('*.py')):
    get_config = runpy.run_path(str(path)).get('get_config')
    if get_config:
      found[path.stem] = get_config()
  return found


def read_settings(config: Any) -> Any:
  """Reads a config as the command for which it is does."""
  build = find('darts_jax.settings:build')
  if 'searches' in config:
    return build(find('darts_jax.selection.settings:Selection'), config)
  if 'problems' in config:
    return build(find('darts_jax.laboratory.settings:Laboratory'), config)
  if 'hypergradient' in config or 'evaluator' in config:
    return find('darts_jax.searches:read')(config)
  language = config.get('task') == 'text'
  return build(find('darts_jax.training:LanguageTraining' if language else 'darts_jax.training:Training'), config)


def judge_settings(settings: Any, field: str) -> Fault | None:
  """The fault in a value that has been accepted, if any."""
  value = settings
  for name in field.split('.'):
    # In a config, the groups of a task are beside the task.
    value = getattr(value if hasattr(value, name) else value.task, name)
  last = field.rpartition('.')[2]
  items = value if isinstance(value, list | tuple) else [value]
  if len(items) > _MOST_ITEMS:
    return Fault('silent', f'a setting with {len(items)} items is accepted')
  for item in items:
    if isinstance(item, float):
      with np.errstate(over='ignore'):
        if not np.isfinite(np.float32(item)):
          return Fault('silent', f'{last}: {item} is accepted, which is not finite in float32')
    elif isinstance(item, int) and item > (_LARGEST_SEED if last == 'seed' else _LARGEST):
      return Fault('silent', f'{last}: numbers without a limit are accepted')
  return None


_configs: dict[str, Any] = {}


def try_setting(seed: int, number: int) -> Fault | None:
  """Sets a random field of a random config to an unfit value, in Python or by the command line.

  Args:
    seed: seed of the campaign.
    number: number of the input.

  Returns:
    The fault, if any.
  """
  if not _configs:
    _configs.update(configs())
  draw = np.random.default_rng([seed, zlib.crc32(b'settings'), number])
  name = list(_configs)[draw.integers(len(_configs))]
  config = _configs[name].copy_and_resolve_references().to_dict()
  leaves = list(_leaves(config))
  field, old = leaves[draw.integers(len(leaves))]
  is_number = isinstance(old, int | float) and not isinstance(old, bool)
  values = NUMBERS if is_number and draw.random() < 0.9 else (*NUMBERS, *_OTHERS)
  value = values[draw.integers(len(values))]
  shown = str(value)[:20]
  if is_number and draw.random() < 0.3:
    fault = _set_by_flag(name, field, value)
  else:
    group = config
    *above, last = field.split('.')
    for each in above:
      group = group[each]
    group[last] = value
    found: list[Fault | None] = []
    fault = judge_read(lambda: found.append(judge_settings(read_settings(config), field)), ())
    fault = fault or next(iter(found), None)
  return fault if fault is None or fault.kind == 'silent' else fault._replace(what=f'{shown}: {fault.what}')


def _set_by_flag(name: str, field: str, value: object) -> Fault | None:
  found: list[Fault | None] = []

  def run(config: Mapping[str, Any], workdir: pathlib.Path) -> int:
    del workdir
    found.append(judge_settings(read_settings(config), field))
    return 0

  arguments = [f'--config={_ROOT / "configs" / name}.py', f'--config.{field}={value}', '--workdir=unused']
  return command(lambda: launch(run), arguments) or next(iter(found), None)
