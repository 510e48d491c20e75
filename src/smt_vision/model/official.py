"""The authors' state dicts and ours: the same numbers under other names.

The release keeps value and context, and query and key/value, as separate linear layers; ours are one each. Everything
else is a change of name.

Source: the key list of the release v1.0.0 of the GitHub repository AFeng-x/SMT.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

RELEASE_URL = "https://github.com/AFeng-x/SMT/releases/download/v1.0.0/"

# (official, ours), each a whole module path; {i}, {j} and {k} are numbers, counted from 1 in the release but for j.
_STEM = [("conv.0", "conv1"), ("conv.1", "bn"), ("conv.3", "conv2"), ("norm", "norm")]
_BLOCK = [
    ("norm1", "norm1"),
    ("norm2", "norm2"),
    ("mlp.fc1", "ffn.fc1"),
    ("mlp.dwconv.dwconv", "ffn.dwconv"),
    ("mlp.fc2", "ffn.fc2"),
    ("attn.proj", "mixer.proj"),
    ("attn.proj0", "mixer.saa.expand"),
    ("attn.bn", "mixer.saa.norm"),
    ("attn.proj1", "mixer.saa.reduce"),
    ("attn.local_conv", "mixer.local_conv"),
]
# Ours is the concatenation of these, along the first axis.
_MERGED = {"mixer.vs": ("attn.v", "attn.s"), "mixer.qkv": ("attn.q", "attn.kv")}


def unwrap(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict inside a checkpoint: its ``model`` (the release's) or ``state_dict`` entry, or itself."""
    for entry in ("model", "state_dict"):
        if isinstance(checkpoint.get(entry), Mapping):
            return checkpoint[entry]
    return checkpoint


def our_state(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict inside a checkpoint, with our keys: the release's are translated, any others kept."""
    state = unwrap(checkpoint)
    return to_ours(state) if is_official(state) else dict(state)


def is_official(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the release's keys."""
    return any(key.startswith("patch_embed1.") for key in state_dict)


def _name_to_ours(key: str) -> str:
    module, _, leaf = key.rpartition(".")
    if match := re.fullmatch(r"patch_embed1\.(.+)", module):
        return f"stem.{dict(_STEM).get(match[1], match[1])}.{leaf}"
    if match := re.fullmatch(r"patch_embed(\d+)\.(proj|norm)", module):
        return f"stages.{int(match[1]) - 1}.downsample.{match[2].replace('proj', 'conv')}.{leaf}"
    if match := re.fullmatch(r"norm(\d+)", module):
        return f"stages.{int(match[1]) - 1}.norm.{leaf}"
    if module == "head":
        return f"head.fc.{leaf}"
    if match := re.fullmatch(r"block(\d+)\.(\d+)(?:\.(.+))?", module):
        block = f"stages.{int(match[1]) - 1}.blocks.{match[2]}"
        inner = match[3]
        if inner is None:  # gamma_1 and gamma_2, LayerScale
            return f"{block}.scale{leaf[-1]}.gamma" if leaf.startswith("gamma_") else key
        if conv := re.fullmatch(r"attn\.local_conv_(\d+)", inner):
            return f"{block}.mixer.mhmc.convs.{int(conv[1]) - 1}.{leaf}"
        return f"{block}.{dict(_BLOCK).get(inner, inner)}.{leaf}"
    return key


def _name_to_official(key: str) -> str:
    module, _, leaf = key.rpartition(".")
    if match := re.fullmatch(r"stem\.(.+)", module):
        return f"patch_embed1.{ {b: a for a, b in _STEM}.get(match[1], match[1]) }.{leaf}"
    if match := re.fullmatch(r"stages\.(\d+)\.downsample\.(conv|norm)", module):
        return f"patch_embed{int(match[1]) + 1}.{match[2].replace('conv', 'proj')}.{leaf}"
    if match := re.fullmatch(r"stages\.(\d+)\.norm", module):
        return f"norm{int(match[1]) + 1}.{leaf}"
    if module == "head.fc":
        return f"head.{leaf}"
    if match := re.fullmatch(r"stages\.(\d+)\.blocks\.(\d+)\.(.+)", module):
        block, inner = f"block{int(match[1]) + 1}.{match[2]}", match[3]
        if scale := re.fullmatch(r"scale(\d)", inner):
            return f"{block}.gamma_{scale[1]}"
        if conv := re.fullmatch(r"mixer\.mhmc\.convs\.(\d+)", inner):
            return f"{block}.attn.local_conv_{int(conv[1]) + 1}.{leaf}"
        return f"{block}.{ {b: a for a, b in _BLOCK}.get(inner, inner) }.{leaf}"
    return key


def to_ours(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the release's keys to ours and merge what is one layer here; unknown keys stay as they are."""
    parts = {part: (whole, parts) for whole, parts in _MERGED.items() for part in parts}
    out: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        match = re.fullmatch(r"block(\d+)\.(\d+)\.(attn\.\w+)\.(weight|bias)", key)
        if match is None or match[3] not in parts:
            out[_name_to_ours(key)] = value
            continue
        whole, members = parts[match[3]]
        keys = [f"block{match[1]}.{match[2]}.{member}.{match[4]}" for member in members]
        if not all(k in state_dict for k in keys):
            out[key] = value  # an incomplete pair: left over, so that a strict load names it
        elif match[3] == members[0]:
            name = f"stages.{int(match[1]) - 1}.blocks.{match[2]}.{whole}.{match[4]}"
            out[name] = torch.cat([state_dict[k] for k in keys])
    return out


def to_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of :func:`to_ours`: our keys to the release's, merged layers taken apart."""
    out: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        match = re.fullmatch(r"stages\.(\d+)\.blocks\.(\d+)\.(mixer\.(?:vs|qkv))\.(weight|bias)", key)
        if match is None:
            out[_name_to_official(key)] = value
            continue
        first, second = _MERGED[match[3]]
        block = f"block{int(match[1]) + 1}.{match[2]}"
        width = value.shape[0] // (2 if match[3] == "mixer.vs" else 3)
        out[f"{block}.{first}.{match[4]}"] = value[:width].clone()
        out[f"{block}.{second}.{match[4]}"] = value[width:].clone()
    return out
