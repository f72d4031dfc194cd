import pytest
import torch

from cir.backbones import bare
from cir.backbones.bare import Computation, computation
from cir.errors import InputError


@pytest.fixture
def state(tiny_backbone):
    whole = tiny_backbone._model.state_dict()
    return {name: value for name, value in whole.items() if name.startswith(("text_model.", "text_projection."))}


def test_a_tower_from_its_weights_computes_what_the_backbone_does(state, tiny_backbone, tiny_clip_folder):
    tower = bare.text_tower(state, computation(str(tiny_clip_folder), 32), "x.pt")
    ids = torch.tensor([[5, 6, 7, 8], [8, 9, 5, 5]])
    slots, ends = torch.tensor([[1], [2]]), torch.tensor([3, 3])
    pseudo = torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(tower(ids, ends, slots, pseudo), tiny_backbone.text(ids, ends, slots, pseudo))
    bare.try_tower(tower, "x.pt")


def test_heads_and_activation_come_from_the_config_or_the_name(tiny_clip_folder):
    assert computation(str(tiny_clip_folder), 32) == Computation(2, "quick_gelu", True)
    assert computation("openai/clip-vit-large-patch14", 768) == Computation(12, "quick_gelu", False)
    assert computation("laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", 1280) == Computation(20, "gelu", False)
    assert computation("facebook/metaclip-l14-fullcc2.5b", 768) == Computation(12, "quick_gelu", False)


def test_dead_towers_are_refused(state):
    dead = {name: torch.zeros_like(value) for name, value in state.items()}
    tower = bare.text_tower(dead, Computation(2, "gelu", False), "x.pt")
    with pytest.raises(InputError, match=r"x\.pt: the text tower gives vectors that are not finite or all alike"):
        bare.try_tower(tower, "x.pt")
    with pytest.raises(InputError, match="width 32 does not divide into 5 heads"):
        bare.text_tower(state, Computation(5, "gelu", False), "x.pt")
