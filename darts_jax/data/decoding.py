"""Opens encoded images, in the formats of photographs only.

Pillow on its own tries every format that it knows by the content of a file, whatever its name; for PostScript it starts
another program.
"""

import io
import warnings
from typing import Any

import numpy as np

# Large images are decoded up to twice the number of pixels that Pillow warns of, and refused beyond.
warnings.filterwarnings('ignore', r'Image size \(\d+ pixels\) exceeds limit of .* could be decompression bomb')

FORMATS = ('BMP', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')

# Tags of a TIFF, and the value of the second that says that 0 is white.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


def open_image(encoded: bytes) -> Any:
  """An image of Pillow whose pixels are not read yet; raises anything if the content has none of `FORMATS`."""
  from PIL import Image

  return Image.open(io.BytesIO(encoded), formats=FORMATS)


def to_rgb(image: Any) -> Any:
  """Reads the pixels, and converts them to 8 bits and RGB; transparency is dropped.

  Of 16 bits (12 in some TIFFs), the upper 8 are kept. Floating point grey is in 0..1.

  Args:
    image: of Pillow.

  Returns:
    An image of Pillow of mode RGB.

  Raises:
    ValueError: on grey values whose range is not known: 32-bit and signed integers, floating point beyond 0..1. Pillow
      raises anything if the image is damaged.
  """
  if image.mode[0] in 'IF':  # Pillow would cut off above 255.
    image = _eight_bits(image)
  if 'transparency' in image.info:  # Pillow warns if a palette with it becomes RGB at once.
    image = image.convert('RGBA')
  image.load()
  return image if image.mode == 'RGB' else image.convert('RGB')


def _eight_bits(image: Any) -> Any:
  from PIL import Image

  tags = getattr(image, 'tag_v2', {})
  pixels = np.asarray(image)
  if image.mode == 'F':
    # NaN is not in the range, either.
    if not (pixels.min() >= 0 and pixels.max() <= 1):
      raise ValueError(f'floating point pixels in {pixels.min()}..{pixels.max()}; allowed: 0..1')
    pixels = np.rint(255 * pixels)
  elif image.mode == 'I' and image.format != 'PPM':  # Those of PGM files were scaled to 16 bits.
    raise ValueError('pixels are 32-bit or signed integers')
  else:
    pixels = pixels >> (tags.get(_BITS_PER_SAMPLE, (16,))[0] - 8)
  grey = pixels.astype(np.uint8)
  return Image.fromarray(255 - grey if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey)
