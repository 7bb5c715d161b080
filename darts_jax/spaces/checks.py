"""Checks of the descriptions of cells that files and callers give, and parsers of their JSON forms."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from darts_jax import limits

if TYPE_CHECKING:
  # `cells` imports this module.
  from darts_jax.spaces.cells import CellSpec

#: `(operation, source)` of every edge, node by node.
Pairs = tuple[tuple[str, int], ...]


def suggest(name: str, allowed: Collection[str]) -> str:
  """The end of a message about an unknown name: the closest allowed one, or all of them."""
  close = difflib.get_close_matches(str(name), list(allowed), 1)
  return f'did you mean {close[0]!r}?' if close else f'allowed are {", ".join(allowed)}'


def check_operations(operations: Sequence[str], allowed: Collection[str] | None, where: str) -> None:
  """Checks a list of operations.

  Args:
    operations: names of operations.
    allowed: names that are allowed; None for any.
    where: the field, which messages name.

  Raises:
    ValueError: the list is empty, or an operation is not allowed or listed twice.
  """
  if not operations:
    raise ValueError(f'{where}: no operation is listed; allowed are {", ".join(allowed or ("names of operations",))}')
  for operation in operations:
    if allowed is not None and operation not in allowed:
      raise ValueError(f'{where}: {operation!r} is not an operation; {suggest(operation, allowed)}')
  if len(set(operations)) < len(operations):
    raise ValueError(f'{where}: an operation is listed twice in {tuple(operations)}')


def check_source(source: int, node: int, num_nodes: int, where: str) -> None:
  """Raises a ValueError unless `node` may read node `source`, in a cell of `num_nodes` nodes with the inputs."""
  if not 0 <= source < num_nodes:
    raise ValueError(f'{where}: node {node} reads node {source}, which does not exist; allowed are 0 to {node - 1}')
  if source >= node:
    raise ValueError(f'{where}: node {node} reads node {source}, which closes a cycle; allowed are 0 to {node - 1}')


def check_outputs(outputs: Sequence[int], first: int, num_nodes: int, where: str) -> None:
  """Checks the output nodes of a cell.

  Args:
    outputs: indices of nodes.
    first: index of the first intermediate node.
    num_nodes: number of intermediate nodes.
    where: the field, which messages name.

  Raises:
    ValueError: the list is empty, or a node is no intermediate node or listed twice.
  """
  allowed = range(first, first + num_nodes)
  if not outputs or len(set(outputs)) < len(outputs) or any(node not in allowed for node in outputs):
    raise ValueError(
      f'{where}: {list(outputs)} is not allowed; list each node once, from {first} to {first + num_nodes - 1}'
    )


def check_nodes(nodes: Sequence[Pairs], num_inputs: int, allowed: Collection[str] | None, where: str) -> None:
  """Checks the intermediate nodes of a discrete cell.

  Args:
    nodes: the `(operation, source)` pairs of every node.
    num_inputs: number of input nodes.
    allowed: names of operations that are allowed; None for any.
    where: the field, which messages name.

  Raises:
    ValueError: there are too many nodes, an operation is not allowed, or a node reads one that is not earlier.
  """
  if len(nodes) > limits.NODES:
    raise ValueError(f'{where}: {len(nodes)} nodes; allowed are up to {limits.NODES}')
  for node, pairs in enumerate(nodes, num_inputs):
    for operation, source in pairs:
      if allowed is not None and operation not in allowed:
        raise ValueError(f'{where}: node {node}: {operation!r} is not an operation; {suggest(operation, allowed)}')
      check_source(source, node, len(nodes) + num_inputs, where)


def check_fields(values: Any, names: Sequence[str], what: str = 'a genotype') -> None:
  """Raises a ValueError unless JSON values are an object with exactly these fields; messages call it `what`."""
  if not isinstance(values, Mapping):
    raise ValueError(f'{what} is an object with fields, not {type(values).__name__}')
  for name in names:
    if name not in values:
      raise ValueError(f'{name}: missing; {what} has the fields {", ".join(names)}')
  for name in values:
    if name not in names:
      raise ValueError(f'{name!r}: unknown field; {what} has the fields {", ".join(names)}')


def in_nodes(pairs: Pairs, kept: int) -> list[Pairs]:
  """Splits a list of pairs into the pairs of each node, `kept` per node."""
  return [pairs[start : start + kept] for start in range(0, len(pairs), kept)]


def parse_outputs(values: Any, where: str) -> tuple[int, ...]:
  """Node indices from JSON values; raises a ValueError unless these are a list of indices."""
  if not isinstance(values, list | tuple) or not all(map(_is_index, values)):
    raise ValueError(f'{where}: {values!r} is not a list of node indices')
  return tuple(values)


def parse_pairs(values: Any, where: str) -> Pairs:
  """`(operation, source)` pairs from JSON values; raises a ValueError unless these are a list of pairs."""
  if not isinstance(values, list | tuple):
    raise ValueError(f'{where}: {values!r} is not a list of [operation, source] pairs')
  for pair in values:
    if not (isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str) and _is_index(pair[1])):
      raise ValueError(f'{where}: {pair!r} is not an [operation, source] pair')
  return tuple((pair[0], pair[1]) for pair in values)


def flattened(values: Any, kept: int, num_inputs: int, where: str) -> Any:
  """Joins the lists of pairs of each node, as some programs write them, into one list of pairs.

  Args:
    values: any JSON values; other forms are returned as they are.
    kept: number of pairs per node.
    num_inputs: number of input nodes.
    where: the field, which messages name.

  Raises:
    ValueError: a node has another number of pairs.
  """
  if not isinstance(values, list | tuple) or not all(
    isinstance(node, list | tuple) and not any(isinstance(item, str) for item in node) for node in values
  ):
    return values
  for node, pairs in enumerate(values, num_inputs):
    if len(pairs) != kept:
      raise ValueError(f'{where}: node {node} has {len(pairs)} pairs; {kept} are needed')
  return [pair for node in values for pair in node]


def listed(cell: 'CellSpec') -> dict[str, Any]:
  """A discrete cell as JSON values: the pairs of each node, and the output nodes."""
  nodes = [[[edge.operations[0], edge.source] for edge in edges] for edges in cell.nodes]
  return {'nodes': nodes, 'outputs': list(cell.outputs)}


def parse_listed(values: Any, name: str, spec: 'CellSpec', allowed: Collection[str] | None) -> 'CellSpec':
  """The discrete cell that `listed` wrote.

  Args:
    values: JSON values.
    name: name of the cell, with which messages begin.
    spec: the searched cell; the discrete cell may have another number of nodes.
    allowed: names of operations that are allowed; None for any.

  Raises:
    ValueError: the values have the wrong form, or describe no such cell; one line.
  """
  check_fields(values, ('nodes', 'outputs'), f'the cell {name}')
  found = values['nodes']
  if not isinstance(found, list | tuple) or not found:
    raise ValueError(f'{name}: {found!r} is not a list of nodes')
  nodes = [parse_pairs(node, f'{name}: node {number}') for number, node in enumerate(found, spec.num_inputs)]
  check_nodes(nodes, spec.num_inputs, allowed, name)
  for number, node in enumerate(nodes, spec.num_inputs):
    if spec.kept is not None and len(node) != spec.kept:
      raise ValueError(f'{name}: node {number} has {len(node)} pairs; {spec.kept} are needed')
  outputs = parse_outputs(values['outputs'], f'{name}: outputs')
  check_outputs(outputs, spec.num_inputs, len(nodes), f'{name}: outputs')
  return spec.discrete(nodes, outputs)


def _is_index(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)
