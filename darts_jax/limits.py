"""The largest numbers that settings, files and flags may ask for.

They are far beyond what is trained, and small enough that what is made in proportion to one of them neither overflows
nor takes for ever. Whether a combination of them fits into memory is another question.
"""

#: Of networks.
CHANNELS, LAYERS, STEM_MULTIPLIER, WIDTH = 4096, 200, 64, 2**14
#: Intermediate nodes of a cell.
NODES = 20
#: Of data.
CLASSES, IMAGE_CHANNELS, WORDS = 2**20, 1024, 2**24
#: Pixels a side.
IMAGE_SIZE, CROP_PADDING, CUTOUT = 4096, 256, 4096
#: Examples at a time.
BATCH = 2**20
#: Passes over data, and runs one after the other.
EPOCHS, RUNS = 20_000, 1000
#: Inner steps that are differentiated, and terms or iterations in their place.
INNER_STEPS = 1000
#: Whatever is only counted up to.
COUNT = 10**9
#: Seeds are below it.
SEEDS = 2**32
#: Factors such as learning rates. float32 has room for products of several of them.
FACTOR = 1e6
