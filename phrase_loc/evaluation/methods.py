"""Names of methods -> methods. Blind baselines load nothing: no model, no torchvision, no image file."""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from phrase_loc.errors import ConfigError, nearest
from phrase_loc.evaluation.baselines import BASELINES, Baseline
from phrase_loc.evaluation.config import EvaluateConfig
from phrase_loc.evaluation.targets import Method

if TYPE_CHECKING:
    from phrase_loc.localizer import Localizer

CACHE_VARIABLE = "PHRASE_LOC_CACHE"  # environment: folder of what is kept between runs
BOXES_OF_MAPS = "level_sets"  # a proposal source that leaves the picture alone
WITHOUT_PRIOR = "_no_prior"  # suffix of the row whose maps are not multiplied by a location prior


def load(
    source: str, inference: dict[str, Any], device: str, proposal_cache: Path | None = None
) -> "Localizer":
    """A localizer with its settings changed, of what PhraseLocalizer.from_pretrained takes or `classifier:...`.

    `proposal_cache` is a folder that keeps proposals between runs, None for none.
    """
    from phrase_loc.evaluation.classifier import PREFIX, load_classifier
    from phrase_loc.localizer import PhraseLocalizer

    if source.startswith(PREFIX):
        localizer: Localizer = load_classifier(source, device, **inference)
    else:
        localizer = PhraseLocalizer.from_pretrained(source, device=device).with_settings(**inference)
    return localizer if proposal_cache is None else localizer.with_cache(proposal_cache)


def cache_folder(setting: str) -> Path | None:
    """The folder that `proposal_cache` names, tidied; None where nothing is kept."""
    from platformdirs import user_cache_path

    from phrase_loc.proposals.source import tidy

    if setting in ("", "none"):
        return None
    try:
        if setting == "auto":
            own = os.environ.get(CACHE_VARIABLE)
            folder = (Path(own) if own else user_cache_path("phrase_loc", appauthor=False)) / "proposals"
        else:
            folder = Path(setting).expanduser()
    except RuntimeError:  # ~nobody
        raise ConfigError(f"proposal_cache is auto, none or a folder, got {setting!r:.200}") from None
    tidy(folder)
    return folder


def baselines() -> list[Method]:
    """The blind guesses that stand beside every score."""
    return [Baseline(name, guess) for name, guess in BASELINES.items()]


def needs_model(names: list[str]) -> bool:
    """Whether any of the methods looks at images."""
    return any(name not in BASELINES for name in names)


def check(names: list[str], inference: dict[str, Any] | None = None) -> None:
    """Refuses names that are no methods' and settings of no localizer, before annotations and weights are read.

    Raises:
        ConfigError: one is unknown, or a setting has a wrong type or range.
    """
    if not inference and not needs_model(names):
        return
    from phrase_loc.attention import METHODS
    from phrase_loc.evaluation.controls import CONTROLS
    from phrase_loc.localizer import Inference

    Inference.from_dict(inference or {})
    known = [*METHODS, *CONTROLS, *BASELINES]
    for name in names:
        if name not in known and name.removesuffix(WITHOUT_PRIOR) not in METHODS:
            raise ConfigError(
                f"unknown method {name[:80]!r}{nearest(name[:80], known)}; choose from {', '.join(sorted(known))}"
            )


def load_localizer(config: EvaluateConfig, device: str) -> "Localizer":
    """The localizer of a config, with its changed settings; where no boxes are ranked it proposes none."""
    if any(protocol.top_k for protocol in config.chosen_protocols()):
        return load(config.model, config.inference, device, cache_folder(config.proposal_cache))
    return load(config.model, {"proposals": BOXES_OF_MAPS, **config.inference}, device)


def fingerprint(localizer: "Localizer | None") -> str:
    """A hash of the weights and settings of a localizer, '' for none."""
    if localizer is None:
        return ""
    own = getattr(localizer, "fingerprint", None)
    if own is not None:
        return str(own)
    digest = hashlib.sha256(repr(getattr(localizer, "settings", "")).encode())
    for name, value in sorted(localizer.model.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def build(names: list[str], localizer: "Localizer | None") -> list[Method]:
    """The methods called `names`, in that order.

    A localizer whose saved settings hold a location prior gets, for each method asked of it, a second row
    `<name>_no_prior`: a prior is bias and no grounding, so no table is without that row.

    `localizer` may be None when all are baselines.
    """
    if not needs_model(names):
        return [Baseline(name, BASELINES[name]) for name in names]
    assert localizer is not None, "a method that looks needs a localizer"
    check(names)
    from phrase_loc.evaluation.controls import CONTROLS, Looker, MapMethod

    prior = getattr(getattr(localizer, "settings", None), "prior", 0.0) > 0
    looker, built, rows = Looker(localizer), list[Method](), dict[str, None]()
    for name in names:
        plain = name in BASELINES or name in CONTROLS or name.endswith(WITHOUT_PRIOR)
        rows |= dict.fromkeys([name] if plain or not prior else [name, name + WITHOUT_PRIOR])
    for name in rows:
        base = name.removesuffix(WITHOUT_PRIOR)
        if name in BASELINES:
            built.append(Baseline(name, BASELINES[name]))
        elif name in CONTROLS:
            built.append(CONTROLS[name](localizer, looker))
        else:
            changes = {"method": base} | ({"prior": 0.0} if base != name else {})
            built.append(MapMethod(name, localizer.with_settings(**changes), looker))
    return built
