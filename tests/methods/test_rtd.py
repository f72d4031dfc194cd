import pytest
import torch

from cir.data.triplets import Triplet
from cir.errors import InputError
from cir.methods import NoStore, PseudoWordMethod, build, checkpoint
from cir.methods.noise import perturb
from cir.methods.rtd import RTDOptions
from cir.objectives import nt_xent
from cir.optim import trainables
from cir.prompts import tokenize
from cir.randomness import StepRandom

ROWS = [
    Triplet("A red dress $5", "is Blue, costs $20", "A blue dress"),
    Triplet("two dogs", "on grass instead", "two dogs on grass"),
    Triplet("a sofa", "has cats", "a sofa with cats"),
    Triplet("person", "holding umbrella", "person holding umbrella"),
]


def draw(rows=4, start=0, total=4):
    return StepRandom(0, 0, start, start + rows, total)


def make(backbone, **options):
    return build("rtd", options, backbone, build("lincir", {}, backbone, seed=3))


def batch(method, backbone, rows=(0, 1, 2, 3), draws=1000, random=None):
    return method.prepare(backbone, ROWS, seed=0, draws=draws, store=NoStore()).batch(
        list(rows), random or draw(len(rows))
    )


def perturbed(method):
    """Move the trained tower off its start, so that it differs from the frozen one."""
    with torch.no_grad():
        for p in method.text.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return method


def test_the_loss_equals_the_step_written_out(tiny_backbone):
    method = perturbed(make(tiny_backbone, noise_scale=0.4, tau=0.2))
    random = draw()
    loss = method.losses(tiny_backbone, batch(method, tiny_backbone, random=random))["nt_xent"]

    def frozen(text):
        return tiny_backbone.encode_text(tokenize(tiny_backbone.tokenizer, [[text]]))

    references = torch.cat([frozen(row.reference.lower().replace("$", "")) for row in ROWS])
    targets = torch.cat([frozen(row.target.lower()) for row in ROWS])
    g, u = random.normal("noise.gaussian", tiny_backbone.width), random.uniform("noise.scale", 1)
    pseudo = method.base.phi(references + 0.4 * u * g)[:, None]
    tokens = tiny_backbone.tokenizer
    composed = [
        method.text.encode(tokenize(tokens, [["a photo of", " that " + row.text]]), pseudo[i : i + 1])
        for i, row in enumerate(ROWS)
    ]
    alone = [method.text.encode(tokenize(tokens, [["a photo of", ""]]), pseudo[i : i + 1]) for i in range(4)]
    expected = nt_xent(torch.cat([targets, references]), torch.cat([*composed, *alone]), 0.2)
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-4)


def test_a_dollar_in_the_conditioning_text_is_no_slot(tiny_backbone):
    composed = batch(make(tiny_backbone), tiny_backbone).composed
    assert composed.slots.shape == (4, 1)


def test_without_refined_batch_only_the_composed_pairs_count(tiny_backbone):
    full, half = make(tiny_backbone), make(tiny_backbone, refined_batch=False)
    b = batch(half, tiny_backbone)
    assert b.special is None
    assert half._queries(b).shape[0] == 4 == half._anchors(b).shape[0]
    assert full._queries(batch(full, tiny_backbone)).shape[0] == 8


def test_plain_text_puts_the_reference_into_words(tiny_backbone):
    method = make(tiny_backbone, concat="plain_text")
    b = batch(method, tiny_backbone)
    expected = tokenize(
        tiny_backbone.tokenizer, [["a red dress 5, is Blue, costs $20"], ["two dogs, on grass instead"]]
    )
    assert (b.composed.ids[0, : expected.ends[0] + 1] == expected.ids[0]).all()
    assert b.composed.slots.size == 0 and b.special is not None and b.special.slots.size == 0
    assert torch.isfinite(method.losses(tiny_backbone, b)["nt_xent"])


def test_anchors_carry_gradient_only_where_they_should(tiny_backbone):
    for anchor, frozen, gradient in (
        ("frozen", True, False),
        ("stop_gradient", False, False),
        ("trainable", False, True),
    ):
        method = perturbed(make(tiny_backbone, anchor=anchor))
        trainables(method, method.trains)
        b = batch(method, tiny_backbone)
        anchors = method._anchors(b)
        assert anchors.requires_grad == gradient
        same = torch.allclose(anchors, torch.cat([b.target, b.reference]), atol=1e-4)
        assert same == frozen
        assert method._queries(b).requires_grad


def test_stop_gradient_keeps_the_queries_gradient_under_mixed_precision(tiny_backbone):
    method = make(tiny_backbone, anchor="stop_gradient")
    named = trainables(method, method.trains)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = method.losses(tiny_backbone, batch(method, tiny_backbone))["nt_xent"]
    loss.backward()
    assert all(p.grad is not None for p in named.values())


@pytest.mark.parametrize(("trainable", "blocks"), [("last_1", {"1"}), ("last_2", {"0", "1"}), ("projection", set())])
def test_parts_of_the_tower_train_alone(tiny_backbone, trainable, blocks):
    method = make(tiny_backbone, trainable=trainable)
    named = trainables(method, method.trains)
    assert {name.split("layers.")[1][0] for name in named if "layers." in name} == blocks
    assert "text.text_projection.weight" in named and not any("embedding" in name for name in named)


@pytest.mark.parametrize(
    ("trainable", "kinds"),
    [
        ("attention", {"q_proj", "k_proj", "v_proj", "out_proj"}),
        ("layer_norm", {"layer_norm1", "layer_norm2", "final_layer_norm"}),
    ],
)
def test_one_kind_of_layer_trains_through_all_blocks_and_nothing_else_moves(tiny_backbone, trainable, kinds):
    method = make(tiny_backbone, trainable=trainable)
    named = trainables(method, method.trains)
    assert {name.split(".")[-2] for name in named} == kinds
    assert {name.split("layers.")[1][0] for name in named if "layers." in name} == {"0", "1"}
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    method.losses(tiny_backbone, batch(method, tiny_backbone))["nt_xent"].backward()
    torch.optim.SGD(named.values(), lr=1.0).step()
    moved = {name for name, p in method.named_parameters() if not torch.equal(p, before[name])}
    assert moved <= set(named)
    assert {name for name in named if name.endswith(".weight")} <= moved  # a key's bias has no gradient but rounding


def test_the_wrapped_method_never_trains(tiny_backbone):
    method = make(tiny_backbone).train()
    assert method.training and not method.base.training and not method.text.training
    assert not any(p.requires_grad for p in method.base.parameters())
    assert method.tower(tiny_backbone) is method.text is not tiny_backbone.text


def test_cached_features_equal_fresh_ones(tiny_backbone):
    method = make(tiny_backbone)
    cached, fresh = batch(method, tiny_backbone, draws=1000), batch(method, tiny_backbone, draws=1)
    torch.testing.assert_close(cached.target, fresh.target, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(cached.reference, fresh.reference, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"anchor": "frozn"}, "did you mean 'frozen'"),
        ({"concat": "plain"}, "did you mean 'plain_text'"),
        ({"trainable": "last_9"}, "last_1 to last_2"),
        ({"trainable": "lora"}, "expected all, projection"),
        ({"noise": "pink"}, "noise 'pink'"),
    ],
)
def test_unknown_choices_are_named(tiny_backbone, options, match):
    with pytest.raises(InputError, match=match):
        make(tiny_backbone, **options)


def test_only_methods_with_pseudo_words_can_be_wrapped(tiny_backbone):
    with pytest.raises(InputError, match="got Sum as base"):
        build("rtd", {}, tiny_backbone, build("sum", {}, tiny_backbone))


def test_bases_that_do_not_project_are_refused_with_the_reason(tiny_backbone):
    class Patches(PseudoWordMethod):
        reads = "patches"
        learns_from = "images"

    class PerImage(PseudoWordMethod):
        pass

    class Projector(PseudoWordMethod):
        learns_from = "images"

        def words(self, image):
            return image[:, None, :1].expand(-1, 1, tiny_backbone.word_width)

    with pytest.raises(InputError, match="Patches reads a picture's patches, and a caption has none"):
        build("rtd", {}, tiny_backbone, Patches(None, tiny_backbone))
    with pytest.raises(InputError, match="PerImage has no projector: it optimises"):
        build("rtd", {}, tiny_backbone, PerImage(None, tiny_backbone))
    with pytest.raises(InputError, match="got RTD as base"):
        build("rtd", {}, tiny_backbone, make(tiny_backbone))
    method = build("rtd", {}, tiny_backbone, Projector(None, tiny_backbone))
    assert torch.isfinite(method.losses(tiny_backbone, batch(method, tiny_backbone))["nt_xent"])


@pytest.mark.parametrize("name", ["pic2word", "searle", "lincir"])
def test_every_projection_can_be_wrapped(tiny_backbone, name):
    base = build(name, {}, tiny_backbone, seed=3)
    method = build("rtd", {}, tiny_backbone, base)
    named = trainables(method, method.trains)
    method.losses(tiny_backbone, batch(method, tiny_backbone))["nt_xent"].backward()
    assert all(p.grad is not None for p in named.values()) and all(p.grad is None for p in base.parameters())


@pytest.mark.parametrize("name", ["oti", "context_i2w"])
def test_methods_without_such_a_projection_cannot(tiny_backbone, name):
    with pytest.raises(InputError, match="rtd wraps a method that projects a joint feature"):
        build("rtd", {}, tiny_backbone, build(name, {}, tiny_backbone))


def test_the_released_preset_turns_three_switches_off(tiny_backbone, tmp_path):
    paper, released = make(tiny_backbone), make(tiny_backbone, preset="released", tau=0.1)
    switches = ("gather_negatives", "all_reduce", "autocast")
    assert [getattr(paper.options, name) for name in switches] == [True] * 3 and paper.all_reduce
    assert [getattr(released.options, name) for name in switches] == [False] * 3 and not released.all_reduce
    assert released.options.tau == 0.1 and released.options.noise_scale == 0.5
    assert make(tiny_backbone, preset="released", autocast=False).options.preset == "released"
    checkpoint.save(tmp_path, released, tiny_backbone)
    assert checkpoint.load(tmp_path, tiny_backbone).options == released.options


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"preset": "released", "all_reduce": True}, "preset released means all_reduce=false, got True"),
        ({"preset": "release"}, "did you mean 'released'"),
        ({"all_reduce": False}, "set gather_negatives=false too"),
    ],
)
def test_contradicting_options_are_refused(tiny_backbone, options, match):
    with pytest.raises(InputError, match=match):
        make(tiny_backbone, **options)


def test_options_of_old_checkpoints_still_fit():
    assert RTDOptions(tau=0.1, gather_negatives=False) == RTDOptions(tau=0.1, gather_negatives=False, preset="paper")
    with pytest.raises(TypeError, match="unknown options"):
        RTDOptions(taw=1)


def test_autocast_off_keeps_the_tower_in_float32(tiny_backbone):
    for anchor in ("frozen", "trainable"):
        mixed, exact = (make(tiny_backbone, autocast=on, anchor=anchor) for on in (True, False))
        plain = exact.losses(tiny_backbone, batch(exact, tiny_backbone))["nt_xent"]
        seen = []
        for method in (mixed, exact):
            layer = method.text.text_model.encoder.layers[0].mlp.fc1
            layer.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output.dtype))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = method.losses(tiny_backbone, batch(method, tiny_backbone))["nt_xent"]
        half = len(seen) // 2
        assert set(seen[:half]) == {torch.bfloat16} and set(seen[half:]) == {torch.float32}
        assert (loss - plain).abs() < 0.05  # only the projector ran in sixteen bits


def test_queries_share_owners_and_equal_separate_calls(tiny_backbone):
    method = perturbed(make(tiny_backbone))
    b = batch(method, tiny_backbone)
    calls = []
    encode = method.text.encode

    def noted(prompt, pseudo=None, owner=None):
        calls.append((len(prompt), None if owner is None else owner.tolist()))
        return encode(prompt, pseudo, owner)

    method.text.encode = noted
    stacked = method._queries(b)
    assert calls == [(8, [0, 1, 2, 3, 0, 1, 2, 3])]
    noisy = perturb(b.reference, "uniform_gaussian", 0.5, b.random)
    pseudo = method.base.words(noisy)
    apart = torch.cat([encode(b.composed, pseudo), encode(b.special, pseudo)])
    torch.testing.assert_close(stacked, apart, atol=1e-5, rtol=1e-4)


def test_preparing_again_finds_everything_in_the_store(tiny_backbone):
    class Memory:
        def __init__(self):
            self.kept, self.computed = {}, 0

        def rows(self, kind, identity, count, compute):
            key = (kind, tuple(identity))
            if key not in self.kept:
                self.computed += 1
                self.kept[key] = NoStore().rows(kind, identity, count, compute)
            return self.kept[key]

    store, method = Memory(), make(tiny_backbone)
    first, second = (method.prepare(tiny_backbone, ROWS, seed=0, draws=100, store=store) for _ in range(2))
    assert store.computed == len(store.kept) == 3  # captions' rows, their features, composed rows
    plain = make(tiny_backbone, concat="plain_text").prepare(tiny_backbone, ROWS, seed=0, draws=100, store=store)
    assert store.computed == 4  # other sentences, the same captions
    one, two = (each.batch([2, 0], draw(2)) for each in (first, second))
    assert torch.equal(one.target, two.target) and (one.composed.ids == two.composed.ids).all()
    assert not (plain.batch([0], draw(1)).composed.slots >= 0).any()
    fresh = method.prepare(tiny_backbone, ROWS, seed=0, draws=1, store=NoStore()).batch([2, 0], draw(2))
    torch.testing.assert_close(one.target, fresh.target, atol=1e-5, rtol=1e-4)
    assert (one.composed.ids == fresh.composed.ids).all() and (one.special.slots == fresh.special.slots).all()
