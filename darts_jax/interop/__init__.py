"""Import of published weights, and export of trained networks to formats of other systems."""
