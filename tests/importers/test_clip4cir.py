"""CLIP4Cir's files through `import_checkpoint`, against OpenAI's CLIP and the Combiner as plain modules.

The twin's parameter names are OpenAI's by construction, so its state dict is the file and its forward the answer.
"""

import json
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

import cir
from cir.backbones import load
from cir.cli import app
from cir.errors import InputError
from cir.importers import import_checkpoint, openai_clip
from cir.prompts import tokenize

JOINT, SIDE = 24, 64


class Quick(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        layers = [("c_fc", nn.Linear(width, 4 * width)), ("gelu", Quick()), ("c_proj", nn.Linear(4 * width, width))]
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x, mask=None):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Blocks(nn.Module):
    def __init__(self, width, layers):
        super().__init__()
        self.resblocks = nn.ModuleList(Residual(width) for _ in range(layers))

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Bottleneck(nn.Module):
    def __init__(self, inputs, channels, stride):
        super().__init__()
        outputs = 4 * channels
        self.conv1, self.bn1 = nn.Conv2d(inputs, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = nn.Conv2d(channels, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.pool = nn.AvgPool2d(stride)
        if inputs != outputs:
            layers = [("-1", nn.AvgPool2d(stride)), ("0", nn.Conv2d(inputs, outputs, 1, bias=False))]
            self.downsample = nn.Sequential(OrderedDict([*layers, ("1", nn.BatchNorm2d(outputs))]))

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        y = self.pool(self.bn2(self.conv2(y)).relu())
        shortcut = self.downsample(x) if hasattr(self, "downsample") else x
        return (self.bn3(self.conv3(y)) + shortcut).relu()


class Pool(nn.Module):
    def __init__(self, places, width, joint):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(places + 1, width))
        self.k_proj, self.q_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, joint)

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding
        q, k, v = (f(x).unflatten(2, (-1, 64)) for f in (self.q_proj, self.k_proj, self.v_proj))
        share = torch.einsum("bhc,bphc->bhp", q[:, 0], k).div(8).softmax(-1)
        return self.c_proj(torch.einsum("bhp,bphc->bhc", share, v).flatten(1))


class ResNet(nn.Module):
    def __init__(self, stem=8, stages=(1, 2, 1, 1)):
        super().__init__()
        half = stem // 2
        self.conv1, self.bn1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = nn.Conv2d(half, half, 3, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = nn.Conv2d(half, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem)
        inputs = stem
        for i, count in enumerate(stages):
            blocks = [Bottleneck(inputs, stem * 2**i, 2 if i else 1)]
            inputs = 4 * stem * 2**i
            blocks += [Bottleneck(inputs, stem * 2**i, 1) for _ in range(count - 1)]
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.attnpool = Pool((SIDE // 32) ** 2, inputs, JOINT)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn3(self.conv3(self.bn2(self.conv2(x)).relu())).relu()
        x = F.avg_pool2d(x, 2)
        return self.attnpool(self.layer4(self.layer3(self.layer2(self.layer1(x)))))


class ViT(nn.Module):
    def __init__(self, width=128, patch=16, layers=2):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros((SIDE // patch) ** 2 + 1, width))
        self.ln_pre, self.transformer, self.ln_post = nn.LayerNorm(width), Blocks(width, layers), nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.zeros(width, JOINT))

    def forward(self, x):
        x = self.conv1(x).flatten(2).permute(2, 0, 1)
        x = torch.cat([self.class_embedding.expand(1, x.shape[1], -1), x]) + self.positional_embedding[:, None]
        return self.ln_post(self.transformer(self.ln_pre(x))[0]) @ self.proj


class Clip(nn.Module):
    def __init__(self, visual, words, width=64, layers=2):
        super().__init__()
        self.visual, self.transformer = visual, Blocks(width, layers)
        self.token_embedding, self.ln_final = nn.Embedding(words, width), nn.LayerNorm(width)
        self.positional_embedding = nn.Parameter(torch.zeros(77, width))
        self.text_projection = nn.Parameter(torch.zeros(width, JOINT))
        self.logit_scale = nn.Parameter(torch.tensor(0.0))

    def texts(self, ids):
        """Encode rows padded behind end-of-text, the largest id, where they are pooled."""
        x = (self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]).transpose(0, 1)
        mask = torch.full((len(x), len(x)), float("-inf")).triu(1)
        x = self.ln_final(self.transformer(x, mask))
        return x[ids.argmax(1), torch.arange(len(ids))] @ self.text_projection


@pytest.fixture(scope="module")
def words(tiny_clip_folder):
    return json.loads((tiny_clip_folder / "config.json").read_text())["text_config"]["vocab_size"]


@pytest.fixture(scope="module")
def make(words):
    """A CLIP of either kind with weights and statistics drawn, in evaluation mode."""

    def drawn(kind):
        model = Clip(ResNet() if kind == "resnet" else ViT(), words).eval()
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if name.endswith("running_var"):
                    tensor.copy_(torch.rand(tensor.shape, generator=random) + 0.5)
                elif tensor.is_floating_point():
                    spread = 1 / tensor[0].numel() ** 0.5 if tensor.ndim > 2 else 0.15
                    tensor.add_(spread * torch.randn(tensor.shape, generator=random))
        return model

    return drawn


@pytest.fixture
def write(tmp_path):
    def saved(content, name="tuned_clip_best.pt"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return saved


def pixels(n=3):
    random = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, SIDE, SIDE, generator=random) + 2 * torch.randn(n, 3, 1, 1, generator=random)


KINDS = ["resnet", "vit"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("format", "file"), [("clip4cir", "tuned"), ("auto", "tuned"), ("clip", "bare")])
def test_encoders_give_the_vectors_of_the_source(make, write, tmp_path, tiny_clip_folder, kind, format, file):
    model = make(kind)
    state = model.state_dict()
    if kind == "vit":  # OpenAI's archives keep sizes among the weights
        state |= {"input_resolution": torch.tensor(SIDE), "context_length": torch.tensor(77)}
    path = write({"epoch": 3, "CLIP": state} if file == "tuned" else {f"module.{k}": v for k, v in state.items()})
    done = import_checkpoint(path, tmp_path / "out", format, tokenizer=str(tiny_clip_folder))
    backbone = load(str(tmp_path / "out"), device="cpu", preprocess="targetpad")
    prompt = tokenize(backbone.tokenizer, [["a red dress with two dogs"], ["rain"]])
    with torch.no_grad():
        image, text = model.visual(pixels()), model.texts(torch.from_numpy(prompt.ids))
    assert image.std(dim=0).mean() > 0.05 and text.std(dim=0).mean() > 0.05  # rows are told apart
    torch.testing.assert_close(backbone.encode_images(pixels())[:, 0], image, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(backbone.encode_text(prompt), text, atol=1e-4, rtol=1e-4)
    assert backbone.logit_scale == pytest.approx(float(state["logit_scale"].exp()))
    assert done.format == "clip" and (tmp_path / "out").is_dir() and "vectors within" in "\n".join(done.lines)
    left = json.loads((tmp_path / "out" / "import.json").read_text())["left_behind"]
    assert set(left) == {k for k in state if "batches" in k or k in ("input_resolution", "context_length")} and left


def test_a_vision_transformer_is_a_folder_of_transformers(make, write, tmp_path, tiny_clip_folder):
    from transformers import CLIPModel, CLIPTokenizer

    model = make("vit")
    import_checkpoint(
        write({"epoch": 1, "CLIP": model.state_dict()}), tmp_path / "out", tokenizer=str(tiny_clip_folder)
    )
    found, info = CLIPModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    rows = CLIPTokenizer.from_pretrained(tmp_path / "out")(["a red dress", "rain"], padding=True, return_tensors="pt")
    with torch.no_grad():
        ours = found.eval()(pixel_values=pixels(2), **rows)
        image, text = model.visual(pixels(2)), model.texts(rows["input_ids"])
        wanted = F.normalize(text, dim=1) @ F.normalize(image, dim=1).T * model.logit_scale.exp()
    torch.testing.assert_close(ours.logits_per_text, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_stored_in_half_precision_it_is_kept_in_float32(make, write, tmp_path, tiny_clip_folder, kind):
    state = {k: v.half() if v.is_floating_point() else v for k, v in make(kind).state_dict().items()}
    done = import_checkpoint(write({"CLIP": state}), tmp_path / "out", tokenizer=str(tiny_clip_folder))
    assert "stored as float16" in done.lines[0]
    model = make(kind)
    model.load_state_dict(state)
    found = load(str(tmp_path / "out"), device="cpu").encode_images(pixels())[:, 0]
    with torch.no_grad():
        torch.testing.assert_close(found, model.visual(pixels()), atol=1e-4, rtol=1e-4)


def without(name):
    return lambda state: state.pop(name)


def changed(name, tensor):
    return lambda state: state.update({name: tensor})


BROKEN = {
    "no text projection": ("vit", without("text_projection"), "text_projection is missing"),
    "a missing norm": ("vit", without("transformer.resblocks.1.ln_2.bias"), "layers.1.layer_norm2.bias"),
    "half an attention": ("vit", without("visual.transformer.resblocks.0.attn.in_proj_bias"), "absent"),
    "no statistics": ("resnet", without("visual.layer3.0.bn2.running_mean"), "layer3.0.bn2.running_mean"),
    "a missing block": ("resnet", lambda s: [s.pop(k) for k in list(s) if "layer2.0" in k], "layer2.0"),
    "no pool": ("resnet", without("visual.attnpool.positional_embedding"), "attnpool.positional_embedding is missing"),
    "an unknown tensor": ("vit", changed("visual.head.weight", torch.zeros(2)), "1 unexpected tensors.*visual.head"),
    "an adapter": ("resnet", changed("visual.layer1.0.conv4.weight", torch.zeros(2)), "unexpected.*layer1.0.conv4"),
    "another shape": ("resnet", changed("visual.conv3.weight", torch.zeros(4, 4, 3, 3)), "not readable"),
    "no square": ("vit", changed("visual.positional_embedding", torch.zeros(9, 128)), "not the shapes of a CLIP"),
    "not a number": ("vit", changed("visual.proj", torch.full((128, JOINT), float("nan"))), "not finite"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_every_tensor_is_accounted_for(make, write, tmp_path, tiny_clip_folder, what):
    kind, breaks, reason = BROKEN[what]
    state = dict(make(kind).state_dict())
    breaks(state)
    with pytest.raises(InputError, match=reason) as error:
        import_checkpoint(write({"CLIP": state}), tmp_path / "out", tokenizer=str(tiny_clip_folder))
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["tuned_clip_best.pt"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_conversion_does_not_pass_its_self_test(make, write, tmp_path, tiny_clip_folder, monkeypatch, kind):
    """Two norms of a block exchanged: every name and shape is right, the vectors are not."""
    monkeypatch.setitem(openai_clip.BLOCK, "ln_1", "layer_norm2")
    monkeypatch.setitem(openai_clip.BLOCK, "ln_2", "layer_norm1")
    with pytest.raises(InputError, match="vectors of the converted encoders are off by"):
        import_checkpoint(write({"CLIP": make(kind).state_dict()}), tmp_path / "out", tokenizer=str(tiny_clip_folder))
    assert not (tmp_path / "out").exists()


def test_the_tokenizer_has_to_fit(make, write, tmp_path, tiny_clip_folder, monkeypatch):
    state = make("vit").state_dict()
    more = {**state, "token_embedding.weight": torch.cat([state["token_embedding.weight"]] * 2)}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    for tensors, tokenizer, reason in (
        (more, tiny_clip_folder, "does not belong to"),
        (state, tmp_path / "empty", "neither tokenizer.json nor vocab.json"),
        (state, "nobody/nothing", "no such folder, and the hub did not give it"),
    ):
        with pytest.raises(InputError, match=reason) as error:
            import_checkpoint(write({"CLIP": tensors}), tmp_path / "out", tokenizer=str(tokenizer))
        assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_options_that_have_no_meaning_are_refused(make, write, tmp_path, phi, tiny_clip_folder):
    encoders, projector = write({"CLIP": make("vit").state_dict()}), write({"Phi": phi()}, "phi.pt")
    for path, format, options, reason in (
        (encoders, "auto", {"backbone": "a/b"}, "leave --backbone"),
        (encoders, "auto", {"preprocess": "clip"}, "--preprocess out"),
        (encoders, "searle", {}, "not SEARLE's phi"),
        (projector, "clip4cir", {}, "not CLIP4Cir's Combiner"),
        (projector, "auto", {"tokenizer": str(tiny_clip_folder)}, "takes no --tokenizer"),
    ):
        with pytest.raises(InputError, match=reason):
            import_checkpoint(path, tmp_path / "out", format, **options)


def combiner(width=JOINT, projection=None, hidden=None, seed=0):
    """The published parameter names with drawn weights."""
    p, h = projection or 4 * width, hidden or 8 * width
    shapes = {"text_projection_layer": (p, width), "image_projection_layer": (p, width), "combiner_layer": (h, 2 * p),
              "output_layer": (width, h), "dynamic_scalar.0": (h, 2 * p), "dynamic_scalar.3": (1, h)}  # fmt: skip
    random = torch.Generator().manual_seed(seed)
    return {
        f"{name}.{kind}": torch.randn(shape if kind == "weight" else shape[:1], generator=random) / shape[1] ** 0.5
        for name, shape in shapes.items()
        for kind in ("weight", "bias")
    }


def mixed(state, image, text):
    """The Combiner's formula, row by row."""
    rows = []
    for i, t in zip(image, text, strict=True):
        at = {name.rsplit(".", 1)[0] for name in state}
        affine = {name: (state[f"{name}.weight"], state[f"{name}.bias"]) for name in at}
        layer = {name: lambda x, w=w, b=b: w @ x + b for name, (w, b) in affine.items()}
        both = torch.cat([layer["text_projection_layer"](t).relu(), layer["image_projection_layer"](i).relu()])
        value = layer["output_layer"](layer["combiner_layer"](both).relu())
        share = torch.sigmoid(layer["dynamic_scalar.3"](layer["dynamic_scalar.0"](both).relu()))
        query = value + share * t + (1 - share) * i
        rows.append(query / query.norm())
    return torch.stack(rows)


@pytest.mark.parametrize(("projection", "hidden"), [(None, None), (40, 50)])
def test_a_combiner_composes_as_its_formula(make, write, tmp_path, tiny_clip_folder, projection, hidden):
    encoders = write({"epoch": 3, "CLIP": make("resnet").state_dict()})
    import_checkpoint(encoders, tmp_path / "clip", "clip4cir", tokenizer=str(tiny_clip_folder))
    state = combiner(projection=projection, hidden=hidden)
    file = write({"epoch": 5, "Combiner": state}, "combiner.pt")
    done = import_checkpoint(file, tmp_path / "out", "clip4cir", backbone=str(tmp_path / "clip"))
    adapter = cir.load(tmp_path / "out", device="cpu")
    assert adapter.described["method"] == "combiner" and adapter.config.backbone.preprocess == "targetpad"
    assert adapter.config.prompt.join == "capital_first" and "keys left behind: epoch" in done.lines
    backbone = load(str(tmp_path / "clip"), device="cpu")
    image = backbone.encode_images(pixels(2))
    prompt = tokenize(backbone.tokenizer, [["Red dress and a shirt"], ["has Shorter sleeves"]])
    wanted = mixed(state, image[:, 0], backbone.encode_text(prompt))
    found = adapter.compose(image[:, 0], [["red DRESS.", "a shirt"], "has Shorter sleeves"])
    torch.testing.assert_close(found.reshape(2, -1), wanted, atol=1e-5, rtol=1e-4)
    assert found.reshape(2, -1)[0] @ found.reshape(2, -1)[1] < 0.999


def test_a_combiner_needs_the_folder_of_its_clip(write, tmp_path, tiny_clip_folder):
    for state, backbone, reason in (
        (combiner(), "", "goes with the fine-tuned CLIP"),
        (combiner(), "openai/clip-vit-base-patch32", "not 'openai/clip-vit-base-patch32'"),
        (combiner(32), str(tiny_clip_folder), "width 32, but .* makes 24"),
        ({k: v for k, v in combiner().items() if k != "output_layer.bias"}, str(tiny_clip_folder), "1 missing"),
        ({k: v for k, v in combiner().items() if "text" not in k}, str(tiny_clip_folder), "text_projection_layer"),
        (combiner() | {"extra.weight": torch.zeros(1)}, str(tiny_clip_folder), "1 unknown"),
    ):
        with pytest.raises(InputError, match=reason) as error:
            import_checkpoint(write({"Combiner": state}), tmp_path / "out", backbone=backbone)
        assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_the_command_says_what_was_found(make, write, tmp_path, tiny_clip_folder):
    def call(*arguments):
        return CliRunner().invoke(app, ["import", "clip4cir", *map(str, arguments)])

    encoders = write({"epoch": 3, "CLIP": make("resnet").state_dict()})
    done = call(encoders, "--out", tmp_path / "clip", "--tokenizer", tiny_clip_folder)
    assert done.exit_code == 0, done.output
    for line in ("encoders: ResNet 1-2-1-1, 64 px, joint width 24, words of 64", "self-test: image vectors within",
                 "keys left behind: epoch", "num_batches_tracked"):  # fmt: skip
        assert line in done.output
    again = call(encoders, "--out", tmp_path / "clip", "--tokenizer", tiny_clip_folder)
    assert again.exit_code == 2 and "already there" in again.output
    file = write({"epoch": 5, "Combiner": combiner()}, "combiner.pt")
    done = call(file, "--out", tmp_path / "combiner", "--backbone", tmp_path / "clip")
    assert done.exit_code == 0 and "self-test: 3 random queries within" in done.output, done.output
