"""Compiles the search step for a pod of TPUs without such a pod, and projects its speed.

python -m benchmarks.pods --topology=v5e:16x16 --config=configs/cifar.py [--config.hypergradient.name=first_order]
    [--devices=8,64,256] [--global_batch=N] [--num_images=50000] [--image=224x224x3 --classes=1000] [--json=FILE]

Any CPU will do: libtpu, in the extra `pods`, describes the chips of a topology and compiles for them, in one process at
a time. It compiles for whole slices only: a number in `--devices` below that of the topology stands for a smaller
slice, as square as possible. Every chip has a batch of `config.batch_size`, so that the batch of a step grows with the
number of chips (weak scaling); `--global_batch` divides one batch among all chips (strong scaling). For the CIFAR-10
search, a slice takes some 20 minutes and 12 GB to compile, and some 3 GB stay allocated for every further slice. Data
are shapes only: `--num_images` images on every chip, as in the search, of the config's dataset or of the shape
`--image`.

The first table has, for each number of chips: the memory of a chip, that is arguments, results, temporaries and code of
the program as XLA reports them; floating-point operations and bytes of a chip in a step; the least time for these, the
larger one of operations at the peak rate and bytes at the bandwidth of HBM (a roofline, which real kernels do not
reach); the time of the collectives; the sum of both times, without overlap; and the least time as a fraction of the
sum. With a batch for every chip, this fraction is the efficiency of scaling from one chip, since the work of a chip
stays the same. A product in float32 takes the time of six products in bfloat16, of which the matrix unit composes it.

The other table has the collectives by kind, purpose and place. A step runs its passes, those of the estimator and of
the weight update, in one loop, inside a loop over steps. XLA counts the body of a loop once; these tables count a step
with all passes. Operations are those that XLA reports times the number of passes; this also multiplies the few
operations outside of the loop over passes, and counts a pass without the gradient in the weights like any other. Bytes
and collectives are counted along the loops and branches of the compiled program. In a conditional with two branches
that only have sums of gradients, passes that need the gradient in the weights take the larger branch and all others the
smaller one; in any other conditional, every pass takes the largest branch. A loop within a pass counts as often as its
trip count, if XLA knows it, and once otherwise. `benchmarks.search_step` counts other programs: those of single
gradients.

The JSON file holds an object keyed by the number of chips, each with `batch, compile_s, memory_bytes, flops, bytes,
compute_s, communication_s, step_s, efficiency` and `collectives`, a list of the rows of the other table.
"""

import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
from ml_collections import config_flags

from benchmarks.accelerators import add_compilers
from benchmarks.command import exit_code, output_file
from benchmarks.hlo import Collective, Program, Work
from benchmarks.search_step import random_images
from darts_jax.data.batches import Examples
from darts_jax.data.images import Images, split
from darts_jax.hypergradient import BILEVEL, Pass
from darts_jax.runtime.compilation import compile_with_report
from darts_jax.runtime.mesh import replicated
from darts_jax.search.searcher import Searcher
from darts_jax.search.settings import Search, check_alone, image_task, placed_task, read
from darts_jax.tasks import Halves


class Chip(NamedTuple):
  """The peak rates of a chip.

  Attributes:
    flops: floating-point operations a second in products of bfloat16.
    memory: size of HBM, bytes.
    bandwidth: bandwidth of HBM, bytes a second.
    links: bytes a second that a chip sends to its neighbours, over all links together.
    options: options with which libtpu describes a chip as one device.
  """

  flops: float
  memory: float
  bandwidth: float
  links: float
  options: dict[str, str]


#: From Google's documentation of Cloud TPU (cloud.google.com/tpu/docs/v4, …/v5e, …/v5p, …/v6e). Its rates of links are
#: for both directions together (v6e: 800 GB/s) or for one (v5e: 1600 Gbit/s); the six links of v4 have 50 GB/s each.
CHIPS = {
  'v4': Chip(275e12, 32 * 2**30, 1228e9, 300e9, {'chip_config_name': 'megacore'}),
  'v5e': Chip(197e12, 16 * 2**30, 819e9, 200e9, {}),
  'v5p': Chip(459e12, 95 * 2**30, 2765e9, 600e9, {}),
  'v6e': Chip(918e12, 32 * 2**30, 1638e9, 400e9, {}),
}

#: Number of bfloat16 products in a float32 product (`darts_jax.runtime.precision.precisely`).
PRODUCTS = 6

#: Seconds from a chip to its neighbour; an assumption.
HOP = 1e-6


class Slice(NamedTuple):
  """A slice: chips of one generation in a torus with sides `sides`."""

  generation: str
  sides: tuple[int, ...]

  def __str__(self) -> str:
    return f'{self.generation}:{"x".join(map(str, self.sides))}'

  @classmethod
  def parse(cls, topology: str) -> 'Slice':
    """Parses a name like `v5e:2x4`; raises a ValueError if it is none."""
    match = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)', topology)
    if match is None or match[1] not in CHIPS:
      raise ValueError(f'--topology: {topology!r}; allowed are {", ".join(CHIPS)} with sides, as in v5e:2x4')
    return cls(match[1], tuple(map(int, match[2].split('x'))))

  @property
  def chip(self) -> Chip:
    """The rates of a chip."""
    return CHIPS[self.generation]

  @property
  def size(self) -> int:
    """The number of chips."""
    return math.prod(self.sides)

  def smaller(self, size: int) -> 'Slice':
    """A smaller slice of `size` chips, as square as possible.

    Raises:
      ValueError: the slice has fewer chips, or no slice has this number of chips.
    """
    if size == self.size:
      return self
    if not 1 <= size <= self.size:
      raise ValueError(f'--devices: {size}; {self} has {self.size} chips')
    if size.bit_count() != 1:
      raise ValueError(f'--devices: {size}; slices of {self} have a power of two of chips')
    dimensions = len(self.sides)
    sides = (2 ** ((size.bit_length() - 1 + i) // dimensions) for i in range(dimensions))
    return Slice(self.generation, tuple(sorted(sides, key=lambda side: (side == 1, side))))

  def devices(self) -> list[jax.Device]:
    """The chips as devices for ahead-of-time compilation.

    Raises:
      ValueError: libtpu is missing, or there is no such slice.
    """
    if importlib.util.find_spec('libtpu') is None:
      raise ValueError('libtpu: missing; pip install darts_jax[pods]')
    # A topology has at least the four chips of a host; for one chip, the first of these is used.
    described = self if self.size > 1 else self._replace(sides=(2, 2, 1)[: len(self.sides)])
    try:
      found = topologies.get_topology_desc(platform='tpu', topology_name=str(described), **self.chip.options)
    except jax.errors.JaxRuntimeError as error:
      raise ValueError(f'--topology: {self}: {error}') from error
    return list(found.devices)[: self.size]

  def mesh(self) -> Mesh:
    """A mesh of the chips, with the axes `seed`, of size 1, and `data`."""
    devices = np.array(self.devices()).reshape(1, -1)
    return Mesh(devices, ('seed', 'data'), axis_types=(AxisType.Auto,) * 2)


def seconds(collective: Collective, pod: Slice) -> float:
  """The least time of one execution of a collective, on rings through all links of the pod."""
  if collective.group == 1:
    return 0.0
  part = (collective.group - 1) / collective.group
  parts = {'all-reduce': 2 * part, 'all-gather': collective.group - 1, 'collective-permute': 1.0}
  sent = parts.get(collective.kind, part)
  # The farthest chip of a ring is half the ring away, and an all-reduce goes there and back.
  rings = pod.sides if collective.group == pod.size else (collective.group,)
  hops = sum(side for side in rings if side > 1) / 2 * (2 if collective.kind == 'all-reduce' else 1)
  return sent * collective.bytes / pod.chip.links + HOP * hops


@contextlib.contextmanager
def within_memory(pod: Slice) -> Iterator[None]:
  """A context in which a program that does not fit into memory raises a ValueError."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    reason = str(error).partition('\n')[0].removeprefix('RESOURCE_EXHAUSTED: ')
    raise ValueError(f'config.batch_size: the step does not fit on a chip of {pod}: {reason}') from error


def shapes_only(settings: Search, image: str | None, classes: int, num_images: int) -> Images:
  """A dataset of `num_images` images without contents, in the shape of the config's dataset or like `224x224x3`."""
  if image is None:
    found = random_images(settings.task.source, 1)
  else:
    if not re.fullmatch(r'\d+x\d+x\d+', image):
      raise ValueError(f'--image: {image!r}; height, width and channels are to be given as in 224x224x3')
    shape = tuple(map(int, image.split('x')))
    noise = np.zeros((1, *shape), np.uint8)
    mean, std = (127.5,) * shape[-1], (73.6,) * shape[-1]
    found = Images(image, noise, np.zeros(1, np.int32), None, None, classes, mean, std)
  images = np.broadcast_to(np.uint8(0), (num_images, *found.x_train.shape[1:]))
  return dataclasses.replace(found, x_train=images, y_train=np.broadcast_to(np.int32(0), num_images))


def data_template(images: Images, settings: Search, mesh: Mesh) -> Halves:
  """Shapes of the two halves of the training images, replicated on the devices of the mesh.

  Raises:
    ValueError: a batch is larger than one of the halves.
  """
  same = replicated(mesh)

  def half(size: int) -> Examples:
    if size < settings.batch_size:
      raise ValueError(f'--num_images: a half has {size} of them, less than a batch of {settings.batch_size}')
    shapes: Any = (
      jax.ShapeDtypeStruct((size, *array.shape[1:]), array.dtype, sharding=same)
      for array in (images.x_train, images.y_train)
    )
    return Examples(*shapes)

  train, valid = split(len(images.y_train), image_task(settings).data.validation_fraction, settings.seed)
  return Halves(half(len(train)), half(len(valid)))


def products(passes: Sequence[Pass], precision: str) -> int:
  """Total number of bfloat16 products that one product in each pass of a step takes, with the weight update's pass."""
  return sum(PRODUCTS if precision == 'float32' or each.precise else 1 for each in passes) + (
    PRODUCTS if precision == 'float32' else 1
  )


def project(pod: Slice, work: Work, flops: float, times: int) -> dict[str, float]:
  """Projects the least seconds of a step (see the module): `compute_s, communication_s, step_s, efficiency`.

  Args:
    pod: the slice.
    work: work of a chip in a step.
    flops: floating-point operations of a chip in one pass.
    times: see `products`.
  """
  compute = max(flops * times / pod.chip.flops, work.bytes / pod.chip.bandwidth)
  communication = sum(c.executions * seconds(c, pod) for c in work.collectives)
  step = compute + communication
  return {
    'compute_s': compute,
    'communication_s': communication,
    'step_s': step,
    'efficiency': compute / step if step else 1.0,
  }


def rows_of(pod: Slice, collectives: Sequence[Collective]) -> list[dict[str, Any]]:
  """Rows of the table of collectives: number, bytes and seconds by kind, purpose, place, group and executions."""
  together: dict[tuple[Any, ...], list[Collective]] = {}
  for each in collectives:
    together.setdefault((each.kind, each.purpose, each.place, each.group, each.executions), []).append(each)
  rows = []
  for (kind, purpose, place, group, executions), found in together.items():
    rows.append(
      {
        'kind': kind,
        'purpose': purpose,
        'place': place,
        'group': group,
        'number': len(found),
        'bytes': sum(c.bytes for c in found),
        'executions': executions,
        'seconds': sum(c.executions * seconds(c, pod) for c in found),
      }
    )
  return sorted(rows, key=lambda row: (-row['seconds'], row['kind']))


def measure(pod: Slice, settings: Search, images: Images) -> dict[str, Any]:
  """Compiles the step for a slice and projects its time; keys as in the JSON file."""
  mesh = pod.mesh()
  data = data_template(images, settings, mesh)
  searcher = Searcher.open(settings, images, mesh)
  num_steps = jax.ShapeDtypeStruct((), np.int32, sharding=replicated(mesh))
  with within_memory(pod):
    compilation = compile_with_report(searcher.run, searcher.template(), data, num_steps)
  compiled = compilation.compiled
  cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
  assert cost is not None
  assert memory is not None
  passes = settings.hypergradient.estimator().passes
  number, wanting = len(passes) + 1, sum(each.weights for each in passes) + 1
  work = Program(compiled.as_text() or '', pod.size, number, wanting).step()
  return {
    'batch': settings.batch_size,
    'compile_s': compilation.seconds,
    'memory_bytes': memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.generated_code_size_in_bytes
    - memory.alias_size_in_bytes,
    'flops': cost['flops'] * number,
    'bytes': work.bytes,
    **project(pod, work, cost['flops'], products(passes, settings.precision)),
    'collectives': rows_of(pod, work.collectives),
  }


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Rows of cells as Markdown."""
  return '\n'.join(f'| {" | ".join(row)} |' for row in (titles, ['---'] * len(titles), *rows))


def summary(chip: Chip, results: dict[int, dict[str, Any]]) -> str:
  """The first table as Markdown."""
  titles = ('chips', 'batch', 'compile s', f'memory GB (of {chip.memory / 1e9:.1f})', 'GFLOP a chip', 'GB a chip')
  times = ('least compute ms', 'collectives ms', 'sum ms', 'efficiency')
  rows = [
    (
      str(size),
      str(r['batch']),
      f'{r["compile_s"]:.0f}',
      f'{r["memory_bytes"] / 1e9:.2f}',
      f'{r["flops"] / 1e9:.1f}',
      f'{r["bytes"] / 1e9:.2f}',
      f'{1e3 * r["compute_s"]:.2f}',
      f'{1e3 * r["communication_s"]:.2f}',
      f'{1e3 * r["step_s"]:.2f}',
      f'{r["efficiency"]:.0%}',
    )
    for size, r in results.items()
  ]
  return table((*titles, *times), rows)


def collectives_table(results: dict[int, dict[str, Any]]) -> str:
  """The other table as Markdown."""
  titles = ('chips', 'kind', 'of', 'where', 'among', 'number', 'kB', 'executions a step', 'ms a step')
  rows = [
    (
      str(size),
      row['kind'],
      row['purpose'],
      row['place'],
      str(row['group']),
      str(row['number']),
      f'{row["bytes"] / 1e3:.1f}',
      f'{row["executions"]:g}',
      f'{1e3 * row["seconds"]:.3f}',
    )
    for size, r in results.items()
    for row in r['collectives']
  ]
  return table(titles, rows)


def assumptions(pod: Slice, settings: Search) -> str:
  """The assumptions of the projection, in one line."""
  chip = pod.chip
  products = f'{PRODUCTS} products of bfloat16 for one of float32' if settings.precision == 'float32' else 'bfloat16'
  return (
    f'Assumed: {chip.flops / 1e12:.0f} TFLOP/s in bfloat16 a chip, {products}; {chip.bandwidth / 1e9:.0f} GB/s of HBM;'
    f' {chip.links / 1e9:.0f} GB/s over all links of a chip, in rings that use all of them, as in a whole torus;'
    f' {1e6 * HOP:g} µs a hop, half around every side of the torus, and back in a sum; nothing overlaps.'
    ' Kernels as fast as the roofline overstate the share of collectives; perfect rings understate it.'
  )


def run(
  config: Any,
  topology: str,
  sizes: Sequence[str],
  *,
  global_batch: int | None = None,
  num_images: int = 50_000,
  image: str | None = None,
  classes: int = 1000,
  path: str | None = None,
) -> None:
  """Compiles for every number of chips, prints the tables and writes the JSON file."""
  whole = Slice.parse(topology)
  unknown = [size for size in sizes if not size.isdecimal()]
  if unknown:
    raise ValueError(f'--devices: {unknown[0]!r} is no number')
  pods = [whole.smaller(int(size)) for size in sizes] or [whole]
  settings = read(config)
  placed_task(settings)
  if settings.hypergradient.name not in BILEVEL:
    name, allowed = settings.hypergradient.name, ', '.join(BILEVEL)
    raise ValueError(f'config.hypergradient.name: {name!r} has no loop over passes to count; allowed are {allowed}')
  output = output_file(path, '--json')
  check_alone(settings)
  images = shapes_only(settings, image, classes, num_images)
  batches = []
  for pod in pods:
    if global_batch is not None and global_batch % pod.size:
      raise ValueError(f'--global_batch: {global_batch} does not divide evenly over {pod.size} chips')
    batches.append(settings.batch_size * pod.size if global_batch is None else global_batch)
  results = {}
  for pod, batch in zip(pods, batches, strict=True):
    results[pod.size] = measure(pod, dataclasses.replace(settings, batch_size=batch), images)
    print(f'{pod}: {json.dumps(results[pod.size])}', file=sys.stderr, flush=True)
    jax.clear_caches()
  print(f'{whole}, {settings.hypergradient.name}, {settings.precision}, jax {jax.__version__}\n')
  print(summary(whole.chip, results) + '\n')
  print(collectives_table(results) + '\n')
  print(assumptions(whole, settings))
  if output is not None:
    output.write_text(json.dumps(results, indent=2) + '\n')


def main() -> int:
  """Parses the command line; returns the exit code."""
  add_compilers()
  # Without these, libtpu asks a metadata server for the chips of this machine, or warns; and JAX would run on a TPU.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-8')
  jax.config.update('jax_platforms', os.environ.setdefault('JAX_PLATFORMS', 'cpu'))
  jax.config.update('jax_enable_compilation_cache', False)
  config = config_flags.DEFINE_config_file('config', None, 'Path of the config file.')
  topology = flags.DEFINE_string('topology', 'v5e:16x16', 'Generation and sides of the pod.')
  sizes = flags.DEFINE_list('devices', [], 'Numbers of chips; none: all of the topology.')
  global_batch = flags.DEFINE_integer(
    'global_batch', None, 'Batch of all chips together; none: config.batch_size for each.', lower_bound=1
  )
  num_images = flags.DEFINE_integer('num_images', 50_000, 'Training images on every chip.', lower_bound=2)
  image = flags.DEFINE_string('image', None, 'Height, width and channels, as in 224x224x3; none: of the dataset.')
  classes = flags.DEFINE_integer('classes', 1000, 'Classes of images of the shape --image.', lower_bound=2)
  path = flags.DEFINE_string('json', None, 'Where to write the results as JSON.')

  def compiled() -> None:
    flags.FLAGS(sys.argv)
    if config.value is None:
      raise ValueError('--config: missing; for example --config=configs/cifar.py')
    run(
      config.value,
      topology.value,
      sizes.value,
      global_batch=global_batch.value,
      num_images=num_images.value,
      image=image.value,
      classes=classes.value,
      path=path.value,
    )

  return exit_code(compiled, __doc__)


if __name__ == '__main__':
  sys.exit(main())
