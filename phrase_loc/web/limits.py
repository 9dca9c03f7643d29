"""What a server accepts, in one place."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on a request, on all of them together, and on what is kept.

    Attributes:
        upload_bytes: largest image file.
        pixels: largest width times height, refused before decoding.
        phrases: most phrases of one request.
        phrase_length: most characters of one phrase.
        words: most words of all phrases of one request together; each is a seed of its own.
        top_k: most boxes of one phrase.
        seconds: longest wait for an answer once the request is there; then 503.
        queue: requests waiting at once; one more is refused with 503.
        batch: images looked at together.
        decoders: photographs decoded at once.
        scenes: photographs kept in memory for further questions, the least recently used leaves first.
        kept_bytes: of the files of those photographs together.
        uploading_bytes: of all requests that are read or wait for their answer; what goes beyond is refused with 503.
        connections: open at once (fewer where the system allows few open files); then the one that has been idle
            for longest is closed.
        header_seconds: in which a connection must have sent the head of a request.
        body_seconds: in which the rest must have come; every `body_rate` bytes that come give one second more.
        body_rate: bytes a second of the slowest sender that is waited for.
        leaving_seconds: in which what was asked is still answered when the server is stopped; then 503.
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
    decoders: int = 2
    scenes: int = 64
    kept_bytes: int = 128 * 1024 * 1024
    uploading_bytes: int = 256 * 1024 * 1024
    connections: int = 256
    header_seconds: float = 10.0
    body_seconds: float = 20.0
    body_rate: float = 50_000.0
    leaving_seconds: float = 5.0
