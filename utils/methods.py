"""What of a base is trained, and how: parameter-efficient methods and full fine-tuning, one row each.

Knows: each method's options, what peft calls them, and what the method can and cannot do. Does not know how a model
is changed; that is `utils.attached`. Adding a method is one row here, and a class there if it wants more of a training
loop than a forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from utils import cli, lookup

DEFAULT_METHOD = "lora"
ALIASES: Mapping[str, str] = MappingProxyType({"lora+": "loraplus"})


class _Family:
    """The default of an option whose value the model's row has."""

    def __str__(self) -> str:
        return "the family's"


FAMILY = _Family()


@dataclass(frozen=True, kw_only=True)
class Option:
    """A flag that belongs to some of the methods."""

    kind: Callable[[str], Any]
    help: str
    default: Any
    """`FAMILY`: the model row's. None: decided when the model and the number of steps are known."""
    unless_given: str = ""
    """What None is decided to be, for people."""
    nargs: str | None = None


OPTIONS: Mapping[str, Option] = MappingProxyType(
    {
        "lora_r": Option(kind=cli.positive_int, help="rank; for adalora, the mean rank in the end", default=FAMILY),
        "lora_alpha": Option(
            kind=cli.positive_int, help="scale, divided by the rank (rslora: by its square root)", default=FAMILY
        ),
        "lora_dropout": Option(kind=cli.fraction, help="dropout before the adapter", default=FAMILY),
        "lora_target_modules": Option(
            kind=str, nargs="+", help="linear layers that get an adapter, or all-linear", default=FAMILY
        ),
        # 12 is the original project's, for its final rank of 8; the paper, too, begins with one and a half times the
        # final budget.
        "adalora_init_r": Option(
            kind=cli.positive_int,
            help="rank of every layer in the beginning",
            default=None,
            unless_given="one and a half times --lora_r: 12 for 8",
        ),
        "adalora_tinit": Option(
            kind=cli.natural_int,
            help="steps before ranks begin to shrink",
            default=None,
            unless_given="200, or a twelfth of a run below 2,400 steps",
        ),
        "adalora_tfinal": Option(
            kind=cli.natural_int,
            help="steps after ranks have shrunk",
            default=None,
            unless_given="1000, or five twelfths of a run below 2,400 steps",
        ),
        "adalora_delta_t": Option(
            kind=cli.positive_int,
            help="steps between two cuts",
            default=None,
            unless_given="10, or fewer where that would be less than ten cuts",
        ),
        "loraplus_lr_ratio": Option(
            kind=cli.positive_float, help="learning rate of the B matrices, in multiples of --learning_rate", default=16
        ),
        "pissa_niter": Option(
            kind=cli.natural_int, help="iterations of the fast decomposition; 0: the exact one, slower", default=16
        ),
        "num_virtual_tokens": Option(
            kind=cli.positive_int, help="trained positions before every prompt", default=20
        ),
        "prompt_encoder_hidden_size": Option(
            kind=cli.positive_int, help="width of the network that makes the virtual tokens", default=128
        ),
        "ia3_target_modules": Option(
            kind=str,
            nargs="+",
            help="layers of keys, values and the feed-forward block's output",
            default=None,
            unless_given="peft's for this kind of model, else by name",
        ),
        "ia3_feedforward_modules": Option(
            kind=str,
            nargs="+",
            help="those of --ia3_target_modules that are scaled at their input",
            default=None,
            unless_given="as above",
        ),
    }
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row; see the fields."""

    label: str
    """Its name for people."""
    paper: str
    """arXiv id."""
    config: str = ""
    """Class of `peft` that configures it; empty where peft has no part in it."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Flags that belong to it → field of `config`; empty where `utils.attached` reads the flag itself."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `config` that are the method."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Defaults that differ from `OPTIONS`."""
    learning_rate: float = 1.0
    """Default learning rate, as a multiple of the family's (which is LoRA's)."""
    trained: str = ""
    """Part of the names of the parameters that training must move; empty: any parameter."""
    all_move: bool = True
    """Whether every one of them must have moved, or one is enough."""
    quantization_bits: tuple[int, ...] = (16, 8, 4)
    """What the base's weights may be loaded in."""
    not_quantized: str = ""
    """Why not in fewer bits."""
    trains_base: bool = False
    """The run holds all weights, not an adapter. They are loaded in fp32: an update is often smaller than what bf16
    can add to a weight."""
    gradient_checkpointing: bool = True


_LORA: Mapping[str, str] = MappingProxyType(
    {
        "lora_r": "r",
        "lora_alpha": "lora_alpha",
        "lora_dropout": "lora_dropout",
        "lora_target_modules": "target_modules",
    }
)

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "lora": Method(label="LoRA", paper="2106.09685", config="LoraConfig", options=_LORA, trained="lora_B"),
        # Ranks that are cut have E = 0, as at the start, so a layer may lose all of them.
        "adalora": Method(
            label="AdaLoRA",
            paper="2303.10512",
            config="AdaLoraConfig",
            options={
                **_LORA,
                "lora_r": "target_r",
                "adalora_init_r": "init_r",
                "adalora_tinit": "tinit",
                "adalora_tfinal": "tfinal",
                "adalora_delta_t": "deltaT",
            },
            trained="lora_E",
            all_move=False,
        ),
        "dora": Method(
            label="DoRA",
            paper="2402.09353",
            config="LoraConfig",
            options=_LORA,
            fixed={"use_dora": True},
            trained="lora_B",
        ),
        "rslora": Method(
            label="rank-stabilised LoRA",
            paper="2312.03732",
            config="LoraConfig",
            options=_LORA,
            fixed={"use_rslora": True},
            trained="lora_B",
        ),
        # Dropout would switch off the base's own principal components, which the adapter holds here.
        "pissa": Method(
            label="PiSSA",
            paper="2404.02948",
            config="LoraConfig",
            options={**_LORA, "pissa_niter": ""},
            defaults={"lora_dropout": 0.0},
            trained="lora_B",
            quantization_bits=(16,),
            not_quantized="it takes the weights apart, and what is left of a weight does not round to the same bits, "
            "so the result would belong to no base that anyone has",
        ),
        # A quarter: with the ratio of 16, A then gets a quarter and B four times the rate that suits LoRA.
        "loraplus": Method(
            label="LoRA+",
            paper="2402.12354",
            config="LoraConfig",
            options={**_LORA, "loraplus_lr_ratio": ""},
            learning_rate=0.25,
            trained="lora_B",
        ),
        # Ten times the family's 3e-4 is the paper's 3e-3: few parameters, each a factor near 1.
        "ia3": Method(
            label="(IA)³",
            paper="2205.05638",
            config="IA3Config",
            options={"ia3_target_modules": "target_modules", "ia3_feedforward_modules": "feedforward_modules"},
            learning_rate=10.0,
            trained="ia3_l",
        ),
        # Virtual tokens are few and far from the loss, so they need large steps: the paper takes 0.3 with Adafactor.
        # They begin as embeddings of words, which the paper found best of what does not depend on the task.
        "prompt": Method(
            label="prompt tuning",
            paper="2104.08691",
            config="PromptTuningConfig",
            options={"num_virtual_tokens": "num_virtual_tokens"},
            fixed={"prompt_tuning_init": "SAMPLE_VOCAB"},
            learning_rate=100.0,
            trained="prompt_encoder",
        ),
        # The network's weights move like a network's, so a tenth of what bare virtual tokens need.
        "p_tuning": Method(
            label="P-tuning",
            paper="2103.10385",
            config="PromptEncoderConfig",
            options={
                "num_virtual_tokens": "num_virtual_tokens",
                "prompt_encoder_hidden_size": "encoder_hidden_size",
            },
            learning_rate=10.0,
            trained="prompt_encoder",
        ),
        "prefix": Method(
            label="prefix tuning",
            paper="2101.00190",
            config="PrefixTuningConfig",
            options={"num_virtual_tokens": "num_virtual_tokens"},
            learning_rate=30.0,
            trained="prompt_encoder",
            gradient_checkpointing=False,
        ),
        # A fifteenth of 3e-4 is the 2e-5 that Stanford Alpaca trained all weights with.
        "full": Method(
            label="full fine-tuning",
            paper="",
            learning_rate=1 / 15,
            all_move=False,
            quantization_bits=(16,),
            not_quantized="every weight is trained, and 8- or 4-bit weights cannot take a small step",
            trains_base=True,
        ),
    }
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A method with its options resolved."""

    name: str = DEFAULT_METHOD
    options: Mapping[str, Any]
    """Flag → value, of this method alone."""

    @property
    def method(self) -> Method:
        """The row."""
        return METHODS[self.name]


def method_name(text: str) -> str:
    """`--peft_type`, in any case, under its own name."""
    return ALIASES.get(text.lower(), text.lower())


def get_method(name: str) -> Method:
    """The row called `name`; `ValueError` with the nearest names."""
    return lookup.find("method", name, METHODS, "--peft_type")


def choose(name: str, given: Mapping[str, Any], family: Mapping[str, Any]) -> Choice:
    """The method called `name` with the options that were given, and defaults for the rest.

    Args:
        given: every option's flag → value; None is not given.
        family: the model row's defaults.

    Raises:
        ValueError: an unknown method, or an option of another one.
    """
    method = get_method(name)
    for option in OPTIONS:
        if given.get(option) is not None and option not in method.options:
            owners = ", ".join(other for other, row in METHODS.items() if option in row.options)
            raise ValueError(f"--{option} belongs to --peft_type {owners}, not to {name}: leave it out")
    options = {}
    for option in method.options:
        default = method.defaults.get(option, OPTIONS[option].default)
        value = given.get(option)
        options[option] = value if value is not None else family[option] if default is FAMILY else default
    return Choice(name=name, options=options)


def check_base(method: Method, *, quantization_bit: int | None, gradient_checkpointing: str) -> None:
    """`ValueError` for a base, or a way of training it, that `method` cannot have."""
    if quantization_bit is not None and quantization_bit not in method.quantization_bits:
        raise ValueError(
            f"--quantization_bit {quantization_bit}: {method.label} needs the weights in 16 bits, for "
            f"{method.not_quantized}: leave it out, or choose --peft_type lora"
        )
    if gradient_checkpointing == "on" and not method.gradient_checkpointing:
        raise ValueError(
            f"--gradient_checkpointing on: {method.label} hands each layer trained keys and values, which computing "
            "the layer a second time would add twice: leave it out, or choose --peft_type prompt or lora"
        )


def schedule(choice: Choice, total_steps: int) -> Choice:
    """`choice` with those options decided that depend on the length of the run, in optimizer steps.

    AdaLoRA's 200 and 1000 steps are the original project's. A run that is shorter than twice their sum has the same
    shares of it, a twelfth and five twelfths; half of a run is then left for the ranks to shrink in.

    Raises:
        ValueError: AdaLoRA's ranks or steps that leave nothing to shrink.
    """
    if "adalora_tinit" not in choice.options:
        return choice
    options = dict(choice.options)
    share = min(1.0, total_steps / 2400)
    for option, whole in (("adalora_tinit", 200), ("adalora_tfinal", 1000)):
        if options[option] is None:
            options[option] = int(share * whole)
    shrinking = total_steps - options["adalora_tinit"] - options["adalora_tfinal"]
    if shrinking < 1:
        raise ValueError(
            f"--adalora_tinit {options['adalora_tinit']} and --adalora_tfinal {options['adalora_tfinal']} leave none "
            f"of the run's {total_steps} steps for ranks to shrink: lower them, leave them out, or train longer"
        )
    if options["adalora_delta_t"] is None:
        options["adalora_delta_t"] = max(1, min(10, shrinking // 10))
    final = options["lora_r"]
    if options["adalora_init_r"] is None:
        options["adalora_init_r"] = final + max(1, final // 2)
    if options["adalora_init_r"] <= final:
        raise ValueError(
            f"--adalora_init_r {options['adalora_init_r']}: ranks shrink to --lora_r {final} on average, so they must "
            f"begin above it: give {final + 1} or more, or lower --lora_r"
        )
    return Choice(name=choice.name, options=options)
