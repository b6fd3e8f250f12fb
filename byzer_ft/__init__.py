"""Fine-tune and serve language models from SQL."""

__version__ = "0.1.0"
