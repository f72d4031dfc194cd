"""The Q-Former's passes against plain calls of `transformers`, as SPRC makes them, and the text pass as a tower."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cir.backbones import load
from cir.backbones.qformer import LN_VISION_EPS, Blip2TextTower
from cir.prompts import Template, tokenize
from tests.backbones.blip2_folder import tiny_blip2

TEXTS = ["is red", "a dog on the grass with an umbrella", "", "two dogs, and a cat"]
CLOSE = {"atol": 1e-6, "rtol": 1e-5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_blip2(tmp_path_factory.mktemp("tiny-blip2"))


@pytest.fixture(scope="module")
def backbone(folder):
    return load(str(folder), device="cpu")


@pytest.fixture(scope="module")
def parts(backbone):
    return backbone.parts


@pytest.fixture(scope="module")
def official(folder):
    from transformers import Blip2ForImageTextRetrieval

    return Blip2ForImageTextRetrieval.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def rows():
    """Text rows of several lengths with their masks, [CLS] always on, and pictures' normed tokens."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(6, 60, (3, 7), generator=draw)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 2 + [0] * 5])
    return ids, mask, torch.randn(3, 17, 48, generator=draw)


def ones(count, length):
    return torch.ones(count, length, dtype=torch.long)


@torch.no_grad()
def test_fusion_equals_transformers(parts, official, rows):
    ids, mask, tokens = rows
    queries = official.query_tokens.expand(3, -1, -1)
    expected = official.qformer(
        query_embeds=official.embeddings(input_ids=ids, query_embeds=queries),
        query_length=32,
        attention_mask=torch.cat([ones(3, 32), mask], dim=1),
        encoder_hidden_states=tokens,
    ).last_hidden_state
    found = parts.fuse(tokens, ids, mask)
    assert found.shape == (3, 32 + 7, 32)
    torch.testing.assert_close(found, expected, **CLOSE)
    torch.testing.assert_close(parts.fuse(tokens, ids, mask.bool()), expected, **CLOSE)
    torch.testing.assert_close(parts.matching(found), official.itm_head(expected[:, :32]).mean(dim=1), **CLOSE)


@torch.no_grad()
def test_fusion_with_other_queries_and_other_words(parts, official, rows):
    ids, mask, tokens = rows
    draw = torch.Generator().manual_seed(1)
    queries, words = torch.randn(3, 5, 32, generator=draw), torch.randn(3, 7, 32, generator=draw)
    positions = official.embeddings.position_embeddings(torch.arange(7))
    expected = official.qformer(
        query_embeds=torch.cat([queries, words + positions], dim=1),
        query_length=5,
        attention_mask=torch.cat([ones(3, 5), mask], dim=1),
        encoder_hidden_states=tokens,
    ).last_hidden_state
    torch.testing.assert_close(parts.fuse(tokens, ids, mask, queries, words), expected, **CLOSE)


@torch.no_grad()
def test_pictures_equal_transformers(parts, official, rows):
    tokens = rows[2]
    queries = official.query_tokens.expand(3, -1, -1)
    expected = official.qformer(query_embeds=queries, encoder_hidden_states=tokens).last_hidden_state
    torch.testing.assert_close(parts.image(tokens), expected, **CLOSE)
    singly = torch.cat([parts.image(row[None]) for row in tokens])
    torch.testing.assert_close(parts.image(tokens), singly, **CLOSE)


@torch.no_grad()
def test_prompts_before_a_text_go_through_the_texts_network(parts, official, rows):
    """SPRC's second pass: outputs of the first one in front of the text, no picture, the text's network for all."""
    ids, mask, tokens = rows
    prompts = parts.fuse(tokens, ids, mask)[:, :32]
    mask = torch.cat([ones(3, 32), mask], dim=1)
    embedded = official.embeddings(input_ids=ids, query_embeds=prompts)
    expected = official.qformer(query_embeds=embedded, query_length=0, attention_mask=mask).last_hidden_state
    found = parts.text(torch.cat([prompts, parts.embed(ids)], dim=1), mask)
    torch.testing.assert_close(found, expected, **CLOSE)
    swapped = copy.deepcopy(official.qformer)
    for layer in swapped.encoder.layer:
        layer.intermediate, layer.output = layer.intermediate_query, layer.output_query
    other = swapped(query_embeds=embedded, query_length=0, attention_mask=mask).last_hidden_state
    assert (found - other).abs().max() > 0.1


@torch.no_grad()
def test_prompts_behind_the_class_token_with_positions_over_all(parts, official, rows):
    """SPRC's fourth pass: [CLS], prompts, the rest of the text; positions 0, 1.. over this whole order."""
    ids, mask, _ = rows
    prompts = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(2))
    words, table = official.embeddings.word_embeddings(ids), official.embeddings.position_embeddings.weight
    by_hand = torch.stack([
        torch.stack([*words[row, :1], *prompts[row], *words[row, 1:]]) + torch.stack([table[i] for i in range(39)])
        for row in range(3)
    ])  # fmt: skip
    mask = torch.cat([ones(3, 32), mask], dim=1)
    expected = official.qformer(query_embeds=by_hand, query_length=0, attention_mask=mask).last_hidden_state
    order = torch.cat([words[:, :1], prompts, words[:, 1:]], dim=1)
    torch.testing.assert_close(parts.text(parts.embed(None, order), mask), expected, **CLOSE)
    pieces = [parts.embed(ids[:, :1]), parts.embed(None, prompts, 1), parts.embed(ids[:, 1:], offset=33)]
    torch.testing.assert_close(parts.text(torch.cat(pieces, dim=1), mask), expected, **CLOSE)


def test_the_norm_over_tokens_is_laviss(parts, official):
    """At a spread of 0.01 the epsilon decides: 1e-5 (LAVIS) against the vision tower's 1e-6."""
    tokens = 0.01 * torch.randn(2, 17, 48, generator=torch.Generator().manual_seed(3))
    norm = official.vision_model.post_layernorm
    expected = F.layer_norm(tokens, (48,), norm.weight, norm.bias, eps=1e-5)
    torch.testing.assert_close(parts.normed(tokens), expected, **CLOSE)
    assert (norm(tokens) - expected).abs().max() > 1e-2
    assert parts.post_layernorm.eps == LN_VISION_EPS
    assert parts.normed(tokens.bfloat16()).dtype == torch.float32


def test_parts_have_the_official_names_and_a_copy_is_a_copy(parts, official):
    theirs = {name for name in official.state_dict() if not name.startswith("vision_model.")}
    assert set(parts.state_dict()) == theirs | {"post_layernorm.weight", "post_layernorm.bias"}
    mine = copy.deepcopy(parts).requires_grad_(True)
    before = parts.query_tokens.clone()
    with torch.no_grad():
        for parameter in mine.parameters():
            parameter.zero_()
    assert torch.equal(parts.query_tokens, before) and not any(p.requires_grad for p in parts.parameters())


def test_gradients_reach_all_of_a_copy_through_the_passes(parts, rows):
    ids, mask, tokens = rows
    mine = copy.deepcopy(parts).requires_grad_(True)
    fused = mine.fuse(mine.normed(tokens), ids, mask)
    words = torch.cat([fused[:, :32], mine.embed(ids)], dim=1)
    read = mine.text(words, torch.cat([ones(3, 32), mask], dim=1))
    loss = mine.text_projection(read[:, 32]).square().sum() + mine.matching(fused).square().sum()
    loss = loss + mine.vision_projection(mine.image(mine.normed(tokens))).square().sum()
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in mine.parameters())


# ------------------------------------------------------------------------------------------------ the text tower


def prompts(backbone, template="a photo of $ that {text}"):
    return Template(template).render(backbone.tokenizer, [[text] for text in TEXTS]).prompt


def reference(model, prompt, pseudo):
    """The text pass by stock modules, row by row, without padding; pseudo-words put in by hand."""
    found = []
    for row in range(len(prompt)):
        ids = torch.from_numpy(prompt.ids[row, : prompt.ends[row] + 1])
        words = [model.embeddings.word_embeddings(i) for i in ids]
        for column, slot in enumerate(prompt.slots[row]):
            if slot >= 0:
                words[slot] = pseudo[row, min(column, pseudo.shape[1] - 1)]
        words = torch.stack(words) + model.embeddings.position_embeddings(torch.arange(len(ids)))
        states = model.qformer(query_embeds=words[None], query_length=0).last_hidden_state
        found.append(model.text_projection(states[0, 0]))
    return torch.stack(found)


@pytest.mark.parametrize("template", ["a photo of $ that {text}", "$ , {text} like $", "{text}"])
def test_rows_with_pseudo_words_equal_transformers(backbone, official, template):
    prompt = prompts(backbone, template)
    count = max(1, prompt.slots.shape[1])
    pseudo = torch.randn(len(TEXTS), count, 32, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = reference(official, prompt, pseudo)
    found = backbone.encode_text(prompt, pseudo)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert (found[0] - found[1]).abs().max() > 1e-2
    if prompt.slots.shape[1]:
        assert (found - backbone.encode_text(prompt)).abs().max() > 1e-2


def test_gradients_equal_transformers(backbone, official):
    prompt = prompts(backbone)
    pseudo = torch.randn(len(TEXTS), 1, 32, generator=torch.Generator().manual_seed(5)).requires_grad_()
    aim = torch.randn(len(TEXTS), 24, generator=torch.Generator().manual_seed(6))
    tower = copy.deepcopy(backbone.text).requires_grad_(True)
    (tower.encode(prompt, pseudo) * aim).sum().backward()
    mine, to_pseudo = {name: p.grad for name, p in tower.named_parameters()}, pseudo.grad.clone()
    pseudo.grad = None
    theirs = copy.deepcopy(official).requires_grad_(True)
    (reference(theirs, prompt, pseudo) * aim).sum().backward()
    torch.testing.assert_close(to_pseudo, pseudo.grad, atol=1e-5, rtol=1e-4)
    grads = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert set(mine) == set(grads)  # the tower holds what its pass uses, by the official names, and nothing else
    for name, grad in mine.items():
        torch.testing.assert_close(grad, grads[name], atol=1e-5, rtol=1e-4)


def test_the_tower_shares_its_weights_until_it_is_copied(backbone, folder):
    fresh = load(str(folder), device="cpu")
    shared = {id(p) for p in fresh.parts.parameters()}
    assert all(id(p) in shared for p in fresh.text.parameters())
    prompt = prompts(fresh)
    before = fresh.encode_text(prompt)
    copied = copy.deepcopy(fresh.text)
    with torch.no_grad():
        copied.text_projection.weight.zero_()
    assert torch.equal(fresh.encode_text(prompt), before)
    with torch.no_grad():
        fresh.parts.text_projection.weight.mul_(2)
    torch.testing.assert_close(fresh.encode_text(prompt) - fresh.text.text_projection.bias,
                               2 * (before - fresh.text.text_projection.bias), atol=1e-5, rtol=1e-4)  # fmt: skip


def test_a_batch_equals_its_rows_in_any_order_and_padding_is_not_seen(backbone):
    texts = [" ".join(["dogs", "red", "grass", "on"][i % 4] for i in range(n % 9)) for n in range(40)]
    prompt = Template().render(backbone.tokenizer, [[text] for text in texts]).prompt
    pseudo = torch.randn(40, 1, 32, generator=torch.Generator().manual_seed(7))
    whole = backbone.encode_text(prompt, pseudo)
    rows = torch.cat([backbone.encode_text(prompt[i : i + 1], pseudo[i : i + 1]) for i in range(40)])
    torch.testing.assert_close(whole, rows, **CLOSE)
    together = Blip2TextTower.forward(
        backbone.text, *(torch.from_numpy(a) for a in (prompt.ids, prompt.ends, prompt.slots)), pseudo
    )
    torch.testing.assert_close(whole, together, **CLOSE)
    behind = np.arange(prompt.ids.shape[1]) > prompt.ends[:, None]
    noisy = type(prompt)(np.where(behind, 60, prompt.ids), prompt.slots, prompt.ends)
    assert torch.equal(backbone.encode_text(noisy, pseudo), whole)


def test_rows_take_the_pseudo_words_of_their_owner(backbone):
    prompt = Template().render(backbone.tokenizer, [["is red", "is blue"], ["two dogs"]] * 12)
    owner = prompt.owner
    pseudo = torch.randn(24, 1, 32, generator=torch.Generator().manual_seed(8))
    found = backbone.encode_text(prompt.prompt, pseudo, owner)
    torch.testing.assert_close(found, backbone.encode_text(prompt.prompt, pseudo[torch.from_numpy(owner)]), **CLOSE)


def test_a_pseudo_word_takes_its_position_not_the_words_before_it(backbone):
    """The same three words with the slot in three places are three texts."""
    rows = [["", " red dress"], ["red", " dress"], ["red dress", ""]]
    prompt = tokenize(backbone.tokenizer, rows)
    assert prompt.slots.tolist() == [[1], [2], [3]]
    pseudo = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(9)).expand(3, -1, -1)
    found = backbone.encode_text(prompt, pseudo)
    assert min((found[i] - found[j]).abs().max() for i, j in ((0, 1), (0, 2), (1, 2))) > 1e-2
    own = backbone.text.embeddings.word_embeddings.weight[backbone.tokenizer.slot]
    torch.testing.assert_close(
        backbone.encode_text(prompt, own.expand(3, 1, -1)), backbone.encode_text(prompt), **CLOSE
    )


def test_mixed_precision_trains_the_float32_weights(backbone):
    tower = copy.deepcopy(backbone.text).requires_grad_(True)
    prompt = prompts(backbone)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = tower.encode(prompt, torch.randn(len(TEXTS), 1, 32))
    found.float().square().sum().backward()
    assert all(p.dtype == torch.float32 and p.grad is not None for p in tower.parameters())
