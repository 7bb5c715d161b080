"""The page and the tables: complete, well-formed, the same every time, and there whatever parts are missing."""

import itertools
import re
from typing import Any

import pytest

from darts_jax.laboratory import page

_HOSTILE = '</td></table><script>alert("1")</script> | `a` &amp;'
_DRAWN = ('radius', 'batches', 'along', 'unrolled')


@pytest.fixture(scope='module')
def rendered(untouched) -> str:
  return page.render(untouched)


@pytest.fixture
def tables(results) -> dict[str, Any]:
  """Results without most of what is drawn, which takes the time."""
  results['supernet'].update(dict.fromkeys(_DRAWN))
  results.update(toy=None, search=None)
  results['quadratic']['convergence'] = {}
  return results


def _rows(text: str) -> list[list[str]]:
  """The rows of a page's or of Markdown's tables, as lists of cells."""
  if text.startswith('#'):
    lines = [line for line in text.splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]] for line in lines]
  rows = re.findall(r'<tr>(.*?)</tr>', text, re.DOTALL)
  return [re.findall(r'<t[dh][^>]*>(.*?)</t[dh]>', row) for row in rows]


def test_the_page_has_every_part(rendered, parse_page):
  parsed = parse_page(rendered)
  for section in (
    'The second-order term in float32',
    'Every estimator',
    'The radius of the finite difference',
    'How many images the term needs',
    'Along a search',
    'What unrolling costs',
    'Toy problem of the paper',
    'Quadratic problem',
    'Searches',
    'Settings of the estimators',
  ):
    assert section in parsed.texts
  # Dots, radius, two of batches, six along the search, costs, the toy problem, convergence and two cells of two.
  assert parsed.tags.count('svg') == 1 + 1 + 2 + 6 + 1 + 1 + 1 + 4
  assert '<title>Hypergradient laboratory</title>' in rendered
  assert 'absent' not in [value for name, value in parsed.attributes if name == 'class']

  # Nothing is loaded and nothing runs.
  assert not {'script', 'link', 'img', 'iframe', 'object'} & set(parsed.tags)
  assert ('content', "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in parsed.attributes
  for name, value in parsed.attributes:
    assert not name.startswith('on')
    assert name not in ('src', 'srcset', 'action', 'data')
    assert not name.endswith('href') or value.startswith('#')
  assert not re.search(r'url\((?!#)|@import', rendered)
  ids = [value for name, value in parsed.attributes if name == 'id']
  assert len(set(ids)) == len(ids)


def test_the_top_says_what_was_found(rendered, parse_page):
  parsed = parse_page(rendered)
  assert 'Second-order term 1.2 % of the norm of ∇α L_val' in parsed.text
  assert 'Finite difference, float32 71 % off in that term, cosine 0.7042' in parsed.text
  assert 'Exact, float32 2.3·10⁻⁶ off in that term, cosine 1.0000' in parsed.text
  assert 'Data digits State initialisation Network 5 operations, 3 layers, 4 channels, 2 nodes a cell' in parsed.text
  assert 'Device cpu: made up, 2 cores JAX 0.10.2 Seed 7 Took 3 min 30 s' in parsed.text


def test_the_lead_of_the_radius_quotes_the_curves(rendered, parse_page):
  text = parse_page(rendered).text
  assert 'Nearest to the paper’s 0.01, the error in float32 is 0.0200 in the network and 0.00100 in its twin.' in text
  assert 'The network’s smallest in float32 is 0.0120, at 0.001.' in text


@pytest.mark.parametrize('form', ['html', 'markdown'])
def test_every_number_of_a_row_is_there(untouched, rendered, form):
  rows = _rows(rendered if form == 'html' else page.markdown(untouched))
  names = ['finite_difference', 'float32']
  assert [row for row in rows if row[:2] == names] == [
    [*names, '0.713', '0.7042', '87.5 %', '0.6250', '0.0123', '0.9876', '96.0 %', '0.7890'],
    [*names, '1.23', '-0.4321', '48.0 %', '-0.1250', '0.0456', '0.9654', '94.0 %', '0.7560'],
    [*names, '41.2', '23.4', '4', '3', '–', '0.0487', '0.612'],
  ]
  (quadratic, _) = [row for row in rows if row[0] == 'neumann' and '0.812' in row]
  assert quadratic == ['neumann', 'float64', '1.50e-16', '0.812', '0.7123', '0.0345']
  assert ['exact', '0.312', '97.1 %', '31.2', '5 of 8'] in rows
  assert ['exact', '-1', '-1'] in rows


@pytest.mark.parametrize('render', [page.render, page.markdown])
def test_rows_are_grouped_by_precision(tables, render):
  tables['supernet']['rows'].reverse()
  rows = [row for row in _rows(render(tables)) if len(row) == 10 and row[1] in ('bfloat16', 'float32', 'float64')]
  precisions = [precision for precision, _ in itertools.groupby(row[1] for row in rows)]
  assert precisions == ['bfloat16', 'float64', 'float32'] * 2


def test_markdown_tables_have_as_many_columns_in_every_row(results):
  results['setting']['device'] = results['supernet']['rows'][1]['estimator'] = _HOSTILE
  text = page.markdown(results)
  blocks = [part for part in text.split('\n\n') if part.startswith('|')]
  # Overview, two references, costs, the toy problem, the quadratic problem, searches.
  assert len(blocks) == 7
  assert all(len({len(row) for row in _rows(f'#\n{block}')}) == 1 for block in blocks)
  assert [len(block.splitlines()) - 2 for block in blocks] == [4, 6, 6, 6, 1, 2, 2]
  assert '<script>' not in text
  assert text.endswith('|\n')


def test_text_of_results_is_text(results, parse_page):
  for part, key in (('setting', 'device'), ('supernet', 'data'), ('supernet', 'state')):
    results[part][key] = _HOSTILE
  results['supernet']['along']['source'] = results['setting']['estimators']['exact']['field'] = _HOSTILE
  results['supernet']['batches']['lines'][0]['estimator'] = _HOSTILE
  results['supernet']['along']['estimators'][_HOSTILE] = results['supernet']['along']['estimators']['first_order']
  for row in (results['supernet']['rows'][0], results['toy']['rows'][0], results['quadratic']['rows'][0]):
    row['estimator'] = row['precision'] = _HOSTILE
  results['search'][0]['genotype']['normal'][0][0] = _HOSTILE
  results['search'][1]['estimator'] = _HOSTILE
  parsed = parse_page(page.render(results))
  assert 'script' not in parsed.tags
  assert parsed.texts.count(_HOSTILE) > 10
  assert 'Its cells cannot be drawn' in parsed.text


def test_the_same_results_give_the_same_bytes(results, rendered):
  assert page.render(results) == rendered
  assert page.markdown(results) == page.markdown(results)


@pytest.mark.parametrize('part', ['quadratic', 'supernet', 'search', 'toy', 'setting'])
def test_every_part_may_be_the_only_one(results, part, parse_page):
  alone = {name: value if name == part else None for name, value in results.items()}
  parsed = parse_page(page.render(alone))
  assert parsed.texts.count('It was not part of this run.') == 4 - (part != 'setting')
  drawn = {'quadratic': 1, 'supernet': 11, 'search': 4, 'toy': 1, 'setting': 0}
  assert parsed.tags.count('svg') == drawn[part]
  assert page.markdown(alone).startswith('# Hypergradient laboratory\n')


def test_a_run_that_measured_nothing_has_a_page(parse_page):
  parsed = parse_page(page.render({}))
  assert 'svg' not in parsed.tags
  assert page.markdown({}).startswith('# Hypergradient laboratory\n')


@pytest.mark.parametrize(('value', 'reason'), [(None, 'not part of this run.'), ({}, 'no finite number to draw.')])
def test_parts_of_the_supernet_that_are_missing_say_so(tables, value, reason, parse_page):
  tables['supernet'].update(dict.fromkeys(_DRAWN, value), rows=None)
  tables['quadratic'] = None
  parsed = parse_page(page.render(tables))
  assert 'svg' not in parsed.tags
  assert parsed.texts.count('It has no rows.') == 3
  # Whole parts that are missing are the toy problem, the quadratic problem and the searches; dots have no rows.
  elsewhere = 3 if value is None else 1
  found = sum(reason in text for text in parsed.texts)
  # Batches are drawn twice.
  assert found - elsewhere == (len(_DRAWN) if value is None else len(_DRAWN) + 1)
  assert 'It has no rows.' in page.markdown(tables)


def test_numbers_that_are_missing_are_dashes(tables, parse_page):
  for row in tables['supernet']['rows']:
    row.update(dict.fromkeys(('one_step', 'seconds', 'bytes', 'forward')))
    del row['backward'], row['unrolled']
  for value in ('term_fraction', 'reference_steps', 'weights'):
    tables['supernet'][value] = None
  parsed = parse_page(page.render(tables))
  assert ['exact', 'float64', *['–'] * 8] in _rows(page.markdown(tables))
  assert 'There is no finite number to draw.' in parsed.text
  assert 'of the norm of ∇α L_val' not in parsed.text


def test_without_float32_another_precision_is_at_the_top(tables, parse_page):
  supernet = tables['supernet']
  supernet['rows'] = [row for row in supernet['rows'] if row['precision'] == 'bfloat16']
  parsed = parse_page(page.render(tables))
  assert 'The second-order term in bfloat16' in parsed.texts
  assert 'Exact, bfloat16 4 % off in that term' in parsed.text


def test_without_float32_the_lead_of_the_radius_is_about_float64(tables, untouched, parse_page):
  curves = untouched['supernet']['radius']
  fine = {network: {'float64': curves[network]['float64']} for network in ('network', 'twin')}
  tables['supernet']['radius'] = {'paper': 0.01, **fine}
  parsed = parse_page(page.render(tables))
  assert 'Nearest to the paper’s 0.01, the error in float64 is 0.0200' in parsed.text
  assert 'float32 round-off' not in parsed.texts
