"""A client that does nothing but send ready-made messages and take the time; one process of its own.

    python -m benchmarks.load --address 127.0.0.1:50051 --method /package.Service/Call --requests FILE... --in-flight 8

Ends with one JSON line. With ``--in-flight`` the next frame goes out when an answer comes in; with ``--rate`` frames go
out at equal distances whatever the answers do, and latency counts from the moment a frame was due.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np

Latencies = dict[str, list[float]]


async def one(call: Any, message: bytes, due: float, latencies: Latencies, timeout_s: float) -> None:
    try:
        await call(message, timeout=timeout_s)
        code = "OK"
    except grpc.aio.AioRpcError as error:
        code = error.code().name
    latencies[code].append((time.perf_counter() - due) * 1000.0)


async def closed_loop(
    call: Any, messages: Iterator[bytes], in_flight: int, seconds: float, timeout_s: float
) -> Latencies:
    latencies: Latencies = defaultdict(list)
    end = time.perf_counter() + seconds

    async def camera() -> None:
        while (now := time.perf_counter()) < end:
            await one(call, next(messages), now, latencies, timeout_s)

    await asyncio.gather(*(camera() for _ in range(in_flight)))
    return latencies


async def open_loop(call: Any, messages: Iterator[bytes], rate: float, seconds: float, timeout_s: float) -> Latencies:
    latencies: Latencies = defaultdict(list)
    start = time.perf_counter()
    tasks = set()
    for index in range(int(rate * seconds)):
        due = start + index / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.create_task(one(call, next(messages), due, latencies, timeout_s))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return latencies


async def run(options: argparse.Namespace) -> dict[str, Any]:
    messages = itertools.cycle([path.read_bytes() for path in options.requests])
    limits = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(options.address, options=[*limits, ("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary(options.method)
        await closed_loop(call, messages, options.in_flight or 1, options.warm_up, options.timeout_s)
        start = time.perf_counter()
        if options.rate:
            latencies = await open_loop(call, messages, options.rate, options.seconds, options.timeout_s)
        else:
            latencies = await closed_loop(call, messages, options.in_flight, options.seconds, options.timeout_s)
        took_s = time.perf_counter() - start
    codes = {code: {"count": len(values), **quantiles(values)} for code, values in latencies.items()}
    return {"seconds": took_s, "per_second": len(latencies["OK"]) / took_s, "codes": codes}


def quantiles(milliseconds: list[float]) -> dict[str, float]:
    p50, p99, largest = np.percentile(milliseconds, [50, 99, 100]).tolist()
    return {"p50_ms": p50, "p99_ms": p99, "max_ms": largest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--address", required=True)
    parser.add_argument("--method", required=True, help="full name of a unary RPC")
    parser.add_argument(
        "--requests", required=True, type=Path, nargs="+", help="files with one message each, sent in turn"
    )
    parser.add_argument("--in-flight", type=int, default=0)
    parser.add_argument("--rate", type=float, default=0.0, help="frames a second")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warm-up", type=float, default=1.0)
    parser.add_argument("--timeout-s", type=float, default=30.0)
    options = parser.parse_args()
    if bool(options.rate) == bool(options.in_flight):
        parser.error("choose one of --in-flight and --rate")
    print(json.dumps(asyncio.run(run(options))))


if __name__ == "__main__":
    main()
