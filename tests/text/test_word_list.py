import pytest

from phrase_loc.datasets.annotations import class_names, imagenet_classes
from phrase_loc.text.english import is_word, tokens

NO_ENGLISH = {"cinereoargenteus", "mississipiensis", "ornithorhynchus"}  # Latin of more than fourteen letters
WRITTEN_AS_ONE = {"diningtable", "pottedplant", "tvmonitor"}


def names() -> list[str]:
    """Every name of a class that the project ships: ImageNet's, COCO's, VOC's."""
    own = [text for name in ("voc", "coco") for c in class_names(name) for text in (c.name, c.phrase)]
    return own + [lemma.strip() for _, lemmas in imagenet_classes() for lemma in lemmas.split(",")]


def test_the_words_of_class_names_are_words():
    asked = {token for name in names() for token in tokens(name) if token.isalpha() and len(token) > 4}
    assert len(asked) > 1000
    assert {token for token in asked if not is_word(token)} == NO_ENGLISH | WRITTEN_AS_ONE


@pytest.mark.parametrize(
    "text", ["astronuat", "womann", "umbrela", "bicylce", "gitar", "ballon", "perro", ""]
)
def test_misspellings_are_no_words(text: str):
    assert not is_word(text)
