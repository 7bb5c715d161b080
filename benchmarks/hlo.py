"""Compiled programs as HLO text; what a search step does on one TPU: bytes that it moves, and its collectives.

See `benchmarks.pods` for what is counted how often.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple


class Collective(NamedTuple):
  """One collective operation of a program.

  Attributes:
    kind: as HLO names it, for example `all-reduce`.
    purpose: `BN statistics` in a layer of that name; `gradients` for all else in a pass; `others` outside.
    bytes: that a chip puts in.
    group: chips that take part.
    loops: that it stands in.
    branch: whether it stands in a branch.
    executions: times it is executed in a step.
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
    """Where it stands, in words."""
    place = ('once a call', 'once a step', 'in a pass')[min(self.loops, 2)]
    return f'{place}, in a branch' if self.branch else place


class Work(NamedTuple):
  """What a part of a program does on one chip: bytes that it reads and writes in HBM, and its collectives."""

  bytes: float
  collectives: list[Collective]

  def times(self, factor: float, branch: bool = False) -> 'Work':
    """The same, so often."""
    scaled = [c._replace(executions=c.executions * factor, branch=c.branch or branch) for c in self.collectives]
    return Work(self.bytes * factor, scaled)


class Instruction(NamedTuple):
  """An instruction of a computation.

  Attributes:
    name: in the computation.
    operation: such as `fusion`.
    shapes: bytes of every array it returns, and whether that lies in the fast memory of a TPU.
    operands: names.
    arguments: what stands between its parentheses.
    text: its attributes.
    returned: what it returns, as HLO writes it.
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
    """Bytes of all that it returns."""
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
    """How often a loop goes round, if the compiler knows."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', self.text)
    return int(known[1]) if known else None


_SHAPE = re.compile(r'\b([a-z]+\d+|pred)\[([\d,]*)\](\{[^}]*\})?')
_LINE = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*?)\)(,.*|)$')
_CALLED = re.compile(r'\b(?:to_apply|calls)=%?([\w.\-]+)')
_BRANCH = re.compile(r'\b(?:true_computation|false_computation)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'\bbranch_computations=\{([^}]*)\}')
_KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
#: What reads no more of its operands than it returns.
_SLICES = ('slice', 'dynamic-slice', 'gather', 'slice-done', 'dynamic-slice-done')
_MOVES_NOTHING = (
  *('parameter', 'constant', 'iota', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'broadcast'),
  *('while', 'conditional', 'call', 'copy-start', 'slice-start', 'dynamic-slice-start', 'async-start', 'async-done'),
)


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
  """The computations of a program by name, and the name of the first to be executed."""
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
    chips: it is compiled for.
    passes: of a step.
    wanting: of these, that want the gradient in the weights.
  """

  def __init__(self, text: str, chips: int, passes: int, wanting: int) -> None:
    """Reads the text."""
    self.chips, self.passes, self.wanting = chips, passes, wanting
    self._computations, self._entry = parse(text)

  def step(self) -> Work:
    """What a step does; collectives that stand in no loop are there with no executions."""
    return self._visit(self._entry, 0)

  def _visit(self, name: str, loops: int, fused: bool = False) -> Work:
    """What a computation does whenever it is executed."""
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
    """What a loop does, that over steps in one step."""
    times = 1 if loops == 0 else loop.turns or (self.passes if loops == 1 else 1)
    return self._visit(loop.called('body'), loops + 1).times(times)

  def _branches(self, conditional: Instruction, loops: int) -> list[Work]:
    """What the branches of a conditional do, by how often they are chosen (see the module)."""
    works = [self._visit(name, loops) for name in conditional.branches]
    # The last one is chosen most.
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
    """Chips that take part in a collective; all where nothing else is said."""
    if match := re.search(r'replica_groups=\{\{([\d,]+)\}', text):
      return match[1].count(',') + 1
    if match := re.search(r'replica_groups=\[\d+,(\d+)\]', text):
      return int(match[1])
    if match := re.search(r'replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}', text):
      sides = {name: int(side) for name, side in re.findall(r"'([^']+)'=(\d+)", match[1])}
      # Of an axis it may be a part, `'axis':(2)4`, of which the second number is the size.
      named = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", match[2])
      return math.prod(int(part) if part else sides[name] for name, part in named)
    return self.chips


def num_bytes(dtype: str, sides: str) -> int:
  """Bytes of an array from its type and its sides as HLO writes them, `f32` and `4,5`."""
  bits = 8 if dtype == 'pred' else int(re.sub(r'\D', '', dtype))
  return math.prod(int(n) for n in sides.split(',') if n) * bits // 8


def _moved(each: Instruction, operands: Sequence[list[tuple[int, bool]]]) -> int:
  """Bytes that an instruction reads and writes in HBM; what an asynchronous copy moves is counted at its end."""
  if each.operation in _MOVES_NOTHING:
    return 0
  written = 0 if each.operation.endswith('-start') else sum(n for n, on_chip in each.shapes if not on_chip)
  if each.operation == 'copy-done':
    # The operand holds what was written, then what was read.
    operands = [operands[0][1:2]]
  elif each.operation.endswith('-done') and each.operation not in _SLICES:
    return written
  read = sum(n for operand in operands for n, on_chip in operand if not on_chip)
  return written + (min(read, sum(n for n, _ in each.shapes)) if each.operation in _SLICES else read)
