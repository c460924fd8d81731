"""Do our cuts lie where PySceneDetect finds them?

    pip install scenedetect opencv-python-headless
    python -m benchmarks.scene_changes VIDEO... --out benchmarks/results/scene_changes.json

PySceneDetect compares every frame in full; ours are found beside the sampling of two frames a second, among the frames
that are decoded for it. Counted are cuts at the same frame, and those that only one of the two finds.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from benchmarks.measure.rows import Results
from vsum_runtime.runtime.media.frames import read_frames
from vsum_runtime.runtime.media.sparse import Irregular
from vsum_runtime.runtime.recipe import EFFICIENTNET_LITE0

COMMAND = "python -m benchmarks.scene_changes VIDEO..."
PACKAGES = ("av", "numpy", "scenedetect", "opencv-python-headless")
DETECTORS = ("ContentDetector", "AdaptiveDetector")
_LOOK = replace(EFFICIENTNET_LITE0, width=16, height=16)


def ours(video: str) -> list[int]:
    for sparse in (True, False):
        try:
            with read_frames(video, _LOOK, sparse=sparse) as reader:
                for _ in reader:
                    pass
            cuts: list[int] = reader.cuts().tolist()
            break
        except Irregular:
            continue
    return cuts


def theirs(video: str, detector: str) -> list[int]:
    import scenedetect

    scenes = scenedetect.detect(video, getattr(scenedetect, detector)())
    return [start.frame_num for start, _ in scenes[1:]]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Our cuts beside those of PySceneDetect.", epilog=__doc__)
    parser.add_argument("videos", nargs="+", type=Path, metavar="VIDEO")
    parser.add_argument("--out", type=Path, help="JSON file of rows to update")
    args = parser.parse_args(argv)
    results = Results(COMMAND, PACKAGES, args.out)
    for video in args.videos:
        path = str(video.resolve())
        found = set(ours(path))
        for detector in DETECTORS:
            known = set(theirs(path, detector))
            for metric, count in (
                ("at the same frame", len(found & known)),
                ("only theirs", len(known - found)),
                ("only ours", len(found - known)),
            ):
                results.add("cuts", video.name, detector, [count], metric=metric, unit="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
