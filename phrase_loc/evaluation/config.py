"""What `evaluate.py` can be told; a YAML file in configs/ plus `key=value` fills it."""

import os
from dataclasses import field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from phrase_loc.config import config_dataclass
from phrase_loc.errors import ConfigError, choose
from phrase_loc.evaluation.protocols import FLICKR30K, PROTOCOLS, Protocol

MOST_DRAWS = 100_000


@config_dataclass
class DataConfig:
    """Which images: a name of DATASETS, the folder of its official tree, and further arguments of that dataset."""

    root: Path
    name: str = "flickr30k"
    split: str = "test"
    options: dict[str, Any] = field(default_factory=dict)


@config_dataclass
class EvaluateConfig:
    """One evaluation.

    Attributes:
        method: one attention method, control or baseline, or a list.
        protocols: names, or patterns such as 'imagenet_box_*'.
        model: 'default', a directory, a hub id, or what methods.load knows beside.
        inference: settings of the localizer to change, such as {gamma: 0.5}.
        output: the report; CSV, Markdown and HTML are written beside it under the same stem.
        device: 'auto', 'cpu', 'cuda', 'cuda:1', 'mps'.
        proposal_cache: folder that keeps proposals by the hash of each picture: 'auto' in the user's cache
            folder ($PHRASE_LOC_CACHE, or where the system keeps caches), 'none', or a path.
        faithful: reproduce the known bugs of the published scripts (KNOWN_DEVIATIONS).
        bootstrap: draws of images behind each 95 % interval.
        held_out: share of images on which thresholds are chosen, for protocols that choose one.
        limit: only the first so many images; 0 is all. A look, not a result.
        sample: only so many images, drawn by a hash of their names (the same everywhere); 0 is all.
        resume: go on from an interrupted run with the same settings.
        csv: write one line for each thing counted.
        html: write the page.
    """

    data: DataConfig
    method: str | list[str] = "contrastive_mwp"
    protocols: list[str] = field(default_factory=lambda: list(FLICKR30K))
    model: str = "default"
    inference: dict[str, Any] = field(default_factory=dict)
    output: Path = Path("report.json")
    device: str = "auto"
    proposal_cache: str = "auto"
    faithful: bool = False
    bootstrap: int = 2000
    held_out: float = 0.0
    limit: int = 0
    sample: int = 0
    resume: bool = True
    csv: bool = True
    html: bool = False

    def __post_init__(self) -> None:
        draws, output = "bootstrap is a number of draws, at", self.output
        refusals = (
            (self.bootstrap < 1, f"{draws} least 1, got {self.bootstrap}"),
            (self.bootstrap > MOST_DRAWS, f"{draws} most {MOST_DRAWS:,}, got {self.bootstrap}"),
            (
                not 0 <= self.held_out < 1,
                f"held_out is a share of the images, 0 to below 1, got {self.held_out}",
            ),
            (self.limit < 0, f"limit is a number of images, 0 for all, got {self.limit}"),
            (self.sample < 0, f"sample is a number of images, 0 for all, got {self.sample}"),
            (os.path.isdir(output), f"output {output} is a folder; name a file such as report.json"),
            (
                output.suffix != ".json" or "\0" in str(output),
                f"output is the JSON report and ends in .json, got {output}; its table is written beside it",
            ),
        )
        for wrong, sentence in refusals:
            if wrong:
                raise ConfigError(sentence)
        self.chosen_protocols()

    @property
    def methods(self) -> list[str]:
        """The methods asked for, each once; 'a,b' is a list too."""
        names = self.method.split(",") if isinstance(self.method, str) else self.method
        names = list(dict.fromkeys(name.strip() for name in names if name.strip()))
        if not names:
            raise ConfigError("method is empty; name an attention method or a baseline such as centre")
        return names

    def chosen_protocols(self) -> list[Protocol]:
        """The protocols asked for, in the order asked, patterns in the order of PROTOCOLS."""
        # messages do without the hundred thresholds of imagenet_box_<rule>_<value>
        listed = {name: name for name in PROTOCOLS if not name.startswith("imagenet_box_")}
        names: list[str] = []
        for asked in self.protocols:
            matching = [name for name in PROTOCOLS if fnmatchcase(name, asked)]
            names += matching or [choose(listed, asked, "protocol")]
        if not names:
            raise ConfigError(f"protocols is empty; choose from {', '.join(listed)}")
        return [PROTOCOLS[name] for name in dict.fromkeys(names)]
