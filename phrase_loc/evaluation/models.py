"""What an evaluation can be run on, and where it keeps the boxes it proposes."""

import os
from pathlib import Path
from typing import Any

from phrase_loc.errors import ConfigError

CACHE_VARIABLE = "PHRASE_LOC_CACHE"  # environment: folder of what is kept between runs


def load(source: str, inference: dict[str, Any], device: str, proposal_cache: Path | None = None) -> Any:
    """A localizer with its settings changed.

    Args:
        source: what PhraseLocalizer.from_pretrained takes ("default", a folder, a hub id), or
            `classifier:BACKBONE[@imagenet]`, an ImageNet classifier with its own units (classifier.py).
        inference: settings to change.
        device: where it runs.
        proposal_cache: folder that keeps proposals between runs; None for none.
    """
    from phrase_loc.evaluation.classifier import PREFIX, load_classifier
    from phrase_loc.localizer import PhraseLocalizer

    if source.startswith(PREFIX):
        localizer: PhraseLocalizer = load_classifier(source, device, **inference)
    else:
        localizer = PhraseLocalizer.from_pretrained(source, device=device).with_settings(**inference)
    return localizer if proposal_cache is None else localizer.with_cache(proposal_cache)


def cache_folder(setting: str) -> Path | None:
    """The folder that `proposal_cache` names, tidied; None where nothing is kept."""
    from phrase_loc.proposals.cache import tidy

    if setting in ("", "none"):
        return None
    try:
        folder = _of_user() if setting == "auto" else Path(setting).expanduser()
    except RuntimeError:  # ~nobody
        raise ConfigError(f"proposal_cache is auto, none or a folder, got {setting!r:.200}") from None
    tidy(folder)
    return folder


def _of_user() -> Path:
    from platformdirs import user_cache_path

    own = os.environ.get(CACHE_VARIABLE)
    return (Path(own) if own else user_cache_path("phrase_loc", appauthor=False)) / "proposals"
