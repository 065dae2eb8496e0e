"""A course on instruction fine-tuning, in notebooks that run anywhere."""

__version__ = "0.1.0"
