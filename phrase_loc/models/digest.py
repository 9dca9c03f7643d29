"""Which model it was, in a few characters."""

import hashlib
import json

import torch

from phrase_loc.models.model import TextToRegion


def model_digest(model: TextToRegion) -> str:
    """12 hexadecimal digits that are others for other weights, words or calibration."""
    facts = {key: value for key, value in model.config.to_json().items() if key not in {"card", "inference"}}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    digest.update(json.dumps([model.vocabulary.words, model.extra]).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:12]
