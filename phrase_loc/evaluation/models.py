"""What an evaluation can be run on."""

from typing import Any


def load(source: str, inference: dict[str, Any], device: str, proposal_cache: str = "") -> Any:
    """A localizer with its settings changed.

    Args:
        source: what PhraseLocalizer.from_pretrained takes ("default", a folder, a hub id), or
            `classifier:BACKBONE[@imagenet]`, an ImageNet classifier with its own units (classifier.py).
        inference: settings to change.
        device: where it runs.
        proposal_cache: folder that keeps proposals between runs; none if empty.
    """
    from phrase_loc.evaluation.classifier import PREFIX, load_classifier
    from phrase_loc.localizer import PhraseLocalizer

    if source.startswith(PREFIX):
        return load_classifier(source, device, **inference)
    localizer = PhraseLocalizer.from_pretrained(source, device=device).with_settings(**inference)
    return localizer.with_cache(proposal_cache) if proposal_cache else localizer
