"""A course of training: all that decides a run, with nothing left open.

Knows: what belongs to it. Does not know how any of it is chosen (`utils.settings`, `utils.preflight`) or carried out
(`utils.finetuning`). A dry run comes this far without what trains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from utils.dataset import TrainingData
    from utils.loading import Base
    from utils.preflight import Preflight
    from utils.schedule import Steps
    from utils.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Course:
    """What a run is made of."""

    chosen: Settings
    base: Base
    tokenizer: Any
    data: TrainingData
    steps: Steps
    foreseen: Preflight
    """The micro-batches, and whether activations are computed twice."""
