"""The page: well-formed, self-contained, the same every time, and there whatever files are missing."""

import json
import re
import shlex
import types

import numpy as np
import pytest

from darts_jax import report, spaces
from darts_jax.commands import named
from darts_jax.report import curves, page, sections, workdir


def test_means_of_epochs_are_over_their_steps(search_folder):
  run = workdir.read(search_folder)
  faint, means = curves._with_means(run, 'weights_gradient_norm')
  epochs = np.ceil(faint.times)
  wanted = [faint.values[epochs == epoch].mean() for epoch in np.unique(epochs)]
  np.testing.assert_allclose(means.values, wanted, rtol=1e-12)
  assert len(means.times) == len(run.epochs) > 1


@pytest.fixture
def write(parse_page):
  def write(folder):
    path = report.write(folder)
    assert path == folder / 'report.html'
    text = path.read_text(encoding='utf-8')
    return parse_page(text), text

  return write


def test_a_finished_search(search_folder, hostile, write):
  parsed, text = write(search_folder)
  assert sorted(path.name for path in search_folder.iterdir()) == [
    'alphas.npz',
    'config.json',
    'genotype.json',
    'metrics.jsonl',
    'report.html',
  ]

  # Two cells, two learning curves, six panels of the optimisation, two maps of mixing weights, throughput, and of
  # the snapshots of DARTS_V1 (epoch 1) and DARTS_V2 (epoch 2) both cells of the former alone.
  assert parsed.tags.count('svg') == 2 + 2 + 6 + 2 + 1 + 2
  assert parsed.text.count('The same as at the top.') == 2
  for section in (
    'Architecture',
    'Learning curves',
    'Optimisation',
    'Mixing weights over time',
    'Cells along the way',
    'Use this architecture',
    'Throughput',
    'Events',
    'Configuration',
  ):
    assert section in parsed.texts

  # Searches that decide one edge after the other have more to tell.
  assert not re.search('[Dd]ecided|Decisions', parsed.text)

  # 0.8 + 0.01 · 2 + 0.0065
  assert 'Supernet accuracy 82.65 % validation' in parsed.text
  assert 'Finished Estimator exact Seed 3' in parsed.text
  assert 'Epochs 3 of 3' in parsed.text
  assert 'train_loss was not finite at step 6.' in parsed.text

  # Nothing is loaded and nothing runs; what settings hold is text.
  assert not {'script', 'link', 'img', 'iframe', 'object'} & set(parsed.tags)
  for name, value in parsed.attributes:
    assert not name.startswith('on')
    assert name not in ('src', 'srcset', 'action', 'data')
    if name.endswith('href'):
      assert value.startswith(('#', 'data:image/png;base64,'))
  assert not re.search(r'url\((?!#)|@import', text)
  assert parsed.texts.count(hostile) == 2  # a value and a name
  assert f'from {hostile}' in parsed.texts

  (copied,) = [json.loads(t) for t in parsed.texts if t.startswith('{') and '"normal"' in t]
  assert spaces.from_json(copied) == spaces.published()['DARTS_V2']

  again = report.write(search_folder).read_bytes()
  assert again == text.encode()


def test_an_empty_folder(tmp_path, write):
  parsed, _ = write(tmp_path)
  assert 'svg' not in parsed.tags
  for name in ('config.json', 'metrics.jsonl', 'genotype.json', 'alphas.npz'):
    assert f'{name} is not there (yet).' in parsed.text
  assert 'No step yet' in parsed.text


def test_a_search_that_does_not_train_alpha(search_folder, write):
  (search_folder / 'alphas.npz').unlink()
  (search_folder / 'metrics.jsonl').unlink()
  parsed, _ = write(search_folder)
  assert parsed.tags.count('svg') == 2
  assert 'Mixing weights over time alphas.npz is not there (yet).' in parsed.text


def test_a_search_that_has_just_begun(search_folder, write):
  (search_folder / 'genotype.json').unlink()
  lines = (search_folder / 'metrics.jsonl').read_text().splitlines()
  (search_folder / 'metrics.jsonl').write_text('\n'.join(lines[:3]) + lines[3][:25])
  with np.load(search_folder / 'alphas.npz') as file:
    first = {name: file[name][:1] if len(file[name].shape) and len(file[name]) == 4 else file[name] for name in file}
  np.savez(search_folder / 'alphas.npz', **first)
  parsed, _ = write(search_folder)
  assert 'As in alphas.npz , after step 0.' in parsed.text
  assert 'There are too few snapshots yet.' in parsed.text
  assert 'Single batches; the first epoch has not ended.' in parsed.text
  (copied,) = [json.loads(t) for t in parsed.texts if t.startswith('{') and '"normal"' in t]
  derived = spaces.from_json(copied)
  assert set(derived.cell('normal').edges) == set(spaces.published()['PDARTS'].cell('normal').edges)


def test_weights_that_are_not_finite_leave_the_rest_of_the_page(search_folder, write):
  (search_folder / 'genotype.json').unlink()
  (search_folder / 'metrics.jsonl').unlink()
  with np.load(search_folder / 'alphas.npz') as file:
    arrays = dict(file)
  arrays['mixing_normal'][-1, 3, 2] = np.nan
  np.savez(search_folder / 'alphas.npz', **arrays)
  parsed, _ = write(search_folder)
  assert 'Mixing weights of the normal cell are not finite.' in parsed.text
  assert parsed.tags.count('svg') == 2 + 1 + 2 + 2


def test_a_recurrent_search(recurrent_search_folder, write):
  parsed, _ = write(recurrent_search_folder)
  # The cell, loss and perplexity, six panels of the optimisation, the mixing weights, throughput, and of the snapshots
  # of RNN_DARTS_V1 (epoch 1) and RNN_DARTS_V2 (epoch 2) the cell of the former alone.
  assert parsed.tags.count('svg') == 1 + 2 + 6 + 1 + 1 + 1
  assert parsed.text.count('The same as at the top.') == 1
  # relu from 1 to 2 is all that the two have in common.
  assert 'Epoch 1 Recurrent cell 1 of 8 edges as at the top' in parsed.text
  assert 'Architecture search /texts/novels' in parsed.text
  assert 'Finished Estimator exact Width 30 Seed 5' in parsed.text
  # exp(5.1)
  assert 'Supernet perplexity 164.02 validation' in parsed.text
  assert 'Identities 1 of 8 nodes' in parsed.text
  assert 'Tokens per second, highest 20,012' in parsed.text
  assert 's₅ → s₈' in parsed.texts
  drawing = next(value for name, value in parsed.attributes if name == 'aria-label')
  assert 's₀ to s₁ by sigmoid; s₁ to s₂ by relu; s₁ to s₃ by relu' in drawing
  assert 'which is the mean of what arrives' in parsed.text
  assert 'Look at this first' not in parsed.text
  # Of images nothing is said.
  assert not re.search('[Ii]mage|accuracy|[Cc]hannel|[Ss]kip', parsed.text.partition('Architecture search')[2])


def test_a_recurrent_search_without_its_genotype_or_config(recurrent_search_folder, write):
  (recurrent_search_folder / 'genotype.json').unlink()
  (recurrent_search_folder / 'config.json').unlink()
  parsed, _ = write(recurrent_search_folder)
  assert 'As in alphas.npz , after step 12.' in parsed.text
  (copied,) = [json.loads(t) for t in parsed.texts if t.startswith('{') and '"recurrent"' in t]
  assert spaces.from_json(copied) == spaces.published()['RNN_DARTS_V2']


def test_a_recurrent_search_that_has_just_begun(recurrent_search_folder, write):
  lines = (recurrent_search_folder / 'metrics.jsonl').read_text().splitlines()
  (recurrent_search_folder / 'metrics.jsonl').write_text('\n'.join(lines[:3]))
  parsed, _ = write(recurrent_search_folder)
  assert 'Supernet perplexity – validation' in parsed.text
  assert 'Single batches; the first epoch has not ended.' in parsed.text


def test_charts_of_a_recurrent_search_show_its_metrics(recurrent_search_folder):
  run = workdir.read(recurrent_search_folder)
  panels = {panel.name: panel.figure.axes[0] for panel in curves.learning(run)}
  assert list(panels) == ['curve-loss', 'curve-perplexity']
  assert panels['curve-perplexity'].get_yscale() == 'log'
  _, train, valid = (line.get_ydata() for line in panels['curve-perplexity'].lines)
  np.testing.assert_allclose(train, np.exp([6, 5, 4]))
  np.testing.assert_allclose(valid, np.exp([7.1, 6.1, 5.1]))
  panels = {panel.name: panel.figure.axes[0] for panel in curves.optimisation(run)}
  np.testing.assert_allclose(panels['entropy'].lines[0].get_ydata(), 1.6 - 0.01 * np.arange(1, 13))
  assert [text.get_text() for text in panels['entropy'].texts] == ['uniform: log 5']
  # Rates vary with the lengths of sequences: those of steps, and over them the means of epochs.
  steps, means = (line.get_ydata() for line in panels['learning-rate'].lines)
  np.testing.assert_allclose(steps, 20 - np.arange(1, 13))
  np.testing.assert_allclose(means, [17.5, 13.5, 9.5])
  # From RNN_DARTS_V1 to itself, to RNN_DARTS_V2, and to itself.
  np.testing.assert_array_equal(panels['changes'].lines[0].get_ydata(), [0, 7, 0])
  (panel,) = curves.throughput(run)
  assert panel.title == 'Tokens per second'
  np.testing.assert_allclose(panel.figure.axes[0].lines[0].get_ydata(), 20_000 + np.arange(1, 13))


@pytest.mark.parametrize('kind', ['search_folder', 'recurrent_search_folder'])
def test_the_page_says_how_to_use_what_was_found(kind, request, write, capsys):
  folder = request.getfixturevalue(kind)
  parsed, _ = write(folder)
  (code,) = [text for text in parsed.texts if text.startswith('from darts_jax import')]
  exec(code, {})
  assert capsys.readouterr().out.startswith('digraph')
  (command,) = [text for text in parsed.texts if text.startswith('darts-jax train')]
  config = {'search_folder': 'cifar_eval', 'recurrent_search_folder': 'ptb_eval'}[kind]
  *words, path = shlex.split(command)
  assert words == ['darts-jax', 'train', f'--config={config}']
  assert config in named.paths()
  assert path == f'--genotype={folder / "genotype.json"}'


def test_the_old_page_stays_when_the_new_one_cannot_be_made(tmp_path, monkeypatch):
  report.write(tmp_path)
  before = (tmp_path / 'report.html').read_bytes()

  def fail(run):
    raise RuntimeError('no page')

  monkeypatch.setattr(page, 'render', fail)
  with pytest.raises(RuntimeError, match='no page'):
    report.write(tmp_path)
  assert (tmp_path / 'report.html').read_bytes() == before
  assert [path.name for path in tmp_path.iterdir()] == ['report.html']


def test_a_folder_that_does_not_exist_is_named(tmp_path):
  with pytest.raises(ValueError, match=r"workdir: '.*absent' is not a folder"):
    report.write(tmp_path / 'absent')


def test_folder_in_the_place_of_the_page_is_one_line(tmp_path):
  (tmp_path / 'report.html').mkdir()
  with pytest.raises(ValueError, match=r'^--workdir: .*/report.html cannot be written \([^\n]*\)$'):
    report.write(tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ['report.html']


def test_what_a_hypergradient_says_of_itself_is_drawn(search_folder):
  path = search_folder / 'metrics.jsonl'
  records = [json.loads(line) for line in path.read_text().splitlines()]
  for record in records:
    if record['kind'] == 'step':
      record['second_order_fraction'] = 0.01 * record['step']
      if record['step'] % 4 == 0:
        record['disagreement'] = 0.1
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  panels = {panel.name: panel.figure.axes[0] for panel in curves.optimisation(workdir.read(search_folder))}
  np.testing.assert_allclose(panels['second-order'].lines[0].get_ydata(), 0.01 * np.arange(1, 13))
  np.testing.assert_array_equal(panels['disagreement'].lines[0].get_ydata(), [0.1] * 3)
  for record in records:
    # As a first-order search has it.
    record.pop('disagreement', None)
    if 'second_order_fraction' in record:
      record['second_order_fraction'] = 0.0
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  names = [panel.name for panel in curves.optimisation(workdir.read(search_folder))]
  assert not {'second-order', 'disagreement'} & set(names)


@pytest.mark.parametrize(
  ('space', 'dataset', 'config'),
  [
    ('darts', 'digits', 'digits_eval'),
    ('darts', 'cifar10', 'cifar_eval'),
    # Its networks have a number of cells that is a multiple of three.
    ('nasbench201', 'digits', 'nasbench201_eval'),
    ('robust', 'digits', 'digits_eval'),
    ('nasbench201', 'cifar10', 'nasbench201_eval'),
    ('recurrent', 'pydoc', 'text_eval'),
    ('recurrent', 'ptb', 'ptb_eval'),
    ('of_ones_own', None, 'cifar_eval'),
  ],
)
def test_the_config_that_trains_an_architecture_is_that_for_the_data_or_the_space(space, dataset, config):
  assert config in named.paths()
  run = types.SimpleNamespace(space=space, dataset=dataset)
  assert sections.training_command(run, 'a file') == f"darts-jax train --config={config} --genotype='a file'"
