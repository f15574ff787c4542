"""How each method is attached to a base, trained by its own rules, and saved.

Knows: what peft is asked for, and what a method wants of a training loop beside a forward pass. Does not know how a
base is loaded, how an adapter is read back, flags or training.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils import adapter_files
from utils.methods import Choice
from utils.targets import cache_shape, check_targets, ia3_layers, matching

STATE = "method_state.safetensors"
"""In a checkpoint, what going on needs and peft does not save."""


class Attached:
    """A base with what is trained in it. This class is right for every method that only needs gradients."""

    def __init__(self, model: Any, choice: Choice) -> None:
        self.model, self.choice = model, choice

    @classmethod
    def fields(cls, model: Any, options: Mapping[str, Any], total_steps: int) -> dict[str, Any]:
        """Fields of peft's configuration that are neither fixed nor an option as it was given."""
        if "lora_target_modules" not in options:
            return {}
        targets = list(options["lora_target_modules"])
        check_targets(model, targets)
        return {"target_modules": "all-linear" if targets == ["all-linear"] else targets}

    @classmethod
    def prepare(cls, model: Any, choice: Choice, total_steps: int) -> Any:
        """`model` with what is trained in it, in fp32; all else frozen."""
        import peft

        method = choice.method
        given = {name: choice.options[option] for option, name in method.options.items() if name}
        values = given | dict(method.fixed) | cls.fields(model, choice.options, total_steps)
        return peft.get_peft_model(model, getattr(peft, method.config)(task_type="CAUSAL_LM", **values))

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]] | None:
        """The optimizer's groups; None where all parameters train alike."""
        return None

    def penalty(self) -> torch.Tensor | None:
        """What the method adds to the loss of a step, if anything."""
        return None

    def after_step(self, step: int) -> None:
        """Called after optimizer step `step`, counted from 1, while its gradients are still there."""

    def state(self) -> dict[str, torch.Tensor]:
        """What going on from a checkpoint needs beside what peft saves; empty where that is enough."""
        return {}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes back what `state` gave."""

    @contextmanager
    def as_trained(self) -> Iterator[None]:
        """While it holds, `model.save_pretrained` writes tensors in the shapes they are trained in."""
        yield

    def save(self, directory: Path) -> None:
        """Writes what plain peft (or transformers) loads onto the base as it was."""
        with self.as_trained():
            self.model.save_pretrained(directory, save_embedding_layers=False)

    def write_state(self, checkpoint: Path) -> None:
        """Puts `state` into a checkpoint's folder."""
        from safetensors.torch import save_file

        state = self.state()
        if state:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, checkpoint / STATE)

    def read_state(self, checkpoint: Path) -> None:
        """Takes back what `write_state` wrote, if it did."""
        from safetensors.torch import load_file

        if (checkpoint / STATE).is_file():
            self.restore(load_file(checkpoint / STATE))


class PTuning(Attached):
    """P-tuning trains a network that makes virtual tokens; peft saves the tokens alone, which suffices to serve and
    not to go on."""

    def state(self) -> dict[str, torch.Tensor]:
        return dict(self.model.prompt_encoder.state_dict())

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        self.model.prompt_encoder.load_state_dict(state)


class Prefix(Attached):
    """Prefix tuning trains keys and values, in the shape in which the model caches its own."""

    @classmethod
    def fields(cls, model: Any, options: Mapping[str, Any], total_steps: int) -> dict[str, Any]:
        if "num_key_value_heads" in model.config.get_text_config().to_dict():
            return {}  # peft reads it there
        layers, heads, width = cache_shape(model)
        return {"num_layers": layers, "num_attention_heads": heads, "token_dim": heads * width}


class LoraPlus(Attached):
    """LoRA+ (Hayou et al. 2024, arXiv 2402.12354): the B matrices learn faster than the A matrices."""

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]] | None:
        trained = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        slow = [p for name, p in trained if "lora_B" not in name]
        fast = [p for name, p in trained if "lora_B" in name]
        ratio = self.choice.options["loraplus_lr_ratio"]
        return [{"params": slow, "lr": learning_rate}, {"params": fast, "lr": learning_rate * ratio}]


class AdaLora(Attached):
    """AdaLoRA (Zhang et al. 2023, arXiv 2303.10512): an update P·E·Q whose least important ranks are cut, by layer."""

    @classmethod
    def fields(cls, model: Any, options: Mapping[str, Any], total_steps: int) -> dict[str, Any]:
        return super().fields(model, options, total_steps) | {"total_step": total_steps}

    @classmethod
    def prepare(cls, model: Any, choice: Choice, total_steps: int) -> Any:
        made = super().prepare(model, choice, total_steps)
        # A constant of each layer, which peft makes trainable where it moves it to another device than the CPU, and
        # does not save.
        for name, parameter in made.named_parameters():
            if ".ranknum." in name:
                parameter.requires_grad_(False)
        return made

    @property
    def _config(self) -> Any:
        return self.model.peft_config["default"]

    def penalty(self) -> torch.Tensor:
        """How far P and Q are from orthogonal (the paper's regulariser; in the mean over matrices, and not squared, as
        peft has it): peft would add it in a forward pass that is given labels, and ours is not."""
        distances = []
        with torch.autocast(self.model.device.type, enabled=False):
            for name, matrix in self.model.named_parameters():
                if "lora_A" in name or "lora_B" in name:
                    square = matrix @ matrix.T if "lora_A" in name else matrix.T @ matrix
                    distances.append(torch.linalg.matrix_norm(square - torch.eye(len(square), device=square.device)))
        return self._config.orth_reg_weight * torch.stack(distances).mean()

    def after_step(self, step: int) -> None:
        self.model.base_model.update_and_allocate(step)

    @contextmanager
    def as_trained(self) -> Iterator[None]:
        """peft would leave out the ranks that are cut, and rename its pattern on the way. A rank that is cut has E = 0,
        so it does no harm in the file."""
        pattern, self._config.rank_pattern = self._config.rank_pattern, None
        try:
            yield
        finally:
            self._config.rank_pattern = pattern

    def state(self) -> dict[str, torch.Tensor]:
        """The running importance of every parameter, and the ranks that are left."""
        allocator = self.model.base_model.rankallocator
        kept = {name: torch.tensor(ranks) for name, ranks in (self._config.rank_pattern or {}).items()}
        parts = {"mean": allocator.exp_avg_ipt, "spread": allocator.exp_avg_unc, "kept": kept}
        return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        parts: dict[str, dict[str, torch.Tensor]] = {"mean": {}, "spread": {}, "kept": {}}
        for key, tensor in state.items():
            part, _, name = key.partition("/")
            parts[part][name] = tensor.to(self.model.device)
        allocator = self.model.base_model.rankallocator
        allocator.exp_avg_ipt, allocator.exp_avg_unc = parts["mean"], parts["spread"]
        allocator.ipt = dict(parts["mean"])  # computed anew at each step; its keys say which parameters are known
        self._config.rank_pattern = {name: ranks.tolist() for name, ranks in parts["kept"].items()} or None


class Pissa(Attached):
    """PiSSA (Meng et al. 2024, arXiv 2404.02948): the adapter begins as the base's principal components, and the base
    as what is left. Saved is the adapter's change as a LoRA of twice the rank, for the base as everyone has it:
    W + (B·A - B0·A0) = W + [B | -B0]·[A ; A0]."""

    def __init__(self, model: Any, choice: Choice) -> None:
        super().__init__(model, choice)
        self._start = {} if _is_empty(model) else {name: t.cpu().clone() for name, t in self._tensors().items()}

    @classmethod
    def fields(cls, model: Any, options: Mapping[str, Any], total_steps: int) -> dict[str, Any]:
        iterations = options["pissa_niter"]
        initial: Any = f"pissa_niter_{iterations}" if iterations else "pissa"
        made = super().fields(model, options, total_steps)
        for name, layer in matching(model, options["lora_target_modules"]):
            if options["lora_r"] > min(layer.weight.shape):
                raise ValueError(
                    f"--lora_r {options['lora_r']}: {name} has {min(layer.weight.shape)} principal components, and "
                    "PiSSA takes its rank from them: lower --lora_r, or leave that layer out"
                )
        return made | {"init_lora_weights": True if _is_empty(model) else initial}

    @classmethod
    def prepare(cls, model: Any, choice: Choice, total_steps: int) -> Any:
        # The fast decomposition draws random numbers. A resumed run must find the same components, whatever its seed.
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return super().prepare(model, choice, total_steps)

    def _tensors(self) -> dict[str, torch.Tensor]:
        from peft import get_peft_model_state_dict

        return get_peft_model_state_dict(self.model, save_embedding_layers=False)

    def save(self, directory: Path) -> None:
        from safetensors.torch import save_file

        joined = {}
        for name, tensor in self._tensors().items():
            start = self._start[name]
            pair, side = ([tensor.cpu(), start], 0) if "lora_A" in name else ([tensor.cpu(), -start], 1)
            joined[name] = torch.cat(pair, dim=side).contiguous()
        directory.mkdir(parents=True, exist_ok=True)
        save_file(joined, directory / adapter_files.WEIGHTS, metadata={"format": "pt"})
        config = copy.deepcopy(self.model.peft_config["default"])
        config.r, config.lora_alpha = 2 * config.r, 2 * config.lora_alpha
        config.init_lora_weights, config.inference_mode = True, True
        config.save_pretrained(str(directory))


class Ia3(Attached):
    """(IA)³ (Liu et al. 2022, arXiv 2205.05638): factors on keys, on values and on what enters the feed-forward
    block's second layer. Where queries, keys and values are one packed layer, the queries get factors too."""

    @classmethod
    def fields(cls, model: Any, options: Mapping[str, Any], total_steps: int) -> dict[str, Any]:
        targets, second = options["ia3_target_modules"], options["ia3_feedforward_modules"]
        if (targets is None) != (second is None):
            raise ValueError("--ia3_target_modules and --ia3_feedforward_modules belong together: give both or none")
        if targets is None:
            attention, second = ia3_layers(model)
            targets = [*attention, *second]
        for flag, names in (("ia3_target_modules", targets), ("ia3_feedforward_modules", second)):
            check_targets(model, names, flag=flag)
        missing = [name for name in second if name not in targets]
        if missing:
            raise ValueError(f"--ia3_feedforward_modules {missing[0]} must be among --ia3_target_modules, too")
        return {"target_modules": list(targets), "feedforward_modules": list(second)}


class Full(Attached):
    """Every weight is trained."""

    @classmethod
    def prepare(cls, model: Any, choice: Choice, total_steps: int) -> Any:
        return model.requires_grad_(True)

    def save(self, directory: Path) -> None:
        self.model.config.use_cache = True  # training switched it off, and whoever loads the files wants it
        self.model.save_pretrained(directory)


KINDS: Mapping[str, type[Attached]] = {
    "adalora": AdaLora, "loraplus": LoraPlus, "pissa": Pissa, "ia3": Ia3, "p_tuning": PTuning, "prefix": Prefix,
    "full": Full,
}  # fmt: skip


def _is_empty(model: nn.Module) -> bool:
    return next(model.parameters()).is_meta
