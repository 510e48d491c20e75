"""State dicts of an SMT in files: the authors' release, the same values under other names, and larger networks.

The release has separate linear layers for value and context, and for query and key/value; this package has one layer
for each pair. Every other difference is a name.

Source: the key list of the release v1.0.0 of the GitHub repository AFeng-x/SMT.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

log = logging.getLogger(__name__)


# (official, ours): prefixes of keys, of which the first that matches counts. {i} is the stage, {j} the block and {k}
# the convolution head; the release counts stages and heads from 1, this package from 0. Where several official layers
# are one layer here, concatenated along the first axis, the number is each one's share of it.
_TABLE: list[tuple[str | dict[str, int], str]] = [
    ("patch_embed1.conv.0", "stem.conv1"),
    ("patch_embed1.conv.1", "stem.bn"),
    ("patch_embed1.conv.3", "stem.conv2"),
    ("patch_embed1.norm", "stem.norm"),
    ("patch_embed{i}.proj", "stages.{i}.downsample.conv"),
    ("patch_embed{i}.norm", "stages.{i}.downsample.norm"),
    ("norm{i}", "stages.{i}.norm"),
    ("head", "head.fc"),
    ("block{i}.{j}.norm1", "stages.{i}.blocks.{j}.norm1"),
    ("block{i}.{j}.norm2", "stages.{i}.blocks.{j}.norm2"),
    ("block{i}.{j}.gamma_1", "stages.{i}.blocks.{j}.scale1.gamma"),
    ("block{i}.{j}.gamma_2", "stages.{i}.blocks.{j}.scale2.gamma"),
    ("block{i}.{j}.mlp.fc1", "stages.{i}.blocks.{j}.ffn.fc1"),
    ("block{i}.{j}.mlp.dwconv.dwconv", "stages.{i}.blocks.{j}.ffn.dwconv"),
    ("block{i}.{j}.mlp.fc2", "stages.{i}.blocks.{j}.ffn.fc2"),
    ({"block{i}.{j}.attn.v": 1, "block{i}.{j}.attn.s": 1}, "stages.{i}.blocks.{j}.mixer.vs"),
    ({"block{i}.{j}.attn.q": 1, "block{i}.{j}.attn.kv": 2}, "stages.{i}.blocks.{j}.mixer.qkv"),
    ("block{i}.{j}.attn.local_conv_{k}", "stages.{i}.blocks.{j}.mixer.mhmc.convs.{k}"),
    ("block{i}.{j}.attn.local_conv", "stages.{i}.blocks.{j}.mixer.local_conv"),
    # The name in the authors' backbones for MMDetection and MMSegmentation.
    ("block{i}.{j}.attn.dw_conv", "stages.{i}.blocks.{j}.mixer.local_conv"),
    ("block{i}.{j}.attn.proj0", "stages.{i}.blocks.{j}.mixer.saa.expand"),
    ("block{i}.{j}.attn.bn", "stages.{i}.blocks.{j}.mixer.saa.norm"),
    ("block{i}.{j}.attn.proj1", "stages.{i}.blocks.{j}.mixer.saa.reduce"),
    ("block{i}.{j}.attn.proj", "stages.{i}.blocks.{j}.mixer.proj"),
]

_OFFICIAL = re.compile(r"(patch_embed|block|norm)\d+\.")
# Two keys that every SMT has, the release's and this package's: where both are, under a common prefix, is an SMT.
_ANCHORS = (
    ("patch_embed1.conv.0.weight", "patch_embed1.conv.1.weight"),
    ("stem.conv1.weight", "stem.bn.weight"),
)
# Wrappers of modules inside the network, of torch.compile, FSDP and activation checkpointing.
_WRAPPER = re.compile(r"(?<=\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_FLAT_STAGE = re.compile(r"^stages_(\d+)\.")  # as in timm's feature_cls="list"


def is_official(state_dict: Mapping[str, Any]) -> bool:
    """Whether a state dict has the release's keys."""
    return any(_OFFICIAL.match(key) for key in state_dict)


def our_state(state_dict: Mapping[str, Tensor], where: object) -> dict[str, Tensor]:
    """The SMT in a state dict (see :func:`smt_state`) with this package's keys; the release's are converted.

    Raises:
        ValueError: There are several SMTs, or tensors that are merged have shapes that do not fit.
    """
    state = smt_state(state_dict, where)
    try:
        return to_ours(state) if is_official(state) else state
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def smt_state(state_dict: Mapping[str, Tensor], where: object) -> dict[str, Tensor]:
    """The SMT in a state dict, which may be that of a larger network, without the prefix of its keys.

    A state dict without an SMT is returned as it is.

    Args:
        state_dict: Tensors by name; an SMT's have the release's keys or this package's, under any prefix.
        where: Where the state dict comes from, for messages.

    Raises:
        ValueError: There are several SMTs, under different prefixes.
    """
    state = without_prefix(state_dict, _ANCHORS, where, "several SMTs")
    return {_FLAT_STAGE.sub(r"stages.\1.", _WRAPPER.sub("", key)): value for key, value in state.items()}


def require_smt(state_dict: Mapping[str, Tensor], where: object) -> None:
    """Raise a ValueError if a state dict that :func:`our_state` returned is not that of an SMT."""
    if getattr(state_dict.get("stem.conv1.weight"), "ndim", 0) != 4:
        raise ValueError(
            f"{where}: not the weights of an SMT; expected the release's keys (patch_embed1.conv.0.weight, ...) or "
            "this package's (stem.conv1.weight, ...), under any prefix, found "
            f"{', '.join(list(state_dict)[:3]) or 'nothing'}"
        )


def without_prefix(
    state_dict: Mapping[str, Tensor], anchors: Sequence[tuple[str, str]], where: object, repeated: str
) -> dict[str, Tensor]:
    """The tensors under the prefix of both keys of a pair, without it; all tensors if there is no such pair.

    A prefix is logged, with the number of tensors that are not under it.

    Args:
        state_dict: Tensors by name.
        anchors: Pairs of keys.
        where: Where the state dict comes from, for messages.
        repeated: What a state dict with several such prefixes contains, for the error.

    Raises:
        ValueError: There are several such prefixes.
    """
    prefixes = _find_prefixes(state_dict, anchors)
    if len(prefixes) > 1:
        raise ValueError(
            f"{where}: contains {repeated}, under the prefixes {', '.join(map(repr, prefixes))}; expected one: save "
            "the tensors under one of them"
        )
    prefix = prefixes[0] if prefixes else ""
    taken = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    if prefix:
        others = [key for key in state_dict if not key.startswith(prefix)]
        ignored = f"; ignored {len(others)} others, e.g. {', '.join(map(repr, others[:3]))}" if others else ""
        log.warning("%s: took %d tensors under %r%s", where, len(taken), prefix, ignored)
    return taken


def _find_prefixes(state_dict: Mapping[str, Any], anchors: Sequence[tuple[str, str]]) -> list[str]:
    """The prefixes under which a state dict has both keys of a pair; ``""`` for keys without a prefix."""
    found = set()
    for first, second in anchors:
        candidates = (key.removesuffix(first) for key in state_dict if key == first or key.endswith(f".{first}"))
        found |= {prefix for prefix in candidates if prefix + second in state_dict}
    return sorted(found)


def to_ours(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the release's keys to this package's and merge layers; unknown keys are kept.

    The parts of a merged layer are kept as they are where one of them is missing, so that a strict load names them.

    Raises:
        ValueError: Tensors that are merged have shapes that do not fit.
    """
    out: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        if (found := _find(key, official=True)) is None:
            out[key] = value
            continue
        rule, match = found
        parts = [part.format(match, shift=0) for part in rule.official]
        if any(part not in state_dict for part in parts):
            out[key] = value
        elif key == parts[0]:
            values = [state_dict[part] for part in parts]
            if len({(value.ndim, value.shape[1:]) for value in values}) > 1 or (len(values) > 1 and not values[0].ndim):
                shapes = ", ".join(f"{part} {tuple(state_dict[part].shape)}" for part in parts)
                raise ValueError(f"the shapes of tensors that are merged do not fit: {shapes}")
            out[rule.ours.format(match, shift=-1)] = values[0] if len(values) == 1 else torch.cat(values)
    return out


def to_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`to_ours`: merged layers are split, unknown keys are kept.

    Raises:
        ValueError: A tensor has a shape that cannot be split.
    """
    out: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        if (found := _find(key, official=False)) is None:
            out[key] = value
            continue
        rule, match = found
        names = [part.format(match, shift=1) for part in rule.official]
        if len(names) == 1:
            out[names[0]] = value
        else:
            if value.ndim == 0 or len(value) % sum(rule.shares):
                raise ValueError(f"{key} has shape {tuple(value.shape)}, which cannot be split into {', '.join(names)}")
            rows = [share * len(value) // sum(rule.shares) for share in rule.shares]
            out |= {name: part.clone() for name, part in zip(names, value.split(rows), strict=True)}
    return out


class _Pattern(NamedTuple):
    """One name in a row of the table."""

    template: str
    regex: re.Pattern[str]

    @classmethod
    def of(cls, template: str) -> "_Pattern":
        numbers = re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(template))
        return cls(template, re.compile(numbers + r"(?P<leaf>(\.\w+)?)"))

    def format(self, match: Mapping[str, str], shift: int) -> str:
        """The key with the numbers of another match, those that the two sides count differently moved by ``shift``."""
        numbers = {name: int(match[name]) + (shift if name in "ik" else 0) for name in match if name != "leaf"}
        return self.template.format(**numbers) + match["leaf"]


class _Rule(NamedTuple):
    """A row of the table."""

    official: list[_Pattern]
    shares: list[int]
    ours: _Pattern


def _rules() -> Iterator[_Rule]:
    for official, ours in _TABLE:
        parts = {official: 1} if isinstance(official, str) else official
        yield _Rule([_Pattern.of(part) for part in parts], list(parts.values()), _Pattern.of(ours))


_RULES = tuple(_rules())


def _find(key: str, official: bool) -> tuple[_Rule, Mapping[str, str]] | None:
    """The first rule with a pattern on the given side that matches a key, and the match."""
    for rule in _RULES:
        for pattern in rule.official if official else [rule.ours]:
            if match := pattern.regex.fullmatch(key):
                return rule, match.groupdict()
    return None
