"""The frozen part of a base, shared out among processes: each keeps a piece of every decoder layer's matrices.

Knows: FSDP2 of torch, which layers are shared out, what bitsandbytes' layers need for it, and what cannot be shared
out. Does not know flags, files or steps.

Only what is frozen is shared out. What is trained stays whole in every process, and so do the embeddings, the output
head and all vectors: optimizer, checkpoints and saved files are those of a run without it. A layer's pieces are put
together for as long as the layer computes, forward and backward, and there is nothing to send back, for a frozen matrix
has no gradient. accelerate refuses DistributedDataParallel around sharded parameters; gradients are averaged by
`distributed.average_gradients` instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from utils import distributed
from utils.methods import Method

T = TypeVar("T")


def refusal(method: Method, *, quantization_bit: int, world_size: int) -> str | None:
    """Why a run cannot be sharded, with the next step; None: it can."""
    if world_size < 2:
        return "--fsdp shares the base out among processes, and there is one: start several (torchrun), or leave it out"
    if method.trains_base:
        return f"--fsdp shares out what is frozen, and {method.label} freezes nothing: choose --peft_type lora"
    if quantization_bit == 8 and method.fixed.get("use_dora"):
        # Measured: peft then takes the bits for numbers, without a word, and trains something else.
        return f"--fsdp: {method.label} does not find the scales of 8-bit weights: choose --quantization_bit 4 or 16"
    return None


def load_in_turn(load: Callable[[], T], device: torch.device, *, model_of: Callable[[T], Any]) -> T:
    """What `load` makes on the CPU, its model shared out (`shard`). A machine's processes load one after the other, so
    that its memory holds one whole base at a time. Every process calls it, at the same time.

    Args:
        model_of: what `load` made → its model.
    """
    mesh = pieces(device)

    def work() -> T:
        made = load()
        shard(model_of(made), device, mesh)
        return made

    return distributed.in_turn(work)


def pieces(device: torch.device) -> Any:
    """The processes that share a base out among themselves, as a mesh: those of a machine, so that nothing but the
    adapter's gradients crosses the network; all, where each machine has one, or machines have different numbers. Every
    process calls it, at the same time."""
    from torch.distributed.device_mesh import init_device_mesh

    world, sizes = distributed.world_size(), set(distributed.gather(distributed.local_world_size()))
    here = sizes.pop() if len(sizes) == 1 and sizes != {1} else world
    return init_device_mesh(device.type, (world // here, here), mesh_dim_names=("machines", "pieces"))["pieces"]


def shard(model: Any, device: torch.device, mesh: Any) -> None:
    """Brings `model`, loaded on the CPU and with what is trained in it, onto `device`: this process's piece of each
    decoder layer's frozen matrices, and all else whole. One layer at a time is whole there. Waits for no process.

    Args:
        mesh: from `pieces`.

    Raises:
        ValueError: the model has no list of layers.
    """
    from torch.distributed.fsdp import fully_shard

    root, layers = _layers(model)
    _make_plain(layers, device)
    whole = set(model.parameters()) - ({p for p in layers.parameters() if p.dim() > 1} - _of_adapters(model))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    # The root holds nothing itself; it lets one layer's pieces travel while another computes.
    fully_shard(root, mesh=mesh, ignored_params=whole)
    for tensor in (*whole, *model.buffers()):
        tensor.data = tensor.data.to(device)
    for module in model.modules():
        if getattr(module, "hf_device_map", None):
            module.hf_device_map = {"": device}  # accelerate refuses to train what it takes for a model kept on the CPU


def resident_bytes(model: nn.Module) -> int:
    """Bytes of all parameters that lie in this process while no layer computes."""
    from torch.distributed.tensor import DTensor

    local = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    return sum(p.numel() * p.element_size() for p in local)


def _layers(model: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    """The module that runs the decoder layers, and their list: the one that holds most of the parameters."""
    lists = [(module, child) for module in model.modules() for child in module.children()]
    found = [(module, child) for module, child in lists if isinstance(child, nn.ModuleList) and len(child)]
    if not found:
        raise ValueError("--fsdp shares a model's layers out, and this one has no list of layers: leave --fsdp out")
    return max(found, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))


def _of_adapters(model: nn.Module) -> set[nn.Parameter]:
    """What is trained, and what peft keeps beside it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = {p for p in model.parameters() if p.requires_grad}
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            parts = [getattr(layer, name, None) for name in layer.adapter_layer_names]
            found |= {p for part in parts if isinstance(part, nn.Module) for p in part.parameters()}
    return found


def _make_plain(layers: nn.Module, device: torch.device) -> None:
    """Makes the weights of bitsandbytes' layers ordinary tensors of their bits, which can be cut; what turns them into
    numbers (a scale a row, or 64 values; under 4 % of the bytes) stays whole beside them."""
    for module in layers.modules():
        own: Any = module
        # Classes of bitsandbytes, which need not be there to ask.
        kind = type(own._parameters.get("weight")).__name__
        if kind == "Int8Params":
            if own.weight.CB is not None:
                own.init_8bit_state()
            own.state.SCB = own.state.SCB.to(device)
            own.weight = nn.Parameter(own.state.CB, requires_grad=False)
            own.state.CB = None
            own.register_forward_pre_hook(_use_gathered)
        elif kind == "Params4bit":
            own.quant_state = own.weight.quant_state
            own.quant_state.to(device)
            own.weight = nn.Parameter(own.weight.data, requires_grad=False)


def _use_gathered(module: Any, _: Any) -> None:
    """An 8-bit layer computes, forward and backward, with what its state refers to."""
    module.weight.CB, module.state.CB = None, module.weight.data
