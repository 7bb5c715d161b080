import gc
import importlib
import io
import itertools
import multiprocessing
import os
import pathlib
import re
import signal
import struct
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest

from darts_jax.data import decoding
from darts_jax.data.images import split
from darts_jax.data.records import image_folder
from darts_jax.data.stream import Stream, centre_box, decode, random_box

pytest.importorskip('grain')
Image = pytest.importorskip('PIL.Image')

NUM_IMAGES = 23
WIDTH, HEIGHT = 63, 48


@pytest.fixture(scope='module', autouse=True)
def _collect():
  """Lets the semaphores of ended workers go now: their end fails while `tensorflow_datasets` is being imported."""
  yield
  gc.collect()


def encoded(image, file_format='PNG', **options):
  content = io.BytesIO()
  (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(content, file_format, **options)
  return content.getvalue()


def write(root, contents):
  """Records of these contents, eight of a class."""
  for index, content in enumerate(contents):
    folder = root / 'train' / f'class {index // 8}'
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f'{index:03}.png').write_bytes(content)
  return image_folder(root)


def of_one_colour(index):
  """Neither crop nor resizing change it."""
  return encoded(np.full((5, 6, 3), index, np.uint8))


def ramps():
  """Red tells the column of a pixel and green its row, in steps of four levels."""
  rows, columns = np.mgrid[:HEIGHT, :WIDTH]
  return np.stack([4 * columns, 4 * rows, np.zeros_like(rows)], axis=2).astype(np.uint8)


@pytest.fixture(scope='module')
def constant(tmp_path_factory):
  """Records whose colour is their index."""
  return write(tmp_path_factory.mktemp('constant'), [of_one_colour(index) for index in range(NUM_IMAGES)])


@pytest.fixture(scope='module')
def textured(tmp_path_factory):
  """Equal records, of which every crop looks different."""
  return write(tmp_path_factory.mktemp('textured'), [encoded(ramps())] * NUM_IMAGES)


def stream(records, indices=None, **fields):
  settings = {'batch_size': 4, 'image_size': 4, 'train': True, 'seed': 0, 'num_threads': 0}
  return Stream(records, np.arange(len(records)) if indices is None else indices, **{**settings, **fields})


def take(source, number, start_step=0):
  batches = source.batches(start_step)
  taken = list(itertools.islice(batches, number))
  batches.close()
  return taken


def assert_equal(batches, expected):
  assert len(batches) == len(expected) > 0
  for batch, other in zip(batches, expected, strict=True):
    for name, array, its in zip(batch._fields, batch, other, strict=True):
      assert array.dtype == its.dtype, name
      np.testing.assert_array_equal(array, its, err_msg=name)


def colours(batches):
  images = np.concatenate([batch.images for batch in batches])
  np.testing.assert_array_equal(images, np.broadcast_to(images[:, :1, :1, :1], images.shape))
  return images[:, 0, 0, 0].tolist()


def test_batches_are_images_with_their_labels(constant):
  batches = take(stream(constant), 5)

  for batch in batches:
    assert batch.images.shape == (4, 4, 4, 3)
    assert [array.dtype for array in batch] == [np.uint8, np.int32, bool, np.int32]
    assert batch.counts.all()
    assert batch.damaged.tolist() == [-1] * 4
    assert batch.labels.tolist() == [index // 8 for index in colours([batch])]


def test_every_image_once_an_epoch_in_a_new_order(constant):
  source = stream(constant)
  assert source.steps_per_epoch == 5
  epochs = 200

  read = np.reshape(colours(take(source, 5 * epochs)), (epochs, 20))

  assert all(len(set(epoch)) == 20 for epoch in read.tolist())
  assert len({tuple(epoch) for epoch in read.tolist()}) == epochs
  left_out = np.array([epochs - np.sum(read == index) for index in range(NUM_IMAGES)])
  first = np.bincount(read[:, 0], minlength=NUM_IMAGES)
  for counts in (left_out, first):
    expected = counts.sum() / NUM_IMAGES
    # χ² with 22 degrees of freedom has mean 22 and standard deviation √44.
    assert np.sum((counts - expected) ** 2) / expected < 22 + 5 * 44**0.5


def test_only_the_records_of_the_indices_are_read(constant):
  part, held_out = split(NUM_IMAGES, 0.3, seed=0)

  assert sorted(colours(take(stream(constant, part, batch_size=2), 8))) == sorted(part)
  assert colours(take(stream(constant, held_out, batch_size=7, train=False), 1)) == held_out.tolist()


def test_the_seed_decides(textured, constant):
  for records in (textured, constant):
    assert_equal(take(stream(records), 12), take(stream(records), 12))
  assert colours(take(stream(constant, seed=1), 5)) != colours(take(stream(constant), 5))
  other, same = take(stream(textured, seed=1), 5), take(stream(textured), 5)
  assert not any(np.array_equal(batch.images, its.images) for batch, its in zip(other, same, strict=True))


@pytest.mark.parametrize('start_step', [1, 5, 7])
@pytest.mark.parametrize('train', [True, False])
def test_starting_in_the_middle_is_going_on(textured, constant, start_step, train):
  for records in (textured, constant):
    source = stream(records, train=train, batch_size=2, num_threads=2)
    uninterrupted = take(source, 11)

    assert_equal(take(source, 11 - start_step, start_step), uninterrupted[start_step:])


def test_starting_late_reads_nothing_before(constant):
  class Counting:
    classes, labels, name = constant.classes, constant.labels, constant.name
    loads = 0

    def __len__(self):
      return len(constant)

    def load(self, index):
      self.loads += 1
      return constant.load(index)

  records = Counting()
  source = stream(records, num_threads=2)

  late = take(source, 2, start_step=10**9)

  assert records.loads < 50
  assert_equal(take(source, 1, start_step=10**9 + 1), late[1:])


@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize('process_count', [2, 3, 4])
def test_processes_share_the_global_batch(textured, process_count, train):
  indices = np.arange(100) % NUM_IMAGES
  settings = {'batch_size': 48, 'train': train}

  parts = [
    take(stream(textured, indices, process_index=index, process_count=process_count, **settings), 3)
    for index in range(process_count)
  ]

  whole = take(stream(textured, indices, **settings), 3)
  assert all(len(batch.images) == 48 // process_count for part in parts for batch in part)
  assert_equal(
    [type(whole[0])(*map(np.concatenate, zip(*step, strict=True))) for step in zip(*parts, strict=True)], whole
  )


@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize('num_threads', [1, 3])
def test_threads_do_not_change_batches(textured, num_threads, train):
  settings = {'batch_size': 48, 'train': train, 'indices': np.arange(100) % NUM_IMAGES}

  assert_equal(take(stream(textured, num_threads=num_threads, **settings), 3), take(stream(textured, **settings), 3))


def test_workers_do_not_change_batches_and_leave_signals_to_the_parent(textured):
  settings = {'batch_size': 48, 'indices': np.arange(100) % NUM_IMAGES}
  expected = take(stream(textured, **settings), 6, start_step=3)

  batches = stream(textured, num_workers=2, num_threads=1, **settings).batches(start_step=3)
  read = [next(batches)]
  workers = multiprocessing.active_children()
  for worker, number in itertools.product(workers, (signal.SIGINT, signal.SIGTERM)):
    os.kill(worker.pid, number)
  read += [next(batches) for _ in range(5)]
  batches.close()

  assert len(workers) == 2
  assert_equal(read, expected)
  assert not multiprocessing.active_children()


def test_more_workers_than_there_is_to_read(constant):
  batches = list(stream(constant, np.arange(3), train=False, num_workers=2).batches())

  assert_equal(batches, list(stream(constant, np.arange(3), train=False).batches()))
  assert not multiprocessing.active_children()


_KILLED = """
import os, signal, sys
from darts_jax.data.records import image_folder
from darts_jax.data.stream import Stream

if __name__ == '__main__':
  records = image_folder(sys.argv[1])
  batches = Stream(records, range(23), batch_size=4, image_size=4, train=True, seed=0, num_workers=2).batches()
  next(batches)
  print('read', flush=True)
  os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_killed_parent(tmp_path, constant):
  script = tmp_path / 'killed.py'
  script.write_text(_KILLED)
  folder = pathlib.Path(constant.name(0)).parents[2]

  # The output ends when the last process that could write to it does.
  done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, timeout=60, check=False)

  assert done.stdout == 'read\n'
  assert done.returncode == -signal.SIGKILL


def test_closing_stops_the_threads(constant):
  def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith('grain-prefetch')]

  before = set(readers())
  batches = stream(constant, num_threads=3).batches()
  next(batches)
  started = set(readers()) - before
  batches.close()

  assert len(started) == 3
  for thread in started:
    thread.join(timeout=30)
  assert not any(thread.is_alive() for thread in started)
  with pytest.raises(StopIteration):
    next(batches)


def test_evaluation_reads_every_image_in_order(constant):
  indices = np.arange(NUM_IMAGES)[::-1]
  source = stream(constant, indices, train=False)
  assert source.steps_per_epoch == 6

  batches = list(source.batches())

  counts = np.concatenate([batch.counts for batch in batches])
  assert counts.tolist() == [True] * 23 + [False]
  assert colours(batches) == [*indices, 0]
  assert np.concatenate([batch.labels for batch in batches]).tolist() == [*(index // 8 for index in indices), 0]
  assert (np.concatenate([batch.damaged for batch in batches]) == -1).all()
  for start_step in (6, 100):
    assert list(source.batches(start_step)) == []


def test_a_last_batch_without_rows_for_a_process(constant):
  sizes = {index: stream(constant, np.arange(5), train=False, process_index=index, process_count=2) for index in (0, 1)}

  assert [batch.counts.tolist() for batch in sizes[0].batches()] == [[True, True], [True, False]]
  assert [batch.counts.tolist() for batch in sizes[1].batches()] == [[True, True], [False, False]]


def crop(image):
  """The box, in whole pixels, of an image made from the ramps."""
  edges = []
  for levels in (image[:, :, 0].mean(axis=0), image[:, :, 1].mean(axis=1)):
    # The filter is cut off at the borders of the image, but does not shift a ramp elsewhere.
    pixels = levels[3:-3].astype(float) / 4 + 0.5
    length = (pixels[-1] - pixels[0]) * len(levels) / (len(pixels) - 1)
    edges.append((round(pixels.mean() - length / 2), round(pixels.mean() + length / 2)))
  (left, right), (top, bottom) = edges
  return left, top, right, bottom


def test_training_images_are_random_crops(textured):
  batches = take(stream(textured, image_size=16), 50)
  images = np.concatenate([batch.images for batch in batches])

  boxes = [crop(image) for image in images]

  for image, box in zip(images, boxes, strict=True):
    np.testing.assert_array_equal(decode(encoded(ramps()), 16, lambda *_, box=box: box), image)
  assert len(set(boxes)) > 190
  left, top, right, bottom = np.array(boxes).T
  assert left.min() == top.min() == 0
  assert right.max() == WIDTH
  assert bottom.max() == HEIGHT


def kolmogorov(values, low, high):
  """Largest distance of the distribution from a uniform one, times √n; above 1.95 with probability 0.001."""
  uniform = (np.sort(values) - low) / (high - low)
  return np.abs(uniform - (np.arange(len(values)) + 0.5) / len(values)).max() * len(values) ** 0.5


def draw_boxes(width, height, number):
  generator = np.random.default_rng(0)
  return np.array([random_box(generator, width, height) for _ in range(number)])


def test_distribution_of_areas_aspects_and_places():
  side, number = 10000, 5000
  left, top, right, bottom = draw_boxes(side, side, number).T
  widths, heights = right - left, bottom - top
  areas, aspects = widths * heights / side**2, np.log(widths / heights)

  assert left.min() >= 0
  assert top.min() >= 0
  assert right.max() <= side
  assert bottom.max() <= side
  # A box of area a and aspect r fits into the unit square if a ≤ r ≤ 1/a: always up to an area of 3/4, and beyond it
  # with probability -log(a) / log(4/3).
  small = areas <= 0.75
  limit = np.log(4 / 3)
  assert kolmogorov(areas[small], 0.08, 0.75) < 1.95
  assert kolmogorov(aspects[small], -limit, limit) < 1.95
  assert np.abs(aspects).max() < limit + 1e-3
  below, above = (0.75 - 0.08) * limit, 0.25 + 0.75 * np.log(0.75)
  expected = below / (below + above)
  assert abs(small.mean() - expected) < 4 * (expected * (1 - expected) / number) ** 0.5
  rows, columns = top / (side - heights + 1), left / (side - widths + 1)
  assert kolmogorov(rows, 0, 1) < 1.95
  assert kolmogorov(columns, 0, 1) < 1.95
  correlations = np.corrcoef([areas[small], aspects[small], rows[small], columns[small]])[np.triu_indices(4, 1)]
  assert np.abs(correlations).max() < 4 / small.sum() ** 0.5


@pytest.mark.parametrize('transposed', [False, True])
def test_after_ten_tries_the_centre_is_taken(transposed):
  width, height, number = 6000, 1000, 6000
  boxes = draw_boxes(*((height, width) if transposed else (width, height)), number)
  boxes = boxes[:, [1, 0, 3, 2]] if transposed else boxes

  # A box of aspect r fits up to an area of r/6 of the image, and r is log-uniform from 3/4 to 4/3.
  fits = ((4 / 3 - 3 / 4) / 6 / np.log(16 / 9) - 0.08) / 0.92
  expected = (1 - fits) ** 10
  centred = np.all(boxes == (2333, 0, 3666, 1000), axis=1)
  assert abs(centred.mean() - expected) < 4 * (expected * (1 - expected) / number) ** 0.5
  assert (boxes[:, 3] <= height).all()


@pytest.mark.parametrize('shape', [(1, 1), (1, 1000), (1000, 1), (2, 3)])
def test_boxes_of_images_of_a_few_pixels(shape):
  for left, top, right, bottom in draw_boxes(*shape, 100):
    assert 0 <= left < right <= shape[0]
    assert 0 <= top < bottom <= shape[1]
  pixels = np.full((*shape[::-1], 3), 9, np.uint8)
  for choose_box in (lambda width, height: centre_box(width, height, 5), lambda *_: (0, 0, *shape)):
    np.testing.assert_array_equal(decode(encoded(pixels), 5, choose_box), np.full((5, 5, 3), 9))


@pytest.mark.parametrize('shape', [(96, 48), (48, 96), (64, 64), (32, 32), (16, 24)])
def test_evaluation_resizes_the_shorter_side_and_cuts_the_centre_out(tmp_path, shape):
  size, shorter = 28, 32  # 256/224 of it.
  image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape[::-1], 3), np.uint8))
  scale = shorter / min(shape)
  whole = image.resize((round(shape[0] * scale), round(shape[1] * scale)), Image.Resampling.BILINEAR)
  left, top = (whole.width - size) // 2, (whole.height - size) // 2
  expected = np.asarray(whole.crop((left, top, left + size, top + size))).astype(int)
  other = encoded(np.zeros((4, 4, 3), np.uint8))
  records = write(tmp_path, [encoded(image), *[other] * 8])

  [batch] = take(stream(records, image_size=size, train=False), 1)

  assert whole.size[0] / shape[0] == whole.size[1] / shape[1]
  assert np.abs(batch.images[0] - expected).max() <= 1


def resized(pixels, size, box):
  """The triangle filter, as wide as two pixels of the coarser of input and output, in double precision."""
  left, top, right, bottom = box
  result = pixels.astype(float)
  for axis, start, end in ((0, top, bottom), (1, left, right)):
    scale = (end - start) / size
    centres = start + (np.arange(size) + 0.5) * scale
    distances = np.abs(np.arange(pixels.shape[axis]) + 0.5 - centres[:, None])
    weights = np.clip(1 - distances / max(scale, 1), 0, None)
    weights /= weights.sum(axis=1, keepdims=True)
    result = np.moveaxis(np.tensordot(weights, result, (1, axis)), 0, axis)
  return result


@pytest.mark.parametrize('box', [(0, 0, 50, 40), (7, 3, 47, 38), (20.5, 10.25, 29.5, 18.5), (3, 30, 5, 33)])
def test_a_box_is_resized_by_an_antialiasing_filter(box):
  pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)

  result = decode(encoded(pixels), 8, lambda *size: box if size == (50, 40) else None)

  assert result.dtype == np.uint8
  # Each of the two passes is rounded.
  assert np.abs(result - resized(pixels, 8, box)).max() < 1.1


@pytest.mark.parametrize('box', [(0, 0, 1003, 701), (101, 53, 837, 661), (300, 200, 611, 470)])
def test_a_large_jpeg_decoded_at_a_smaller_scale(box):
  rows, columns = np.mgrid[:701, :1003]
  waves = [np.sin(columns / 20), np.cos(rows / 20), np.sin((rows + columns) / 30)]
  content = encoded((128 + 100 * np.stack(waves, axis=2)).astype(np.uint8), 'JPEG', quality=95)
  pixels = np.asarray(Image.open(io.BytesIO(content)))

  result = decode(content, 32, lambda *size: box if size == (1003, 701) else None)

  # A pixel further to a side would be up to five levels. Right and below, a JPEG ends with a block that it fills up.
  distance = np.abs(result - resized(pixels, 32, box))
  assert distance[:-1, :-1].max() < 3
  assert distance.mean() < 0.7
  assert not np.array_equal(result, decode(encoded(pixels), 32, lambda *_: box))


def palette(transparency=None):
  image = Image.new('P', (8, 8), 2)
  image.putpalette([0, 0, 0, 9, 9, 9, 200, 100, 50])
  if transparency is not None:
    image.info['transparency'] = transparency
  return image


@pytest.mark.parametrize(
  ('image', 'options', 'colour'),
  [
    (Image.new('L', (8, 8), 77), {}, (77, 77, 77)),
    (Image.new('L', (8, 8), 77), {'file_format': 'JPEG'}, (77, 77, 77)),
    (Image.new('1', (8, 8), 1), {}, (255, 255, 255)),
    (Image.new('LA', (8, 8), (77, 3)), {}, (77, 77, 77)),
    (Image.new('RGBA', (8, 8), (200, 100, 50, 3)), {}, (200, 100, 50)),
    (Image.new('RGB', (8, 8), (200, 100, 50)), {'transparency': (200, 100, 50)}, (200, 100, 50)),
    (palette(), {}, (200, 100, 50)),
    (palette(transparency=2), {}, (200, 100, 50)),
    (palette(transparency=b'\x00\x10\x20'), {}, (200, 100, 50)),
    (Image.new('CMYK', (8, 8), (0, 255, 255, 0)), {'file_format': 'JPEG'}, (255, 0, 0)),
    (np.full((8, 8), 77 * 256 + 5, np.uint16), {}, (77, 77, 77)),
  ],
)
def test_every_kind_of_image_becomes_rgb(image, options, colour):
  result = decode(encoded(image, **options), 4, lambda *size: (0, 0, *size))

  np.testing.assert_array_equal(result, np.broadcast_to(colour, (4, 4, 3)))


CASES = pathlib.Path(__file__).parents[1] / 'cases'


def tiff(pixels, photometric=1):
  return encoded(pixels, 'TIFF', tiffinfo={262: photometric})


def tiff_of_12_bits(value):
  pixels = (value << 12 | value).to_bytes(3, 'big') * 32
  short, long = 3, 4
  tags = [(256, 8), (257, 8), (258, 12), (259, 1), (262, 1), (273, 122), (277, 1), (278, 8), (279, len(pixels))]
  entries = [struct.pack('<HHII', tag, long if tag == 273 else short, 1, number) for tag, number in tags]
  return b'II*\0\x08\0\0\0' + struct.pack('<H', len(tags)) + b''.join(entries) + bytes(4) + pixels


def pgm(maximum, value):
  return b'P5 8 8 %d\n' % maximum + np.full((8, 8), value, '>u2').tobytes()


GREY = np.full((8, 8), 200, np.uint8)


@pytest.mark.parametrize(
  ('content', 'level'),
  [
    ((CASES / 'pgm16.pgm').read_bytes(), 200),
    ((CASES / 'f32_01.tif').read_bytes(), 200),
    (pgm(65535, 51400), 200),
    (pgm(4095, 3212), 200),
    (b'P2 8 8 4095\n' + b'3212 ' * 64, 200),
    (tiff(GREY * np.uint16(257)), 200),
    (tiff((GREY * np.uint16(257)).astype('>u2')), 200),
    (tiff(GREY * np.uint16(257), photometric=0), 55),
    (tiff(GREY / np.float32(255)), 200),
    (tiff(GREY / np.float32(255), photometric=0), 55),
    (tiff(np.ones((8, 8), np.float32)), 255),
    (tiff_of_12_bits(0xC8C), 200),
  ],
)
def test_grey_of_more_than_eight_bits_is_scaled(content, level):
  result = decode(content, 4, lambda *size: (0, 0, *size))

  np.testing.assert_array_equal(result, np.full((4, 4, 3), level))


@pytest.mark.parametrize(
  'content',
  [
    tiff(GREY.astype(np.float32)),
    tiff(np.full((8, 8), -0.1, np.float32)),
    tiff(np.full((8, 8), np.nan, np.float32)),
    tiff(np.full((8, 8), 200, np.int32)),
    tiff(np.full((8, 8), 2**24, np.int32)),
  ],
)
def test_grey_of_unknown_range_is_not_decoded(content):
  assert decode(content, 4, lambda *size: (0, 0, *size)) is None


POSTSCRIPT = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n0 0 8 8 rectfill\nshowpage\n%%EOF\n'


def test_no_image_starts_a_program(tmp_path, monkeypatch):
  from PIL import EpsImagePlugin

  started = []
  monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', lambda *arguments, **options: started.append(arguments))
  records = write(tmp_path, [of_one_colour(index) for index in range(9)])
  path = pathlib.Path(records.name(4)).with_suffix('.jpg')
  pathlib.Path(records.name(4)).unlink()
  path.write_bytes(POSTSCRIPT)

  batches = list(stream(image_folder(tmp_path), train=False).batches())

  assert np.concatenate([batch.damaged for batch in batches]).tolist() == [-1] * 4 + [4] + [-1] * 7
  assert not started


NOISE = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
DAMAGED = {
  'empty': b'',
  'text': b'404 Not Found',
  'truncated JPEG': encoded(NOISE, 'JPEG')[:-500],
  'header of a JPEG': encoded(NOISE, 'JPEG')[:200],
  'truncated PNG': encoded(NOISE)[:-500],
  'PNG with a wrong checksum': encoded(NOISE)[:100] + b'\x00' * 50 + encoded(NOISE)[150:],
  'PPM of a single pixel': b'P3 4 4 255\n1 2 3',
  'TIFF of nothing': b'II*\x00\x08\x00\x00\x00\x00\x00',
}


@pytest.mark.parametrize('content', DAMAGED.values(), ids=DAMAGED)
def test_what_cannot_be_decoded(content):
  assert decode(content, 4, lambda *size: (0, 0, *size)) is None


@pytest.fixture(scope='module')
def some_damaged(tmp_path_factory):
  contents = [of_one_colour(index) for index in range(NUM_IMAGES)]
  for index, damage in zip((5, 6, 11, 20), DAMAGED.values(), strict=False):
    contents[index] = damage
  return write(tmp_path_factory.mktemp('damaged'), contents)


def test_damaged_records_are_replaced_in_training(constant, some_damaged):
  # 11 comes after 5, both are followed by 3, and 20 comes last, followed by the first.
  indices = np.array([9, 5, 11, 3, 6, 22, 0, 8, 1, 20])
  following = {5: 3, 11: 3, 6: 22, 20: 9}
  expected = colours(take(stream(constant, indices, batch_size=1), 20))

  batches = take(stream(some_damaged, indices, batch_size=1), 20)

  assert colours(batches) == [following.get(index, index) for index in expected]
  assert [int(batch.labels[0]) for batch in batches] == [following.get(index, index) // 8 for index in expected]
  assert [int(batch.damaged[0]) for batch in batches] == [index if index in following else -1 for index in expected]
  assert all(batch.counts.all() for batch in batches)


def test_damaged_records_are_left_out_in_evaluation(some_damaged):
  batches = list(stream(some_damaged, train=False, num_threads=2).batches())

  damaged = np.concatenate([batch.damaged for batch in batches])
  assert [some_damaged.name(index)[-7:-4] for index in damaged[damaged >= 0]] == ['005', '006', '011', '020']
  np.testing.assert_array_equal(np.flatnonzero(damaged >= 0), damaged[damaged >= 0])
  counts = np.concatenate([batch.counts for batch in batches])
  assert np.flatnonzero(~counts).tolist() == [5, 6, 11, 20, 23]
  assert colours(batches) == [index if counts[index] else 0 for index in range(24)]


def test_no_image_can_be_decoded(some_damaged):
  # Not `match`, which reads the note about tracebacks that Grain adds, too.
  with pytest.raises(ValueError) as error:  # noqa: PT011
    take(stream(some_damaged, np.array([5, 11]), batch_size=2, num_threads=2), 1)
  assert re.fullmatch(r'.*0(05|11)\.png: cannot be decoded, nor can any other of the training images', str(error.value))


@pytest.mark.parametrize(
  ('train', 'fields'),
  [
    (True, {'num_threads': 0}),
    (False, {'num_threads': 2}),
    (True, {'num_threads': 1, 'num_workers': 1}),
  ],
)
def test_a_file_that_vanished_ends_the_stream(tmp_path, train, fields):
  records = write(tmp_path, [of_one_colour(index) for index in range(9)])
  pathlib.Path(records.name(7)).unlink()

  with pytest.raises(ValueError) as error:  # noqa: PT011
    take(stream(records, batch_size=9, train=train, **fields), 1)
  assert str(error.value) == f'{records.name(7)}: cannot be read (No such file or directory)'


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'batch_size': 0}, 'config.batch_size is 0; it has to be at least 1'),
    ({'image_size': 0}, 'config.data.image_size is 0; it has to be at least 1'),
    ({'seed': -1}, 'config.seed is -1; it has to be at least 0'),
    ({'num_threads': -1}, 'config.data.num_threads is -1; it has to be at least 0'),
    ({'num_workers': -1}, 'config.data.num_workers is -1; it has to be at least 0'),
    ({'process_count': 3}, 'config.batch_size is 4; it has to be a multiple of the 3 processes'),
    ({'batch_size': 24}, 'config.batch_size is 24, but there are 23 images'),
    ({'indices': np.zeros(0, int), 'train': False}, 'config.batch_size is 4, but there are 0 images'),
  ],
)
def test_fields_that_are_not_allowed(constant, fields, message):
  with pytest.raises(ValueError, match=f'^{message}$'):
    stream(constant, **fields)


def test_a_negative_step_is_refused_at_once(constant):
  with pytest.raises(ValueError, match='^start_step is -1; it has to be at least 0$'):
    stream(constant).batches(-1)


@pytest.mark.parametrize('package', ['grain', 'PIL'])
def test_without_the_packages(constant, monkeypatch, package):
  monkeypatch.setitem(sys.modules, package, None)

  with pytest.raises(ValueError, match=r'^streaming images needs: pip install darts_jax\[stream\] \('):
    stream(constant)


def test_a_large_image_is_opened_without_a_warning():
  with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter('always')
    # Its filter is gone while a test runs.
    importlib.reload(decoding)
    assert decoding.open_image(b'P5 10000 10000 255\n').size == (10_000, 10_000)
  assert seen == []
