"""Send the features of many videos at once, in order of importance, and print the scores as they come.

python examples/async_client.py 127.0.0.1:8000 default a.npy b.npy c.npy
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

import numpy as np
import tritonclient.http.aio as triton
from tritonclient.utils import InferenceServerException


async def score(client: triton.InferenceServerClient, model: str, file: Path, priority: int) -> None:
    features = np.load(file, allow_pickle=False).astype(np.float32)[None]
    tensor = triton.InferInput("features", list(features.shape), "FP32")
    tensor.set_data_from_numpy(features)
    for attempt in range(5):
        try:
            answer = await client.infer(model, [tensor], priority=priority, timeout=10_000_000)
        except InferenceServerException as error:
            if "503" not in str(error.status()):
                raise
            await asyncio.sleep(2**attempt)  # the server is full, or would answer too late
        else:
            scores = answer.as_numpy("scores")[0]
            print(f"{file}: {len(scores)} steps, the best is {int(scores.argmax())} with {scores.max():.3f}")
            return
    print(f"{file}: the server stays busy")


async def main() -> None:
    parser = argparse.ArgumentParser(description="Score features with a running server.")
    parser.add_argument("address")
    parser.add_argument("model")
    parser.add_argument("files", nargs="+", type=Path)
    args = parser.parse_args()
    async with triton.InferenceServerClient(args.address) as client:
        tasks = [score(client, args.model, file, min(10, 1 + i)) for i, file in enumerate(args.files)]
        await asyncio.gather(*tasks)


if __name__ == "__main__":
    asyncio.run(main())
