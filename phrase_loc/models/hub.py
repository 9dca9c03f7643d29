"""Models on a hub, by huggingface_hub and its mixin; imported only when a hub is meant."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)

from phrase_loc.errors import DataError
from phrase_loc.models.model import TextToRegion
from phrase_loc.models.store import load_model, save_model

#: what the HTTP library of the installed huggingface_hub raises (httpx2, httpx or requests)
_HTTP_ERROR: type[Exception] = next(
    base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError" and issubclass(base, Exception)
)
FILES = ("model.safetensors", "config.json", "*.txt", "README.md")


class HubModel(ModelHubMixin):
    """A model with the three verbs of the hub: from_pretrained, save_pretrained, push_to_hub.

    Args:
        model: the model; `HubModel.from_pretrained(...).model` gives it back.
    """

    def __init__(self, model: TextToRegion):
        self.model = model

    def _save_pretrained(self, save_directory: Path) -> None:
        save_model(self.model, save_directory)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> "HubModel":
        known = ("revision", "cache_dir", "local_files_only", "token")
        return cls(
            load_model(model_id if os.path.isdir(model_id) else download(model_id, **_only(options, known)))
        )


def download(model_id: str, **options: Any) -> Path:
    """The local folder of a hub's model, downloaded if it is not there yet.

    Raises:
        DataError: no such model, or no network.
    """
    try:
        return Path(snapshot_download(model_id, allow_patterns=list(FILES), **options))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise DataError(
            f"model {model_id!r} is no folder here and could not be fetched from the hub ({_reason(error)}); "
            "check the name and the network, or name a folder"
        ) from None


def push_model(model: TextToRegion, model_id: str, **options: Any) -> str:
    """Uploads a model with its card to `owner/name`; options are those of ModelHubMixin.push_to_hub.

    Raises:
        DataError: the hub cannot be reached or refuses.
    """
    try:
        return str(HubModel(model).push_to_hub(model_id, **options))
    except (_HTTP_ERROR, HFValidationError, OSError) as error:
        raise DataError(
            f"the model could not be uploaded to {model_id!r} ({_reason(error)}); check the name, the network "
            "and the login (hf auth login)"
        ) from None


def _reason(error: Exception) -> str:
    """The first sentence of an error of huggingface_hub."""
    return " ".join(str(error).split()).split(". ")[0][:160].rstrip(".")


def _only(options: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: options[name] for name in names if options.get(name) is not None}
