"""Controls: methods that must fail, and what is compared beside the attention methods."""

from collections.abc import Callable
from typing import Any

CONTROLS: dict[str, Callable[[Any, Any], Any]] = {}
