"""What came of a kind's mutated inputs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from phrase_loc.errors import PhraseLocError


@dataclass
class Tally:
    """Counts of one kind of input.

    Attributes:
        answered: inputs that were read and answered.
        refused: inputs that were refused, or left out and named.
        wrong: a sentence for each traceback, hang, silent loss or wrong answer.
    """

    answered: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def tried(self) -> int:
        """All of them."""
        return self.answered + self.refused + len(self.wrong)

    def take(self, name: str, action: Callable[[], Any]) -> Any:
        """Runs an action on one input and counts what came of it; its value, or None where there is none."""
        try:
            value = action()
        except PhraseLocError as error:
            sentence = str(error)
            if len(sentence) > 1000 or "\n" in sentence:
                self.wrong.append(f"{name}: a message of {len(sentence)} characters: {sentence[:80]!r}")
            else:
                self.refused += 1
            return None
        except Exception as error:
            self.wrong.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
            return None
        self.answered += 1
        return value
