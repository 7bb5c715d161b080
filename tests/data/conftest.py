"""Tiny stand-ins for the published datasets, written in every format in which these are published."""

import dataclasses
import gzip
import hashlib
import io
import json
import pathlib
import pickle
import struct
import tarfile

import numpy as np
import pytest

from darts_jax.data.images import Images
from darts_jax.data.official import OFFICIAL


@dataclasses.dataclass(frozen=True)
class Published:
  """A dataset of a few images, put in the place of the published one of that name."""

  name: str
  x_train: np.ndarray
  y_train: np.ndarray
  x_test: np.ndarray
  y_test: np.ndarray
  monkeypatch: pytest.MonkeyPatch

  def change(self, **changes) -> None:
    self.monkeypatch.setitem(OFFICIAL, self.name, dataclasses.replace(OFFICIAL[self.name], **changes))

  def trust(self, path: pathlib.Path) -> pathlib.Path:
    """Makes the digest of a file the published one of its name."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    self.change(sha256={**OFFICIAL[self.name].sha256, path.name: digest})
    return path

  def is_equal(self, loaded: Images) -> bool:
    return all(
      getattr(loaded, field).dtype == dtype and np.array_equal(getattr(loaded, field), getattr(self, field))
      for field, dtype in (('x_train', np.uint8), ('y_train', np.int32), ('x_test', np.uint8), ('y_test', np.int32))
    )

  def cifar_files(self, packaging: str) -> tuple[str, dict[str, bytes]]:
    """The usual folder of an unpacked archive, and the files in it."""
    if self.name == 'cifar10':
      thirds = [slice(3 * batch, 3 * batch + 3) for batch in range(5)]
      parts = [(f'data_batch_{batch + 1}', self.x_train[at], self.y_train[at]) for batch, at in enumerate(thirds)]
      parts.append(('test_batch', self.x_test, self.y_test))
      folder = {'python': 'cifar-10-batches-py', 'binary': 'cifar-10-batches-bin'}[packaging]
    else:
      parts = [('train', self.x_train, self.y_train), ('test', self.x_test, self.y_test)]
      folder = f'cifar-100-{packaging}'
    if packaging == 'python':
      return folder, {name: pickle.dumps(self.cifar_batch(x, y), protocol=2) for name, x, y in parts}
    return folder, {f'{name}.bin': self.cifar_records(x, y) for name, x, y in parts}

  def cifar_batch(self, x: np.ndarray, y: np.ndarray) -> dict[bytes, object]:
    """[N, 3072] bytes, the red plane of an image first, its rows one after the other."""
    data = np.stack([np.concatenate([image[..., channel].ravel() for channel in range(3)]) for image in x])
    labels = [int(label) for label in y]
    if self.name == 'cifar10':
      return {b'batch_label': b'a batch', b'labels': labels, b'data': data, b'filenames': [b'frog.png'] * len(x)}
    return {b'fine_labels': labels, b'coarse_labels': [label // 5 for label in labels], b'data': data}

  def cifar_records(self, x: np.ndarray, y: np.ndarray) -> bytes:
    content = b''
    for image, label in zip(x, y, strict=True):
      content += bytes([label]) if self.name == 'cifar10' else bytes([label // 5, label])
      content += b''.join(image[..., channel].tobytes() for channel in range(3))
    return content

  def write_cifar_folder(self, directory: pathlib.Path, packaging: str) -> pathlib.Path:
    folder, files = self.cifar_files(packaging)
    (directory / folder).mkdir(parents=True)
    for name, content in files.items():
      (directory / folder / name).write_bytes(content)
    return directory / folder

  def write_cifar_archive(self, directory: pathlib.Path, packaging: str) -> pathlib.Path:
    folder, files = self.cifar_files(packaging)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f'{self.name.replace("cifar", "cifar-")}-{packaging}.tar.gz'
    with tarfile.open(path, 'w:gz') as tar:
      for name, content in {'readme.html': b'about', **files}.items():
        member = tarfile.TarInfo(f'{folder}/{name}')
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return self.trust(path)

  def write_mnist(self, directory: pathlib.Path, compressed: bool) -> list[pathlib.Path]:
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for prefix, x, y in (('train', self.x_train, self.y_train), ('t10k', self.x_test, self.y_test)):
      images = struct.pack('>4I', 2051, len(x), 28, 28) + x.tobytes()
      labels = struct.pack('>2I', 2049, len(y)) + y.astype(np.uint8).tobytes()
      for name, content in ((f'{prefix}-images-idx3-ubyte', images), (f'{prefix}-labels-idx1-ubyte', labels)):
        path = directory / (f'{name}.gz' if compressed else name)
        path.write_bytes(gzip.compress(content) if compressed else content)
        paths.append(self.trust(path))
    return paths

  @staticmethod
  def stored_order(length: int) -> np.ndarray:
    return np.random.default_rng(1).permutation(length)

  def write_tfds(self, folder: pathlib.Path, ids: bool, file_format: str = 'array_record') -> None:
    """A folder as TensorFlow Datasets prepares it, the images in an order of their own."""
    from array_record.python import array_record_module
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    folder.mkdir(parents=True)
    features = 'tensorflow_datasets.core.features'
    content = {
      'image': {
        'pythonClassName': f'{features}.image_feature.Image',
        'image': {'shape': {'dimensions': [str(size) for size in self.x_train.shape[1:]]}, 'dtype': 'uint8'},
      },
      'label': {
        'pythonClassName': f'{features}.class_label_feature.ClassLabel',
        'classLabel': {'numClasses': str(OFFICIAL[self.name].num_classes)},
      },
    }
    if ids:
      content['id'] = {'pythonClassName': f'{features}.text_feature.Text', 'text': {}}
    splits = []
    for split, x, y in (('train', self.x_train, self.y_train), ('test', self.x_test, self.y_test)):
      path = folder / f'{self.name}-{split}.{file_format}-00000-of-00001'
      writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
      for index in self.stored_order(len(x)):
        png = io.BytesIO()
        Image.fromarray(x[index].squeeze()).save(png, 'PNG')
        example = tf_example_pb2.Example()
        example.features.feature['image'].bytes_list.value.append(png.getvalue())
        example.features.feature['label'].int64_list.value.append(y[index])
        if ids:
          example.features.feature['id'].bytes_list.value.append(f'{split}_{index:05d}'.encode())
        writer.write(example.SerializeToString())
      writer.close()
      template = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
      splits.append({'name': split, 'shardLengths': [str(len(x))], 'filepathTemplate': template})
    info = {'name': self.name, 'version': folder.name, 'fileFormat': file_format, 'splits': splits}
    (folder / 'dataset_info.json').write_text(json.dumps(info))
    (folder / 'features.json').write_text(
      json.dumps({'pythonClassName': f'{features}.features_dict.FeaturesDict', 'featuresDict': {'features': content}})
    )


def publish(name: str, num_train: int, num_test: int, monkeypatch: pytest.MonkeyPatch) -> Published:
  official = OFFICIAL[name]
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (num_train + num_test, *official.image_shape), np.uint8)
  labels = rng.integers(0, official.num_classes, num_train + num_test).astype(np.int32)
  labels[num_train:] = labels[:num_test]
  published = Published(
    name, images[:num_train], labels[:num_train], images[num_train:], labels[num_train:], monkeypatch
  )
  published.change(num_train=num_train, num_test=num_test)
  return published


@pytest.fixture(params=['cifar10', 'cifar100'])
def cifar(request, monkeypatch) -> Published:
  return publish(request.param, 15, 4, monkeypatch)


@pytest.fixture
def cifar10(monkeypatch) -> Published:
  return publish('cifar10', 15, 4, monkeypatch)


@pytest.fixture
def mnist(monkeypatch) -> Published:
  return publish('mnist', 12, 5, monkeypatch)
