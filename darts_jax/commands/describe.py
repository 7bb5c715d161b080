"""Counts parameters and multiply-adds of a network, part by part, and draws its cells.

darts-jax describe --genotype=NAME|PATH [--channels=N --layers=N --classes=N --image_size=N
  --image_channels=N --imagenet --auxiliary] [--width=N --vocabulary=N] [--table=DIR] [--json]
  [--draw=FILE.svg|png|pdf|dot]

The network of a convolutional architecture is an image classifier; that of a recurrent one is a language model, whose
sizes are `--width` and `--vocabulary`. For a cell of NAS-Bench-201, `--table=DIR` adds its accuracies and ranks.
"""

import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from darts_jax import limits, spaces
from darts_jax.commands.entry import GENOTYPE_HELP, Command, Flag, require, whole_number
from darts_jax.nets.description import (
  CIFAR,
  IMAGENET,
  PTB,
  classifier_sizes,
  describe_classifier,
  describe_language_model,
)
from darts_jax.report import drawing
from darts_jax.runtime.durable import write_whole
from darts_jax.runtime.files import user_path
from darts_jax.runtime.terminal import aligned, say, show
from darts_jax.spaces import Genotype
from darts_jax.spaces.nasbench201 import NasBench201
from darts_jax.spaces.nasbench201_table import DATASETS, Accuracies, Table

_FIELDS = tuple(CIFAR)
#: Largest values of flags.
_LARGEST = {
  'channels': limits.CHANNELS,
  'layers': limits.LAYERS,
  'classes': limits.CLASSES,
  'image_size': limits.IMAGE_SIZE,
  'image_channels': limits.IMAGE_CHANNELS,
  'width': limits.WIDTH,
  'vocabulary': limits.WORDS,
}
_DRAWINGS = ('svg', 'png', 'pdf', 'dot')
FLAGS = (
  Flag('genotype', None, GENOTYPE_HELP),
  *(
    Flag(name, None, f'{text}; {cifar}, or {imagenet} with --imagenet, by default.')
    for name, text, cifar, imagenet in zip(
      _FIELDS,
      ('Channels of the first cell', 'Cells', 'Classes', 'Pixels a side', 'Channels of an image'),
      CIFAR.values(),
      IMAGENET.values(),
      strict=True,
    )
  ),
  Flag('imagenet', False, 'The network for ImageNet, with its stem and, with --auxiliary, its head.'),
  Flag('auxiliary', False, 'Count the auxiliary head, too.'),
  Flag('width', None, f'Width of a language model, of embedding and states; {PTB["width"]} by default.'),
  Flag('vocabulary', None, f'Words of a language model; {PTB["vocabulary"]} by default.'),
  Flag('table', None, 'Folder with the table of NAS-Bench-201; says the accuracies and ranks of one of its cells.'),
  Flag('json', False, 'Print JSON.'),
  Flag('draw', None, f'Draw the cells to a file: {", ".join(_DRAWINGS)}.'),
)


def run(genotype: str | None, draw: str | None, **others: Any) -> int:
  """Prints the description, and draws the cells if asked to; returns the exit code."""
  require(genotype=genotype)
  name = str(genotype)
  found = spaces.resolve(name)
  drawing_path = None if draw is None else user_path(draw, '--draw')
  if drawing_path is not None and drawing_path.suffix.removeprefix('.').lower() not in _DRAWINGS:
    raise ValueError(f'--draw: {draw} is no file name that ends with one of .{", .".join(_DRAWINGS)}')
  of_classifiers = (*_FIELDS, 'imagenet', 'auxiliary')
  if spaces.space_of(found).task == 'text':
    _refuse(of_classifiers, others, f'{name} is a recurrent architecture; it has --width and --vocabulary')
    numbers = _numbers(others, PTB)
    described = describe_language_model(found, **numbers)
    text = _language_model_as_text(described)
  else:
    allowed = ', '.join(f'--{flag}' for flag in of_classifiers)
    _refuse(tuple(PTB), others, f'{name} is a convolutional architecture; it has {allowed}')
    imagenet, auxiliary = others['imagenet'], others['auxiliary']
    numbers = _numbers(others, classifier_sizes(found, imagenet=imagenet))
    try:
      described = describe_classifier(found, auxiliary=auxiliary, imagenet=imagenet, **numbers)
    except ValueError as error:
      # Sizes are named as the flags are; an operation of one's own is no flag.
      raise ValueError(str(error) if str(error).startswith('operation ') else f'--{error}') from error
    text = _as_text(described)
  if others['table'] is not None:
    described['benchmark'] = _accuracies(found, others['table'], name)
    text = f'{text}\n\n{_accuracies_as_text(described["benchmark"])}'
  if drawing_path is not None:
    _draw(found, drawing_path)
    say(f'drawn: {drawing_path}')
  if others['json']:
    show(json.dumps(described, indent=2))
  else:
    say(f'a network with {" ".join(f"--{flag}={number}" for flag, number in numbers.items())}')
    show(f'{text}\n\n{spaces.to_text(found)}')
  return 0


def _accuracies(genotype: Genotype, folder: str, name: str) -> dict[str, dict[str, float]]:
  """Accuracies of an architecture by dataset of the table, and its ranks by test accuracy after 200 epochs."""
  if genotype.space != NasBench201.name:
    raise ValueError(f'--table: not allowed; {name} is a {spaces.kind_of(genotype)} architecture')
  table, space = Table.read(folder, '--table'), NasBench201()
  best = table.values[:, :, Accuracies._fields.index('test_200')]
  found: dict[str, dict[str, float]] = {}
  for column, dataset in enumerate(DATASETS):
    own = table.accuracies(genotype, dataset)
    found[dataset] = {**own._asdict(), 'rank': 1 + int(np.sum(best[:, column] > best[space.index(genotype), column]))}
  return found


def _accuracies_as_text(found: Mapping[str, Mapping[str, float]]) -> str:
  rows: list[Sequence[str]] = [('', 'validation, 12 epochs', 'test, 12 epochs', 'test, 200 epochs', 'rank of 15,625')]
  for dataset, values in found.items():
    accuracies = (f'{100 * values[name]:.2f} %' for name in Accuracies._fields)
    rows.append((dataset, *accuracies, f'{values["rank"]:,}'))
  return '\n'.join(['in NAS-Bench-201:', *aligned(rows, 1)])


def _refuse(names: Sequence[str], given: Mapping[str, Any], why: str) -> None:
  for name in names:
    if given[name] not in (None, False):
      raise ValueError(f'--{name}: not allowed; {why}')


def _numbers(given: Mapping[str, str | None], defaults: Mapping[str, int]) -> dict[str, int]:
  said = {name: value for name in defaults if (value := given[name]) is not None}
  return {**defaults, **{name: whole_number(name, value, _LARGEST[name]) for name, value in said.items()}}


def _as_text(described: Mapping[str, Any]) -> str:
  rows = [('', 'kind', 'output', 'parameters', 'multiply-adds')]
  for part in described['parts']:
    height, width = part['size']
    output = f'{height}×{width}×{part["channels"]}'
    rows.append((part['name'], part['kind'], output, f'{part["weights"]:,}', f'{part["multiply_adds"]:,}'))
  lines = [f'parameters: {described["parameters"]:,}']
  if 'parameters_with_auxiliary_head' in described:
    lines.append(f'with the auxiliary head: {described["parameters_with_auxiliary_head"]:,}')
  lines.append(f'multiply-adds: {described["multiply_adds"]:,}')
  return '\n'.join([*lines, f'({described["convention"]})', '', *aligned(rows, 2)])


def _language_model_as_text(described: Mapping[str, Any]) -> str:
  rows = [('', 'activation', 'reads', 'parameters', 'multiply-adds')]
  for part in described['parts']:
    counts = (f'{part[name]:,}' for name in ('weights', 'multiply_adds'))
    rows.append((part['name'], part['activation'], part['reads'], *counts))
  lines = [
    f'parameters: {described["parameters"]:,}',
    '(the decoder shares the weights of the embedding, where they are counted, and has a bias of its own)',
    f'multiply-adds: {described["multiply_adds"]:,} per token',
    f'({described["convention"]})',
    '',
  ]
  return '\n'.join([*lines, *aligned(rows, 3)])


def _draw(genotype: Genotype, path: pathlib.Path) -> None:
  if path.suffix.lower() == '.dot':
    look = spaces.space_of(genotype).look
    text = '\n'.join(drawing.to_graphviz(cell, name, look) for name, cell in genotype.cells)
    content = text.encode()
  else:
    drawn = io.BytesIO()
    drawing.draw_genotype(genotype).savefig(drawn, format=path.suffix.removeprefix('.').lower(), dpi=144)
    content = drawn.getvalue()
  try:
    write_whole(path, content)
  except OSError as error:
    raise ValueError(f'--draw: {path} cannot be written ({error.strerror or error})') from error


COMMAND = Command(
  run,
  '--genotype=NAME|PATH [--channels=N --layers=N --classes=N --image_size=N --image_channels=N --imagenet --auxiliary]'
  ' [--width=N --vocabulary=N] [--table=DIR] [--json] [--draw=FILE.svg|png|pdf|dot]',
  '--genotype=DARTS_V2 --draw=cells.svg',
  FLAGS,
  config='none',
)
