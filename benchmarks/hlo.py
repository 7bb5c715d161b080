"""Parses compiled programs in HLO text, and counts the bytes and collectives of a search step on one TPU chip.

`benchmarks.pods` describes how often each part of a program is counted.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple


class Collective(NamedTuple):
  """One collective operation of a program.

  Attributes:
    kind: name of the HLO operation, such as `all-reduce`.
    purpose: `BN statistics` in layers of batch normalisation, `gradients` for others in a pass, `others` outside.
    bytes: bytes of a chip's operands.
    group: number of chips that take part.
    loops: number of loops around it.
    branch: whether it is inside a branch of a conditional.
    executions: number of executions in a step.
  """

  kind: str
  purpose: str
  bytes: int
  group: int
  loops: int
  branch: bool
  executions: float

  @property
  def place(self) -> str:
    """Its place in the program, in words."""
    place = ('once a call', 'once a step', 'in a pass')[min(self.loops, 2)]
    return f'{place}, in a branch' if self.branch else place


class Work(NamedTuple):
  """Work of a part of a program on one chip: bytes read and written in HBM, and collectives."""

  bytes: float
  collectives: list[Collective]

  def times(self, factor: float, branch: bool = False) -> 'Work':
    """The work of `factor` executions; `branch` marks its collectives as inside a branch."""
    scaled = [c._replace(executions=c.executions * factor, branch=c.branch or branch) for c in self.collectives]
    return Work(self.bytes * factor, scaled)


class Instruction(NamedTuple):
  """An instruction of a computation.

  Attributes:
    name: name in the computation.
    operation: the HLO operation, such as `fusion`.
    shapes: for every array of the result, its bytes, and whether it is in the fast memory of a TPU.
    operands: names of the operands.
    arguments: the text between the parentheses.
    text: the text of the attributes.
    returned: the text of the result's shape.
  """

  name: str
  operation: str
  shapes: list[tuple[int, bool]]
  operands: list[str]
  arguments: str
  text: str
  returned: str

  @property
  def bytes(self) -> int:
    """Bytes of the result."""
    return sum(size for size, _ in self.shapes)

  def called(self, attribute: str) -> str:
    """The computation that an attribute names. Raises a ValueError if there is none."""
    match = re.search(rf'\b{attribute}=%?([\w.\-]+)', self.text)
    if match is None:
      raise ValueError(f'{self.name}: {self.operation} has no attribute {attribute}')
    return match[1]

  @property
  def branches(self) -> list[str]:
    """The computations that a conditional chooses from."""
    match = _BRANCHES.search(self.text)
    return re.findall(r'[\w.\-]+', match[1]) if match else _BRANCH.findall(self.text)

  @property
  def turns(self) -> int | None:
    """The trip count of a loop; None if the compiler does not know it."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', self.text)
    return int(known[1]) if known else None


_SHAPE = re.compile(r'\b([a-z]+\d+|pred)\[([\d,]*)\](\{[^}]*\})?')
_LINE = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*?)\)(,.*|)$')
_CALLED = re.compile(r'\b(?:to_apply|calls)=%?([\w.\-]+)')
_BRANCH = re.compile(r'\b(?:true_computation|false_computation)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'\bbranch_computations=\{([^}]*)\}')
_KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
#: Operations that read no more bytes of their operands than they return.
_SLICES = ('slice', 'dynamic-slice', 'gather', 'slice-done', 'dynamic-slice-done')
_MOVES_NOTHING = (
  *('parameter', 'constant', 'iota', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'broadcast'),
  *('while', 'conditional', 'call', 'copy-start', 'slice-start', 'dynamic-slice-start', 'async-start', 'async-done'),
)


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
  """The computations of a program by name, and the name of the entry computation."""
  computations: dict[str, list[Instruction]] = {}
  entry = ''
  lines: list[Instruction] = []
  for line in text.splitlines():
    if line.endswith('{') and not line.startswith(' '):
      name = line.removeprefix('ENTRY ').lstrip('%').split(' ', 1)[0]
      lines = computations[name] = []
      if line.startswith('ENTRY '):
        entry = name
    elif match := _LINE.match(line):
      name, shape, operation, operands, attributes = match.groups()
      shapes = [(num_bytes(dtype, sides), 'S(' in layout) for dtype, sides, layout in _SHAPE.findall(shape)]
      names = re.findall(r'%([\w.\-]+)', operands)
      lines.append(Instruction(name, operation, shapes, names, operands, attributes, shape))
  return computations, entry


class Program:
  """A compiled program, from its HLO text.

  Attributes:
    chips: number of chips that it is compiled for.
    passes: number of passes of a step.
    wanting: number of passes that need the gradient in the weights.
  """

  def __init__(self, text: str, chips: int, passes: int, wanting: int) -> None:
    """Reads the text."""
    self.chips, self.passes, self.wanting = chips, passes, wanting
    self._computations, self._entry = parse(text)

  def step(self) -> Work:
    """The work of a step; collectives outside of all loops are included with zero executions."""
    return self._visit(self._entry, 0)

  def _visit(self, name: str, loops: int, fused: bool = False) -> Work:
    """The work of one execution of a computation."""
    moved = 0.0
    collectives: list[Collective] = []
    shapes: dict[str, list[tuple[int, bool]]] = {}
    for each in self._computations[name]:
      shapes[each.name] = each.shapes
      operands = [shapes.get(operand, []) for operand in each.operands]
      parts: list[Work] = []
      kind = each.operation.removesuffix('-start')
      if kind in _KINDS:
        collectives.append(self._collective(kind, each.text, sum(n for o in operands for n, _ in o), loops))
      elif each.operation == 'while':
        parts = [self._loop(each, loops)]
      elif each.operation == 'conditional':
        parts = self._branches(each, loops)
      elif match := _CALLED.search(each.text):
        parts = [self._visit(match[1], loops, fused=each.operation != 'call')]
      for part in parts:
        moved += part.bytes
        collectives += part.collectives
      if loops and not fused:
        moved += _moved(each, operands)
    return Work(moved, collectives)

  def _loop(self, loop: Instruction, loops: int) -> Work:
    """The work of a loop; of the loop over steps, the work of one step."""
    times = 1 if loops == 0 else loop.turns or (self.passes if loops == 1 else 1)
    return self._visit(loop.called('body'), loops + 1).times(times)

  def _branches(self, conditional: Instruction, loops: int) -> list[Work]:
    """The work of the branches of a conditional, weighted by how often they are taken (see `benchmarks.pods`)."""
    works = [self._visit(name, loops) for name in conditional.branches]
    # Sorted by work, so that the last branch is the largest, which counts as taken.
    works.sort(key=lambda work: (sum(c.executions * c.bytes for c in work.collectives), work.bytes))
    within = [collective for work in works for collective in work.collectives]
    chosen = [0.0] * (len(works) - 1) + [1.0]
    if len(works) == 2 and loops > 1 and all(c.purpose == 'gradients' for c in within):
      chosen = [1 - self.wanting / self.passes, self.wanting / self.passes]
    most = max(work.bytes for work in works)
    parts = [work.times(part, branch=True)._replace(bytes=0.0) for part, work in zip(chosen, works, strict=True)]
    return [*parts, Work(most, [])]

  def _collective(self, kind: str, text: str, size: int, loops: int) -> Collective:
    found = re.search(r'op_name="([^"]*)"', text)
    # The modules of batch normalisation are `bn0`, `stem_bn` and the like, with a method after a dot.
    statistics = bool(found and re.search(r'(?:/|_)bn\d*(?:[./]|$)', found[1]))
    purpose = 'BN statistics' if statistics else 'gradients' if loops > 1 else 'others'
    return Collective(kind, purpose, size, self._group(text), loops, False, float(loops > 0))

  def _group(self, text: str) -> int:
    """The number of chips that take part in a collective; all chips if its attributes do not say."""
    if match := re.search(r'replica_groups=\{\{([\d,]+)\}', text):
      return match[1].count(',') + 1
    if match := re.search(r'replica_groups=\[\d+,(\d+)\]', text):
      return int(match[1])
    if match := re.search(r'replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}', text):
      sides = {name: int(side) for name, side in re.findall(r"'([^']+)'=(\d+)", match[1])}
      # A part of an axis is written `'axis':(2)4`, where the second number is its size.
      named = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", match[2])
      return math.prod(int(part) if part else sides[name] for name, part in named)
    return self.chips


def num_bytes(dtype: str, sides: str) -> int:
  """Bytes of an array from its HLO type and shape, such as `f32` and `4,5`."""
  bits = 8 if dtype == 'pred' else int(re.sub(r'\D', '', dtype))
  return math.prod(int(n) for n in sides.split(',') if n) * bits // 8


def _moved(each: Instruction, operands: Sequence[list[tuple[int, bool]]]) -> int:
  """Bytes that an instruction reads and writes in HBM; an asynchronous copy is counted at its end."""
  if each.operation in _MOVES_NOTHING:
    return 0
  written = 0 if each.operation.endswith('-start') else sum(n for n, on_chip in each.shapes if not on_chip)
  if each.operation == 'copy-done':
    # The operand is a tuple of the destination and the source.
    operands = [operands[0][1:2]]
  elif each.operation.endswith('-done') and each.operation not in _SLICES:
    return written
  read = sum(n for operand in operands for n, on_chip in operand if not on_chip)
  return written + (min(read, sum(n for n, _ in each.shapes)) if each.operation in _SLICES else read)
