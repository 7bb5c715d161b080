"""Command lines: flags, help, one-line errors, exit codes."""

import argparse
import contextlib
import os
import pathlib
import re
import runpy
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, Literal, NamedTuple, NoReturn

import jax
from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from darts_jax import spaces
from darts_jax.commands import COMMANDS, named
from darts_jax.runtime import processes, progress
from darts_jax.runtime.files import one_line, user_path
from darts_jax.runtime.modules import import_modules
from darts_jax.runtime.platforms import check_devices
from darts_jax.runtime.terminal import OutputError, complain_of_output, prepare_streams, say, settle_streams, show
from darts_jax.settings import as_kind
from darts_jax.spaces import Genotype


class Flag(NamedTuple):
  """A flag of a command: a switch if its default is False, a whole number if it is one, otherwise a text."""

  name: str
  default: str | int | None
  help: str


class Command(NamedTuple):
  """A command, which is called as `darts-jax NAME` or `python -m experiments.NAME`.

  Attributes:
    run: does what the command is for and returns the exit code. With a required config it is called with the config,
      the working directory and the values of `flags`; with an optional one with these values and `config`, which is
      None without the flag; otherwise with these values.
    arguments: its arguments as a usage line shows them.
    example: arguments of an example, which works in any folder.
    flags: its own flags.
    config: whether it has the flag `--config`.
    distributed: whether several processes can run it together.
    positional: the name of an argument without a flag, which is given to `run` first; None if there is none.
  """

  run: Callable[..., int]
  arguments: str
  example: str
  flags: Sequence[Flag] = ()
  config: Literal['required', 'optional', 'none'] = 'required'
  distributed: bool = False
  positional: str | None = None

  def all_flags(self) -> tuple[Flag, ...]:
    """Its own flags and those that it shares with other commands."""
    shared = {'required': (CONFIG, WORKDIR, IMPORT), 'optional': (CONFIG, IMPORT), 'none': (IMPORT,)}[self.config]
    return (*shared, *self.flags, *(_DISTRIBUTED if self.distributed else ()))


class MissingFlag(ValueError):
  """A flag that has to be given is missing; the message is followed by the usage line."""


GENOTYPE_HELP = (
  'A published architecture, such as DARTS_V2 or RNN_DARTS_V2; the line Genotype(normal=[…], …) that programs print; or'
  ' the path of a genotype.json, or of a log or other text, of which the last such line is taken.'
)

# A flag that sets a field of the config; its value may be the next argument.
_FIELD = re.compile(r'--?config\.(?P<path>(?:[^\W\d]\w*\.)*[^\W\d]\w*)(?P<value>=.*)?', re.DOTALL)
# Groups of fields with a `name` that decides which fields they have.
_NAMED = ('space', 'strategy', 'hypergradient', 'task', 'evaluator')
# Seconds until a lost signal is sent again.
_PAUSE = 0.05

CONFIG = Flag(
  'config', None, 'Name of a config of the package, such as digits (`darts-jax configs` lists them), or path of a file.'
)
WORKDIR = Flag('workdir', None, 'Where the run is written, and resumed from; runs/NAME of the config file by default.')
IMPORT = Flag(
  'import', None, 'A module that adds operations, spaces, strategies or tasks of your own; several with commas.'
)

#: Flags of commands that several processes can run together; see `darts_jax.runtime.processes.initialize`.
_DISTRIBUTED = (
  Flag('distributed', False, 'Whether this is one of several processes of a run, on one or many hosts.'),
  Flag('coordinator', '', 'host:port of the first process; found out from the cluster by default.'),
  Flag('num_processes', -1, 'Number of processes; found out from the cluster by default.'),
  Flag('process_id', -1, 'Number of this process, from 0; found out from the cluster by default.'),
  Flag('timeout', 300, 'Seconds to wait until all processes are there.'),
)


DISTRIBUTED_USAGE = '[--distributed [--coordinator=HOST:PORT --num_processes=N --process_id=I] [--timeout=SECONDS]]'


def launch(command: Command, name: str, arguments: Sequence[str] | None = None) -> NoReturn:
  """Parses the command line, calls the command and exits with what it returns.

  A ValueError, the class of errors that users can cause, is printed as one line and exits with 2; any other exception
  is an error of the program and keeps its traceback. `--help` prints usage, flags and an example.

  Args:
    command: the command.
    name: how it is called, such as `darts-jax search`.
    arguments: what follows the name; those of this process by default.
  """
  argv = [name, *(sys.argv[1:] if arguments is None else arguments)]
  usage = f'usage: {name} {command.arguments}'.rstrip()

  def parsed() -> int:
    try:
      return _parsed(command, argv, usage)
    except MissingFlag as error:
      raise ValueError(f'{error}; {usage}') from error

  prepare_streams()
  is_help = bool({'-h', '-help', '--help'}.intersection(argv))
  try:
    sys.exit(_code(lambda: show(help_text(command, name)) if is_help else parsed()))
  finally:
    settle_streams()


def _parsed(command: Command, argv: list[str], usage: str) -> int:
  """Parses the command line and calls the command; returns its exit code."""
  if command.config == 'required':
    extra = (*command.flags, *(_DISTRIBUTED if command.distributed else ()))
    config, workdir, values, about = _parse(argv, usage, extra)
    if command.distributed:
      _join(*(values.pop(flag.name) for flag in _DISTRIBUTED))
    check_devices()
    progress.begin_with(about.line)
    with _stopped_by_sigterm():
      try:
        return command.run(config, workdir, **values)
      except ValueError as error:
        own = re.split(r'[ .]', argv[0])[-1]
        if type(error) is ValueError and own in COMMANDS and about.command not in ('', own):
          raise ValueError(f'{error}; {about.path.stem} is a config of the command {about.command}') from error
        raise
  known = flags.FlagValues()
  known.set_gnu_getopt()
  _define(command.all_flags(), known)
  values, has_config = {}, command.config == 'optional'
  try:
    rest = known(argv, known_only=has_config)
    _import(known)
    if has_config:
      path = known['config'].value
      values['config'], rest = _overridden(path, rest) if path else (None, flags.FlagValues()(rest))
  except flags.Error as error:
    raise ValueError(str(error)) from error
  if command.positional is not None:
    if len(rest) < 2:
      raise MissingFlag(f'{command.positional}: missing')
    values[command.positional] = rest.pop(1)
  if len(rest) > 1:
    raise ValueError(f'{rest[1]}: unexpected argument; {usage}')
  return command.run(**values, **{flag.name: known[flag.name].value for flag in command.flags})


def help_text(command: Command, name: str) -> str:
  """What `--help` prints: usage, what the command does, its flags and an example."""
  parser = argparse.ArgumentParser(prog=name, add_help=False)
  describe(parser, command, name)
  return parser.format_help().rstrip()


def describe(made: argparse.ArgumentParser, command: Command, name: str) -> None:
  """Adds a command's usage, flags and example to a parser, for its help and for shells; `launch` parses by itself."""
  made.formatter_class = argparse.RawDescriptionHelpFormatter  # An example stays in one line.
  made.usage = f'{name} {command.arguments}'.rstrip()
  made.description = (sys.modules[command.run.__module__].__doc__ or '').partition('\n')[0]
  made.epilog = f'example: {name} {command.example}'.rstrip()
  if command.positional is not None:
    made.add_argument(command.positional)
  for flag in command.all_flags():
    text = flag.help.replace('%', '%%')
    if flag.default is False:
      made.add_argument(f'--{flag.name}', action='store_true', help=text)
    else:
      made.add_argument(f'--{flag.name}', metavar='N' if isinstance(flag.default, int) else 'TEXT', help=text)
  if command.config != 'none':
    made.add_argument('--config.FIELD', metavar='VALUE', help='Sets a field of the config, such as --config.seed=1.')


@contextlib.contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
  """A context in which SIGTERM raises KeyboardInterrupt, as Ctrl-C does, so that the program cleans up."""

  def stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt

  def again(lost: 'sys.UnraisableHookArgs') -> None:
    # The exception was raised inside JAX's garbage collection callback, where Python ignores it.
    if lost.exc_type is KeyboardInterrupt:
      threading.Timer(_PAUSE, os.kill, (os.getpid(), signal.SIGTERM)).start()
    else:
      hook(lost)

  # Only the main thread may set handlers, and a process that was told to ignore SIGTERM goes on ignoring it.
  if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
    yield
    return
  previous, hook = signal.signal(signal.SIGTERM, stop), sys.unraisablehook
  sys.unraisablehook = again
  try:
    yield
  finally:
    sys.unraisablehook = hook
    signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)


def _join(distributed: bool, coordinator: str, num_processes: int, process_id: int, timeout: int) -> None:
  """Joins the other processes, with --distributed, and prints the topology."""
  if not distributed:
    for flag, value in zip(_DISTRIBUTED[1:4], (coordinator, num_processes, process_id), strict=True):
      if value != flag.default:
        raise ValueError(f'--{flag.name}: {value} is given without --distributed')
    return
  processes.initialize(
    coordinator or None,
    None if num_processes == -1 else num_processes,
    None if process_id == -1 else process_id,
    timeout,
  )
  check_devices()
  if processes.is_first():
    say(processes.topology())


def require(**values: str | None) -> None:
  """Raises a `MissingFlag` that names the first flag without a value."""
  for name, value in values.items():
    if not value:
      raise MissingFlag(f'--{name}: missing')


def whole_number(name: str, value: str, most: int) -> int:
  """Parses the value of a flag; raises a ValueError unless it is a whole number from 1 to `most`."""
  # Python refuses to parse numbers of thousands of digits.
  if not value.isdecimal() or len(value) > 20 or not 1 <= int(value) <= most:
    raise ValueError(f'--{name}: {one_line(value)} is not allowed; it has to be a whole number ≥ 1 and ≤ {most}')
  return int(value)


def convolutional(name_or_path: str) -> Genotype:
  """The architecture that `--genotype` names; raises a ValueError unless it exists and is convolutional."""
  found = spaces.resolve(name_or_path)
  if found.space != spaces.Darts.name:
    kind = spaces.kind_of(found)
    raise ValueError(f'--genotype: {name_or_path} is a {kind} architecture; this command takes convolutional ones')
  return found


def _code(parsed: Callable[[], int | None]) -> int | None:
  """Runs a program, prints the error that it raises, if any, and returns the exit code."""
  # Results do not depend on `JAX_ENABLE_X64` and `JAX_DEFAULT_PRNG_IMPL`; see `darts_jax.runtime.precision`.
  jax.config.update('jax_enable_x64', False)
  jax.config.update('jax_default_prng_impl', 'threefry2x32')
  try:
    code = parsed()
  except processes.AgreedError as error:
    if processes.is_first():
      _complain(error)
    code = 2
  except ValueError as error:
    # Where a result is fetched, errors of the runtime may be ValueErrors, too.
    is_lost = _is_lost(error)
    _complain(_lost(error) if is_lost else error)
    code = 1 if is_lost else 2
    _leave_others(code)
  except MemoryError as error:
    _complain(f'out of memory ({error}); {_SMALLER}')
    code = 2
    _leave_others(code)
  except OutputError as error:
    code = complain_of_output(error)
    _leave_others(code)
  except KeyboardInterrupt:
    say('stopped; start again to go on from the last checkpoint, if there is one')
    code = 130
    _leave_others(code)
  except Exception as error:
    if isinstance(error, jax.errors.JaxRuntimeError) and 'RESOURCE_EXHAUSTED' in str(error):
      _complain(f'out of memory ({next(iter(str(error).splitlines()))}); {_SMALLER}')
      code = 2
      _leave_others(code)
      return code
    if not jax.distributed.is_initialized():
      raise
    # A regular exit would wait, for minutes, for other processes that wait for this one.
    if _is_lost(error):
      _complain(_lost(error))
    else:
      traceback.print_exc()
    code = 1
    _leave_others(code)
  return code


_SMALLER = 'smaller are config.batch_size, config.network, or with config.remat what gradients keep'

_ABOUT_OTHERS = re.compile(r'\b(Gloo|NCCL|UNAVAILABLE|DEADLINE_EXCEEDED|Connection (reset|refused|closed))\b')


def _is_lost(error: Exception) -> bool:
  """Whether an error of the runtime is about other processes, by its text: such errors have several classes."""
  return jax.distributed.is_initialized() and bool(_ABOUT_OTHERS.search(str(error)))


def _lost(error: Exception) -> str:
  return f'lost touch with the others, of which one has probably ended ({error}); start all of them again'


def _complain(error: Exception | str) -> None:
  """Prints an error as one line, with the number of this process if it is one of several."""
  line = ' '.join(str(error).split())
  if jax.distributed.is_initialized() and not isinstance(error, processes.AgreedError):
    # Before there are devices, JAX cannot tell the number of the process.
    with contextlib.suppress(AssertionError, RuntimeError):
      line = f'process {jax.process_index()}: {line}'
  say(f'error: {line}')


def _leave_others(code: int) -> None:
  """Ends this process at once if it is one of several: a regular exit would wait for others, which wait for it."""
  if jax.distributed.is_initialized():
    processes.leave(code)


def _define(extra: Sequence[Flag], known: flags.FlagValues) -> None:
  for flag in extra:
    if isinstance(flag.default, bool):
      flags.DEFINE_bool(flag.name, flag.default, flag.help, flag_values=known)
    elif isinstance(flag.default, int):
      flags.DEFINE_integer(flag.name, flag.default, flag.help, flag_values=known)
    else:
      flags.DEFINE_string(flag.name, flag.default, flag.help, flag_values=known)


def _parse(
  argv: list[str], usage: str, extra: Sequence[Flag] = ()
) -> tuple[ConfigDict, pathlib.Path, dict[str, Any], named.Named]:
  """Parses the command line.

  Returns:
    The config with overrides, the working directory, the values of `extra`, and what the file says about itself.

  Raises:
    ValueError: a flag is unknown or has an unfit value, or the config file cannot be read.
  """
  known = flags.FlagValues()
  known.set_gnu_getopt()  # Flags may stand in any order.
  _define((CONFIG, WORKDIR, IMPORT, *extra), known)
  try:
    overrides = known(argv, known_only=True)
    _import(known)
    path = known['config'].value
    if not path:
      meant = next((f' (did you mean --config={each}?)' for each in overrides[1:] if not each.startswith('-')), '')
      raise MissingFlag(f'--config: missing{meant}')
    config, rest = _overridden(path, overrides)
  except flags.Error as error:
    raise ValueError(str(error)) from error
  if len(rest) > 1:
    raise ValueError(f'{rest[1]}: unexpected argument; {usage}')
  values = {flag.name: known[flag.name].value for flag in extra}
  folder = user_path(known['workdir'].value or f'runs/{pathlib.Path(path).stem}', '--workdir')
  return config, folder, values, named.about(path)


def _import(known: flags.FlagValues) -> None:
  """Imports the modules of --import, before the config file is read, which may use what they register."""
  given = known['import'].value
  import_modules([] if given is None else given.split(','))


def _overridden(path: str, overrides: list[str]) -> tuple[ConfigDict, list[str]]:
  """The config of a file with the fields that the command line sets, and the arguments that are left.

  Raises:
    ValueError: the file cannot be read, or a flag sets a field that cannot be set.
    absl.flags.Error: a flag cannot be parsed.
  """
  fields = flags.FlagValues()
  loaded = load_config(path)
  overrides = [*overrides[:1], *_prepared(loaded, overrides[1:])]
  try:
    config = config_flags.DEFINE_config_dict(
      'config',
      loaded,
      flag_values=fields,
      sys_argv=overrides,
      # Fields that the file has not set are allowed here; `build` checks all fields later.
      lock_config=False,
      accept_new_attributes=True,
    )
    rest = fields(overrides)
  except (AttributeError, LookupError, TypeError, ValueError) as error:
    # The path is not in the config, such as --config.epochs.more=1, or is no path, such as --config.1=1.
    raise ValueError(f'{" ".join(overrides[1:])}: no such field ({one_line(error)})') from error
  return config.value, rest


def _prepared(config: ConfigDict, overrides: Sequence[str]) -> list[str]:
  """Prepares a config for overrides: adds groups that are missing in the file, and renames groups with a `name`.

  `--config.strategy=sgas` and `--config.strategy.name=sgas` have the same effect; fields of the file that the new kind
  does not have are then dropped. In a file, such a group may also be its name alone. Whether fields exist is checked
  later, when all of them are known.

  Returns:
    The remaining flags. A field that is missing in the file and its value are one argument, `--config.FIELD=VALUE`.

  Raises:
    ValueError: a flag sets a group without a `name` to a value.
  """
  left: list[str] = []
  arguments = list(reversed(overrides))
  while arguments:
    argument = arguments.pop()
    found = _FIELD.fullmatch(argument)
    *parents, last = found['path'].split('.') if found else ('',)
    if last == 'name' and parents and parents[-1] in _NAMED:
      last = parents.pop()
    group: Any = config
    for name in parents:
      inner = group.get(name) if isinstance(group, ConfigDict) else config
      if inner is None or (isinstance(inner, str) and name in _NAMED):
        _set(group, name, ConfigDict({} if inner is None else {'name': inner}))
      group = group.get(name) if isinstance(group, ConfigDict) else None
    if found is None or not isinstance(group, ConfigDict):
      left.append(argument)
      continue
    before, value = group.get(last), found['value']
    if value is None and (before is None or last in _NAMED):
      # A flag without a value is a switch.
      value = f'={arguments.pop()}' if arguments and not arguments[-1].startswith('--') else '=True'
    if last in _NAMED and isinstance(before, ConfigDict | str | None):
      name = str(value).removeprefix('=')
      _set(group, last, ConfigDict(as_kind(before, name)) if isinstance(before, ConfigDict) else name)
    elif isinstance(before, ConfigDict):
      fields = ', '.join(f'config.{found["path"]}.{name}' for name in before)
      raise ValueError(f'config.{found["path"]}: a group of fields cannot be set as a whole; its fields are {fields}')
    else:
      left.append(f'--config.{found["path"]}{value or ""}')
  return left


def _set(group: ConfigDict, name: str, value: Any) -> None:
  """Sets a field to a value of any type, also if the field is new or had another type."""
  with group.unlocked():
    if name in group:
      del group[name]
    group[name] = value


def load_config(path: str, flag: str = '--config') -> ConfigDict:
  """Runs a config file and returns the result of its `get_config()`.

  Args:
    path: path of the file, or name of a config of the package.
    flag: the flag that named it, for messages.

  Raises:
    ValueError: there is no such config, or running it fails.
  """
  path = str(named.find_config(path, flag))
  try:
    get_config = runpy.run_path(path).get('get_config')
    config = get_config() if get_config else None
    if isinstance(config, ConfigDict):
      _check_fields(config)
      # `config_flags` calls this, too; an error in it is then reported here.
      str(config)
  except (Exception, SystemExit) as error:  # The file is a program and may raise anything.
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    where = f'{path}, line {lines[-1]}' if lines else path
    raise ValueError(f'{flag}: {where}: {_described(error)}') from error
  if not isinstance(config, ConfigDict):
    raise ValueError(f'{flag}: {path}: has no get_config() that returns an ml_collections.ConfigDict')
  return config


class _UnfitField(ValueError):
  """A field of a config has an unfit name, or no value."""


def _check_fields(config: ConfigDict) -> None:
  """Raises an `_UnfitField` unless every field has a string as its name, and a value."""
  groups, seen = [('config', config)], set()
  while groups:
    place, group = groups.pop()
    # A group can contain itself.
    if id(group) in seen:
      continue
    seen.add(id(group))
    try:
      names = group.keys()
      wrong = [name for name in names if not isinstance(name, str)]
    except TypeError as error:  # `keys` sorts the names, which may have types without an order.
      raise _UnfitField(f'{place}: its fields have names of several types; allowed are texts') from error
    if wrong:
      raise _UnfitField(f'{place}: {one_line(wrong[0])} is no name of a field; names are texts')
    for name in names:
      try:
        value = group[name]
      except config_dict.RequiredValueError as error:
        hint = 'give it one in the file, or let it be a placeholder() and set it on the command line'
        raise _UnfitField(f'{place}.{name}: is required and has no value; {hint}') from error
      except (Exception, SystemExit) as error:  # A field may be computed from others by any function.
        raise _UnfitField(f'{place}.{name}: has no value ({_described(error)})') from error
      if isinstance(value, ConfigDict):
        groups.append((f'{place}.{name}', value))


def _described(error: BaseException) -> str:
  """The type and message of an exception of the user's program."""
  if isinstance(error, _UnfitField):
    return str(error)
  try:
    return f'{type(error).__name__}: {one_line(error)}'
  except Exception:  # `str` of an exception may fail.
    return type(error).__name__
