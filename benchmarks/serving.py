"""Load on `phrase-loc serve`: 32 clients, 500 requests a round, none lost, memory flat.

    python benchmarks/serving.py                        starts a server of its own
    python benchmarks/serving.py --address http://127.0.0.1:8000/ --pid PID

Three kinds of round: `few`, ten photographs of 640 x 480 with three phrases each, sent with each request as strangers
do; `many`, 500 different ones of 4000 x 3000; `small`, 10,000 questions without a photograph and refused uploads.
Prints how many were answered, their latency, and the server's resident memory after each round.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

import httpx2
import numpy as np
from PIL import Image

CLIENTS = 32
PHRASES = '["a red hat", "a man", "the dog"]'
ROUNDS = {"few": 500, "many": 500, "small": 10_000}


@cache
def photograph(seed: int, width: int, height: int) -> bytes:
    """A JPEG of smooth colours."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(stream, "JPEG")
    return stream.getvalue()


def ask(client: httpx2.Client, address: str, kind: str, number: int) -> int:
    """One request of a round: its status."""
    if kind == "few":
        files = {"image": (f"{number}.jpg", photograph(number % 10, 640, 480)), "phrases": (None, PHRASES)}
        return client.post(f"{address}api/localize", files=files).status_code
    if kind == "many":  # bytes after the end of a JPEG make it another file
        content = photograph(0, 4000, 3000) + number.to_bytes(4, "big") * 100
        return client.post(f"{address}api/look", files={"image": (f"{number}.jpg", content)}).status_code
    if number % 3 == 0:
        return client.post(
            f"{address}api/look", files={"image": (f"{number}.jpg", os.urandom(20_000))}
        ).status_code
    if number % 3 == 1:
        return client.post(f"{address}api/chips", json={"text": f"A man walks {number} dogs."}).status_code
    return client.get(f"{address}api/model").status_code


def load(address: str, kind: str, count: int) -> None:
    """One round, and what came of it."""

    def one(number: int) -> tuple[int, float]:
        begin = time.perf_counter()
        return ask(client, address, kind, number), time.perf_counter() - begin

    begin = time.perf_counter()
    limits = httpx2.Limits(max_connections=CLIENTS)
    with httpx2.Client(timeout=120, limits=limits) as client, ThreadPoolExecutor(CLIENTS) as pool:
        found = list(pool.map(one, range(count)))
    seconds = sorted(s for _, s in found)
    statuses = json.dumps(Counter(status for status, _ in found))
    print(f"{kind}: statuses {statuses}, {count / (time.perf_counter() - begin):.1f} requests/s, ", end="")
    print(
        f"median {statistics.median(seconds):.2f} s, 95 % {seconds[int(0.95 * len(seconds))]:.2f} s", end=", "
    )


def resident(pid: int | None) -> str:
    """Resident memory of the server's process."""
    if pid is None:
        return "memory unknown"
    kilobytes = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True).stdout
    return f"{int(kilobytes) / 1024:.0f} MB"


@contextmanager
def own_server() -> Iterator[tuple[str, int]]:
    """A server on a free port: its address and process."""
    command = [sys.executable, "-m", "phrase_loc", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield next(w for w in server.stdout.readline().split() if w.startswith("http://")), server.pid
        server.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--address", help="of a running server (default: one is started)")
    parser.add_argument("--pid", type=int, help="of that server, to see its memory")
    parser.add_argument(
        "--rounds", nargs="+", choices=ROUNDS, default=["few", "few", "many", "small", "small"]
    )
    parser.add_argument("--share", type=float, default=1.0, help="of the requests of a round")
    args = parser.parse_args()
    if args.address:
        measure(args.address, args.pid, args)
    else:
        with own_server() as (address, pid):
            measure(address, pid, args)


def measure(address: str, pid: int | None, args: argparse.Namespace) -> None:
    """All rounds."""
    print(f"{os.cpu_count()} cores; before: {resident(pid)}", flush=True)
    for kind in args.rounds:
        load(address, kind, max(1, round(ROUNDS[kind] * args.share)))
        print(resident(pid), flush=True)


if __name__ == "__main__":
    main()
