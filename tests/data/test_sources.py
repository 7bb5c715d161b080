import http.server
import threading

import pytest

from darts_jax.data import images
from darts_jax.data.official import OFFICIAL


@pytest.mark.parametrize('name', OFFICIAL)
def test_folder_without_dataset(tmp_path, name):
  with pytest.raises(ValueError, match=rf"^config.data.dir '{tmp_path}' holds no {name}: [^\n]* config.data.download"):
    images.load(name, directory=str(tmp_path))


@pytest.mark.parametrize('download', [True, False])
def test_folder_not_named(download):
  with pytest.raises(ValueError, match=r'config.data.dir is not set'):
    images.load('cifar10', download=download)


def test_home_folder(tmp_path, monkeypatch, mnist):
  mnist.write_mnist(tmp_path / 'data', compressed=True)
  monkeypatch.setenv('HOME', str(tmp_path))

  assert mnist.is_equal(images.load('mnist', directory='~/data'))


def test_download_of_cifar(tmp_path, cifar):
  archive = cifar.write_cifar_archive(tmp_path / 'server', 'binary')
  cifar.change(url=f'{(tmp_path / "server").as_uri()}/')
  here = tmp_path / 'new' / 'folder'

  loaded = images.load(cifar.name, directory=str(here), download=True)

  assert cifar.is_equal(loaded)
  assert [path.name for path in here.iterdir()] == [archive.name]
  assert (here / archive.name).read_bytes() == archive.read_bytes()


def test_download_is_not_repeated(tmp_path, cifar10):
  cifar10.write_cifar_folder(tmp_path, 'python')
  cifar10.change(url='file:///nowhere/')

  assert cifar10.is_equal(images.load('cifar10', directory=str(tmp_path), download=True))


def test_download_of_mnist_goes_on_where_it_stopped(tmp_path, mnist):
  paths = mnist.write_mnist(tmp_path / 'server', compressed=True)
  mnist.change(url=f'{(tmp_path / "server").as_uri()}/')
  here = tmp_path / 'here'
  here.mkdir()
  paths[0].rename(here / paths[0].name)

  assert mnist.is_equal(images.load('mnist', directory=str(here), download=True))
  assert {path.name for path in here.iterdir()} == {path.name for path in paths}


def test_download_with_another_checksum(tmp_path, cifar10):
  archive = cifar10.write_cifar_archive(tmp_path / 'server', 'binary')
  expected = OFFICIAL['cifar10'].sha256[archive.name]
  archive.write_bytes(archive.read_bytes() + b'more')
  cifar10.change(url=f'{(tmp_path / "server").as_uri()}/')

  with pytest.raises(ValueError, match=f'file://.*{archive.name}: SHA-256 is [0-9a-f]{{64}}, expected {expected}'):
    images.load('cifar10', directory=str(tmp_path / 'here'), download=True)

  assert not list((tmp_path / 'here').iterdir())


def test_download_that_fails(tmp_path, cifar10):
  cifar10.change(url=f'{(tmp_path / "server").as_uri()}/')

  with pytest.raises(ValueError, match=r'cifar-10-binary.tar.gz: cannot be downloaded to .*here'):
    images.load('cifar10', directory=str(tmp_path / 'here'), download=True)

  assert not list((tmp_path / 'here').iterdir())


def test_download_into_a_file(tmp_path, cifar10):
  (tmp_path / 'file').write_text('')
  cifar10.write_cifar_archive(tmp_path / 'server', 'binary')
  cifar10.change(url=f'{(tmp_path / "server").as_uri()}/')

  with pytest.raises(ValueError, match=r'cannot be downloaded to .*file'):
    images.load('cifar10', directory=str(tmp_path / 'file'), download=True)


@pytest.mark.parametrize(('status', 'message'), [(404, 'cannot be downloaded to .*404'), (200, 'SHA-256')])
def test_download_from_a_failing_server(tmp_path, cifar10, status, message):
  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      self.send_response(status)
      self.send_header('Content-Length', '1000')
      self.end_headers()
      self.wfile.write(b'cut off')

    def log_message(self, *_):
      pass

  with http.server.HTTPServer(('127.0.0.1', 0), Handler) as server:
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
    thread.start()
    try:
      cifar10.change(url=f'http://127.0.0.1:{server.server_port}/')
      with pytest.raises(ValueError, match=f'cifar-10-binary.tar.gz: {message}'):
        images.load('cifar10', directory=str(tmp_path), download=True)
    finally:
      server.shutdown()
      thread.join()

  assert not list(tmp_path.iterdir())
