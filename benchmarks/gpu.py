"""Compiles the search step for a GPU without such a device, and counts the kernels of the program.

python -m benchmarks.gpu --chip=h200 --config=configs/cifar.py [--estimators=first_order,finite_difference,exact]
    [--config.network.layers=3] [--config.precision=bfloat16] [--plain] [--num_images=50000] [--json=FILE]
    [--hlo=FOLDER]

Any CPU will do: JAX's plugin for CUDA, in the extra `accelerators`, compiles for a described chip and needs no device,
driver or CUDA library. Nothing is autotuned: the program has the kernels, arrays and library calls of the real chip,
except that the algorithms of products and convolutions are not chosen yet. `--plain` adds a first-order step that is
written without the package (`benchmarks.plain_convolutional`).

A step runs its passes, those of the estimator and of the weight update, in one loop. The table counts one pass together
with all work outside of the loop: making the batches, and the work after the last pass. (The plain step has no loop,
and half of it is counted.) Of a conditional, the branch with more kernels is counted; a loop within a pass counts as
often as its trip count, if XLA knows it, and once otherwise. The columns are

- kernels: number of launches of fusions, products, convolutions and copies.
- waits: number of conditionals, and of loops whose trip count XLA does not know: the host waits for all work before, to
  read a condition. The loop over steps is not included.
- GB: bytes that kernels read and write, if each kernel reads the used part of its operands once.
- moved: share of these bytes in kernels that only transpose, copy or concatenate, and in all kernels that transpose.
- grouped: number of grouped convolutions by cuDNN; in parentheses, those with a batch of one.
- temporary: memory besides arguments and results, MB.
- least ms: the time for these bytes at the memory bandwidth; and the time for the launches at 2.5 µs each, which is an
  assumption. A real pass takes longer.

The JSON file holds an object keyed by estimator (and `plain`), each with `kernels, host_waits, bytes, transpose_bytes,
grouped_convolutions, single_image_convolutions, temp_bytes, compile_s, bytes_s, launches_s` of a pass, and `kinds`, the
number and bytes of each kind of kernel. `--hlo` keeps the compiled programs as text.
"""

import collections
import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
from ml_collections import config_flags

from benchmarks.accelerators import add_compilers
from benchmarks.command import exit_code, output_file
from benchmarks.hlo import Instruction, parse
from benchmarks.plain_convolutional import PlainSearch
from benchmarks.pods import data_template, shapes_only, table
from darts_jax.hypergradient import BILEVEL
from darts_jax.runtime.compilation import compile_with_report, compiler_options
from darts_jax.runtime.files import user_path
from darts_jax.runtime.mesh import replicated
from darts_jax.search.searcher import Searcher
from darts_jax.search.settings import Search, check_alone, placed_task, read


class Chip(NamedTuple):
  """Published data of a GPU.

  Attributes:
    name: name of the device in the driver.
    capability: compute capability.
    multiprocessors: number of multiprocessors.
    cores: number of float32 cores of a multiprocessor.
    clock: maximal clock, GHz.
    memory: device memory, bytes.
    bandwidth: memory bandwidth, bytes a second.
    cache: L2 cache, bytes.
    shared: shared memory of a multiprocessor, KiB; a block can use one KiB less.
  """

  name: str
  capability: tuple[int, int]
  multiprocessors: int
  cores: int
  clock: float
  memory: float
  bandwidth: float
  cache: float
  shared: int


#: From NVIDIA's data sheets of A100 (80 GB, SXM), H100 (SXM), H200 (SXM) and B200 (HGX); shared memory from the table
#: of compute capabilities in the CUDA programming guide.
CHIPS = {
  'a100': Chip('NVIDIA A100-SXM4-80GB', (8, 0), 108, 64, 1.41, 80e9, 2.039e12, 40 * 2**20, 164),
  'h100': Chip('NVIDIA H100 80GB HBM3', (9, 0), 132, 128, 1.98, 80e9, 3.35e12, 50 * 2**20, 228),
  'h200': Chip('NVIDIA H200', (9, 0), 132, 128, 1.98, 141e9, 4.8e12, 50 * 2**20, 228),
  'b200': Chip('NVIDIA B200', (10, 0), 148, 128, 1.965, 180e9, 7.7e12, 126 * 2**20, 228),
}

#: Seconds between the launches of two kernels; an assumption.
LAUNCH = 2.5e-6

#: Compiler options: no autotuning, which needs a device; and no optimisation by LLVM, which does not change the HLO.
OFFLINE = {'xla_gpu_autotune_level': '0', 'xla_backend_optimization_level': '0'}


def description(chip: Chip) -> str:
  """A chip as XLA's `GpuTargetConfigProto`."""
  major, minor = chip.capability
  return f"""
    platform_name: "CUDA" device_description_str: "{chip.name}"
    dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
    gpu_device_info {{
      name: "{chip.name}" device_vendor: "NVIDIA Corporation"
      cuda_compute_capability {{ major: {major} minor: {minor} }}
      core_count: {chip.multiprocessors} fpus_per_core: {chip.cores} clock_rate_ghz: {chip.clock}
      device_memory_size: {chip.memory:.0f} memory_bandwidth: {chip.bandwidth:.0f} l2_cache_size: {chip.cache:.0f}
      shared_memory_per_core: {chip.shared * 1024} shared_memory_per_block_optin: {(chip.shared - 1) * 1024}
      shared_memory_per_block: 49152
      threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
      block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
      thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
      registers_per_core_limit: 65536 registers_per_block_limit: 65536
      device_address_bits: 64 ecc_enabled: true
      driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0" dnn_version: "9.10.0"
    }}
  """


def mesh_of(chip: str, number: int = 1) -> Mesh:
  """A mesh of `number` GPUs of a kind, with the axes `seed`, of size 1, and `data`.

  Raises:
    ValueError: the chip is not in `CHIPS`, or the plugin is missing.
  """
  if chip not in CHIPS:
    raise ValueError(f'--chip: {chip!r}; allowed are {", ".join(CHIPS)}')
  if all(importlib.util.find_spec(f'jax_cuda{version}_plugin') is None for version in (12, 13)):
    raise ValueError('jax-cuda12-plugin: missing; pip install darts_jax[accelerators]')
  found = topologies.get_topology_desc(
    platform='cuda', target_config=description(CHIPS[chip]), topology_name='', topology=f'1x{number}x1'
  )
  return Mesh(np.array(found.devices).reshape(1, -1), ('seed', 'data'), axis_types=(AxisType.Auto,) * 2)


class Counts(NamedTuple):
  """Counts of a part of a program.

  Attributes:
    kernels: number of kernels by kind.
    bytes: bytes that kernels read and write, by kind.
    waits: number of waits of the host.
    single: number of grouped convolutions with a batch of one.
  """

  kernels: collections.Counter[str]
  bytes: collections.Counter[str]
  waits: int
  single: int

  @classmethod
  def none(cls) -> 'Counts':
    """Counts of zero."""
    return cls(collections.Counter(), collections.Counter(), 0, 0)

  def plus(self, other: 'Counts', times: float = 1) -> 'Counts':
    """The sum of these counts and `times` the others."""
    kernels, moved = self.kernels.copy(), self.bytes.copy()
    for into, part in ((kernels, other.kernels), (moved, other.bytes)):
      for kind, value in part.items():
        into[kind] += round(value * times)
    return Counts(kernels, moved, self.waits + round(other.waits * times), self.single + round(other.single * times))


#: Kinds of kernels that only move data.
TRANSPOSITION, COPY = 'transposition', 'copy'
GROUPED = 'grouped convolution'
#: Operations that launch no kernel of their own.
_LAUNCHES_NOTHING = (
  *('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'partition-id', 'replica-id'),
  *('async-done', 'async-update', 'copy-done', 'opt-barrier', 'all-reduce-done'),
)
#: Operations that only move data.
_MOVES = {
  *('parameter', 'constant', 'tuple', 'bitcast', 'copy', 'transpose', 'reshape', 'slice', 'concatenate', 'pad'),
  *('get-tuple-element', 'broadcast'),
}
#: Operations of kernels that only fill an array.
_FILLS = {'constant', 'broadcast', 'iota', 'tuple', 'bitcast'}
#: Kinds of fusions by an operation that they contain; the first match counts.
_KINDS = {
  'dot': 'product in a fusion',
  'sort': 'sort',
  'scatter': 'scatter',
  'transpose': TRANSPOSITION,
  'reduce': 'sum',
}
#: Operations that read from their operands the same rows, along the first axis, as are read from their result.
_ALONG = {
  *('bitcast', 'reshape', 'pad', 'convert', 'copy', 'add', 'subtract', 'multiply', 'divide', 'maximum', 'minimum'),
  *('negate', 'select', 'compare', 'and', 'or', 'not', 'exponential', 'log', 'rsqrt', 'abs'),
}


class GpuProgram:
  """A program compiled for a GPU, from its HLO text."""

  def __init__(self, text: str) -> None:
    """Reads the text."""
    self._computations, self._entry = parse(text)

  def count(self) -> Counts:
    """Counts of the whole program; the loops over steps and over passes count once."""
    return self._count(self._entry, 0)

  def _count(self, name: str, loops: int) -> Counts:
    """Counts of a computation inside `loops` loops; the first two are those over steps and over passes."""
    found = Counts.none()
    known: dict[str, Instruction] = {}
    for each in self._computations[name]:
      known[each.name] = each
      if each.operation == 'while':
        # One step and one pass are counted.
        turns = 1 if loops < 2 else each.turns or 1
        for part in ('condition', 'body'):
          found = found.plus(self._count(each.called(part), loops + 1), turns)
        found = found._replace(waits=found.waits + (loops > 0 and each.turns is None))
      elif each.operation == 'conditional':
        parts = [self._count(branch, loops) for branch in each.branches]
        most = max(parts, key=lambda part: (part.kernels.total(), part.bytes.total()))
        found = found.plus(most)._replace(waits=found.waits + most.waits + 1)
      elif each.operation in ('call', 'async-start'):
        called = each.called('to_apply' if each.operation == 'call' else 'calls')
        found = found.plus(self._count(called, loops))
      elif each.operation not in _LAUNCHES_NOTHING:
        kind = self._kind(each)
        found.kernels[kind] += 1
        found.bytes[kind] += self._bytes(each, [known[o] for o in each.operands if o in known])
        found = found._replace(single=found.single + (kind == GROUPED and _batch_of_one(each, known)))
    return found

  def _kind(self, each: Instruction) -> str:
    """The kind of an instruction's kernel."""
    if each.operation == 'custom-call':
      target = re.search(r'custom_call_target="([^"]*)"', each.text)
      name = target[1] if target else each.operation
      if 'conv' in name:
        return GROUPED if _grouped(each.text) else 'convolution'
      return 'product' if 'cublas' in name else name
    if each.operation != 'fusion':
      return COPY if each.operation in ('copy', 'copy-start', 'slice', 'pad', 'concatenate') else each.operation
    inside = self._computations[each.called('calls')]
    operations = {i.operation for i in inside}
    if 'convolution' in operations:
      return GROUPED if any(_grouped(i.text) for i in inside if i.operation == 'convolution') else 'convolution'
    if operations - {'parameter'} <= _FILLS:
      return 'fill'
    if operations <= _MOVES:
      return TRANSPOSITION if 'transpose' in operations else COPY
    return next((kind for operation, kind in _KINDS.items() if operation in operations), 'elementwise')

  def _bytes(self, each: Instruction, operands: Sequence[Instruction]) -> int:
    """Bytes that a kernel reads and writes."""
    if each.operation == 'fusion':
      inside = self._computations[each.called('calls')]
      read = sum(round(o.bytes * part) for o, part in zip(operands, _parts_read(inside), strict=True))
    else:
      read = sum(o.bytes for o in operands)
    written = each.bytes
    if each.operation == 'custom-call':
      # The workspace of a library call is memory, but no traffic.
      written -= sum(int(size) for size in re.findall(r'\bs8\[(\d+)\]', each.returned)[-1:])
    return read + written


def _grouped(attributes: str) -> bool:
  return any(int(count) > 1 for count in re.findall(r'(?:feature|batch)_group_count=(\d+)', attributes))


def _batch_of_one(each: Instruction, known: dict[str, Instruction]) -> bool:
  """Whether a convolution has a batch of one, by the position of `b` in its labels."""
  labels = re.search(r'dim_labels=(\w+)_', each.text)
  sides = re.search(r'\[([\d,]+)\]', known[each.operands[0]].returned) if each.operands else None
  return bool(labels and sides) and sides[1].split(',')[labels[1].index('b')] == '1'  # type: ignore[index]


#: Ranges `[first, last)` of rows of an array along its first axis.
_Rows = list[tuple[int, int]]


def _extent(each: Instruction) -> int:
  """The size of the first axis of an instruction's result; 0 if it has no axes."""
  found = re.match(r'\w+\[(\d+)', each.returned)
  return int(found[1]) if found else 0


def _parts_read(inside: Sequence[Instruction]) -> list[float]:
  """For every parameter of a fusion, the fraction that is read."""
  readers: dict[str, list[Instruction]] = {}
  for each in inside:
    for operand in each.operands:
      readers.setdefault(operand, []).append(each)

  # Instructions come after their operands, so in reverse order all readers are visited first.
  asked: dict[str, _Rows] = {}
  for each in reversed(inside):
    everything: _Rows = [(0, _extent(each))]
    rows: _Rows = [] if each.name in readers else everything
    for reader in readers.get(each.name, ()):
      if reader.operation == 'slice':
        taken = re.search(r'slice=\{\[(\d+):(\d+)(?::(\d+))?\]', reader.text)
        assert taken is not None
        start, step = int(taken[1]), int(taken[3] or 1)
        if step == 1:
          rows = rows + [(start + first, start + last) for first, last in asked[reader.name]]
        else:
          places = [start + step * i for first, last in asked[reader.name] for i in range(first, last)]
          rows = rows + [(place, place + 1) for place in places]
      elif reader.operation == 'gather' and reader.operands[0] == each.name:
        # A gather of rows by index reads at most as many rows as there are indices.
        rows = [*rows, (0, min(_extent(reader), _extent(each)))]
      elif reader.operation in _ALONG and _extent(reader) == _extent(each):
        rows = rows + asked[reader.name]
      else:
        rows = everything
        break
    asked[each.name] = _disjoint(rows)
  parameters = sorted((each for each in inside if each.operation == 'parameter'), key=lambda each: int(each.arguments))
  parts = []
  for each in parameters:
    number = sum(last - first for first, last in asked[each.name])
    part = number / _extent(each) if _extent(each) > 0 else 1.0
    few = _taken(each.name, readers)
    # Slices along other axes, of some pixels for example, may read even less.
    parts.append(part if few is None else min(part, few / each.bytes))
  return parts


def _taken(name: str, readers: Mapping[str, Sequence[Instruction]]) -> int | None:
  """Bytes of an array that are read, if all of its readers are slices; None otherwise."""
  total = 0
  for reader in readers.get(name, ()):
    if reader.operation not in ('slice', 'bitcast'):
      return None
    few = _taken(reader.name, readers)
    if few is None:
      if reader.operation == 'bitcast':
        return None
      few = reader.bytes
    total += few
  return total if name in readers else None


def _disjoint(rows: _Rows) -> _Rows:
  """Sorted ranges of the same rows without overlap."""
  found: _Rows = []
  for first, last in sorted(rows):
    if found and first <= found[-1][1]:
      found[-1] = found[-1][0], max(last, found[-1][1])
    else:
      found.append((first, last))
  return found


def measure(
  chip: str, settings: Search, num_images: int, *, plain: bool = False, hlo: pathlib.Path | None = None
) -> dict[str, Any]:
  """Compiles the step, or the plain step, for a chip and counts its program; keys as in the JSON file."""
  mesh = mesh_of(chip)
  same = replicated(mesh)
  images = shapes_only(settings, None, 10, num_images)
  data = data_template(images, settings, mesh)
  searcher = Searcher.open(settings, images, mesh)
  state = searcher.template()
  options = compiler_options(mesh) | OFFLINE
  if plain:
    step = PlainSearch(searcher)
    first = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=same), jax.eval_shape(step.start, state)
    )
    compilation = compile_with_report(jax.jit(step.step, donate_argnums=0), first, data, options=options)
  else:
    steps = jax.ShapeDtypeStruct((), np.int32, sharding=same)
    compilation = compile_with_report(searcher.run, state, data, steps, options=options)
  text = compilation.compiled.as_text() or ''
  if hlo is not None:
    name = 'plain' if plain else settings.hypergradient.name
    (hlo / f'{name}_{settings.precision}_{chip}.hlo').write_text(text)
  memory = compilation.compiled.memory_analysis()
  assert memory is not None
  counts = GpuProgram(text).count()
  # The plain step has two gradients, one after the other, which count as two passes.
  passes = 2 if plain else 1
  moved = sum(counts.bytes[kind] for kind in (TRANSPOSITION, COPY))
  kernels = counts.kernels.total() / passes
  return {
    'kernels': round(kernels),
    'host_waits': counts.waits // passes,
    'bytes': counts.bytes.total() // passes,
    'transpose_bytes': moved // passes,
    'grouped_convolutions': counts.kernels[GROUPED] // passes,
    'single_image_convolutions': counts.single // passes,
    'temp_bytes': memory.temp_size_in_bytes,
    'compile_s': compilation.seconds,
    'bytes_s': counts.bytes.total() / passes / CHIPS[chip].bandwidth,
    'launches_s': LAUNCH * kernels,
    'kinds': {
      kind: {'kernels': number // passes, 'bytes': counts.bytes[kind] // passes}
      for kind, number in counts.kernels.most_common()
    },
  }


def summary(results: dict[str, dict[str, Any]]) -> str:
  """The table as Markdown."""
  titles = (
    'a pass of',
    'kernels',
    'waits',
    'GB',
    'moved',
    'grouped (of one image)',
    'temporary MB',
    'least ms',
    'compile s',
  )
  rows = [
    (
      name,
      str(r['kernels']),
      str(r['host_waits']),
      f'{r["bytes"] / 1e9:.2f}',
      f'{r["transpose_bytes"] / max(r["bytes"], 1):.1%}',
      f'{r["grouped_convolutions"]} ({r["single_image_convolutions"]})',
      f'{r["temp_bytes"] / 1e6:.0f}',
      f'{1e3 * r["bytes_s"]:.2f}; {1e3 * r["launches_s"]:.2f}',
      f'{r["compile_s"]:.0f}',
    )
    for name, r in results.items()
  ]
  return table(titles, rows)


def run(
  config: Any,
  chip: str,
  names: Sequence[str],
  *,
  num_images: int = 50_000,
  plain: bool = False,
  path: str | None = None,
  hlo: str | None = None,
) -> None:
  """Compiles for every estimator, prints the table and writes the JSON file."""
  mesh_of(chip)
  unknown = [name for name in names if name not in BILEVEL]
  if unknown or not names:
    raise ValueError(f'--estimators: {", ".join(unknown) or "none given"}; allowed are {", ".join(BILEVEL)}')
  settings = read(config)
  placed_task(settings)
  check_alone(settings)
  output = output_file(path, '--json')
  folder = user_path(hlo, '--hlo') if hlo else None
  if folder is not None:
    folder.mkdir(parents=True, exist_ok=True)
  results = {}
  for name in [*names, *['plain'] * plain]:
    chosen = 'first_order' if name == 'plain' else name
    each = dataclasses.replace(settings, hypergradient=settings.hypergradient.other(chosen))
    results[name] = measure(chip, each, num_images, plain=name == 'plain', hlo=folder)
    print(f'{name}: {json.dumps(results[name])}', file=sys.stderr, flush=True)
    jax.clear_caches()
  precision = settings.precision + (', the plain step in float32' if plain and settings.precision != 'float32' else '')
  print(f'{CHIPS[chip].name}, batch {settings.batch_size}, {precision}, jax {jax.__version__}\n')
  print(summary(results))
  if output is not None:
    output.write_text(json.dumps(results, indent=2) + '\n')


def main() -> int:
  """Parses the command line; returns the exit code."""
  add_compilers()
  jax.config.update('jax_platforms', os.environ.setdefault('JAX_PLATFORMS', 'cpu'))
  jax.config.update('jax_enable_compilation_cache', False)
  config = config_flags.DEFINE_config_file('config', None, 'Path of the config file.')
  chip = flags.DEFINE_string('chip', 'h200', f'One of {", ".join(CHIPS)}.')
  names = flags.DEFINE_list('estimators', ['first_order', 'finite_difference', 'exact'], 'Estimators to compile.')
  num_images = flags.DEFINE_integer('num_images', 50_000, 'Training images on the GPU.', lower_bound=2)
  plain = flags.DEFINE_bool('plain', False, 'Whether the plain step is compiled, too.')
  path = flags.DEFINE_string('json', None, 'Where to write the results as JSON.')
  hlo = flags.DEFINE_string('hlo', None, 'Folder for the compiled programs as text.')

  def compiled() -> None:
    flags.FLAGS(sys.argv)
    if config.value is None:
      raise ValueError('--config: missing; for example --config=configs/cifar.py')
    run(
      config.value,
      chip.value,
      names.value,
      num_images=num_images.value,
      plain=plain.value,
      path=path.value,
      hlo=hlo.value,
    )

  return exit_code(compiled, __doc__)


if __name__ == '__main__':
  sys.exit(main())
