import math

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from cir.backbones import load
from cir.backbones.base import one_vector
from cir.errors import InputError
from cir.methods import METHODS, build
from cir.methods.baselines import text_vectors
from cir.prompts import JOINERS, Template, tokenize
from cir.schema import Query
from tests.backbones.blip2_folder import tiny_blip2

QUERIES = [Query("a", "x", ("is red.", "has two dogs")), Query("b", "y", ("the sofa",))]


def reference(backbone, vectors=1):
    return torch.randn(2, vectors, backbone.width, generator=torch.Generator().manual_seed(0))


def compose(name, options, backbone, image, queries=QUERIES, join="both_orders"):
    return build(name, options, backbone).compose(backbone, image, queries, Template(), JOINERS[join])


def test_texts_are_averaged_over_both_orders(tiny_backbone):
    def unit(text):
        return F.normalize(tiny_backbone.encode_text(tokenize(tiny_backbone.tokenizer, [[text]])), dim=-1)[0]

    out = text_vectors(tiny_backbone, QUERIES, JOINERS["both_orders"])[:, 0]
    both = unit("is red and has two dogs") + unit("has two dogs and is red")
    torch.testing.assert_close(out, torch.stack([both / both.norm(), unit("the sofa")]), atol=1e-5, rtol=1e-4)


def test_a_query_without_text_is_named(tiny_backbone):
    with pytest.raises(InputError, match=r"1 queries have no text, first \['c'\]"):
        compose("text_only", {}, tiny_backbone, reference(tiny_backbone), [Query("c", "x", ())])


def test_sum_and_product_written_out(tiny_backbone):
    image = reference(tiny_backbone)
    v, t = F.normalize(image, dim=-1), text_vectors(tiny_backbone, QUERIES, JOINERS["both_orders"])
    for options, expected in (({}, v + t), ({"weight": 0.25}, 0.75 * v + 0.25 * t)):
        out = compose("sum", options, tiny_backbone, image)
        torch.testing.assert_close(out, expected / expected.norm(dim=-1, keepdim=True))
    out = compose("product", {}, tiny_backbone, image)
    torch.testing.assert_close(out, torch.cat([v, t], dim=1))
    assert METHODS["product"].fusion == "product"


def test_slerp_divides_the_angle(tiny_backbone):
    image = reference(tiny_backbone)
    v, t = F.normalize(image, dim=-1), text_vectors(tiny_backbone, QUERIES, JOINERS["both_orders"])
    out = compose("slerp", {"alpha": 0.8}, tiny_backbone, image)
    for i in range(2):
        whole = math.acos(float(v[i, 0] @ t[i, 0]))
        assert math.acos(float(out[i, 0] @ v[i, 0])) == pytest.approx(0.8 * whole, abs=1e-3)
        assert math.acos(float(out[i, 0] @ t[i, 0])) == pytest.approx(0.2 * whole, abs=1e-3)


@pytest.mark.parametrize(("alpha", "which"), [(0.0, 0), (1.0, 1)])
def test_slerp_ends_at_its_inputs(tiny_backbone, alpha, which):
    image = reference(tiny_backbone)
    ends = F.normalize(image, dim=-1), text_vectors(tiny_backbone, QUERIES, JOINERS["both_orders"])
    torch.testing.assert_close(compose("slerp", {"alpha": alpha}, tiny_backbone, image), ends[which])


@pytest.mark.parametrize("sign", [1, -1])
def test_slerp_of_parallel_and_opposite_vectors_is_finite_and_of_unit_length(tiny_backbone, sign):
    text = text_vectors(tiny_backbone, QUERIES, JOINERS["both_orders"])
    out = compose("slerp", {"alpha": 0.8}, tiny_backbone, sign * text)
    torch.testing.assert_close(out.norm(dim=-1), torch.ones(2, 1))


def test_several_vectors_per_image_keep_their_number(tiny_backbone):
    assert compose("sum", {}, tiny_backbone, reference(tiny_backbone, 3)).shape[1] == 3


def test_shares_outside_the_unit_interval_are_refused(tiny_backbone):
    with pytest.raises(InputError, match="from 0 to 1, got 2"):
        build("sum", {"weight": 2}, tiny_backbone)
    with pytest.raises(InputError, match="from 0 to 1"):
        build("slerp", {"alpha": -1}, tiny_backbone)


@pytest.mark.parametrize("name", ["text_only", "lincir"])
def test_matching_is_the_mean_over_a_querys_sentences_picture_by_picture(tmp_path, name):
    """`rerank.top` on BLIP-2: every picture with every sentence, one call each."""
    backbone = load(str(tiny_blip2(tmp_path)), device="cpu")
    noise = torch.Generator().manual_seed(3)
    pictures = backbone.encode_patches(torch.randn(6, 3, *[backbone.preprocess(Image.new("RGB", (8, 8))).shape[-1]] * 2,
                                                   generator=noise)).unflatten(0, (2, 3))  # fmt: skip
    image = torch.randn(2, backbone.vectors, backbone.width, generator=noise)
    method = build(name, {}, backbone).eval()
    with torch.no_grad():
        found = method.match(backbone, image, QUERIES, Template("see $ {text}"), JOINERS["both_orders"], pictures)
        asked = [["is red and has two dogs", "has two dogs and is red"], ["the sofa"]]
        for i, texts in enumerate(asked):
            for k in range(3):
                scores = []
                for text in texts:
                    if name == "text_only":
                        prompt, words = tokenize(backbone.tokenizer, [[text]]), None
                    else:
                        prompt = Template("see $ {text}").render(backbone.tokenizer, [[text]]).prompt
                        words = method.words(one_vector(image[i : i + 1]))
                    scores.append(float(backbone.match(pictures[i, k][None], prompt, words)))
                assert float(found[i, k]) == pytest.approx(sum(scores) / len(scores), abs=1e-5)
    assert method.matches and found.std() > 1e-4


def test_text_only_cannot_match_where_there_is_no_matching_head(tiny_backbone):
    method = build("text_only", {}, tiny_backbone)
    with pytest.raises(InputError, match="TextOnly cannot score pictures"):
        method.match(
            tiny_backbone,
            reference(tiny_backbone),
            QUERIES,
            Template(),
            JOINERS["both_orders"],
            torch.zeros(2, 3, 5, 4),
        )
    assert not method.matches
