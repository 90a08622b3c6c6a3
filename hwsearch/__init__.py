"""Hardware-aware cost models and architecture search for hybrid language models."""

__all__ = ["__version__"]

__version__ = "0.1.0"
