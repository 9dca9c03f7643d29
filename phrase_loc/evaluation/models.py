"""What an evaluation can be run on."""

from typing import Any


def load(source: str, inference: dict[str, Any], device: str) -> Any:
    """A localizer with its settings changed."""
    from phrase_loc.localizer import PhraseLocalizer

    return PhraseLocalizer.from_pretrained(source, device=device).with_settings(**inference)
