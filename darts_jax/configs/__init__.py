"""The configs of the package, such as `darts_jax.configs.cifar`.

In a checkout they lie in the folder `configs` beside the package; setup.py puts that folder here in a wheel, in the
place of this file.
"""

import pathlib

__path__.append(str(pathlib.Path(__file__).parents[2] / 'configs'))
