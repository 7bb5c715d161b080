"""Downloads published files and verifies their checksums."""

import hashlib
import http.client
import io
import logging
import pathlib
import secrets
import shutil
import urllib.request

_TIMEOUT_SECONDS = 60

_logger = logging.getLogger(__name__)


def check_sha256(file: io.BufferedReader, source: str, expected: str) -> None:
  """Verifies the SHA-256 of a file, and rewinds it.

  Args:
    file: the file.
    source: name of the file, for error messages.
    expected: the hexadecimal digest.

  Raises:
    ValueError: the digest is another one.
  """
  file.seek(0)
  found = hashlib.file_digest(file, 'sha256').hexdigest()
  if found != expected:
    raise ValueError(f'{source}: SHA-256 is {found}, expected {expected}; delete the file and fetch it again')
  file.seek(0)


def fetch(url: str, path: pathlib.Path, sha256: str) -> None:
  """Downloads a file; `path` only ever exists complete and verified.

  Args:
    url: URL of the file.
    path: path of the downloaded file; missing folders are created.
    sha256: hexadecimal digest of the file.

  Raises:
    ValueError: the file cannot be downloaded or written, or its digest is another one.
  """
  # Every process has its own temporary file, since several may download the same file at the same time.
  partial = path.with_name(f'{path.name}.{secrets.token_hex(4)}.partial')
  _logger.info('Downloading %s to %s', url, path)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial.open('xb') as file, urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
      shutil.copyfileobj(response, file)
    with partial.open('rb') as file:
      check_sha256(file, url, sha256)
    partial.replace(path)
  except (OSError, http.client.HTTPException) as error:
    raise ValueError(f'{url}: cannot be downloaded to {path}: {error}') from error
  finally:
    if path.parent.is_dir():
      partial.unlink(missing_ok=True)
