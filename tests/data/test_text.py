import dataclasses
import json
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from darts_jax.data import text
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


@pytest.fixture(scope='module')
def pydoc():
  return text.load('pydoc')


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
  laid_out = text.columns(np.arange(11), 3)

  assert laid_out.dtype == np.int32
  np.testing.assert_array_equal(laid_out, [[0, 3, 6], [1, 4, 7], [2, 5, 8]])


@hypothesis.given(st.integers(0, 200), st.integers(1, 20))
def test_columns_are_consecutive_pieces(num_tokens, batch_size):
  tokens = np.arange(num_tokens)[::-1]

  laid_out = text.columns(tokens, batch_size)

  assert laid_out.shape == (num_tokens // batch_size, batch_size)
  assert num_tokens - laid_out.size < batch_size
  np.testing.assert_array_equal(laid_out.flatten('F'), tokens[: laid_out.size])


HELP = """The "with" statement
********************

The "with" statement wraps a *block* of code.  It’s **not** a loop
(see *the loops* of **PEP 343** [1]):

   with_stmt ::= "with" item ":" suite
   item:         expression ["as" target]

   with one as another, and some more of them:
       # Read all of it.
       print(file.read())

>>> x = [1, 2]
>>> x[0]
1

+-------+----------------------------+
| Name  | What it stands for.        |
+=======+============================+
| a     | The first of all letters.  |
+-------+----------------------------+

object.__exit__(self)

   Called at the very end. "__exit__()" takes no e.g. single-
   precision numbers since version 3.11.

* One item of a list
* and another item of it; in more
  than one line!

1. Here ("*" target) stays as it
   is … as does "*args".
"""


def test_prose():
  assert [' '.join(paragraph) for paragraph in text.prose(HELP)] == [
    "the with statement wraps a block of code . <eos> it 's not a loop ( see the loops of pep 343 ) : <eos>",
    'called at the very end . <eos> __exit__ ( ) takes no e.g. single - precision numbers since version 3.11 . <eos>',
    'and another item of it ; in more than one line ! <eos>',
    'here ( * target ) stays as it is ... as does * args . <eos>',
  ]


def test_pydoc_splits_by_topic():
  train, valid, test = text.pydoc_splits()

  assert not set(train) & set(valid)
  assert not (set(train) | set(valid)) & set(test)
  sizes = [sum(map(len, split.values())) for split in (train, valid, test)]
  np.testing.assert_allclose(np.array(sizes) / sum(sizes), [0.8, 0.1, 0.1], atol=0.02)
  # Neither is about one thing.
  assert all(max(map(len, split.values())) < 0.5 * size for split, size in zip((valid, test), sizes[1:], strict=True))


def test_pydoc_does_not_repeat_itself():
  # Half of the topics are sections of other ones, as `if` of `compound`.
  tokens = [[token for topic in split.values() for token in topic] for split in text.pydoc_splits()]
  train, valid, test = ({tuple(split[i : i + 30]) for i in range(len(split) - 29)} for split in tokens)

  for held_out in (valid, test):
    assert len(held_out & train) < 0.01 * len(held_out)


def test_pydoc_has_every_paragraph_once():
  from pydoc_data.topics import topics

  paragraphs = {paragraph for topic in topics.values() for paragraph in text.prose(topic)}

  kept = sum(len(topic) for split in text.pydoc_splits() for topic in split.values())
  assert kept == sum(map(len, paragraphs))


def test_pydoc_is_text(pydoc):
  sizes = {split: len(getattr(pydoc, split)) for split in SPLITS}
  # Whatever the version of Python.
  assert 40_000 < sum(sizes.values()) < 65_000
  assert 1_000 < len(pydoc.vocabulary) < 2_000

  counts = np.bincount(pydoc.train, minlength=len(pydoc.vocabulary))
  by_word = dict(zip(pydoc.vocabulary, counts.tolist(), strict=True))
  assert len(by_word) == len(counts)
  _, first = np.unique(pydoc.train, return_index=True)
  assert first.tolist() == sorted(first)
  assert min(count for word, count in by_word.items() if word != '<unk>') >= 3
  # The most frequent word of English; and sentences have 5 to 50 words.
  words = [word for word in by_word if word.isalpha()]
  assert max(words, key=by_word.get) == 'the'
  assert 5 < sizes['train'] / by_word['<eos>'] < 50
  for split in SPLITS:
    assert np.mean(getattr(pydoc, split) == pydoc.vocabulary.index('<unk>')) < 0.15
    assert decoded(pydoc, split).endswith(' <eos>')


def test_pydoc_is_as_uncertain_as_english(pydoc):
  probabilities = np.bincount(pydoc.train, minlength=len(pydoc.vocabulary)) / len(pydoc.train)

  perplexity = np.exp(-np.log(probabilities[pydoc.valid]).mean())

  # Every token of the validation text is in the training text, and none tells more than a uniform draw.
  assert 50 < perplexity < len(pydoc.vocabulary)


def test_pydoc_is_the_same_every_time(pydoc):
  again = text.load('pydoc')

  assert again.vocabulary == pydoc.vocabulary
  assert again.fingerprint == pydoc.fingerprint


def test_pydoc_of_another_version(monkeypatch):
  # Topics with one sentence each, `two` being part of `both`; tens of the words are too rare.
  topics = {f'topic {i}': f'The number of this topic is {i}.\n' for i in range(100)}
  topics |= {'two': 'There is a second one.\n', 'both': 'There is a first one.\n\nThere is a second one.\n'}
  monkeypatch.setattr('pydoc_data.topics.topics', topics)

  splits = text.pydoc_splits()
  corpus = text.load('pydoc')

  assert {name for split in splits for name in split} == topics.keys() - {'two'}
  # 100 topics of 9 tokens, and one of 14.
  assert [len(getattr(corpus, split)) for split in SPLITS] == [914 - 2 * 90, 90, 90]
  assert sorted(set(decoded(corpus, 'valid').split())) == sorted(
    {'the', 'number', 'of', 'this', 'topic', 'is', '<unk>', '.', '<eos>'}
  )


def test_pydoc_without_help_texts(monkeypatch):
  monkeypatch.setitem(sys.modules, 'pydoc_data.topics', None)

  with pytest.raises(ValueError, match=r"config.data.name is 'pydoc', but .* take one of ptb, wikitext2, files$"):
    text.load('pydoc')


@hypothesis.given(st.dictionaries(st.text(max_size=5), st.integers(1, 100), max_size=60))
def test_partition_loses_no_topic(sizes):
  train, valid, test = text.partition(sizes)

  assert sorted([*train, *valid, *test]) == sorted(sizes)
  for names in (valid, test):
    assert sum(sizes[name] for name in names) <= 0.1 * sum(sizes.values())
  # The order of names does not depend on how the topics came.
  assert text.partition(dict(reversed(sizes.items()))) == (train, valid, test)


def test_partition_of_equal_topics_is_exact():
  parts = text.partition({str(i): 7 for i in range(200)})

  assert [len(names) for names in parts] == [160, 20, 20]


def test_source(write):
  source = build(TextSource, {'name': 'ptb', 'dir': write()}, 'config.data')

  assert decoded(source.load(), 'train') == 'the cat <eos> <eos> <unk> the <eos>'
  assert dataclasses.asdict(build(TextSource, {})) == {'name': 'ptb', 'dir': 'data'}


def test_source_that_is_unknown():
  with pytest.raises(ValueError, match=r"config.data.name: 'wikitext' is not known; did you mean 'wikitext2'"):
    build(TextSource, {'name': 'wikitext'}, 'config.data')
