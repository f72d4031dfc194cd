"""The real CIRR annotations beside an image folder of the published size."""

import json
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def dev_folder(tmp_path_factory):
    """CIRR's layout with 8,102 files in dev/: the 2,297 of the split, the others under made-up names; all empty."""
    root = tmp_path_factory.mktemp("cirr") / "CIRR"
    (root / "dev").mkdir(parents=True)
    (root / "cirr").symlink_to(SHARED / "CIRR" / "cirr", target_is_directory=True)
    named = json.loads((root / "cirr" / "image_splits" / "split.rc2.val.json").read_text())
    names = [*named, *(f"dev-{9000 + n}-0-img0" for n in range(8102 - len(named)))]
    for name in names:
        (root / "dev" / f"{name}.png").touch()
    return root
