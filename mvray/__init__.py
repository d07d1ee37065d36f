"""mvray: distributed training on Ray for methods about where a network looks and how it groups what it sees."""

__version__ = "0.1.0"
