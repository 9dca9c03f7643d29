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
    """Which images."""

    root: Path  # folder of the dataset's official tree
    name: str = "flickr30k"  # a key of DATASETS
    split: str = "test"
    options: dict[str, Any] = field(default_factory=dict)  # further arguments of that dataset


@config_dataclass
class EvaluateConfig:
    """One evaluation.

    `proposal_cache` keeps proposals by the hash of each picture: 'auto' in the user's cache folder, which
    $PHRASE_LOC_CACHE or the system names, 'none', or in the folder named. CSV, Markdown and HTML are written
    beside the `output` under the same stem.
    """

    data: DataConfig
    method: str | list[str] = "contrastive_mwp"  # one attention method, control or baseline, or a list
    protocols: list[str] = field(default_factory=lambda: list(FLICKR30K))  # or patterns: 'imagenet_box_*'
    model: str = "default"  # or a directory, a hub id, or what methods.load knows beside
    inference: dict[str, Any] = field(default_factory=dict)  # settings to change, such as {gamma: 0.5}
    output: Path = Path("report.json")
    device: str = "auto"  # or 'cpu', 'cuda', 'cuda:1', 'mps'
    proposal_cache: str = "auto"
    faithful: bool = False  # reproduce the known bugs of the published scripts (KNOWN_DEVIATIONS)
    bootstrap: int = 2000  # draws of images behind each 95 % interval
    held_out: float = 0.0  # share of images on which thresholds are chosen, for protocols that choose one
    limit: int = 0  # only the first so many images; 0 is all. A look, not a result
    sample: int = 0  # only so many images, drawn by a hash of their names (the same everywhere); 0 is all
    resume: bool = True  # go on from an interrupted run with the same settings
    csv: bool = True  # write one line for each thing counted
    html: bool = False  # write the page

    def __post_init__(self) -> None:
        if not 1 <= self.bootstrap <= MOST_DRAWS:
            bound = "least 1" if self.bootstrap < 1 else f"most {MOST_DRAWS:,}"
            raise ConfigError(f"bootstrap is a number of draws, at {bound}, got {self.bootstrap}")
        if not 0 <= self.held_out < 1:
            raise ConfigError(f"held_out is a share of the images, 0 to below 1, got {self.held_out}")
        for name, number in (("limit", self.limit), ("sample", self.sample)):
            if number < 0:
                raise ConfigError(f"{name} is a number of images, 0 for all, got {number}")
        if os.path.isdir(self.output):
            raise ConfigError(f"output {self.output} is a folder; name a file such as report.json")
        if self.output.suffix != ".json" or "\0" in str(self.output):
            raise ConfigError(
                f"output is the JSON report and ends in .json, got {self.output}; its table is written beside it"
            )
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
