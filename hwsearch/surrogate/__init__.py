"""How good an architecture is, as far as it can be told without training it: layer importance."""
