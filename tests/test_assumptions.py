from pathlib import Path
from typing import Any

import pytest
from peft import PeftType

from utils.assumptions import base_of, family_of, method_of
from utils.methods import METHODS
from utils.models import MODELS

HERE = Path("适配器 🌏")


@pytest.mark.parametrize(
    ("facts", "method"),
    [
        ({"peft_type": "LORA"}, "lora"),
        ({"peft_type": "LORA", "use_dora": False, "use_rslora": None}, "lora"),
        ({"peft_type": "LORA", "use_dora": True}, "dora"),
        ({"peft_type": "LORA", "use_rslora": True}, "rslora"),
        ({"peft_type": "ADALORA"}, "adalora"),
        ({"peft_type": "IA3"}, "ia3"),
        ({"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "RANDOM"}, "prompt"),
        ({"peft_type": "P_TUNING"}, "p_tuning"),
        ({"peft_type": "PREFIX_TUNING"}, "prefix"),
    ],
)
def test_methods(facts: dict[str, Any], method: str) -> None:
    assert method_of(facts, HERE) == (method, METHODS[method].label)


def test_every_kind_of_peft_is_served_or_refused_in_a_line() -> None:
    served, refusals = set(), []
    for kind in PeftType:
        try:
            method, said = method_of({"peft_type": kind.value}, HERE)
        except ValueError as error:
            refusals.append(str(error))
        else:
            assert not METHODS[method].trains_base
            served.add(kind.value)
            assert said in (kind.value, METHODS[method].label)
    assert len(served) + len(refusals) == len(PeftType)
    assert all("\n" not in said and said.startswith(f"{HERE} is an adapter of the kind ") for said in refusals)
    assert {"LOHA", "LOKR", "VERA", "OFT", "BOFT"} < served
    assert not served & {"XLORA", "POLY", "CPT", "ADAPTION_PROMPT", "MULTITASK_PROMPT_TUNING"}


@pytest.mark.parametrize("name", sorted(name for name, row in MODELS.items() if row.checkpoints))
def test_a_family_knows_its_own_models(name: str) -> None:
    for checkpoint in MODELS[name].checkpoints.values():
        family, said = family_of(checkpoint, "LlamaForCausalLM")
        assert checkpoint in MODELS[family].checkpoints.values()
        assert said == f"model type {family} ({checkpoint} is one of its models)"


def test_other_models_are_known_by_their_class() -> None:
    assert family_of("/模型", "BloomForCausalLM")[0] == "bloom"
    assert family_of("a/b", "MptForCausalLM") == ("auto", "model type auto (no family has a MptForCausalLM)")
    assert family_of("a/b", None) == ("auto", "model type auto (no family has a model of this class)")
    with pytest.raises(
        ValueError, match="a/b is a Qwen2ForCausalLM, as are the models of several families: .* qwen, qwen2 or auto"
    ):
        family_of("a/b", "Qwen2ForCausalLM")


@pytest.mark.parametrize("named", ["/no/模型", "./llama", "~/llama", "models/llama/7b"])
def test_a_path_that_is_not_here(named: str) -> None:
    message = f"the base of {HERE}, {named}, is not on this machine: name its place here with --model_name_or_path"
    for model_type in (None, "llama"):
        with pytest.raises(FileNotFoundError) as error:
            base_of({"base_model_name_or_path": named}, HERE, base=None, size=None, model_type=model_type)
        assert str(error.value) == message


def test_a_base_by_its_id_and_revision() -> None:
    facts = {"base_model_name_or_path": "a/b", "revision": "v1"}
    assert base_of(facts, HERE, base=None, size=None, model_type="llama")[:2] == ("a/b", "v1")
    assert base_of(facts, HERE, base="c/d", size="7b", model_type="llama") == ("c/d", None, "")
