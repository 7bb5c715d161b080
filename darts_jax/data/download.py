"""Fetches published files and proves that they are what was published."""

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
  """Reads a file from its start to its end and rewinds it.

  Raises:
    ValueError: if its SHA-256 is not the expected hexadecimal digest.
  """
  file.seek(0)
  found = hashlib.file_digest(file, 'sha256').hexdigest()
  if found != expected:
    raise ValueError(f'{source}: SHA-256 is {found}, expected {expected}; delete the file and fetch it again')
  file.seek(0)


def fetch(url: str, path: pathlib.Path, sha256: str) -> None:
  """Downloads a file; under its name it appears whole and verified or not at all.

  Args:
    url: where it is fetched.
    path: where it is put; missing folders are made.
    sha256: its hexadecimal digest.

  Raises:
    ValueError: if it cannot be fetched or written, or its digest is not the expected one.
  """
  # A name of its own for every process: several may fetch the same file into one folder at once.
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
