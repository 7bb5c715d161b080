"""The laboratory's tables as HTML and Markdown, and the formatting of their numbers."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

from darts_jax.laboratory import figures
from darts_jax.report import html

#: Text in place of a missing number.
NONE = '–'
_NO_ROWS = 'It has no rows.'


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of texts.

  Attributes:
    columns: (group, name) of each column; neighbouring columns of the same group share a heading, and '' is no group.
    names: number of columns at the left that hold names; the others hold numbers.
    rows: rows with one cell for each column.
    by: index of the column by whose values the rows are divided into blocks, or None.
  """

  columns: tuple[tuple[str, str], ...]
  names: int
  rows: tuple[tuple[str, ...], ...]
  by: int | None = None


def as_html(table: Table) -> str:
  """The table as HTML; neighbouring columns of the same group have a common heading."""
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
  """The table as Markdown; names of columns begin with their group."""
  if not table.rows:
    return _NO_ROWS
  names = [f'{group}: {name}' if group else name for group, name in table.columns]
  marks = ['---' if i < table.names else '--:' for i in range(len(names))]
  lines = [names, marks, *([plain(cell) for cell in row] for row in table.rows)]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def plain(text: str) -> str:
  """Text on one line, escaped for a Markdown table."""
  return html.escape(' '.join(text.split()), quote=False).replace('|', '\\|')


def _number_as(form: str, factor: float = 1.0, unit: str = '') -> Callable[[Any], str]:
  def convert(value: Any) -> str:
    number = figures.number(value)
    if number is None:
      return NONE
    written = f'{number * factor:{form}}'
    # No "-0".
    return (written if float(written.replace(',', '')) else written.removeprefix('-')) + unit

  return convert


precise = _number_as('.10g')
cosine = _number_as('.4f')
percent = _number_as('.1f', 100, ' %')
count = _number_as(',.0f')


def error(value: Any) -> str:
  """A number with three significant digits."""
  number = figures.number(value)
  return NONE if number is None else '0' if number == 0 else f'{number:#.3g}'.removesuffix('.')


def plain_number(value: Any, factor: float = 1.0) -> str:
  """A number times a factor, with at least three significant digits and no exponent."""
  number = figures.number(value)
  if number is None:
    return NONE
  number *= factor
  if number == 0:
    return '0'
  digits = max(0, 2 - math.floor(math.log10(abs(number))))
  return f'{number:,.{min(digits, 6)}f}'


def milliseconds(seconds: Any) -> str:
  """A time in seconds as text in milliseconds."""
  return plain_number(seconds, 1e3)


def megabytes(size: Any) -> str:
  """A size in bytes as text in megabytes."""
  return plain_number(size, 1e-6)


def share(value: float) -> str:
  """A fraction as a percentage, or in scientific notation where a percentage is hard to read."""
  return f'{100 * value:.2g} %' if 0.001 <= value < 0.995 else figures.scientific(value)
