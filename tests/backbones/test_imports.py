import subprocess
import sys

import pytest

SHOW = "print(sorted(name for name in {names!r} if name in sys.modules))"


def loaded(code, names):
    command = f"import sys; {code}; {SHOW.format(names=names)}"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["cir.backbones", "cir.backbones.base", "cir.backbones.cache"])
def test_importing_the_room_does_not_import_transformers(module):
    assert loaded(f"import {module}", ["transformers", "huggingface_hub", "torchvision"]) == "[]"


def test_prompts_are_light():
    assert loaded("import cir.prompts", ["torch", "transformers"]) == "[]"


def test_a_loaded_backbone_never_imported_torchvision(tiny_clip_folder):
    code = f"from cir.backbones import load; load({str(tiny_clip_folder)!r}, device='cpu')"
    assert loaded(code, ["torchvision", "transformers"]) == "['transformers']"
