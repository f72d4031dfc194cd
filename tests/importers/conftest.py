"""Published containers made by hand: state dicts with the authors' parameter names, small and random."""

import pytest
import torch


def drawn(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()}


def linear(name, outputs, inputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


@pytest.fixture
def phi():
    """SEARLE's and LinCIR's projector."""

    def make(width=24, words=32, hidden=None, seed=0):
        h = hidden or 4 * width
        return drawn(linear("layers.0", h, width) | linear("layers.3", h, h) | linear("layers.6", words, h), seed)

    return make


@pytest.fixture
def im2text():
    """Pic2Word's projector."""

    def make(width=24, words=32, middle=20, seed=0):
        inner = linear("layers.0.0", middle, width) | linear("layers.1.0", middle, middle)
        return drawn(inner | linear("fc_out", words, middle), seed)

    return make


@pytest.fixture
def context():
    """Context-I2W's projector; 8 heads of 64 in the resampler."""

    def make(width=24, words=32, vision=16, middle=20, depth=2, seed=0):
        shapes = {"to_c.weight": (vision, width), "W_R.weight_g": (vision, 1), "W_R.weight_v": (vision, vision)}
        for side in ("", "_local"):
            shapes |= {f"ln_post{side}.weight": (vision,), f"ln_post{side}.bias": (vision,)}
            shapes |= {f"proj{side}": (vision, width)}
            shapes |= linear(f"layers{side}.0.0", middle, width) | linear(f"layers{side}.1.0", middle, middle)
            shapes |= linear(f"fc_out{side}", words, middle)
        shapes |= {"local_gate": (1,), "VT_Extractor.latents": (4, vision)}
        shapes |= {"VT_Extractor.norm.weight": (vision,), "VT_Extractor.norm.bias": (vision,)}
        for i in range(depth):
            at, mlp = f"VT_Extractor.layers.{i}.0", f"VT_Extractor.layers.{i}.1"
            for norm in (f"{at}.norm_media", f"{at}.norm_latents", f"{mlp}.0"):
                shapes |= {f"{norm}.weight": (vision,), f"{norm}.bias": (vision,)}
            shapes |= {f"{at}.to_q.weight": (512, vision), f"{at}.to_kv.weight": (1024, vision)}
            shapes |= {f"{at}.to_out.weight": (vision, 512)}
            shapes |= {f"{mlp}.1.weight": (4 * vision, vision), f"{mlp}.3.weight": (vision, 4 * vision)}
        return drawn(shapes, seed)

    return make


@pytest.fixture
def tower(tiny_backbone):
    """RTD's text tower: the tiny CLIP's, moved a little, with the counter that old transformers saved."""

    def make(seed=0):
        names = ("text_model.", "text_projection.")
        state = {k: v.clone() for k, v in tiny_backbone._model.state_dict().items() if k.startswith(names)}
        moves = drawn({k: tuple(v.shape) for k, v in state.items()}, seed)
        state = {k: v + 0.1 * moves[k] for k, v in state.items()}
        return state | {"text_model.embeddings.position_ids": torch.arange(77)[None]}

    return make


@pytest.fixture
def ddp():
    """Prefix every name as DistributedDataParallel does."""
    return lambda state: {f"module.{name}": tensor for name, tensor in state.items()}
