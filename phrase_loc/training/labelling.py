"""Texts of an image -> its words, in the form the loader wants."""

from collections import Counter
from collections.abc import Sequence

from phrase_loc.datasets.web import Labels
from phrase_loc.text.vocabulary import Vocabulary


class AgreeingWords:
    """Words of the texts, the surer the more texts agree.

    Args:
        vocabulary: the known words.
        agree: texts that must hold a word for strength 1; fewer give their share. An image with fewer texts than
            this asks for all of them.
    """

    def __init__(self, vocabulary: Vocabulary, agree: int = 2):
        self.vocabulary, self.agree = vocabulary, agree

    def __call__(self, texts: Sequence[str]) -> Labels:
        """Labels with the captions kept apart."""
        captions = [self.vocabulary.ids(text) for text in texts]
        counts = Counter(i for caption in captions for i in set(caption))
        needed = max(1, min(self.agree, len(texts)))
        ids = sorted(counts)
        return Labels(ids, [min(1.0, counts[i] / needed) for i in ids], (), captions)
