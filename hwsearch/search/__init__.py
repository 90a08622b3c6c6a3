"""How to find an architecture: the problem, evolution, the exact solver, and the run that keeps them.

Nothing here knows language models or cost models: objectives and budgets are callables over genomes, and any
space that fits `space.Space` can be searched. `engine.search` is the way in.
"""
