"""Searched cells and architectures as JSON values of one form for all spaces, so that reports need no space to draw."""

from collections.abc import Mapping
from typing import Any

from darts_jax import limits
from darts_jax.spaces.cells import CellSpec, Edge, Genotype
from darts_jax.spaces.checks import check_fields, listed, parse_listed, parse_outputs

_FIELDS = ('nodes', 'operations', 'num_inputs', 'outputs', 'output', 'kept')


def cell_to_json(spec: CellSpec) -> dict[str, Any]:
  """A searched cell as JSON values: the fields of `CellSpec` that drawings need; an edge is `[source, operations]`."""
  nodes = [[[edge.source, list(edge.operations)] for edge in edges] for edges in spec.nodes]
  return {
    'nodes': nodes,
    'operations': list(spec.operations),
    'num_inputs': spec.num_inputs,
    'outputs': list(spec.outputs),
    'output': spec.output,
    'kept': spec.kept,
  }


def cell_from_json(values: Any, name: str) -> CellSpec:
  """The searched cell that `cell_to_json` wrote.

  Args:
    values: JSON values.
    name: name of the cell, with which messages begin.

  Raises:
    ValueError: the values have the wrong form, or describe no cell; one line.
  """
  check_fields(values, _FIELDS, f'the cell {name}')
  num_inputs, kept, nodes = values['num_inputs'], values['kept'], values['nodes']
  for field, value in (('num_inputs', num_inputs), ('kept', 0 if kept is None else kept)):
    if not _is_index(value) or value > limits.NODES:
      raise ValueError(f'{name}: {field}: {value!r} is not allowed; allowed are 0 to {limits.NODES}')
  if not isinstance(nodes, list) or not all(isinstance(node, list) and all(map(_is_edge, node)) for node in nodes):
    raise ValueError(f'{name}: nodes: not a list of nodes, each a list of [source, operations]')
  if not _are_texts(values['operations']):
    raise ValueError(f'{name}: operations: not a list of names')
  edges = tuple(tuple(Edge(source, tuple(operations)) for source, operations in node) for node in nodes)
  outputs = parse_outputs(values['outputs'], f'{name}: outputs')
  try:
    return CellSpec(edges, tuple(values['operations']), num_inputs, outputs, values['output'], kept)
  except ValueError as error:
    raise ValueError(f'{name}: {error}') from error


def cells_to_json(genotype: Genotype) -> dict[str, Any]:
  """The cells of an architecture as JSON values, by name, in the same form for all spaces."""
  return {name: listed(cell) for name, cell in genotype.cells}


def cells_from_json(values: Any, space: str, cells: Mapping[str, CellSpec]) -> Genotype:
  """The architecture that `cells_to_json` wrote.

  Args:
    values: JSON values.
    space: name of the space.
    cells: the searched cells by name.

  Raises:
    ValueError: the values have the wrong form, or describe no architecture of these cells; one line.
  """
  check_fields(values, tuple(cells), 'an architecture')
  found = ((name, parse_listed(values[name], name, spec, spec.operations)) for name, spec in cells.items())
  return Genotype(space, tuple(found))


def _is_index(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_texts(values: Any) -> bool:
  return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _is_edge(value: Any) -> bool:
  return isinstance(value, list) and len(value) == 2 and _is_index(value[0]) and _are_texts(value[1])
