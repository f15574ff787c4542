"""Checkpoints whose own code no longer runs, read as a class that does, while they load.

Knows: which checkpoints are another class under other names (`rows`), and how their tensors are read as that class's
(`reading`): by row ranges of the files themselves, so that no remote code runs and nothing is written. Does not know
tokenizers, nor where and in which precision a model is wanted; that is `utils.loading`.
"""

from utils.architectures.reading import load
from utils.architectures.rows import ARCHITECTURES, Architecture, find

__all__ = ["ARCHITECTURES", "Architecture", "find", "load"]
