"""Upper limits of numbers in settings, files and flags.

They are far above any realistic value, and small enough that work or memory in proportion to one of them neither
overflows nor takes for ever. They do not ensure that a combination of values fits into memory.
"""

#: Sizes of networks.
CHANNELS, LAYERS, STEM_MULTIPLIER, WIDTH = 2048, 200, 64, 2**14
#: Numbers of candidate operations and of kinds of cells of a space.
OPERATIONS, CELLS = 100, 10
#: Numbers of intermediate nodes of a cell, and of edges of a cell with that many nodes.
NODES = 20
EDGES = NODES * (NODES + 3) // 2
#: Numbers of classes, of channels of an image, and of words of a vocabulary.
CLASSES, IMAGE_CHANNELS, WORDS = 10**6, 10**6, 10**7
#: Sizes in pixels.
IMAGE_SIZE, CROP_PADDING, CUTOUT = 4096, 256, 4096
#: Numbers of examples of a batch, and of time steps of a sequence.
BATCH, BPTT = 2**20, 10_000
#: Number of threads, or of processes.
WORKERS = 256
#: Numbers of epochs; of steps of anything that has no epochs; of runs, one after the other or side by side.
EPOCHS, STEPS, RUNS = 20_000, 10**6, 1000
#: Number of steps of a run; int32 counts them.
ALL_STEPS = 2**31 - 1
#: Number of architectures that a search evaluates.
TRIALS = 10**6
#: Number of inner steps, terms or iterations of a hypergradient estimator.
INNER_STEPS = 1000
#: Numbers that are only compared with a count; nothing of that size is allocated.
COUNT = 10**9
#: Seeds are below this number.
SEEDS = 2**32
#: Factors such as learning rates, and bounds of norms (where a huge one means no bound). The largest float32 is
#: slightly above it.
FACTOR = 3e38


def check_steps(epochs: int, steps: int) -> None:
  """Raises a ValueError if `steps`, the steps of all epochs, do not fit into int32."""
  if steps > ALL_STEPS:
    raise ValueError(f'config.epochs: {epochs} are {steps} steps; at most {ALL_STEPS} are allowed')
