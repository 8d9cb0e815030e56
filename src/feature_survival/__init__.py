"""feature-survival: what pruning does to the features inside a language model."""

__version__ = "1.0.0"
