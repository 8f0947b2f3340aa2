"""How fast one device copies so many bytes to itself or another: what a KV transfer of as many bytes is held against.

    python -m benchmarks.gpu.copies --bytes 1000000 4000000 --pieces 56 [--to 1]

Device indices are CUDA's, after CUDA_VISIBLE_DEVICES. Each size is copied whole, and in so many pieces, as a KV cache
has one for keys and one for values of each layer. Prints JSON; seconds are medians, by the host's clock, synchronised.
"""

import argparse
import json
import statistics
import time
from typing import Any

TIMES = 7


def copies(device: str, sizes: list[int], pieces: int, to: int) -> list[dict[str, Any]]:
    """Time the copies of each size."""
    import torch

    source, target = (
        (torch.device("cpu"),) * 2 if device == "cpu" else (torch.device("cuda", 0), torch.device("cuda", to))
    )

    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize(source)
            torch.cuda.synchronize(target)

    rows = []
    for size in sizes:
        row: dict[str, Any] = {"bytes": size}
        for name, count in (("whole", 1), ("pieces", pieces)):
            here = [torch.ones(size // count, dtype=torch.uint8, device=source) for _ in range(count)]
            there = [torch.empty(size // count, dtype=torch.uint8, device=target) for _ in range(count)]
            seconds = []
            for _ in range(TIMES):
                wait()
                began = time.perf_counter()
                for a, b in zip(here, there, strict=True):
                    b.copy_(a, non_blocking=True)
                wait()
                seconds.append(time.perf_counter() - began)
            took = statistics.median(seconds[1:])
            row |= {f"{name} ms": took * 1e3, f"{name} GB/s": size / took / 1e9}
            del here, there
        rows.append(row)
    return rows


def main() -> None:
    """Copy and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bytes", type=int, nargs="+", required=True, help="sizes")
    parser.add_argument("--pieces", type=int, default=56, help="how many pieces the second way has")
    parser.add_argument("--to", type=int, default=0, help="target device")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu is for rehearsals")
    options = parser.parse_args()
    print(json.dumps(copies(options.device, options.bytes, options.pieces, options.to)))


if __name__ == "__main__":
    main()
