"""Load on a running `phrase-loc serve`: 500 requests of 32 clients, none lost, memory flat.

    phrase-loc serve --port 8000 &
    python benchmarks/serving.py http://127.0.0.1:8000/

Each client asks three phrases of one of ten photographs (drawn here, 640 x 480), sent with each request, as strangers
do. Prints how many were answered, their latency, and where the server runs on this machine its resident memory
before, between and after rounds of 500.
"""

import argparse
import io
import os
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
from PIL import Image

CLIENTS, REQUESTS, PHOTOGRAPHS = 32, 500, 10
PHRASES = '["a red hat", "a man", "the dog"]'


def photographs() -> list[bytes]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(PHOTOGRAPHS):
        coarse = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        stream = io.BytesIO()
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(stream, "JPEG")
        found.append(stream.getvalue())
    return found


def resident(pid: int | None) -> str:
    """Resident memory of the server's process in MB."""
    if pid is None:
        return "memory unknown"
    kilobytes = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True).stdout
    return f"{int(kilobytes) / 1024:.0f} MB"


def load(address: str) -> None:
    pictures = photographs()

    def one(number: int) -> tuple[int, float]:
        begin = time.perf_counter()
        files = {"image": (f"{number}.jpg", pictures[number % PHOTOGRAPHS]), "phrases": (None, PHRASES)}
        answer = client.post(f"{address}api/localize", files=files)
        return answer.status_code, time.perf_counter() - begin

    begin = time.perf_counter()
    with httpx2.Client(timeout=120) as client, ThreadPoolExecutor(CLIENTS) as pool:
        found = list(pool.map(one, range(REQUESTS)))
    seconds = sorted(s for status, s in found if status == 200)
    statuses = {status: sum(s == status for s, _ in found) for status in {s for s, _ in found}}
    print(f"statuses {statuses}, {REQUESTS / (time.perf_counter() - begin):.1f} requests/s, ", end="")
    print(f"median {statistics.median(seconds):.2f} s, 95 % {seconds[int(0.95 * len(seconds))]:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--pid", type=int, help="of the server, to see its memory")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores; before: {resident(args.pid)}")
    for _ in range(args.rounds):
        load(args.address)
        print(resident(args.pid))


if __name__ == "__main__":
    main()
