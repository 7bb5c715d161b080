"""The laboratory's tables, as HTML and Markdown, and how numbers are written in them."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

from darts_jax.laboratory import figures
from darts_jax.report import html

#: Stands for a number that is not there.
NONE = '–'
_NO_ROWS = 'It has no rows.'


@dataclasses.dataclass(frozen=True)
class Table:
  """Text in columns.

  Attributes:
    columns: (group, name) of each; neighbours of the same group share a heading, those of none have ''.
    names: so many columns at the left are names; the others are numbers.
    rows: of as many cells as there are columns.
    by: a column whose changes part the rows into blocks, or None.
  """

  columns: tuple[tuple[str, str], ...]
  names: int
  rows: tuple[tuple[str, ...], ...]
  by: int | None = None


def as_html(table: Table) -> str:
  """The table as HTML, neighbours of the same group below one heading."""
  if not table.rows:
    return html.absent(_NO_ROWS)

  def kind(column: int) -> str:
    return '' if column < table.names else ' class="number"'

  heads = ''
  if any(group for group, _ in table.columns):
    groups = [(group, len(list(members))) for group, members in itertools.groupby(group for group, _ in table.columns)]
    heads = ''.join(
      f'<th class="group" colspan="{count}">{html.escape(group)}</th>' if group else f'<th colspan="{count}"></th>'
      for group, count in groups
    )
    heads = f'<tr>{heads}</tr>'
  names = ''.join(f'<th{kind(i)}>{html.escape(name)}</th>' for i, (_, name) in enumerate(table.columns))
  blocks = itertools.groupby(table.rows, lambda row: None if table.by is None else row[table.by])
  bodies = ''.join(
    '<tbody>'
    + ''.join(
      f'<tr>{"".join(f"<td{kind(i)}>{html.escape(cell)}</td>" for i, cell in enumerate(row))}</tr>\n' for row in rows
    )
    + '</tbody>'
    for _, rows in blocks
  )
  return f'<div class="scroll"><table class="results"><thead>{heads}<tr>{names}</tr></thead>\n{bodies}</table></div>\n'


def as_markdown(table: Table) -> str:
  """The table as Markdown, a group before the name of each of its columns."""
  if not table.rows:
    return _NO_ROWS
  names = [f'{group}: {name}' if group else name for group, name in table.columns]
  marks = ['---' if i < table.names else '--:' for i in range(len(names))]
  lines = [names, marks, *([plain(cell) for cell in row] for row in table.rows)]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def plain(text: str) -> str:
  """Text that Markdown leaves alone, on one line."""
  return html.escape(' '.join(text.split()), quote=False).replace('|', '\\|')


def _number_as(form: str, factor: float = 1.0, unit: str = '') -> Callable[[Any], str]:
  def convert(value: Any) -> str:
    number = figures.number(value)
    if number is None:
      return NONE
    written = f'{number * factor:{form}}'
    # What rounds to zero has no sign.
    return (written if float(written.replace(',', '')) else written.removeprefix('-')) + unit

  return convert


precise = _number_as('.10g')
cosine = _number_as('.4f')
percent = _number_as('.1f', 100, ' %')
count = _number_as(',.0f')


def error(value: Any) -> str:
  """Three digits."""
  number = figures.number(value)
  return NONE if number is None else '0' if number == 0 else f'{number:#.3g}'.removesuffix('.')


def plain_number(value: Any, factor: float = 1.0) -> str:
  """Three digits or more, without an exponent."""
  number = figures.number(value)
  if number is None:
    return NONE
  number *= factor
  if number == 0:
    return '0'
  digits = max(0, 2 - math.floor(math.log10(abs(number))))
  return f'{number:,.{min(digits, 6)}f}'


def milliseconds(seconds: Any) -> str:
  """Seconds, in milliseconds."""
  return plain_number(seconds, 1e3)


def megabytes(size: Any) -> str:
  """Bytes, in megabytes."""
  return plain_number(size, 1e-6)


def share(value: float) -> str:
  """Of one, in per cent if that is legible."""
  return f'{100 * value:.2g} %' if 0.001 <= value < 0.995 else figures.scientific(value)
