"""Checkpoints that survive a kill at any moment and never restore wrong values.

A checkpoint is written to a temporary folder, which is renamed when it is complete, so that it exists as a whole or not
at all. Two SHA-256 digests in its manifest detect damage: one of the files, which is verified before Orbax reads them,
because Orbax's decoders can crash on damaged files; and one of names, dtypes, shapes and bytes of the leaves, which is
verified after Orbax has read them.

Layout: `<directory>/<step>/state` is an Orbax checkpoint of the leaves, a flat dictionary from their path in the
pytree to an array, `<directory>/<step>/files` holds copies of files of the run (zlib), and
`<directory>/<step>/manifest.json` describes both and identifies the run. If a step is saved again, the new checkpoint
is `<step>-1`, `<step>-2`, …, so that the old one stays until the new one is complete.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from darts_jax.runtime import processes
from darts_jax.runtime.durable import PARTIAL, sync_to_disk
from darts_jax.runtime.files import read_object, user_path
from darts_jax.runtime.mesh import put

PyTree = Any

_NAME = re.compile(r'(\d+)(?:-(\d+))?')
# Suffix of copies of files, which are compressed.
_COPY = '.zlib'


def _is_worth_showing(record: logging.LogRecord) -> bool:
  return record.levelno == logging.WARNING or 'orbax' not in pathlib.PurePath(record.pathname).parts


# Orbax logs about twenty lines per save at level INFO to absl's logger, which shows INFO in every program that starts
# with `absl.app.run`. It also logs errors, with tracebacks of threads, although it raises them as well.
logging.getLogger('absl').addFilter(_is_worth_showing)


class Restored(NamedTuple):
  """A restored checkpoint.

  Attributes:
    step: the step at which the checkpoint was saved.
    state: a pytree with the structure of the template.
    metadata: the JSON values saved with the state; tuples come back as lists.
    damaged: one line for each newer checkpoint that could not be used, newest first: its path and the reason.
    files: contents of the files saved with the state, by name; damaged files are left out.
  """

  step: int
  state: PyTree
  metadata: dict[str, Any]
  damaged: tuple[str, ...]
  files: dict[str, bytes]


class Checkpoints:
  """The checkpoints of one run.

  With several processes, all of them have to call `save` and `restore`, on a shared folder.
  """

  def __init__(self, directory: str | pathlib.Path, *, keep: int = 3) -> None:
    """Writes nothing; the first `save` creates the folder.

    Args:
      directory: the folder, which has one folder per checkpoint.
      keep: number of the latest checkpoints to keep, at least 1; with 2 or more, a damaged one can be replaced by an
        earlier one.

    Raises:
      ValueError: `keep` is less than 1, or the folder's absolute path is not UTF-8.
    """
    if keep < 1:
      raise ValueError(f'keep: {keep} checkpoints; at least 1 has to be kept')
    self._directory = user_path(user_path(directory, 'directory').absolute(), 'directory')
    self._keep = keep

  def steps(self) -> list[int]:
    """The steps of all complete checkpoints, ascending. Their content is not verified."""
    return sorted({step for step, _, _ in _complete(self._directory)})

  def save(
    self,
    step: int,
    state: PyTree,
    metadata: dict[str, Any],
    *,
    claim: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
    needed: Collection[int] = (),
  ) -> None:
    """Writes a checkpoint; it is complete when this returns.

    It is then the latest one: an older checkpoint of the same step is replaced, and checkpoints of later steps, from
    before the run went back, are removed. Then the oldest are removed until `keep` are left, besides those in `needed`.

    Args:
      step: 0 or more.
      state: a pytree of arrays (JAX, NumPy, or typed PRNG keys) of any shape.
      metadata: JSON values.
      claim: JSON values that identify the run: its config, and a fingerprint of its data.
      files: contents of files to copy, by name, in which `/` separates folders; only the first process writes them.
      needed: steps whose checkpoints are not removed.

    Raises:
      ValueError: `step` is negative, a leaf is not an array, `metadata` is not JSON, or the checkpoint could not be
        written (disk full, no permission); earlier checkpoints are then intact.
    """
    step = int(step)
    if step < 0:
      raise ValueError(f'step: {step} is negative')
    values, leaves = {}, []
    for name, leaf in _named_leaves(state):
      description = _describe(name, leaf)
      if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        description['key_impl'] = str(jax.random.key_impl(leaf))
        leaf = jax.random.key_data(leaf)
      leaves.append(description)
      if leaf.size:  # Orbax refuses arrays without elements; their description in the manifest is enough.
        values[name] = leaf
    arrays = {name: np.asarray(value) for name, value in processes.fetch(values).items()}
    try:
      manifest = json.loads(json.dumps({'step': step, 'metadata': metadata, 'leaves': leaves, 'claim': claim}))
    except TypeError as error:
      raise ValueError(f'metadata: {_one_line(error)}; only JSON values can be saved') from error
    manifest['claim_sha256'] = _json_digest(manifest['claim'])
    try:
      self._write(step, arrays, manifest, files or {}, needed)
    except (OSError, RuntimeError, ValueError) as error:
      self.remove_leftovers()
      kind = processes.AgreedError if isinstance(error, processes.AgreedError) else ValueError
      reason = _one_line(error)
      raise kind(f'{self._directory}: the checkpoint of step {step} could not be written: {reason}') from error

  def restore(self, template: PyTree | Callable[[Any], PyTree], at: int | None = None) -> Restored | None:
    """Restores the latest undamaged checkpoint; returns None if there is no checkpoint.

    Args:
      template: a pytree of arrays or `jax.ShapeDtypeStruct`s with the structure, shapes and dtypes of the state. A leaf
        with a `sharding` is restored with it; NumPy leaves are restored as NumPy arrays. If the structure depends on
        the metadata: a function from the metadata to this pytree.
      at: step of the checkpoint; None for any.

    Raises:
      ValueError: there are checkpoints but all are damaged, or the latest undamaged one does not fit the template.
    """
    damaged: list[str] = []
    for step, _, path in reversed(_complete(self._directory)):
      if at is not None and step != at:
        continue
      try:
        # All processes restore the same checkpoint. An error because a process has ended is not damage; it is raised.
        manifest = processes.together(functools.partial(_verified, path))
      except ValueError as error:
        damaged.append(f'{path}: {_one_line(error)}')
        continue
      arrays, damage = {}, ''
      try:
        arrays = _read(path, manifest)
      except Exception as error:  # Damage can cause any exception in any layer below: Zarr, file system.
        damage = _one_line(error)
      if np.any(processes.gather([bool(damage)])):
        damaged.append(f'{path}: {damage or "another process cannot read it"}')
        continue
      wanted = template(manifest['metadata']) if callable(template) else template
      state = _fit(manifest, arrays, wanted, path)
      return Restored(manifest['step'], state, manifest['metadata'], tuple(damaged), _read_files(path, manifest))
    if damaged:
      which = 'every checkpoint' if at is None else f'every checkpoint of step {at}'
      raise ValueError(f'{self._directory}: {which} is damaged: ' + '; '.join(damaged))
    return None

  def remove_leftovers(self) -> None:
    """Removes partial checkpoints that killed processes have left, in the first process."""
    if processes.is_first() and self._directory.is_dir():
      for path in self._directory.glob(f'*{PARTIAL}'):
        shutil.rmtree(path, ignore_errors=True)

  def _write(
    self,
    step: int,
    arrays: dict[str, np.ndarray],
    manifest: dict[str, Any],
    files: Mapping[str, bytes],
    needed: Collection[int],
  ) -> None:
    revisions = [revision for other, revision, _ in _complete(self._directory) if other == step]
    # The first process decides, since another one's view of a shared folder can be outdated.
    revision = int(processes.gather([max(revisions, default=-1) + 1])[0, 0])
    path = self._directory / (f'{step}-{revision}' if revision else str(step))
    partial = _partial(path)

    def make_room() -> None:
      try:
        self._directory.mkdir(parents=True, exist_ok=True)
        self.remove_leftovers()
        partial.mkdir()
        num_bytes = sum(array.nbytes for array in arrays.values()) + sum(map(len, files.values()))
        _check_room(partial, num_bytes + 1024 * (len(arrays) + len(files) + 1))
      except OSError as error:
        raise ValueError(_one_line(error)) from error

    # If the first process cannot write, all of them fail here; otherwise the others would wait in Orbax forever.
    processes.by_first(make_room)
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
      checkpointer.save(partial / 'state', args=ocp.args.StandardSave(arrays))
    if processes.is_first():
      manifest['kept_files'] = _write_files(partial, files)
      manifest['files_sha256'] = _files_digest(partial / 'state')
      manifest['sha256'] = _leaves_digest(manifest, arrays)
      (partial / 'manifest.json').write_text(json.dumps(manifest), encoding='utf-8')
      # The content of a folder comes before the folder.
      sync_to_disk([*sorted(partial.rglob('*'), reverse=True), partial])
      partial.rename(path)
      sync_to_disk([self._directory])
      self._prune(step, path, needed)
    ocp.multihost.sync_global_processes('darts_jax:checkpoint:written')

  def _prune(self, step: int, latest: pathlib.Path, needed: Collection[int]) -> None:
    others = [(other, path) for other, _, path in _complete(self._directory) if path != latest]
    earlier = [path for other, path in others if other < step and other not in needed]
    for path in [path for other, path in others if other >= step] + earlier[: len(earlier) - self._keep + 1]:
      # Renamed first, so that a partially deleted checkpoint does not count as a damaged one.
      shutil.rmtree(path.rename(_partial(path)), ignore_errors=True)


def claims(directory: pathlib.Path) -> list[Mapping[str, Any]]:
  """The claims of the checkpoints in a directory, newest first, except for damaged and missing ones; see `save`."""
  found: list[Mapping[str, Any]] = []
  for _, _, path in reversed(_complete(directory)):
    # Damage is reported by `Checkpoints.restore`.
    with contextlib.suppress(ValueError):
      manifest = read_object(path / 'manifest.json')
      claim = manifest.get('claim')
      if isinstance(claim, dict) and manifest.get('claim_sha256') == _json_digest(claim):
        found.append(claim)
  return found


def _complete(directory: pathlib.Path) -> list[tuple[int, int, pathlib.Path]]:
  """Step, revision and path of complete checkpoints, oldest first."""
  if not directory.is_dir():
    return []
  matches = [(_NAME.fullmatch(path.name), path) for path in directory.iterdir()]
  return sorted((int(match[1]), int(match[2] or 0), path) for match, path in matches if match)


def _partial(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(path.name + PARTIAL)


def _write_files(checkpoint: pathlib.Path, files: Mapping[str, bytes]) -> dict[str, str]:
  """Writes compressed copies of files into a checkpoint; returns their digests by name."""
  digests = {}
  for name, content in files.items():
    path = checkpoint / 'files' / f'{name}{_COPY}'
    path.parent.mkdir(parents=True, exist_ok=True)
    compressed = zlib.compress(content)
    path.write_bytes(compressed)
    digests[name] = hashlib.sha256(compressed).hexdigest()
  return digests


def _read_files(checkpoint: pathlib.Path, manifest: Mapping[str, Any]) -> dict[str, bytes]:
  """Reads the undamaged copies of files in a checkpoint."""
  found = {}
  for name, digest in manifest.get('kept_files', {}).items():
    # A missing copy does not prevent restoring the state.
    with contextlib.suppress(OSError):
      compressed = (checkpoint / 'files' / f'{name}{_COPY}').read_bytes()
      if hashlib.sha256(compressed).hexdigest() == digest:
        found[name] = zlib.decompress(compressed)
  return found


def _json_digest(values: Any) -> str:
  return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _check_room(folder: pathlib.Path, num_bytes: int) -> None:
  """Raises an OSError if the disk, a quota or a limit leaves no room for this number of bytes.

  Checked in advance, since Orbax writes leaves concurrently: on a full disk one write fails, and the others print
  tracebacks to stderr.
  """
  if hasattr(os, 'posix_fallocate'):  # Not on macOS.
    with tempfile.TemporaryFile(dir=folder) as file:
      os.posix_fallocate(file.fileno(), 0, num_bytes)


def _named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
  return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _describe(name: str, leaf: Any) -> dict[str, Any]:
  if not hasattr(leaf, 'dtype') or not hasattr(leaf, 'shape'):
    raise ValueError(f'state{name}: {leaf!r} is not an array')
  return {'name': name, 'dtype': str(leaf.dtype), 'shape': list(leaf.shape)}


def _files_digest(folder: pathlib.Path) -> str:
  digest = hashlib.sha256()
  for path in sorted(path for path in folder.rglob('*') if path.is_file()):
    with path.open('rb') as file:
      digest.update(f'{path.relative_to(folder)} {hashlib.file_digest(file, "sha256").hexdigest()}\n'.encode())
  return digest.hexdigest()


def _leaves_digest(manifest: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
  """Digest of the leaves and of the manifest, except for the digest itself."""
  described = {key: value for key, value in manifest.items() if key != 'sha256'}
  digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
  for name, array in sorted(arrays.items()):
    digest.update(json.dumps([name, str(array.dtype), array.shape]).encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
  return digest.hexdigest()


def _verified(path: pathlib.Path) -> dict[str, Any]:
  """Reads the manifest of a checkpoint; raises a ValueError if its files are damaged."""
  try:
    manifest = read_object(path / 'manifest.json')
    if _files_digest(path / 'state') != manifest['files_sha256']:
      raise ValueError('its files are not those that were saved (SHA-256 differs)')
  except Exception as error:  # Damage can cause any exception in any layer below: JSON, file system.
    raise ValueError(_one_line(error)) from error
  return manifest


def _read(path: pathlib.Path, manifest: dict[str, Any]) -> dict[str, np.ndarray]:
  """Reads the arrays of a checkpoint whose files have been verified; raises a ValueError if they are damaged."""
  with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
    arrays: dict[str, np.ndarray] = checkpointer.restore(path / 'state', args=ocp.args.StandardRestore())
  if _leaves_digest(manifest, arrays) != manifest['sha256']:
    raise ValueError('its content is not what was saved (SHA-256 differs)')
  return arrays


def _fit(manifest: dict[str, Any], arrays: dict[str, np.ndarray], template: PyTree, path: pathlib.Path) -> PyTree:
  expected = _named_leaves(template)
  saved = {leaf['name']: leaf for leaf in manifest['leaves']}
  differences = [f'state{name} is not wanted' for name in saved.keys() - dict(expected).keys()]
  for name, leaf in expected:
    wanted = _describe(name, leaf)
    if name not in saved:
      differences.append(f'state{name} is missing')
    elif any(saved[name][field] != wanted[field] for field in ('dtype', 'shape')):
      differences.append(
        f'state{name} is {saved[name]["dtype"]}{saved[name]["shape"]}, not {wanted["dtype"]}{wanted["shape"]}'
      )
  if differences:
    more = f' (and {len(differences) - 1} more differences)' if len(differences) > 1 else ''
    raise ValueError(f'{path}: was made by another configuration: {min(differences)}{more}')
  leaves = [_place(saved[name], arrays.get(name), leaf) for name, leaf in expected]
  return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _place(saved: dict[str, Any], array: np.ndarray | None, leaf: Any) -> jax.Array | np.ndarray:
  if array is None:
    array = np.zeros(leaf.shape, leaf.dtype)
  if isinstance(leaf, np.ndarray | np.generic):
    return array
  sharding = getattr(leaf, 'sharding', None)
  placed: Any = jax.device_put(array) if sharding is None else put(array, sharding)
  return jax.random.wrap_key_data(placed, impl=saved['key_impl']) if 'key_impl' in saved else placed


def _one_line(error: BaseException) -> str:
  text = ' '.join(str(error).split()) or type(error).__name__
  # TensorStore's messages end with the cause, after a list of its internal locations.
  return text if len(text) <= 200 else '…' + text[-199:]
