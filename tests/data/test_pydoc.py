import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from darts_jax.data import pydoc

SPLITS = ('train', 'valid', 'test')


@pytest.fixture(scope='module')
def corpus():
  return pydoc.load()


def decoded(corpus, split):
  return ' '.join(corpus.vocabulary[index] for index in getattr(corpus, split))


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
  assert [' '.join(paragraph) for paragraph in pydoc.prose(HELP)] == [
    "the with statement wraps a block of code . <eos> it 's not a loop ( see the loops of pep 343 ) : <eos>",
    'called at the very end . <eos> __exit__ ( ) takes no e.g. single - precision numbers since version 3.11 . <eos>',
    'and another item of it ; in more than one line ! <eos>',
    'here ( * target ) stays as it is ... as does * args . <eos>',
  ]


def test_splits_by_topic():
  train, valid, test = pydoc.splits()

  assert not set(train) & set(valid)
  assert not (set(train) | set(valid)) & set(test)
  sizes = [sum(map(len, split.values())) for split in (train, valid, test)]
  np.testing.assert_allclose(np.array(sizes) / sum(sizes), [0.8, 0.1, 0.1], atol=0.02)
  # Neither is about one thing.
  assert all(max(map(len, split.values())) < 0.5 * size for split, size in zip((valid, test), sizes[1:], strict=True))


def test_does_not_repeat_itself():
  # Half of the topics are sections of other ones, as `if` of `compound`.
  tokens = [[token for topic in split.values() for token in topic] for split in pydoc.splits()]
  train, valid, test = ({tuple(split[i : i + 30]) for i in range(len(split) - 29)} for split in tokens)

  for held_out in (valid, test):
    assert len(held_out & train) < 0.01 * len(held_out)


def test_has_every_paragraph_once():
  from pydoc_data.topics import topics

  paragraphs = {paragraph for topic in topics.values() for paragraph in pydoc.prose(topic)}

  kept = sum(len(topic) for split in pydoc.splits() for topic in split.values())
  assert kept == sum(map(len, paragraphs))


def test_is_text(corpus):
  sizes = {split: len(getattr(corpus, split)) for split in SPLITS}
  # Whatever the version of Python.
  assert 40_000 < sum(sizes.values()) < 65_000
  assert 1_000 < len(corpus.vocabulary) < 2_000

  counts = np.bincount(corpus.train, minlength=len(corpus.vocabulary))
  by_word = dict(zip(corpus.vocabulary, counts.tolist(), strict=True))
  assert len(by_word) == len(counts)
  _, first = np.unique(corpus.train, return_index=True)
  assert first.tolist() == sorted(first)
  assert min(count for word, count in by_word.items() if word != '<unk>') >= 3
  # The most frequent word of English; and sentences have 5 to 50 words.
  words = [word for word in by_word if word.isalpha()]
  assert max(words, key=by_word.get) == 'the'
  assert 5 < sizes['train'] / by_word['<eos>'] < 50
  for split in SPLITS:
    assert np.mean(getattr(corpus, split) == corpus.vocabulary.index('<unk>')) < 0.15
    assert decoded(corpus, split).endswith(' <eos>')


def test_is_as_uncertain_as_english(corpus):
  probabilities = np.bincount(corpus.train, minlength=len(corpus.vocabulary)) / len(corpus.train)

  perplexity = np.exp(-np.log(probabilities[corpus.valid]).mean())

  # Every token of the validation text is in the training text, and none tells more than a uniform draw.
  assert 50 < perplexity < len(corpus.vocabulary)


def test_is_the_same_every_time(corpus):
  again = pydoc.load()

  assert again.vocabulary == corpus.vocabulary
  assert again.fingerprint == corpus.fingerprint


def test_of_another_version(monkeypatch):
  # Topics with one sentence each, `two` being part of `both`; tens of the words are too rare.
  topics = {f'topic {i}': f'The number of this topic is {i}.\n' for i in range(100)}
  topics |= {'two': 'There is a second one.\n', 'both': 'There is a first one.\n\nThere is a second one.\n'}
  monkeypatch.setattr('pydoc_data.topics.topics', topics)

  splits = pydoc.splits()
  corpus = pydoc.load()

  assert {name for split in splits for name in split} == topics.keys() - {'two'}
  # 100 topics of 9 tokens, and one of 14.
  assert [len(getattr(corpus, split)) for split in SPLITS] == [914 - 2 * 90, 90, 90]
  assert sorted(set(decoded(corpus, 'valid').split())) == sorted(
    {'the', 'number', 'of', 'this', 'topic', 'is', '<unk>', '.', '<eos>'}
  )


def test_without_help_texts(monkeypatch):
  monkeypatch.setitem(sys.modules, 'pydoc_data.topics', None)

  with pytest.raises(ValueError, match=r"config.data.name is 'pydoc', but .* take one of ptb, wikitext2, files$"):
    pydoc.load()


@hypothesis.given(st.dictionaries(st.text(max_size=5), st.integers(1, 100), max_size=60))
def test_partition_loses_no_topic(sizes):
  train, valid, test = pydoc.partition(sizes)

  assert sorted([*train, *valid, *test]) == sorted(sizes)
  for names in (valid, test):
    assert sum(sizes[name] for name in names) <= 0.1 * sum(sizes.values())
  # The order of names does not depend on how the topics came.
  assert pydoc.partition(dict(reversed(sizes.items()))) == (train, valid, test)


def test_partition_of_equal_topics_is_exact():
  parts = pydoc.partition({str(i): 7 for i in range(200)})

  assert [len(names) for names in parts] == [160, 20, 20]
