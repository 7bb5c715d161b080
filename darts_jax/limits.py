"""The largest numbers that settings, files and flags may ask for.

They are far beyond what is trained, and small enough that what is made in proportion to one of them neither overflows
nor takes for ever. Whether a combination of them fits into memory is another question.
"""

#: Of networks.
CHANNELS, LAYERS, STEM_MULTIPLIER, WIDTH = 2048, 200, 64, 2**14
#: Intermediate nodes of a cell, and edges of one with so many.
NODES = 20
EDGES = NODES * (NODES + 3) // 2
#: Of data.
CLASSES, IMAGE_CHANNELS, WORDS = 10**6, 10**6, 10**7
#: Pixels.
IMAGE_SIZE, CROP_PADDING, CUTOUT = 4096, 256, 4096
#: Examples at a time, and time steps.
BATCH, BPTT = 2**20, 10_000
#: Threads, and processes.
WORKERS = 256
#: Passes over data; steps of what has no epochs; runs one after the other, or side by side.
EPOCHS, STEPS, RUNS = 20_000, 10**6, 1000
#: Steps of a run, which are counted in int32.
ALL_STEPS = 2**31 - 1
#: Architectures that are evaluated, one after the other or at once.
TRIALS = 10**6
#: Inner steps that are differentiated, and terms or iterations in their place.
INNER_STEPS = 1000
#: What is compared with a count, and nothing is made of.
COUNT = 10**9
#: Seeds are below it.
SEEDS = 2**32
#: Factors such as learning rates, and bounds of norms, which may stand for no bound. float32 ends a little above it.
FACTOR = 3e38


def check_steps(epochs: int, steps: int) -> None:
  """Raises a ValueError if the steps of all epochs are too many to be counted."""
  if steps > ALL_STEPS:
    raise ValueError(f'config.epochs: {epochs} are {steps} steps; at most {ALL_STEPS} are allowed')
