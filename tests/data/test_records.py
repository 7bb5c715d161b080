import contextlib
import io
import json
import os
import pickle
import re
import sys

import numpy as np
import pytest

from darts_jax.data.records import EVALUATION, fingerprint, image_folder, tfds_directory


@pytest.fixture
def folder(tmp_path):
  """Files whose content is their path, in an order that is not the sorted one."""
  for name in (
    'train/wolf/b.JPEG',
    'train/wolf/a.png',
    'train/ant/nested/deeper/1.jpg',
    'train/ant/nested-2.jpeg',
    'train/ant/10.webp',
    'train/ant/9.webp',
    'train/Zebra/z.bmp',
    'val/wolf/v.jpg',
    'val/Zebra/v.jpg',
  ):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(name.encode())
  return tmp_path


def contents(records):
  return [records.load(index) for index in range(len(records))]


def test_images_of_a_folder_in_sorted_order(folder):
  records = image_folder(folder)

  assert records.classes == ('Zebra', 'ant', 'wolf')
  expected = [
    ('train/Zebra/z.bmp', 0),
    ('train/ant/10.webp', 1),
    ('train/ant/9.webp', 1),
    ('train/ant/nested-2.jpeg', 1),
    ('train/ant/nested/deeper/1.jpg', 1),
    ('train/wolf/a.png', 2),
    ('train/wolf/b.JPEG', 2),
  ]
  assert len(records) == 7
  assert contents(records) == [(name.encode(), label) for name, label in expected]
  assert [records.name(index) for index in range(7)] == [str(folder / name) for name, _ in expected]
  assert records.labels.dtype == np.int32
  assert records.labels.tolist() == [label for _, label in expected]


def test_order_does_not_depend_on_the_file_system(folder, monkeypatch):
  expected = contents(image_folder(folder))
  scandir, iterdir = os.scandir, type(folder).iterdir

  @contextlib.contextmanager
  def scan_backwards(path):
    with scandir(path) as entries:
      yield sorted(entries, key=lambda entry: entry.name, reverse=True)

  monkeypatch.setattr(os, 'scandir', scan_backwards)
  monkeypatch.setattr(type(folder), 'iterdir', lambda path: sorted(iterdir(path), reverse=True))

  assert contents(image_folder(folder)) == expected


@pytest.mark.parametrize('name', EVALUATION)
def test_labels_of_another_split_are_those_of_training(folder, name):
  (folder / 'val').rename(folder / name)

  records = image_folder(str(folder), EVALUATION)

  assert records.classes == ('Zebra', 'ant', 'wolf')
  assert contents(records) == [(b'val/Zebra/v.jpg', 0), (b'val/wolf/v.jpg', 2)]
  assert contents(image_folder(folder, name)) == contents(records)


def test_the_first_split_of_several_is_read(folder):
  (folder / 'test' / 'ant').mkdir(parents=True)
  (folder / 'test' / 'ant' / 't.jpg').write_bytes(b'test')

  assert contents(image_folder(folder, EVALUATION))[0] == (b'val/Zebra/v.jpg', 0)
  assert contents(image_folder(folder, ('test', 'val'))) == [(b'test', 1)]


def test_what_is_no_image_is_passed_over(folder):
  expected = contents(image_folder(folder))
  for name in ('train/wolf/notes.txt', 'train/wolf/._a.png', 'train/list.jpg', 'train/.cache/a.jpg', 'README'):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b'other')
  (folder / 'train' / 'wolf' / '.hidden').mkdir()
  (folder / 'train' / 'wolf' / '.hidden' / 'a.jpg').write_bytes(b'other')

  assert contents(image_folder(folder)) == expected


def test_names_beyond_ascii_and_linked_classes(folder):
  (folder / 'elsewhere').mkdir()
  (folder / 'elsewhere' / 'schön ☀.jpg').write_bytes(b'linked')
  (folder / 'train' / 'linked').symlink_to(folder / 'elsewhere')

  records = image_folder(folder)

  assert records.classes == ('Zebra', 'ant', 'linked', 'wolf')
  assert records.load(5) == (b'linked', 2)


def test_linked_folders_are_followed_each_once(folder):
  (folder / 'elsewhere' / 'deep').mkdir(parents=True)
  for name in ('l.jpg', 'deep/d.jpg'):
    (folder / 'elsewhere' / name).write_bytes(b'linked')
  before = contents(image_folder(folder))
  for link, target in (
    ('train/ant/more', 'elsewhere'),
    ('train/ant/again', 'elsewhere/deep'),
    ('elsewhere/round', 'elsewhere'),
    # To what is read without a link, to other classes, and to what holds them all.
    ('train/Zebra/ant', 'train/ant/nested'),
    ('train/Zebra/wolf', 'train/wolf'),
    ('train/Zebra/all', 'train'),
    ('train/ant/nested/root', '.'),
    ('train/ant/.hidden', 'val'),
  ):
    (folder / link).symlink_to(folder / target)

  assert sorted(contents(image_folder(folder))) == sorted([*before, (b'linked', 1), (b'linked', 1)])


@pytest.mark.parametrize(
  ('links', 'said'),
  [
    ({'ant/more': 'elsewhere', 'wolf/more': 'elsewhere'}, 'train/wolf/more: the same folder as .*/train/ant/more'),
    ({'ant/more': 'elsewhere', 'wolf/deep': 'elsewhere/deep'}, 'ant/more/deep: the same folder as .*/train/wolf/deep'),
    ({'wolf/more': 'elsewhere', 'ant/deep': 'elsewhere/deep'}, 'wolf/more/deep: the same folder as .*/train/ant/deep'),
    ({'ant/l.jpg': 'elsewhere/l.jpg', 'wolf/m.jpg': 'elsewhere/l.jpg'}, 'wolf/m.jpg: the same file as .*/ant/l.jpg'),
    ({'ant/l.jpg': 'train/wolf/b.jpg'}, 'ant/l.jpg: the same file as .*/train/wolf/b.jpg'),
    ({'ant/more': 'elsewhere', 'wolf/m.jpg': 'elsewhere/l.jpg'}, 'wolf/m.jpg: the same file as .*/elsewhere/l.jpg'),
    ({'ant/l.jpg': 'elsewhere/l.jpg', 'ant/m.jpg': 'elsewhere/l.jpg', 'ant/more': 'elsewhere'}, None),
  ],
)
def test_an_image_that_links_give_two_classes_is_refused(folder, links, said):
  (folder / 'elsewhere' / 'deep').mkdir(parents=True)
  for path in ('elsewhere/l.jpg', 'elsewhere/deep/d.jpg', 'train/wolf/b.jpg'):
    (folder / path).write_bytes(b'linked')
  for link, target in links.items():
    (folder / 'train' / link).symlink_to(folder / target)
  if said is None:
    assert len(image_folder(folder)) > 0
  else:
    with pytest.raises(ValueError, match=f'{said}; an image has one class$'):
      image_folder(folder)


def test_classes_that_are_one_folder(folder):
  (folder / 'train' / 'fox').symlink_to(folder / 'train' / 'wolf')

  with pytest.raises(ValueError, match=r'train/wolf: the same folder as .*train/fox; an image has one class$'):
    image_folder(folder)


def test_a_file_that_vanished(folder):
  records = image_folder(folder)
  (folder / 'train' / 'ant' / '9.webp').unlink()

  with pytest.raises(ValueError, match=r'^[^\n]*train/ant/9.webp: cannot be read \(No such file or directory\)$'):
    records.load(2)


@pytest.mark.parametrize(
  ('moves', 'split', 'message'),
  [
    ({'train': 'training'}, 'val', '{root}: holds no folder train; images are looked for in <split>/<class>/'),
    ({'val': 'evaluation'}, ('val', 'test'), '{root}: holds no folder val or test; images are looked for in '),
    ({'train/Zebra/z.bmp': 'train/Zebra/z.txt'}, 'train', '{root}/train/Zebra: a class without images; their names '),
    ({'val/wolf/v.jpg': 'val/wolf/v'}, 'val', '{root}/val/wolf: a class without images; their names end in .bmp, '),
    ({'val/wolf': 'val/fox'}, 'val', '{root}/val/fox: a class that {root}/train lacks'),
    ({'train/ant': 'ant', 'train/wolf': 'wolf'}, 'train', '{root}/train: holds one class, Zebra; at least two are '),
    ({'val/wolf': 'wolf', 'val/Zebra': 'Zebra'}, 'val', '{root}/val: holds no folder of a class; images are looked '),
  ],
)
def test_folders_that_are_not_a_dataset(folder, moves, split, message):
  for old, new in moves.items():
    (folder / old).rename(folder / new)

  with pytest.raises(ValueError, match=rf'^{re.escape(message.format(root=folder))}[^\n]*$'):
    image_folder(folder, split)


def test_no_folder_at_all(folder):
  for name in ('nowhere', 'train/wolf/a.png'):
    with pytest.raises(ValueError, match=f'^{folder / name}: not a folder$'):
      image_folder(folder / name)


def test_a_folder_that_must_not_be_listed(folder, monkeypatch):
  scandir = os.scandir

  def refuse(path):
    if str(path).endswith('nested'):
      raise PermissionError(13, 'Permission denied', str(path))
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', refuse)

  with pytest.raises(ValueError, match=r'train/ant/nested: cannot be read: Permission denied$'):
    image_folder(folder)


FEATURES = 'tensorflow_datasets.core.features'
IMAGE = {
  'pythonClassName': f'{FEATURES}.image_feature.Image',
  'image': {'shape': {'dimensions': ['-1', '-1', '3']}, 'dtype': 'uint8', 'encodingFormat': 'jpeg'},
}
LABEL = {
  'pythonClassName': f'{FEATURES}.class_label_feature.ClassLabel',
  'classLabel': {'numClasses': '3'},
}


def jpeg(shade, width, height):
  from PIL import Image

  content = io.BytesIO()
  Image.new('RGB', (width, height), (shade, shade, shade)).save(content, 'JPEG')
  return content.getvalue()


def write_tfds(folder, splits, features=None):
  """A folder as TensorFlow Datasets prepares it, of splits that map to (encoded image, label)."""
  array_record_module = pytest.importorskip('array_record.python.array_record_module')
  pytest.importorskip('tensorflow_datasets')
  from tensorflow_datasets.proto import tf_example_pb2

  folder.mkdir(parents=True)
  infos = []
  for split, records in splits.items():
    writer = array_record_module.ArrayRecordWriter(
      str(folder / f'shades-{split}.array_record-00000-of-00001'), 'group_size:1'
    )
    for image, label in records:
      example = tf_example_pb2.Example()
      example.features.feature['image'].bytes_list.value.append(image)
      example.features.feature['label'].int64_list.value.append(label)
      writer.write(example.SerializeToString())
    writer.close()
    template = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
    infos.append({'name': split, 'shardLengths': [str(len(records))], 'filepathTemplate': template})
  info = {'name': 'shades', 'version': folder.name, 'fileFormat': 'array_record', 'splits': infos}
  (folder / 'dataset_info.json').write_text(json.dumps(info))
  content = {'image': IMAGE, 'label': LABEL} if features is None else features
  (folder / 'features.json').write_text(
    json.dumps({'pythonClassName': f'{FEATURES}.features_dict.FeaturesDict', 'featuresDict': {'features': content}})
  )
  (folder / 'label.labels.txt').write_text('black\ngrey\nwhite\n')


SHADES = [(jpeg(shade, 8 + shade, 9), shade % 3) for shade in range(5)]


@pytest.mark.parametrize('where', ['.', 'shades', 'shades/1.0.0'])
def test_prepared_records_in_their_stored_order(tmp_path, where):
  write_tfds(tmp_path / 'shades' / '1.0.0', {'train': SHADES, 'validation': SHADES[3:]})

  records = tfds_directory(tmp_path / where, 'shades', 'train')

  assert len(records) == 5
  assert contents(records) == SHADES
  assert records.classes == ('black', 'grey', 'white')
  assert records.labels is None
  assert records.name(2) == 'train[2]'
  assert contents(tfds_directory(str(tmp_path / where), 'shades', EVALUATION)) == SHADES[3:]


def test_reading_prepared_records_needs_no_tensorflow(tmp_path):
  write_tfds(tmp_path / 'shades' / '1.0.0', {'train': SHADES})

  contents(tfds_directory(tmp_path, 'shades'))

  assert 'tensorflow' not in sys.modules


def test_records_can_be_pickled_for_worker_processes(tmp_path, folder):
  write_tfds(tmp_path / 'shades' / '1.0.0', {'train': SHADES})

  for records in (tfds_directory(tmp_path, 'shades'), image_folder(folder)):
    assert contents(pickle.loads(pickle.dumps(records))) == contents(records)


def test_prepared_records_that_are_not_there(tmp_path):
  write_tfds(tmp_path / 'shades' / '1.0.0', {'train': SHADES})

  with pytest.raises(ValueError, match=rf'^{tmp_path}: holds no tensorflow-datasets array_record folder colours/'):
    tfds_directory(tmp_path, 'colours')
  with pytest.raises(ValueError, match=r'shades/1.0.0: has no split val or validation or valid or test; it has train$'):
    tfds_directory(tmp_path, 'shades', EVALUATION)


@pytest.mark.parametrize('features', [{'image': IMAGE}, {'label': LABEL}, {'image': LABEL, 'label': LABEL}])
def test_prepared_records_of_other_features(tmp_path, features):
  write_tfds(tmp_path / 'shades' / '1.0.0', {'train': SHADES}, features)

  message = f"shades/1.0.0: its features are {', '.join(features)}; needed: an image 'image', a class 'label'$"
  with pytest.raises(ValueError, match=message):
    tfds_directory(tmp_path, 'shades')


def test_prepared_records_of_floats_or_one_class(tmp_path):
  floats = {**IMAGE, 'image': {'shape': {'dimensions': ['8', '8', '1']}, 'dtype': 'float32', 'encodingFormat': 'png'}}
  write_tfds(tmp_path / 'a' / 'shades' / '1.0.0', {'train': SHADES}, {'image': floats, 'label': LABEL})
  write_tfds(
    tmp_path / 'b' / 'shades' / '1.0.0',
    {'train': SHADES},
    {'image': IMAGE, 'label': {**LABEL, 'classLabel': {'numClasses': '1'}}},
  )
  (tmp_path / 'b' / 'shades' / '1.0.0' / 'label.labels.txt').write_text('black\n')

  with pytest.raises(ValueError, match=r'shades/1.0.0: its images are of float32; allowed: uint8, uint16$'):
    tfds_directory(tmp_path / 'a', 'shades')
  with pytest.raises(ValueError, match=r'shades/1.0.0: has one class, black; at least two are needed$'):
    tfds_directory(tmp_path / 'b', 'shades')


@pytest.mark.parametrize('label', [-1, 3])
def test_a_label_that_is_no_class(tmp_path, label):
  write_tfds(tmp_path / 'shades' / '1.0.0', {'train': [*SHADES, (SHADES[0][0], label)]})

  with pytest.raises(ValueError, match=rf'the label of train\[5\] is {label}; it has to be in 0..2$'):
    tfds_directory(tmp_path, 'shades').load(5)


def test_damaged_records_and_descriptions(tmp_path):
  write_tfds(tmp_path / 'shades' / '1.0.0', {'train': SHADES})
  path = tmp_path / 'shades' / '1.0.0' / 'shades-train.array_record-00000-of-00001'
  path.write_bytes(path.read_bytes()[:-1000])

  with pytest.raises(ValueError, match=r'^[^\n]*shades/1.0.0: train\[0\] cannot be read: [^\n]*$'):
    tfds_directory(tmp_path, 'shades').load(0)
  (tmp_path / 'shades' / '1.0.0' / 'features.json').write_text('{"pythonClassName": ')
  with pytest.raises(ValueError, match=r'^[^\n]*shades/1.0.0: cannot be read by tensorflow-datasets: '):
    tfds_directory(tmp_path, 'shades')


def test_without_the_package(tmp_path, monkeypatch):
  write_tfds(tmp_path / 'shades' / '1.0.0', {'train': SHADES})
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)

  with pytest.raises(ValueError, match=r'shades/1.0.0: reading it needs: pip install darts_jax\[tfds\]'):
    tfds_directory(tmp_path, 'shades')


def test_prepared_records_are_streamed_in_parts_and_from_any_step(tmp_path):
  """Twenty shades of grey, one of them damaged: order, processes, and the middle of an epoch."""
  pytest.importorskip('grain')
  from darts_jax.data.stream import Stream

  shades = [(jpeg(10 * i, 40, 36), i % 3) for i in range(20)]
  shades[7] = (b'\xff\xd8 cut off', 1)
  write_tfds(tmp_path / 'shades' / '1.0.0', {'train': shades, 'test': shades[:5]})
  records = tfds_directory(tmp_path, 'shades')

  def read(first, count, **settings):
    stream = Stream(records, np.arange(20), batch_size=4, image_size=8, train=True, seed=3, num_threads=2, **settings)
    batches = stream.batches(first)
    try:
      return [next(batches) for _ in range(count)]
    finally:
      batches.close()

  whole = read(0, 10)
  # Neither crop nor resizing change a shade; rounding of the JPEG is far below the distance of two.
  seen = [
    [round(int(image.mean()) / 10) for batch in epoch for image in batch.images] for epoch in (whole[:5], whole[5:])
  ]
  for shown in seen:
    # The damaged one is replaced by the record after it.
    assert sorted(shown) == [*range(7), 8, 8, *range(9, 20)]
  assert seen[0] != seen[1]
  for batch in whole:
    places = [
      8 if d == 7 else round(int(image.mean()) / 10) for image, d in zip(batch.images, batch.damaged, strict=True)
    ]
    assert batch.labels.tolist() == [place % 3 for place in places]
  assert [int(d) for batch in whole[:5] for d in batch.damaged if d >= 0] == [7]
  for expected, found in zip(whole[3:], read(3, 7), strict=True):
    for one, other in zip(expected, found, strict=True):
      np.testing.assert_array_equal(one, other)
  halves = [read(3, 2, process_index=i, process_count=2) for i in range(2)]
  for step in range(2):
    joined = np.concatenate([half[step].images for half in halves])
    np.testing.assert_array_equal(joined, whole[3 + step].images)


def test_a_folder_is_known_by_its_paths_labels_and_content(folder):
  before = fingerprint(image_folder(folder))
  assert json.loads(json.dumps(before)) == before
  assert before['images'] == 7
  assert fingerprint(image_folder(folder)) == before
  # An image of another class, of another name, with other content; one more.
  for source, target in (('train/wolf/a.png', 'train/ant/a.png'), ('train/ant/9.webp', 'train/ant/8.webp')):
    (folder / source).rename(folder / target)
    assert fingerprint(image_folder(folder)) != before
    (folder / target).rename(folder / source)
  (folder / 'train/wolf/a.png').write_bytes(b'another')
  assert fingerprint(image_folder(folder)) != before
  (folder / 'train/wolf/a.png').write_bytes(b'train/wolf/a.png')
  (folder / 'train/wolf/c.png').write_bytes(b'')
  assert fingerprint(image_folder(folder)) != before
  (folder / 'train/wolf/c.png').unlink()
  assert fingerprint(image_folder(folder)) == before
