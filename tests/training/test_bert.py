from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vsum_runtime.runtime.errors import InputError
from vsum_runtime.training.models.bert import bert

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.slow
def test_transformers_does_not_take_our_kernels_for_the_package_of_that_name(tmp_path: Path) -> None:
    """A version that transformers would use is installed as far as metadata tell, but the module found is ours."""
    code = (
        "from transformers.utils import import_utils; import pathlib, sys;"
        "version = getattr(import_utils, 'KERNELS_MIN_VERSION', '0.18.2');"
        "folder = pathlib.Path(sys.argv[1], f'kernels-{version}.dist-info'); folder.mkdir();"
        "(folder / 'METADATA').write_text(f'Metadata-Version: 2.1\\nName: kernels\\nVersion: {version}\\n')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=tmp_path)
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]\n"
        "from importlib.metadata import version; version('kernels')\n"
        "import kernels as ours\n"
        "from training.models.bert import bert\n"
        "network, _ = bert('small')\n"
        "import torch; network(torch.tensor([[101, 102]]))\n"
        "import kernels; assert kernels is ours and kernels.__file__.startswith(sys.path[0])\n"
        "from kernels import knapsack\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_folder_of_weights_is_loaded_and_named(tmp_path: Path) -> None:
    network, recipe = bert("small")
    assert recipe["weights"] == "random"
    network.save_pretrained(tmp_path)
    loaded, found = bert(str(tmp_path))
    assert found == recipe | {"weights": str(tmp_path)}
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    again, _ = bert(found)
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == {
        name: tensor.shape for name, tensor in network.state_dict().items()
    }


def test_weights_without_a_pooler_are_refused(tmp_path: Path) -> None:
    network, _ = bert("small")
    network.pooler = None
    network.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"lacks pooler\.dense\.bias"):
        bert(str(tmp_path))


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no BERT could be loaded from .*absent.*or small or base"):
        bert(str(tmp_path / "absent"))
    with pytest.raises(InputError, match="unknown field layers"):
        bert({"layers": 2})
