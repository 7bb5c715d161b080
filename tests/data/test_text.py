import dataclasses
import json
import tracemalloc

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from darts_jax import limits
from darts_jax.data import text
from darts_jax.data.corpus import columns
from darts_jax.data.settings import TextSource
from darts_jax.settings import build

TRAIN = 'the cat\n\n <unk> the\n'
SPLITS = ('train', 'valid', 'test')


@pytest.fixture
def write(tmp_path):
  """Writes the files of a corpus; what is None is left out."""

  def write(train=TRAIN, valid='cat\n', test='the\n', naming=text.NAMINGS[0], below=''):
    folder = tmp_path / below
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip(naming, (train, valid, test), strict=True):
      if content is not None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(tmp_path)

  return write


def decoded(corpus, split):
  return ' '.join(corpus.vocabulary[index] for index in getattr(corpus, split))


def test_tokens_of_files(write):
  corpus = text.load('files', write(valid='cat dog\r\nthe', test=b'\xef\xbb\xbfcat\tcat\n\n'))

  assert corpus.name == 'files'
  assert corpus.vocabulary == ('the', 'cat', '<eos>', '<unk>')
  assert corpus.train.tolist() == [0, 1, 2, 2, 3, 0, 2]
  # Carriage returns, a last line that is not ended, and a byte order mark.
  assert decoded(corpus, 'valid') == 'cat <unk> <eos> the <eos>'
  assert decoded(corpus, 'test') == 'cat cat <eos> <eos>'
  assert {getattr(corpus, split).dtype for split in SPLITS} == {np.dtype(np.int32)}


def test_only_a_newline_ends_a_line(write):
  # Of the characters that `str.splitlines` splits at, those that are white space separate tokens.
  corpus = text.load('files', write('a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g\n', 'a\n', 'a\n'))

  assert decoded(corpus, 'train') == 'a b c d e f g <eos>'


@hypothesis.settings(max_examples=50, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(st.lists(st.lists(st.text('abcé', min_size=1, max_size=3), max_size=5), min_size=1, max_size=8))
def test_lines_come_back_from_ids(write, lines):
  hypothesis.assume(any(lines))
  content = ''.join(' '.join(line) + '\n' for line in lines)

  corpus = text.load('ptb', write(content, content, content))

  for split in SPLITS:
    assert [line.split() for line in decoded(corpus, split).split('<eos>')[:-1]] == lines
  assert len(corpus.vocabulary) == len({token for line in lines for token in line} | {'<eos>'})
  # In the order of first occurrence, an id that is new is the next one.
  _, first = np.unique(corpus.train, return_index=True)
  assert first.tolist() == sorted(first)


@pytest.mark.parametrize('naming', text.NAMINGS)
@pytest.mark.parametrize(
  ('name', 'below'),
  [('files', ''), ('ptb', ''), ('ptb', 'ptb'), ('wikitext2', 'wikitext-2'), ('wikitext2', 'wikitext2')],
)
def test_where_files_lie(write, name, below, naming):
  assert decoded(text.load(name, write(naming=naming, below=below)), 'test') == 'the <eos>'


def test_first_complete_naming(write):
  write(train='incomplete\n', test=None)
  write(train='first\n', valid='first\n', test='first\n', naming=text.NAMINGS[1])
  directory = write(train='second\n', valid='second\n', test='second\n', naming=text.NAMINGS[2])

  assert text.load('wikitext2', directory).vocabulary == ('first', '<eos>')


def test_unknown_name():
  with pytest.raises(ValueError, match=r"^config.data.name is 'penn'; allowed: pydoc, ptb, wikitext2, files$"):
    text.load('penn')


def test_directory_not_set():
  with pytest.raises(ValueError, match=r'^config.data.dir is not set: .* ptb, train.txt, valid.txt, test.txt or'):
    text.load('ptb', '')


def test_directory_missing(tmp_path):
  with pytest.raises(ValueError, match=r"^config.data.dir '.*absent' is not a folder"):
    text.load('ptb', str(tmp_path / 'absent'))


def test_no_files(tmp_path):
  with pytest.raises(ValueError, match=r'holds no ptb: .* or wiki.train.tokens, wiki.valid.tokens, wiki.test.tokens$'):
    text.load('ptb', str(tmp_path))


def test_incomplete_files(write):
  write(valid=None)
  directory = write(train=None, valid=None, naming=text.NAMINGS[1], below='ptb')

  with pytest.raises(ValueError, match='holds no ptb') as caught:
    text.load('ptb', directory)

  assert f'; {directory} has train.txt, test.txt but not valid.txt; ' in str(caught.value)
  assert str(caught.value).endswith('ptb has ptb.test.txt but not ptb.train.txt, ptb.valid.txt')


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'valid.txt: no tokens; the file has to hold text'),
    (b' \n\r\n\t', 'valid.txt: no tokens; the file has to hold text'),
    (b'the\ncat \xff\n', 'valid.txt:2: not UTF-8; the file has to be plain text in UTF-8'),
    ('the\n'.encode('utf-16'), 'valid.txt:1: a zero byte; the file has to be plain text in UTF-8'),
    (b'the\n\ncat\0\n', 'valid.txt:3: a zero byte; the file has to be plain text in UTF-8'),
  ],
)
@pytest.mark.parametrize('split', SPLITS)
def test_unfit_file(write, split, content, message):
  with pytest.raises(ValueError, match='the file has to') as caught:
    text.load('files', write(**{split: content}))

  assert str(caught.value).endswith(f'/{message.replace("valid", split)}')


def test_token_outside_the_vocabulary(write):
  # Line 2 has what only looks like it.
  directory = write('the cat\n', 'the cat\ndogs\n\nthe dog\ndog\n'.replace('dogs', 'cat'))

  with pytest.raises(ValueError, match=r"valid.txt:4: token 'dog' is not in the vocabulary.*<unk>"):
    text.load('files', directory)


@pytest.mark.parametrize('line', ['\n', 'ab ', 'ab\n'], ids=['ends', 'long line', 'short lines'])
def test_memory_is_a_few_times_the_size_of_the_file(write, line):
  content = 'ab\n' + line * 100_000
  directory = write(content, 'ab\n', 'ab\n')
  tracemalloc.start()
  try:
    corpus = text.load('files', directory)
    assert tracemalloc.get_traced_memory()[1] < 12 * len(content) + 100_000
  finally:
    tracemalloc.stop()
  assert decoded(corpus, 'train').split() == content.replace('\n', ' <eos> ').split() + ['<eos>'] * (line == 'ab ')


def test_too_many_words(write, monkeypatch):
  monkeypatch.setattr(limits, 'WORDS', 2)
  with pytest.raises(ValueError, match=r'train.txt:3: token 3 of the vocabulary; there are up to 2'):
    text.load('files', write('a\na a\nb c\n'))


def test_fingerprint(write):
  corpus = text.load('files', write())
  fingerprint = corpus.fingerprint

  assert json.loads(json.dumps(fingerprint)) == fingerprint
  assert fingerprint['vocabulary'] == 4
  assert [fingerprint[split]['tokens'] for split in SPLITS] == [7, 2, 2]
  # What the corpus is called does not matter; another token, another order and another word with the same id do.
  assert text.load('ptb', write()).fingerprint == fingerprint
  others = [
    {'valid': 'the\n'},
    {'train': 'the cat\n\n the <unk>\n'},
    {'train': TRAIN.replace('cat', 'dog'), 'valid': 'dog\n'},
  ]
  for other in others:
    assert text.load('files', write(**other)).fingerprint != fingerprint


def test_columns():
  laid_out = columns(np.arange(11), 3)

  assert laid_out.dtype == np.int32
  np.testing.assert_array_equal(laid_out, [[0, 3, 6], [1, 4, 7], [2, 5, 8]])


@hypothesis.given(st.integers(0, 200), st.integers(1, 20))
def test_columns_are_consecutive_pieces(num_tokens, batch_size):
  tokens = np.arange(num_tokens)[::-1]

  laid_out = columns(tokens, batch_size)

  assert laid_out.shape == (num_tokens // batch_size, batch_size)
  assert num_tokens - laid_out.size < batch_size
  np.testing.assert_array_equal(laid_out.flatten('F'), tokens[: laid_out.size])


def test_source(write):
  source = build(TextSource, {'name': 'ptb', 'dir': write()}, 'config.data')

  assert decoded(source.load(), 'train') == 'the cat <eos> <eos> <unk> the <eos>'
  assert dataclasses.asdict(build(TextSource, {})) == {'name': 'ptb', 'dir': 'data'}


def test_source_that_is_unknown():
  with pytest.raises(ValueError, match=r"config.data.name: 'wikitext' is not known; did you mean 'wikitext2'"):
    build(TextSource, {'name': 'wikitext'}, 'config.data')
