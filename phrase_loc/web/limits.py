"""What a server accepts, in one place."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on a request and on what is kept.

    Attributes:
        upload_bytes: largest image file.
        pixels: largest width times height, refused before decoding.
        phrases: most phrases of one request.
        phrase_length: most characters of one phrase.
        words: most words of all phrases of one request together; each is a seed of its own.
        top_k: most boxes of one phrase.
        seconds: longest wait for an answer; then 503.
        queue: requests waiting at once; one more is refused with 503.
        batch: images looked at together.
        scenes: photographs kept in memory for further questions, the least recently used leaves first.
    """

    upload_bytes: int = 20 * 1024 * 1024
    pixels: int = 40_000_000
    phrases: int = 64
    phrase_length: int = 200
    words: int = 400
    top_k: int = 50
    seconds: float = 30.0
    queue: int = 64
    batch: int = 8
    scenes: int = 64
