"""What must hold of ChatGLM-6B whatever its weights: who sees whom, cache, padding, loss, checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny_chatglm import EOP, GMASK, MASK, SOP, padded, row, tiny_model

from utils.chatglm import ChatGLMForConditionalGeneration

PROMPT, ANSWER = [10, 11, 12, 13], [20, 21, 22]
PROMPTS = [row([10, 11, 12, 13]), row([7]), row([30, 31, 32, 33, 34, 35, 36]), row([])]
ROWS = [row(PROMPT, [20, 21, 22, EOP]), row([7], [9, EOP]), row([30, 31, 32, 33, 34, 35], [40, EOP]), row([], [EOP])]
STEPS = 6


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


def logits(model: Any, ids: list[int], **options: Any) -> torch.Tensor:
    """(length, vocabulary) of one row without padding."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), **options).logits[0]


def generated(model: Any, ids: Any, mask: Any = None, **options: Any) -> Any:
    """Exactly `STEPS` new tokens after each row, greedily unless told otherwise."""
    told = {"do_sample": False, "max_new_tokens": STEPS, "min_new_tokens": STEPS, **options}
    mask = torch.ones_like(ids) if mask is None else mask
    return model.generate(ids, attention_mask=mask, **told)


def differs(one: torch.Tensor, other: torch.Tensor) -> list[bool]:
    """Per position: whether the logits differ by more than rounding."""
    return ((one - other).abs().amax(dim=-1) > 1e-5 * one.abs().max()).tolist()


@pytest.mark.parametrize("changed", range(len(ANSWER)))
def test_an_answer_token_changes_itself_and_what_follows_alone(model: Any, changed: int) -> None:
    before, after = row(PROMPT, ANSWER), row(PROMPT, ANSWER)
    at = len(PROMPT) + 2 + changed
    after[at] = 45
    assert differs(logits(model, before), logits(model, after)) == [i >= at for i in range(len(before))]


@pytest.mark.parametrize("changed", range(len(PROMPT)))
def test_a_prompt_token_changes_every_position(model: Any, changed: int) -> None:
    before, after = row(PROMPT, ANSWER), row(PROMPT, ANSWER)
    after[changed] = 45
    assert all(differs(logits(model, before), logits(model, after)))


def test_the_answer_s_length_changes_nothing_before_its_end(model: Any) -> None:
    whole = logits(model, row(PROMPT, ANSWER))
    for length in range(len(ANSWER)):
        part = logits(model, row(PROMPT, ANSWER[:length]))
        assert not any(differs(whole[: len(part)], part))


@pytest.mark.parametrize("prompt", PROMPTS, ids=["four", "one", "seven", "none"])
def test_cached_generation_is_a_full_recompute_of_each_step(model: Any, prompt: list[int]) -> None:
    found = generated(model, torch.tensor([prompt]), return_dict_in_generate=True, output_logits=True)
    ids = list(prompt)
    for step in range(STEPS):
        whole = logits(model, ids, use_cache=False)[-1]
        torch.testing.assert_close(found.logits[step][0], whole, rtol=1e-4, atol=1e-5)
        whole[EOP] = -torch.inf  # what min_new_tokens does
        ids.append(int(whole.argmax()))
    assert found.sequences[0].tolist() == ids


def test_generation_without_a_cache_is_the_same(model: Any) -> None:
    ids = torch.tensor([PROMPTS[0]])
    assert generated(model, ids).tolist() == generated(model, ids, use_cache=False).tolist()


def test_a_cache_goes_on_over_several_tokens_at_once(model: Any) -> None:
    """As when a draft is checked; the marks of the whole row say where it stands."""
    whole = torch.tensor([row(PROMPT, ANSWER)])
    cut = len(PROMPT) + 3
    with torch.no_grad():
        first = model(input_ids=whole[:, :cut], use_cache=True)
        rest = model(input_ids=whole[:, cut:], past_key_values=first.past_key_values, marks=model.marks(whole))
    joined = torch.cat([first.logits, rest.logits], dim=1)[0]
    assert not any(differs(logits(model, whole[0].tolist()), joined))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("filler", [3, 17])
def test_a_padded_batch_is_its_rows_one_by_one(model: Any, side: str, filler: int) -> None:
    ids, mask = padded(ROWS, side, filler)
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask).logits
    assert found.isfinite().all()
    for at, one in enumerate(ROWS):
        assert not any(differs(logits(model, one), found[at][mask[at].bool()]))


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_left_padded_batch_generates_what_its_rows_do(model: Any, use_cache: bool) -> None:
    ids, mask = padded(PROMPTS, "left")
    alone = [generated(model, torch.tensor([one]))[0, len(one) :].tolist() for one in PROMPTS]
    assert generated(model, ids, mask, use_cache=use_cache)[:, ids.shape[1] :].tolist() == alone
    assert len({tuple(one) for one in alone}) == len(PROMPTS)


def read(folder: Path, **options: Any) -> Any:
    return ChatGLMForConditionalGeneration.from_pretrained(folder, **options)


def labels_of(ids: Any, mask: Any) -> Any:
    """Labels of the answers: what follows `<sop>`, without padding."""
    after = (ids == SOP).long().cumsum(dim=1).bool() & (ids != SOP) & mask.bool()
    return torch.where(after, ids, -100)


def loss_by_hand(model: Any) -> tuple[float, int]:
    """The sum of −log p over the answers' tokens, each predicted where the token before it stands; and their number."""
    total, count = 0.0, 0
    for one in ROWS:
        chances = logits(model, one).double().softmax(dim=-1)
        for at in range(one.index(SOP) + 1, len(one)):
            total -= float(chances[at - 1, one[at]].log())
            count += 1
    return total, count


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_loss_is_cross_entropy_by_hand(model: Any, side: str) -> None:
    ids, mask = padded(ROWS, side)
    total, count = loss_by_hand(model)
    told = {"input_ids": ids, "attention_mask": mask, "labels": labels_of(ids, mask)}
    with torch.no_grad():
        assert float(model(**told).loss) == pytest.approx(total / count, rel=1e-5)
        # The plain Trainer's way with accumulation: it then divides by nothing itself.
        assert float(model(**told, num_items_in_batch=100).loss) == pytest.approx(total / 100, rel=1e-5)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    ids, mask = padded(ROWS, "right")
    model.zero_grad()
    model(input_ids=ids, attention_mask=mask, labels=labels_of(ids, mask)).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_gradient_checkpointing_recomputes_and_changes_no_gradient() -> None:
    model = tiny_model().train()
    passes: list[int] = []
    model.transformer.layers[0].input_layernorm.register_forward_hook(lambda *_: passes.append(1))
    plain = gradients(model)
    assert len(passes) == 1
    model.gradient_checkpointing_enable()
    torch.testing.assert_close(gradients(model), plain, rtol=0, atol=1e-7)
    assert len(passes) == 3, "two more: one forward, one again for the backward"
    assert [name for name, gradient in plain.items() if not gradient.any()] == []


def test_embeddings_with_the_marks_stand_for_the_ids(model: Any) -> None:
    ids = torch.tensor([row(PROMPT, ANSWER)])
    embedded = model.get_input_embeddings()(ids)
    with torch.no_grad():
        found = model(inputs_embeds=embedded, marks=model.marks(ids)).logits[0]
    assert not any(differs(logits(model, ids[0].tolist()), found))
    with pytest.raises(ValueError, match="do not say where the answer begins: give marks too"):
        model(inputs_embeds=embedded)
    for options in ({}, {"input_ids": ids, "inputs_embeds": embedded}):
        with pytest.raises(ValueError, match="give either input_ids or inputs_embeds"):
            model(**options)


@pytest.mark.parametrize("kept", [1, 3, torch.tensor([0, 5])], ids=["last", "last three", "two places"])
def test_logits_to_keep(model: Any, kept: Any) -> None:
    ids = row(PROMPT, ANSWER)
    whole = logits(model, ids)
    expected = whole[-kept:] if isinstance(kept, int) else whole[kept]
    assert not any(differs(expected, logits(model, ids, logits_to_keep=kept)))


def test_the_two_attentions_agree(tmp_path: Path, model: Any) -> None:
    model.save_pretrained(tmp_path)
    ids, mask = padded(ROWS, "left")
    eager, fused = (read(tmp_path, attn_implementation=name) for name in ("eager", "sdpa"))
    with torch.no_grad():
        found = eager(input_ids=ids, attention_mask=mask, output_attentions=True)
        expected = fused(input_ids=ids, attention_mask=mask).logits
    assert not any(differs(expected[mask.bool()], found.logits[mask.bool()]))
    assert [weights.shape for weights in found.attentions] == [(len(ROWS), 2, *ids.shape[1:], *ids.shape[1:])] * 2
    for weights in found.attentions:
        assert not weights[~mask[:, None, None].expand_as(weights).bool()].any(), "padding is not seen"
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones_like(weights[..., 0]))


def test_the_attention_can_be_chosen_afterwards() -> None:
    model = tiny_model()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        assert len(model(input_ids=torch.tensor([ROWS[0]]), output_attentions=True).attentions) == 2


def test_beams_and_samples(model: Any) -> None:
    """More beams find a likelier answer; without a reordered cache they would score another beam's past."""
    ids, mask = padded(PROMPTS, "left")
    told = {"num_beams": 3, "return_dict_in_generate": True, "output_scores": True}
    cached, uncached = (generated(model, ids, mask, use_cache=use, **told) for use in (True, False))
    assert cached.sequences.tolist() == uncached.sequences.tolist()
    torch.testing.assert_close(cached.sequences_scores, uncached.sequences_scores, rtol=1e-4, atol=1e-5)
    torch.manual_seed(0)
    sampled = generated(model, ids, mask, do_sample=True, top_p=0.9, temperature=0.7)
    assert sampled.shape == (len(PROMPTS), ids.shape[1] + STEPS)
    assert sampled[:, : ids.shape[1]].equal(ids)


@pytest.mark.parametrize("ids", [[10, 11, 12], [10, GMASK], [], [EOP]], ids=["text", "no <sop>", "empty", "end"])
def test_a_row_that_does_not_say_where_its_answer_begins_is_refused(model: Any, ids: list[int]) -> None:
    rows, mask = padded([row(PROMPT, ANSWER), ids], "right")
    with pytest.raises(ValueError, match=rf"row 1 has no <sop> \(id {SOP}\).*add_special_tokens=True"):
        model(input_ids=rows, attention_mask=mask, labels=rows)
    with pytest.raises(ValueError, match="row 1 has no <sop>"):
        generated(model, rows, mask)


@pytest.mark.parametrize("ids", [[10, 11, SOP, 20], [SOP, 20]], ids=["no blank", "nothing before it"])
def test_a_row_without_a_blank_is_refused(model: Any, ids: list[int]) -> None:
    with pytest.raises(ValueError, match=r"row 0 has no \[gMASK\]"):
        model(input_ids=torch.tensor([ids]))


def test_half_precision_runs_and_is_near(model: Any) -> None:
    ids, mask = padded(ROWS, "left")
    half: Any = tiny_model().to(torch.bfloat16)
    with torch.no_grad():
        found = half(input_ids=ids, attention_mask=mask).logits[mask.bool()].float()
        expected = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    assert float((found - expected).norm() / expected.norm()) < 0.05
    prompts, real = padded(PROMPTS, "left")
    assert generated(half, prompts, real).shape == (len(PROMPTS), prompts.shape[1] + STEPS)


LONG = row([5 + i % 40 for i in range(300)], [9, 8])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_positions_stay_exact_when_weights_are_rounded(tmp_path: Path, dtype: torch.dtype) -> None:
    """Frequencies in bf16 are off by up to 1/256: a turn of one radian after 300 tokens."""
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype).float())
    expected = logits(model, LONG)
    model.save_pretrained(tmp_path)
    assert logits(model.to(dtype).float(), LONG).equal(expected)
    loaded = read(tmp_path, dtype=dtype)
    assert loaded.lm_head.weight.dtype == dtype
    assert logits(loaded.float(), LONG).equal(expected)
    loaded.to(dtype).save_pretrained(tmp_path / "rounded")
    again = read(tmp_path / "rounded", dtype=torch.float32)
    assert logits(again, LONG).equal(expected)


def public_names(layers: int) -> set[str]:
    """The names of the public index, for another number of layers."""
    norms = [
        f"{norm}.{kind}" for norm in ("input_layernorm", "post_attention_layernorm") for kind in ("weight", "bias")
    ]
    linear = ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
    each = [
        *norms,
        *(f"{name}.{kind}" for name in linear for kind in ("weight", "bias")),
        "attention.rotary_emb.inv_freq",
    ]
    outer = {"word_embeddings.weight", "final_layernorm.weight", "final_layernorm.bias"}
    return (
        {"lm_head.weight"}
        | {f"transformer.{name}" for name in outer}
        | {f"transformer.layers.{layer}.{name}" for layer in range(layers) for name in each}
    )


def test_the_names_are_those_of_the_real_index(real_data: Path) -> None:
    index = real_data / "checkpoints" / "chatglm-6b.pytorch_model.bin.index.json"
    assert set(json.loads(index.read_text(encoding="utf-8"))["weight_map"]) == public_names(28)


def test_a_saved_model_is_read_back_exactly_under_the_public_names(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == public_names(2)
    again, told = read(tmp_path, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert logits(again, LONG).equal(logits(model, LONG))
    assert generated(again, torch.tensor([PROMPTS[0]])).equal(generated(model, torch.tensor([PROMPTS[0]])))
    written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert written["model_type"] == "chatglm"
    assert {k: written[k] for k in ("inner_hidden_size", "num_layers", "layernorm_epsilon", "mask_token_id", "gmask_token_id", "bos_token_id")} == {
        "inner_hidden_size": 48, "num_layers": 2, "layernorm_epsilon": 1e-5, "mask_token_id": MASK, "gmask_token_id": GMASK, "bos_token_id": SOP,
    }  # fmt: skip


def write_public(model: Any, folder: Path, shards: int) -> None:
    """As the public checkpoint lies: pickled shards with an index, fp16, norms in float32, frequencies in fp16."""
    model.config.save_pretrained(folder)
    tensors = {name: t if "layernorm" in name else t.half() for name, t in model.state_dict().items()}
    names, files = sorted(tensors), {}
    for shard in range(shards):
        file = f"pytorch_model-{shard + 1:05d}-of-{shards:05d}.bin"
        part = {name: tensors[name].clone() for name in names[shard::shards]}
        torch.save(part, folder / file)
        files |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": files}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")


@pytest.mark.parametrize("shards", [1, 3])
def test_a_checkpoint_as_the_public_one_lies_is_read_whole(tmp_path: Path, shards: int) -> None:
    model = tiny_model(seed=1)
    write_public(model, tmp_path, shards)
    for dtype in (torch.float32, torch.float16):
        loaded, told = read(tmp_path, dtype=dtype, output_loading_info=True)
        assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        for name, tensor in model.state_dict().items():
            expected = tensor if "layernorm" in name else tensor.half()
            assert loaded.state_dict()[name].to(dtype).equal(expected.to(dtype)), name


def test_a_missing_tensor_is_reported(tmp_path: Path) -> None:
    model = tiny_model()
    tensors = model.state_dict()
    del tensors["transformer.layers.1.mlp.dense_4h_to_h.bias"]
    model.save_pretrained(tmp_path, state_dict=tensors)
    _, told = read(tmp_path, output_loading_info=True)
    assert set(told["missing_keys"]) == {"transformer.layers.1.mlp.dense_4h_to_h.bias"}


def test_frequencies_that_a_checkpoint_lacks_are_made(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, state_dict={k: v for k, v in model.state_dict().items() if "inv_freq" not in k})
    for dtype in (torch.float32, torch.bfloat16):
        loaded = read(tmp_path, dtype=dtype)
        for name, tensor in model.state_dict().items():
            if "inv_freq" in name:
                assert loaded.state_dict()[name].float().equal(tensor), name
    assert logits(read(tmp_path, dtype=torch.float32), LONG).equal(logits(model, LONG))


def test_a_cache_of_fixed_size_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="a cache that grows: leave cache_implementation out"):
        generated(model, torch.tensor([row(PROMPT)]), cache_implementation="static")
