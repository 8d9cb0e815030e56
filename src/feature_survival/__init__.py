"""feature-survival: what pruning does to the features inside a language model."""

__version__ = "0.1.0"
