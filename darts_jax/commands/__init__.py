"""The commands of the package: `darts-jax NAME`, or `python -m experiments.NAME` in a checkout."""

#: Names of the commands, in the order of a first use, with a line each.
COMMANDS = {
  'search': 'searches for an architecture',
  'train': 'trains the network of an architecture from scratch and tests it',
  'select': 'searches with several seeds, selects by validation, trains the pick',
  'describe': 'counts parameters and multiply-adds of a network and draws its cells',
  'convert': 'converts a checkpoint of the published PyTorch code',
  'export': 'exports a trained network as StableHLO, ONNX or safetensors',
  'hypergradients': 'compares estimators of the hypergradient',
  'configs': 'lists the configs of the package',
  'show': 'prints a config of the package',
  'doctor': 'checks the installation',
  'completion': 'prints a script with which a shell completes these commands',
}
