"""One process or many: the only file that calls torch.distributed.

`torchrun` sets RANK, WORLD_SIZE and LOCAL_RANK; without them the world has one member and starts nothing.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from phrase_loc.errors import ConfigError, PhraseLocError

_GPUS = {"cuda": "CUDA devices", "mps": "Apple GPU", "xpu": "Intel GPU"}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class World:
    """This process among all ranks."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over all processes, everywhere; integers and float64 stay exact."""
        if self.size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total

    def gather(self, value: object) -> list:
        """Every process's picklable value, in order of rank, everywhere."""
        values: list = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def from_main(self, make: Callable[[], T]) -> T:
        """What the main process makes, everywhere: a look at files that may change between two processes' looks.

        What it refuses is refused by all, so that none waits for the others.
        """
        made, refusal = None, None
        if self.is_main:
            try:
                made = make()
            except PhraseLocError as error:
                refusal = error
        made, refusal = self.gather((made, refusal))[0]
        if refusal is not None:
            raise refusal
        return cast(T, made)

    def wrap(self, module: torch.nn.Module) -> torch.nn.Module:
        """The module whose backward averages gradients over all processes; itself in a world of one."""
        if self.size == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        return torch.nn.parallel.DistributedDataParallel(module, device_ids=devices)

    def barrier(self) -> None:
        """Wait for the others."""
        if self.size > 1:
            dist.barrier()


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """The device called `name`, or a ConfigError; 'auto' takes a CUDA or Apple GPU where there is one."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name if isinstance(name, torch.device) else str(name))
    except RuntimeError:
        raise ConfigError(f"device must be auto, cpu, mps, cuda or cuda:N, got {str(name)[:60]!r}") from None
    try:
        count = int(torch.get_device_module(device.type).device_count())
    except RuntimeError:  # 'meta' and kinds that no package registered
        count = 0
    if device.type != "cpu" and (device.index or 0) >= count:
        seen = f"{count or 'no'} {_GPUS.get(device.type, device.type + ' device')}"
        raise ConfigError(
            f"device {str(name)!r} was asked for, but torch sees {seen}; use --device auto or cpu"
        )
    return device


@contextmanager
def session(device: str = "auto") -> Iterator[World]:
    """The world that torchrun describes, or a world of one; left in order also after an exception.

    PHRASE_LOC_TIMEOUT is how many seconds a process waits for the others (1800).
    """
    size = _whole("WORLD_SIZE", 1, least=1)
    if size == 1:
        yield World(device=pick_device(device))
        return
    rank, local = _whole("RANK"), _whole("LOCAL_RANK", 0)
    on_gpu = torch.cuda.is_available() and device != "cpu"
    place = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if device != "auto" and pick_device(device).type != place.type:
        raise ConfigError(f"several processes run on device auto, cpu or cuda, got {device!r}")
    if on_gpu:
        if local >= (seen := torch.cuda.device_count()):
            raise ConfigError(
                f"process {local} of this machine has no GPU, torch sees {seen}; lower --nproc_per_node"
            )
        torch.cuda.set_device(place)
    patience = timedelta(seconds=_whole("PHRASE_LOC_TIMEOUT", 1800, least=1))
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=patience))
        if os.environ.get("GROUP_WORLD_SIZE") == "1":
            # torchrun keeps one store over its restarts: there a rank would find the addresses of those that died
            store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        backend = "nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(
            f"the {size} processes that WORLD_SIZE names could not meet ({reason}); start them with torchrun"
        ) from None
    try:
        yield World(rank, size, place)
    finally:
        dist.destroy_process_group()


def _whole(variable: str, default: int | None = None, least: int = 0) -> int:
    text = os.environ.get(variable, "" if default is None else str(default))
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(
            f"the environment variable {variable} is a whole number from {least}, got {text!r}; torchrun sets it"
        )
    return int(text)
