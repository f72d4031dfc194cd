import pytest
import yaml

from cir import config as configs
from cir.errors import InputError


@pytest.fixture
def write(tmp_path):
    def make(name, text):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return make


RUN = """
name: lincir
seed: 3
method: {name: lincir, noise: gaussian}
train: {source: captions.txt, steps: 100, lr: "1e-4", batch: 64, accumulate: 2}
evaluate: [cirr/val, fashioniq/val]
data: {roots: {cirr: elsewhere}}
"""


def test_a_run_is_read_and_converted(write):
    config = configs.load(write("run.yaml", RUN), ["train.lr=3e-4", "prompt.join=second_and_first", "data.subset=5"])
    assert config.method == {"name": "lincir", "noise": "gaussian"}
    assert config.train.lr == 3e-4
    assert config.train.steps == 100
    assert config.evaluate == ["cirr/val", "fashioniq/val"]
    assert config.data.roots == {"cirr": "elsewhere"}
    assert config.data.subset == 5
    assert config.prompt.template == "a photo of $ that {text}"
    assert config.prompt.join == "second_and_first"


def test_text_numbers_become_numbers(write):
    config = configs.load(write("run.yaml", RUN))
    assert config.train.lr == 1e-4 and isinstance(config.train.lr, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {step: 3}", "train.step: unknown key; did you mean 'steps'?"),
        ("trian: {steps: 3}", "trian: unknown key; did you mean 'train'?"),
        ("train: {steps: many}", "train.steps: "),
        ("train: {steps: 1.5}", "train.steps: "),
        ("train: {steps: -1}", "train.steps: got -1, expected at least 0"),
        ("train: {batch: 10, accumulate: 3}", "train.accumulate: 3 micro-batches do not divide train.batch 10"),
        ("train: {schedule: cosin}", "train.schedule: got 'cosin', expected one of constant, linear, cosine"),
        ("backbone: {dtype: float64}", "backbone.dtype: got 'float64'"),
        ("train: 3", "train: expected a section of keys, got 3"),
        ("data: {roots: [a]}", "container"),
        ("method: {noise: gaussian, name: 3}", "method.name: expected the name of a method, got 3"),
        ("prompt: {join: '${oc.env:HOME}'}", "prompt.join: resolvers are not allowed"),
        ("method: {name: sum, deep: [{a: '${oc.env:HOME}'}]}", "method.deep.0.a: resolvers are not allowed"),
        ("prompt: {join: '${nowhere}'}", "prompt.join: Interpolation key 'nowhere' not found"),
        ("name: [a", "not valid YAML"),
        ("a: 1\na: 2", "not valid YAML"),
        ("- a", "found a list"),
        ("just text", "run.yaml"),
    ],
)
def test_what_is_wrong_is_one_line_with_file_and_key(write, text, message):
    with pytest.raises(InputError) as caught:
        configs.load(write("run.yaml", text))
    assert message in str(caught.value)
    assert "run.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.step=3", "override 'train.step=3': train.step: unknown key; did you mean 'steps'?"),
        ("steps", "expected key=value, for example train.steps=100"),
        ("train..steps=3", "expected key=value"),
        ("train.steps=x", "train.steps"),
        ("train.steps=", "train.steps"),
        ("data.subset=[1", "not valid YAML"),
    ],
)
def test_wrong_overrides_are_one_line(override, message):
    with pytest.raises(InputError) as caught:
        configs.load(None, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_the_one_that_looks_like_it(write):
    path = write("lincir.yaml", RUN)
    with pytest.raises(InputError, match=r"lincr.yaml: no such file; did you mean 'lincir.yaml'\?"):
        configs.load(path.with_name("lincr.yaml"))
    with pytest.raises(InputError, match="found a folder"):
        configs.load(path.parent)


def test_inheritance_happens_once(write):
    write("base.yaml", RUN)
    child = write("child.yaml", "inherit: base.yaml\ntrain: {steps: 7}\nmethod: {noise: none}")
    config = configs.load(child)
    assert (config.train.steps, config.train.batch, config.seed) == (7, 64, 3)
    assert config.method == {"name": "lincir", "noise": "none"}
    grandchild = write("grandchild.yaml", "inherit: child.yaml")
    with pytest.raises(InputError, match="inherit once, never twice"):
        configs.load(grandchild)


def test_another_method_drops_the_options_of_the_one_before(write):
    path = write("run.yaml", RUN)
    assert configs.load(path, ["method.name=sum"]).method == {"name": "sum"}
    assert configs.load(path, ["method.name=sum", "method.weight=0.3"]).method == {"name": "sum", "weight": 0.3}
    assert configs.load(path, ["method.noise=none"]).method == {"name": "lincir", "noise": "none"}


def test_interpolation_of_other_keys_works(write):
    assert configs.load(write("run.yaml", "seed: 4\nname: 'run-${seed}'")).name == "run-4"


def test_resolving_and_loading_again_changes_nothing(write, tmp_path):
    config = configs.load(write("run.yaml", RUN))
    again = configs.load(write("again.yaml", yaml.safe_dump(configs.resolved(config))))
    assert again == config


def leaves(plain, prefix=""):
    for key, value in plain.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


OTHER = {str: "another", int: 5, float: 0.5, bool: True}


def test_the_fingerprint_moves_with_every_key_that_can_move_a_number(write):
    path = write("run.yaml", RUN)
    first = configs.fingerprint(configs.load(path))
    assert first == configs.fingerprint(configs.load(path, []))
    skipped = {"evaluate", "data.roots.cirr", *configs.CHOICES}
    for key, value in leaves(configs.resolved(configs.load(path))):
        if key in skipped or not isinstance(value, (str, int, float)):
            continue
        changed = {"train.batch": 32, "train.accumulate": 4}.get(key, OTHER[type(value)])
        moved = configs.fingerprint(configs.load(path, [f"{key}={changed}"])) != first
        assert moved == (key not in configs.NOT_NUMBERS), key


def test_smoke_shrinks_and_stamps_and_leaves_the_original(write):
    config = configs.load(write("run.yaml", RUN))
    small = configs.smoke(config)
    assert small.smoke and small.name == "lincir-smoke"
    assert small.train.steps <= 4 and small.train.batch <= 8 and 0 < small.data.subset <= 16
    assert config.train.steps == 100 and not config.smoke


def test_smoke_does_not_train_what_is_not_trained():
    assert configs.smoke(configs.load()).train.steps == 0
