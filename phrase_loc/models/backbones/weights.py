"""Weights from a file into a trunk: PyTorch or safetensors, by the trunk's names or the source library's."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from phrase_loc.errors import DataError

#: Where training scripts put the weights within a checkpoint.
WRAPPERS = ("state_dict", "model", "model_state_dict")
#: Prefixes that wrappers of a module (data parallel, compile) leave on names.
PREFIXES = ("module.", "_orig_mod.")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Every tensor of a .safetensors, .pth or .pt file by name; nothing in the file is executed.

    Raises:
        DataError: the file is missing, truncated, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"weights file {path} does not exist; give a .safetensors, .pth or .pt file")
    try:
        tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    except Exception as error:  # of a file that is anything, the two libraries raise anything
        what = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(
            f"weights file {path} cannot be read ({what}); it is truncated or of another kind: copy it again"
        ) from None
    if not tensors:
        raise DataError(f"weights file {path} holds no tensors by name; give a state dict")
    return {_bare(name): tensor for name, tensor in tensors.items()}


def load_weights(trunk: nn.Module, path: str | Path, names: Mapping[str, str]) -> None:
    """Puts a file's weights into `trunk`; what belongs to a classifier is left out.

    Args:
        trunk: filled in place, whole or not at all.
        path: see `read_weights`.
        names: name in the source library's state dict -> name in the trunk. The trunk's own names count too.

    Raises:
        DataError: also when a weight of the trunk is missing or has another shape.
    """
    tensors = read_weights(path)
    wanted = trunk.state_dict()
    found = {names.get(name, name): tensor for name, tensor in tensors.items()}
    _complete_counters(found, wanted)
    check_weights(found, wanted, str(path))
    trunk.load_state_dict({name: found[name] for name in wanted})


def check_weights(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> None:
    """Raises a DataError unless `found` has every wanted name in the wanted shape, of finite numbers of its kind."""
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataError(
            f"{source} lacks {len(missing)} of the {len(wanted)} weights expected (first: {missing[0]}; it "
            f"has {next(iter(found), 'none')}, ...); it is another network's: name the backbone it is for"
        )
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape:
            raise DataError(
                f"{source} has {name} of shape {tuple(found[name].shape)} where {tuple(tensor.shape)} was "
                "expected; it is another network's: name the backbone it was made for"
            )
        if not _same_kind(found[name], tensor):
            raise DataError(
                f"{source} has {name} as {found[name].dtype} where {tensor.dtype} was expected; write it again"
            )
        if found[name].is_floating_point() and not bool(torch.isfinite(found[name]).all()):
            raise DataError(f"{source} has numbers in {name} that are not finite; copy or train it again")


def _same_kind(found: Tensor, wanted: Tensor) -> bool:
    """Floats of any width stand for each other; whole numbers (eight-bit rows, counters) are what they are."""
    return found.is_floating_point() if wanted.is_floating_point() else found.dtype == wanted.dtype


def _complete_counters(found: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for (
        name,
        tensor,
    ) in wanted.items():  # old files lack the step counters of batch norms, which eval never reads
        if name.endswith("num_batches_tracked"):
            found.setdefault(name, tensor)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _read_torch(path: Path) -> dict[str, Tensor]:
    content = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}")
    return {str(k): v for k, v in content.items() if isinstance(v, Tensor)}


def _bare(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name
