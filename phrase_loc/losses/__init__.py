"""What training minimises: functions of word scores and weak labels, a file each.

Every loss has two steps, so that 100,000 words need not be scored at once:

    terms(scores (N,k), targets) -> (N,m)      what k of the words contribute
    close(terms of all chunks (c,N,m)) -> (N,) loss of each image

A new loss is a module with these two functions, `COUPLED`, and an entry in LOSSES. COUPLED says that images of
a batch compete with one another: such a loss gets the scores of all processes and all words in one chunk.
"""

from phrase_loc.losses import image_caption, image_word, sigmoid, softmax
from phrase_loc.losses.targets import Loss, Targets

LOSSES: dict[str, Loss] = {
    "sigmoid": sigmoid,
    "softmax": softmax,
    "image_word": image_word,
    "image_caption": image_caption,
}

__all__ = ["LOSSES", "Loss", "Targets"]
