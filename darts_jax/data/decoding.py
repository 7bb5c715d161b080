"""Opens encoded images, but only in the usual formats of photographs.

By default Pillow recognises every format that it knows by the content of a file, whatever its name; for PostScript it
starts another program.
"""

import io
import warnings
from typing import Any

import numpy as np

# Pillow refuses images of twice the number of pixels of which it warns; the warning is not needed.
warnings.filterwarnings('ignore', r'Image size \(\d+ pixels\) exceeds limit of .* could be decompression bomb')

FORMATS = ('BMP', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')

# Two tags of TIFF files, and the value of the second with which 0 is white.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


def open_image(encoded: bytes) -> Any:
  """Opens a Pillow image without reading its pixels; may raise any exception if its format is not in `FORMATS`."""
  from PIL import Image

  return Image.open(io.BytesIO(encoded), formats=FORMATS)


def to_rgb(image: Any) -> Any:
  """Reads the pixels, and converts them to 8-bit RGB without transparency.

  With 16 bits (or 12, in some TIFF files), the upper 8 bits are kept. Floating-point grey values have to be in 0..1.

  Args:
    image: a Pillow image.

  Returns:
    A Pillow image in mode RGB.

  Raises:
    ValueError: the range of grey values is not known: 32-bit or signed integers, or floating point beyond 0..1.
    Exception: anything that Pillow raises on a damaged image.
  """
  if image.mode[0] in 'IF':  # Pillow would clip at 255.
    image = _eight_bits(image)
  if 'transparency' in image.info:  # Pillow warns if a palette with transparency is converted to RGB directly.
    image = image.convert('RGBA')
  image.load()
  return image if image.mode == 'RGB' else image.convert('RGB')


def _eight_bits(image: Any) -> Any:
  from PIL import Image

  tags = getattr(image, 'tag_v2', {})
  pixels = np.asarray(image)
  if image.mode == 'F':
    # Written so that NaN is refused, too.
    if not (pixels.min() >= 0 and pixels.max() <= 1):
      raise ValueError(f'floating point pixels in {pixels.min()}..{pixels.max()}; allowed: 0..1')
    pixels = np.rint(255 * pixels)
  elif image.mode == 'I' and image.format != 'PPM':  # Pillow scales pixels of PGM files to 16 bits.
    raise ValueError('pixels are 32-bit or signed integers')
  else:
    pixels = pixels >> (tags.get(_BITS_PER_SAMPLE, (16,))[0] - 8)
  grey = pixels.astype(np.uint8)
  return Image.fromarray(255 - grey if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey)
