import math

import pytest
import torch
from torch.nn import functional as F

from cir.errors import InputError
from cir.methods import METHODS, build
from cir.methods.baselines import text_vectors
from cir.prompts import JOINERS, Template, tokenize
from cir.schema import Query

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
