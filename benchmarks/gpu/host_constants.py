"""Measures the constants of the host profile hf-eager (hwsearch/costmodel/host.py) on the device at hand.

    python benchmarks/gpu/host_constants.py --device cuda:0

Last line: JSON with the copy bandwidth (read plus written), the bandwidth at which torch.cat appends to a bf16
cache, and the host time per kernel launched from an eager module.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

from hwsearch.profilers.environment import environment, torch_device
from hwsearch.profilers.probe import timer_for
from hwsearch.profilers.timing import TimingRule, time_callable

_LAUNCHES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--gib", type=float, default=2.0, help="size of the cache that is appended to")
    options = parser.parse_args()
    device = torch_device(options.device)
    tokens = int(options.gib * 2**30 / (8 * 128 * 2))
    cache = torch.randn(1, 8, tokens, 128, device=device, dtype=torch.bfloat16)
    new = torch.randn(1, 8, 1, 128, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(cache)
    moved = 2 * cache.numel() * cache.element_size()
    timer, rule = timer_for(device), TimingRule(half_width=0.01, max_seconds=3.0)

    def bandwidth(function: object) -> float:
        assert callable(function)
        samples = sorted(time_callable(function, timer=timer, rule=rule).samples_ms)
        return moved / (samples[len(samples) // 2] / 1e3)

    with torch.inference_mode():
        copied = bandwidth(lambda: target.copy_(cache))
        appended = bandwidth(lambda: torch.cat([cache, new], dim=2))
        norm = torch.nn.RMSNorm(128, device=device, dtype=torch.bfloat16)
        small = new[:, :, 0]
        for _ in range(100):
            norm(small)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(_LAUNCHES):
            norm(small)
        launch_us = (time.perf_counter() - start) / _LAUNCHES * 1e6
    place = environment(device)
    print(
        json.dumps(
            {
                "device_name": place.device_name,
                "runtime": place.runtime,
                "driver": place.driver,
                "copy_bytes_per_s": copied,
                "cat_bytes_per_s": appended,
                "eager_module_call_us": launch_us,
            }
        )
    )


if __name__ == "__main__":
    main()
