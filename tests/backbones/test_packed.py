"""The packed text tower equals the padded one and Hugging Face's module, and does the work it is said to do."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cir.backbones import load
from cir.backbones.activation import quick_gelu
from cir.backbones.attention import gather
from cir.backbones.packed import PackedTower, count_tokens
from cir.backbones.text import TEXT_TOWERS, PaddedTower
from cir.backbones.trie import grow
from cir.schema import Prompt

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")

WIDTH, JOINT, LAYERS, VOCABULARY, CONTEXT = 16, 12, 3, 9, 77
UNUSED = "k_proj.bias"
"""Its true gradient is zero: a softmax does not feel a shift of all its logits."""


@cache
def hugging_face(activation="quick_gelu", layers=LAYERS):
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(0)
    config = CLIPTextConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=layers, num_attention_heads=2,
        vocab_size=VOCABULARY, projection_dim=JOINT, max_position_embeddings=CONTEXT, hidden_act=activation,
        bos_token_id=0, eos_token_id=VOCABULARY - 1, pad_token_id=VOCABULARY - 1,
    )  # fmt: skip
    model = CLIPTextModelWithProjection(config).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too, so that leaving one out shows
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module", params=["quick_gelu", "gelu"])
def model(request):
    return hugging_face(request.param)


def tower(model, kind="packed", train=False):
    model = copy.deepcopy(model)
    return TEXT_TOWERS[kind](model.text_model, model.text_projection).requires_grad_(train)


def tries(rows, seed, length=14, letters=3, columns=2, owners=4):
    """Rows over few letters, so that they share beginnings, end inside one another and repeat; slots anywhere."""
    draw = np.random.default_rng(seed)
    ends = draw.integers(1, length, rows)
    ids = draw.integers(1, 1 + letters, (rows, length))
    ids[:, 0] = 0
    slots = np.stack([draw.permutation(max(ends.max(), columns))[:columns] for _ in range(rows)])
    slots[slots >= ends[:, None]] = -1
    slots[draw.random(rows) < 0.3] = -1
    return Prompt(ids, slots, ends), draw.integers(0, owners, rows)


def run(text, prompt, pseudo=None, owner=None, seed=1):
    """Forward and backward; the vectors, the pseudo-words' gradient, the weights' gradients by name."""
    pseudo = None if pseudo is None else pseudo.clone().requires_grad_()
    vectors = text.encode(prompt, pseudo, owner)
    if vectors.requires_grad:
        vectors.backward(torch.randn(vectors.shape, generator=torch.Generator().manual_seed(seed)).to(vectors))
    weights = {name: p.grad for name, p in text.named_parameters() if not name.endswith(UNUSED)}
    return vectors.detach(), None if pseudo is None else pseudo.grad, weights


def apart(found, expected):
    return ((found - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def assert_same(found, expected, bound=1e-11):
    assert apart(found[0], expected[0]) < bound
    if expected[1] is not None:
        assert apart(found[1], expected[1]) < bound
    assert found[2].keys() == expected[2].keys()
    for name, grad in expected[2].items():
        assert (found[2][name] is None) == (grad is None), name
        assert grad is None or apart(found[2][name], grad) < bound, name


def words(owners, count, seed=3):
    return torch.randn(owners, count, WIDTH, generator=torch.Generator().manual_seed(seed))


# --- equality


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("kind", ["packed", "packed_flex"])
@pytest.mark.parametrize(("count", "shared"), [(0, True), (1, True), (2, True), (1, False), (2, False)])
def test_it_equals_the_padded_tower_in_value_and_gradient(model, kind, count, shared, train):
    prompt, owner = tries(24, seed=0)
    pseudo = words(4 if shared else 24, count) if count else None
    owner = owner if shared and count else None
    pseudo = None if pseudo is None else pseudo.double()
    expected = run(tower(model, "padded", train).double(), prompt, pseudo, owner)
    assert_same(run(tower(model, kind, train).double(), prompt, pseudo, owner), expected)
    assert expected[0].std(dim=0).min() > 0.05  # the rows do differ


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 20), st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 3), st.integers(2, 20), st.booleans()
)
def test_any_trie_equals_the_padded_tower(rows, seed, letters, owners, length, train):
    model = hugging_face(layers=2)
    prompt, owner = tries(rows, seed, length, letters, columns=2, owners=owners)
    pseudo = words(owners, 1 + seed % 2).double()
    expected = run(tower(model, "padded", train).double(), prompt, pseudo, owner)
    assert_same(run(tower(model, "packed", train).double(), prompt, pseudo, owner), expected)


def test_in_float32_it_is_as_exact_as_the_padded_tower(model):
    prompt, owner = tries(24, seed=0)
    exact = run(tower(model, train=True).double(), prompt, words(4, 2).double(), owner)
    found, plain = (run(tower(model, kind, train=True), prompt, words(4, 2), owner) for kind in ("packed", "padded"))
    assert apart(found[0], exact[0]) < 1e-6 and apart(found[1], exact[1]) < 1e-6
    for name, grad in exact[2].items():
        assert apart(found[2][name], grad) < 3 * apart(plain[2][name], grad) + 1e-6, name


def test_it_equals_hugging_faces_module_on_full_rows(model):
    ids = torch.randint(1, VOCABULARY - 1, (5, CONTEXT), generator=torch.Generator().manual_seed(0))
    ends = torch.tensor([CONTEXT - 1, 3, 20, 40, 3])
    ids[1, :4] = ids[4, :4]  # a row twice
    for row, end in enumerate(ends):
        ids[row, end:] = VOCABULARY - 1  # the end-of-text id is the largest and the padding, as CLIP has it
    expected = model(input_ids=ids).text_embeds
    assert apart(tower(model)(ids, ends), expected) < 1e-6
    short = tower(model)(ids[:, :41], ends.clamp_max(40).to(torch.int32), None, None, None)
    assert apart(short[1:], expected[1:]) < 1e-6


def test_a_words_own_embedding_in_a_slot_changes_nothing(model):
    prompt, _ = tries(16, seed=1)
    packed = tower(model)
    embedding = packed.text_model.embeddings.token_embedding.weight
    own = [[embedding[prompt.ids[row, max(slot, 0)]] for slot in prompt.slots[row]] for row in range(16)]
    pseudo = torch.stack([torch.stack(row) for row in own])
    assert apart(packed.encode(prompt, pseudo), packed.encode(prompt)) < 1e-6
    assert apart(packed.encode(prompt, pseudo + words(16, 2)), packed.encode(prompt)) > 1e-3


def test_the_tensor_form_equals_the_prompt_form(model):
    prompt, owner = tries(12, seed=2)
    pseudo = words(4, 2)
    ids, slots, ends = (torch.from_numpy(x) for x in (prompt.ids, prompt.slots, prompt.ends))
    packed = tower(model)
    found = packed(ids.to(torch.int32), ends, slots, pseudo, torch.from_numpy(owner))
    assert torch.equal(found, packed.encode(prompt, pseudo, owner))
    assert torch.equal(packed(ids, ends), packed.encode(prompt))


def test_a_batch_equals_its_rows_in_any_order(model):
    prompt, owner = tries(20, seed=3)
    packed, pseudo = tower(model), words(4, 1)
    together = packed.encode(prompt, pseudo, owner)
    for row in range(20):
        here = slice(row, row + 1)
        assert apart(packed.encode(prompt[here], pseudo, owner[here]), together[here]) < 2e-6
    order = np.random.default_rng(0).permutation(20)
    assert torch.equal(packed.encode(prompt[order], pseudo, owner[order]), together[torch.from_numpy(order)])


def test_no_rows_give_no_vectors(model):
    none = Prompt(np.zeros((0, 5), np.int64), np.zeros((0, 1), np.int64), np.zeros(0, np.int64))
    for kind in TEXT_TOWERS:
        if kind != "padded":
            for pseudo in (None, torch.zeros(0, 1, WIDTH), torch.zeros(0, 1, WIDTH, requires_grad=True)):
                assert tower(model, kind).encode(none, pseudo).shape == (0, JOINT)


def test_pseudo_words_that_fit_no_slots_are_refused(model):
    prompt, owner = tries(4, seed=0)
    with pytest.raises(ValueError, match="3 pseudo-words for 2 slot columns"):
        tower(model).encode(prompt, words(4, 3), owner)
    with pytest.raises(ValueError, match="5 owners' pseudo-words for 4 rows"):
        tower(model).encode(prompt, words(5, 1))
    for wrong in (owner[:3], owner + 4, owner - 4):
        with pytest.raises(ValueError, match=r"expected one of 0\.\.3 for each of 4 rows"):
            tower(model).encode(prompt, words(4, 1), wrong)


def test_flex_attention_without_gradient_equals_rows(model):
    """On a CPU PyTorch has FlexAttention's forward only: this is the kernel itself, under the mask of the trie."""
    prompt, owner = tries(24, seed=4)
    with torch.no_grad():
        expected = tower(model, "packed").encode(prompt, words(4, 2), owner)
        assert apart(tower(model, "packed_flex").encode(prompt, words(4, 2), owner), expected) < 2e-6


# --- precision, copies, training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_tower_stays_near_the_full_one(model, dtype):
    prompt, owner = tries(24, seed=5)
    full = run(tower(model), prompt, words(4, 2), owner)
    half = run(tower(model).to(dtype), prompt, words(4, 2), owner)
    padded = run(tower(model, "padded").to(dtype), prompt, words(4, 2), owner)
    assert half[0].dtype == dtype and half[1].dtype == torch.float32
    for found, plain, exact in zip(half[:2], padded[:2], full[:2], strict=True):
        assert apart(found.float(), exact) < 1.5 * apart(plain.float(), exact) + 1e-3


@pytest.mark.parametrize("train", [False, True])
def test_under_autocast_it_is_as_exact_as_the_padded_tower(model, train):
    prompt, owner = tries(24, seed=5)
    exact = run(tower(model, train=train), prompt, words(4, 1), owner)
    with torch.autocast("cpu", torch.bfloat16):
        found, plain = (run(tower(model, kind, train), prompt, words(4, 1), owner) for kind in ("packed", "padded"))
    assert found[0].dtype == plain[0].dtype == torch.bfloat16
    errors = [apart(x.float(), y) for x, y in ((found[0], exact[0]), (found[1], exact[1]))]
    assert max(errors) < 0.05 and errors[1] < 1.5 * apart(plain[1], exact[1]) + 1e-3


def test_a_shared_prefix_collects_small_gradients_in_full():
    """600 rows that send 1 each: in bfloat16 the sum would stop at 256."""
    values = torch.zeros(2, 3, dtype=torch.bfloat16, requires_grad=True)
    gather(values, torch.zeros(600, dtype=torch.long)).backward(torch.ones(600, 3, dtype=torch.bfloat16))
    assert torch.equal(values.grad, torch.tensor([[600.0] * 3, [0.0] * 3], dtype=torch.bfloat16))


def test_the_activation_equals_its_expression():
    x = torch.linspace(-12, 12, 400, dtype=torch.float64).reshape(20, 20).requires_grad_()
    (expected,) = torch.autograd.grad((x * torch.sigmoid(1.702 * x)).square().sum(), x)
    (found,) = torch.autograd.grad(quick_gelu(x).square().sum(), x)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(quick_gelu(x.detach()), quick_gelu(x).detach(), atol=0, rtol=0)
    before = x.detach().clone()
    assert torch.equal(x.detach(), before)
    assert torch.autograd.gradcheck(quick_gelu, (x[:3, :3].detach().requires_grad_(),))
    assert torch.autograd.gradcheck(gather, (x[:4, :3].detach().requires_grad_(), torch.tensor([1, 1, 3])))


def test_a_copy_takes_the_step_of_the_padded_tower(model):
    prompt, owner = tries(24, seed=6)
    after = []
    for kind in ("packed", "padded"):
        text = copy.deepcopy(tower(model, kind)).requires_grad_(True)
        optimizer = torch.optim.SGD(text.parameters(), 0.1, momentum=0.9)
        for _ in range(2):
            optimizer.zero_grad()
            text.encode(prompt, words(4, 1), owner).square().mean().backward()
            optimizer.step()
        after.append(text.state_dict())
    for name, value in after[1].items():
        assert apart(after[0][name], value) < 2e-6, name
        assert name.endswith(UNUSED) or not torch.equal(value, tower(model).state_dict()[name]), name


def test_names_are_hugging_faces_and_weights_are_not_copied(model):
    packed = PackedTower(model.text_model, model.text_projection)
    assert packed.state_dict().keys() == model.state_dict().keys()
    assert all(p is q for p, q in zip(packed.parameters(), model.parameters(), strict=True))


def test_functional_calls_take_other_weights(model):
    packed = tower(model)
    prompt, owner = tries(8, seed=7)
    ids, slots, ends = (torch.from_numpy(x) for x in (prompt.ids, prompt.slots, prompt.ends))
    owner, pseudo = torch.from_numpy(owner), words(4, 1)
    doubled = {name: 2 * value for name, value in packed.state_dict().items()}

    def loss(weights):
        out = torch.func.functional_call(packed, weights, (ids, ends, slots, pseudo, owner))
        return out.square().mean()

    grads = torch.func.grad(loss)(doubled)
    other = tower(model, train=True)
    other.load_state_dict(doubled)
    other(ids, ends, slots, pseudo, owner).square().mean().backward()
    for name, parameter in other.named_parameters():
        assert name.endswith(UNUSED) or apart(grads[name], parameter.grad) < 2e-6, name


def test_adapters_of_peft_are_called(model):
    peft = pytest.importorskip("peft")
    prompt, owner = tries(8, seed=8)
    found = {}
    for kind in ("packed", "padded"):
        torch.manual_seed(0)
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "out_proj", "fc1"], init_lora_weights=False)
        text = peft.inject_adapter_in_model(config, tower(model, kind))
        found[kind] = run(text.double(), prompt, words(4, 1).double(), owner)
    assert_same(found["packed"], found["padded"])
    trained = [name for name, grad in found["packed"][2].items() if grad is not None and grad.any()]
    assert len(trained) == LAYERS * 4 * 2 and all("lora" in name for name in trained)


# --- work


def rows_of(*rows, slots=None):
    """Rows written out: letters are tokens, the last one ends the text."""
    length = max(map(len, rows))
    ids = np.array([[ord(c) - ord("a") for c in row.ljust(length, "a")] for row in rows])
    slots = np.full((len(rows), 1), -1) if slots is None else np.array(slots)[:, None]
    return Prompt(ids, slots, np.array([len(row) - 1 for row in rows]))


def passes(nodes, ends):
    """Token passes of a forward: keys and values, 2 of the layer's 12 w², for all nodes, the rest where rows end."""
    return (nodes * (LAYERS - 1) + nodes * 2 / 12 + ends * 10 / 12) / LAYERS


def test_distinct_prefixes_are_counted_by_hand(model):
    #      a             a
    #      b  b  b       b      abce, abcf, abde (twice), ab: 2 + (1 + 2) + 2 nodes, 4 distinct rows
    prompt = rows_of("abce", "abcf", "abde", "abde", "ab")
    trie = grow(prompt)
    assert len(trie.parts) == 1 and len(trie.parts[0].ids) == 7
    assert trie.rows[2] == trie.rows[3] and len(set(trie.rows)) == 4
    with count_tokens(tower(model)) as nothing:
        pass
    assert nothing.total == 0
    text = tower(model)
    with count_tokens(text) as count:
        text.encode(prompt)
    assert count.forward == pytest.approx(passes(7, 4)) and count.backward_inputs == count.weight_gradients == 0
    text.encode(prompt)
    assert count.forward == pytest.approx(passes(7, 4))  # counting ends with the block


def test_slots_are_shared_within_an_owner_only(model):
    prompt = rows_of("abxd", "abxe", "abxd", "abcd", slots=[2, 2, 2, -1])
    trie = grow(prompt, 1, np.array([0, 0, 1, 1]), split=True)
    constant, varying = trie.parts
    assert constant.constant and not varying.constant
    assert constant.ids.tolist() == [0, 1, 2, 3] and constant.positions.tolist() == [0, 1, 2, 3]
    assert varying.sources.tolist() == [0, 1] and varying.slots.tolist() == [0, 3]  # x d e of owner 0, x d of owner 1
    assert varying.ids.tolist() == [0, 3, 4, 0, 3] and varying.positions.tolist() == [2, 3, 3, 2, 3]
    assert len(constant.ends) == 1 and len(varying.ends) == 3


def test_a_frozen_tower_multiplies_for_nodes_behind_a_slot_only(model):
    prompt = rows_of("abxd", "abxe", "abxd", "abcd", slots=[2, 2, 2, -1])
    text, pseudo = tower(model), words(2, 1).requires_grad_()
    with count_tokens(text) as count:
        vectors = text.encode(prompt, pseudo, np.array([0, 0, 1, 1]))
        vectors.sum().backward()
    assert count.forward == pytest.approx(passes(9, 4))
    # The first layer's keys, values and queries send back to the pseudo-words: every product of the 5 nodes behind.
    assert count.backward_inputs == pytest.approx(passes(5, 3))
    assert count.weight_gradients == 0 and all(p.grad is None for p in text.parameters())


def test_a_trained_tower_multiplies_three_times(model):
    prompt = rows_of("abxd", "abxe", "abxd", "abcd", slots=[2, 2, 2, -1])
    text = tower(model, train=True)
    with count_tokens(text) as count:
        text.encode(prompt, words(2, 1), np.array([0, 0, 1, 1])).sum().backward()
    assert count.forward == pytest.approx(passes(9, 4))
    assert count.backward_inputs == pytest.approx(count.forward) == pytest.approx(count.weight_gradients)


def test_the_padded_tower_counts_whole_rows(model):
    text = tower(model, "padded", train=True)
    with count_tokens(text) as count:
        text.encode(rows_of("abcde", "abc")).sum().backward()
    assert [count.forward, count.backward_inputs, count.weight_gradients] == pytest.approx([10, 10, 10])


def test_rows_without_a_slot_carry_no_gradient(model):
    prompt = rows_of("abxd", "abcd", slots=[2, -1])
    text, pseudo = tower(model), words(2, 1).requires_grad_()
    text.encode(prompt, pseudo)[0].sum().backward()
    assert pseudo.grad[0].any() and not pseudo.grad[1].any()
    pseudo.grad = None
    text.encode(prompt, pseudo)[1].sum().backward()
    assert not pseudo.grad.any()
    with count_tokens(text) as count:
        text.encode(rows_of("abc", "abd"), pseudo).sum().backward()
    assert count.backward_inputs == 0 and not pseudo.grad.any()
    with torch.no_grad():
        assert not text.encode(prompt, pseudo).requires_grad
    assert not text.encode(prompt, pseudo.detach()).requires_grad


@pytest.mark.parametrize("seed", range(3))
def test_the_trie_equals_prefixes_listed_one_by_one(seed):
    """The slow twin: a dictionary from prefixes to nodes."""
    prompt, owner = tries(30, seed)
    trie = grow(prompt, 2, owner, split=True)
    prefixes, ends = set(), {}
    for row, end in enumerate(prompt.ends):
        slots = {int(p): ("pseudo", int(owner[row]), column) for column, p in enumerate(prompt.slots[row]) if p >= 0}
        path = tuple(slots.get(p, ("token", int(prompt.ids[row, p]))) for p in range(end + 1))
        prefixes |= {path[: p + 1] for p in range(end + 1)}
        ends.setdefault(path, set()).add(int(trie.rows[row]))
    behind = {prefix for prefix in prefixes if any(token[0] == "pseudo" for token in prefix)}
    assert [len(part.ids) for part in trie.parts] == [len(prefixes - behind), len(behind)]
    assert all(len(rows) == 1 for rows in ends.values())
    assert sorted(min(rows) for rows in ends.values()) == list(range(len(ends)))
    sees = (trie.enter <= trie.enter[:, None]) & (trie.enter[:, None] < trie.leave)
    positions = np.concatenate([part.positions for part in trie.parts])
    assert np.array_equal(sees.sum(axis=1), positions + 1)  # a node sees as many as its path is long


# --- choosing a tower


def test_padded_rows_of_similar_length_go_together(model):
    prompt, owner = tries(70, seed=9, length=40)
    text, pseudo = tower(model, "padded"), words(4, 2)
    ids, slots, ends = (torch.from_numpy(x) for x in (prompt.ids, prompt.slots, prompt.ends))
    whole = text(ids, ends, slots, pseudo, torch.from_numpy(owner))
    assert apart(text.encode(prompt, pseudo, owner), whole) < 1e-6
    each = text(ids, ends, slots, pseudo[torch.from_numpy(owner)])
    assert apart(text.encode(prompt, pseudo[torch.from_numpy(owner)]), each) < 1e-6
    with count_tokens(text) as count:
        text.encode(prompt, pseudo, owner)
    assert (prompt.ends + 1).sum() <= count.forward < 0.75 * 70 * (prompt.ends.max() + 1)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("auto", PackedTower), ("packed", PackedTower), ("packed_flex", PackedTower), ("padded", PaddedTower)],
)
def test_towers_by_name(tiny_clip_folder, name, kind):
    text = load(str(tiny_clip_folder), device="cpu", text_tower=name).text
    assert type(text) is kind and getattr(text, "attention", "") == {"packed_flex": "flex", "padded": ""}.get(
        name, "rows"
    )
