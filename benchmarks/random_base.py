"""A base and rows that are drawn, not read: for a machine without network and data.

Knows: how a model of any size gets random weights on its device, quantised or not, and how long the rows of a real
mixture are. Does not know what is measured with them.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from utils import loading
from utils.distributed import DTYPES
from utils.proof import IGNORED, Encoded

MEAN, SPREAD, SHORTEST, LONGEST, TRAINED = 151, 0.357, 60, 512, 0.34
"""Tokens of a row, and the share of them that is trained: log-normal, with the mean (151) and the 95th percentile (255)
of the 33,439 rows of the FLAN CoT mixture in LLaMA's tokens, of which 34 % are trained."""
ROWS = f"synthetic: log-normal lengths, mean {MEAN}, spread {SPREAD}, {SHORTEST} to {LONGEST}, {TRAINED:.0%} trained"


@dataclass(frozen=True, kw_only=True)
class RandomBase(loading.Base):
    """A base that is not read but drawn."""

    def load(self) -> Any:
        """As `Base.load`, with random weights. At no time is more than one layer's matrix there in 16 bits."""
        from accelerate import init_empty_weights
        from transformers import AutoModelForCausalLM

        quantization = loading._quantization(self.quantization_bit, self.precision)
        with init_empty_weights(include_buffers=False):
            model: Any = AutoModelForCausalLM.from_config(self.config(), dtype=DTYPES[self.precision])
        quantizer: Any = None
        if quantization:
            from transformers.quantizers.auto import AutoHfQuantizer

            quantizer = model.hf_quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=False)
            quantizer.preprocess_model(model, device_map=None)
        torch.manual_seed(0)
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, self._drawn(name, parameter))
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(self.device)
        if quantizer:
            quantizer.postprocess_model(model)
        loading.keep_4bit_unpacked(model)
        model.requires_grad_(False)
        model.config.use_cache = False
        return model

    def _drawn(self, name: str, parameter: Any) -> Any:
        value = torch.empty(parameter.shape, dtype=DTYPES[self.precision], device=self.device)
        if parameter.dim() > 1:
            value.normal_(std=0.02)
        else:
            value.fill_(name == "weight")
        if type(parameter) is nn.Parameter:
            return nn.Parameter(value, requires_grad=False)
        return type(parameter)(value, requires_grad=False, **vars(parameter))._quantize(self.device)


def random_rows(number: int, *, vocabulary: int) -> list[Encoded]:
    """`number` rows of random ids, the same at every call; one of them is as long as a row may be."""
    drawn = random.Random(0)
    centre = math.log(MEAN) - SPREAD**2 / 2
    lengths = [min(LONGEST, max(SHORTEST, round(drawn.lognormvariate(centre, SPREAD)))) for _ in range(number - 1)]
    rows = []
    for i, length in enumerate([LONGEST, *lengths], start=1):
        ids = [drawn.randrange(4, vocabulary) for _ in range(length)]
        prompt = round(length * (1 - TRAINED))
        labels = [IGNORED] * prompt + ids[prompt:]
        rows.append(Encoded(input_ids=ids, labels=labels, origin=f"synthetic row {i}", source="synthetic"))
    return rows
