"""``make matrix``: the built wheel, not the checkout, in fresh environments; the table goes to docs/versions.md.

A line is a Python, the newest or the oldest releases that the wheel's own metadata allows, and extras. On each line the
demonstration film must get the shots and scores of the reference, every command must answer ``--help``, and where
``serve`` is among the extras a server must score one request. On the newest line with plots Hugging Face's ``kernels``
must work beside ours, and after ours is gone. A last line installs as examples/Dockerfile does: the locked releases, by
the pip that a fresh environment brings. ``--quick`` is the part that CI runs.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
TOLERANCE, OF_OLD_SCALERS = 1e-4, 5e-3
"""Largest difference of a score; the second up to PyAV 16, whose FFmpeg scales pictures to slightly other values."""
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
EXTRAS = ("cpu", "cpu,plot", "cpu,serve,grpc", "openvino")
NEWEST, OLDEST, LOCKED = "highest", "lowest-direct", "locked"
SHOWN = ("numpy", "numba", "av", "onnxruntime", "openvino", "matplotlib", "uvicorn", "starlette", "grpcio", "protobuf")
REQUEST = {
    "inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 4, 1280], "data": [0.1] * (4 * 1280)}],
}


@dataclass(frozen=True)
class Line:
    python: str
    resolution: str
    extras: str


@dataclass(frozen=True)
class Result:
    line: Line
    python_version: str
    releases: dict[str, str]
    difference: float | None
    """The largest between a shot's score and the reference's."""
    failure: str | None
    has_run: bool = True
    """False where there is no such interpreter here: then the releases are what would be installed."""


class Failed(Exception):
    """A check of a line failed; the message is the line's result."""


def lines(pythons: Sequence[str], *, quick: bool) -> list[Line]:
    if quick:
        return [Line(pythons[0], OLDEST, "cpu"), Line(pythons[-1], NEWEST, "cpu,serve,grpc")]
    resolved = [
        Line(python, resolution, extras) for python in PYTHONS for resolution in (NEWEST, OLDEST) for extras in EXTRAS
    ]
    return [*resolved, *(Line(python, LOCKED, "cpu,serve,grpc") for python in pythons if python == "3.12")]


def has(uv: str, python: str) -> bool:
    found = subprocess.run([uv, "python", "find", "--no-python-downloads", python], capture_output=True, check=False)
    return found.returncode == 0


def build_wheel(uv: str, folder: Path) -> Path:
    """Of what git tracks or would, in a copy: a build leaves nothing in the checkout and takes nothing old from it."""
    source = folder / "source"
    listed = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], REPOSITORY, dict(os.environ))
    for name in filter(None, listed.split("\0")):
        if (REPOSITORY / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, source / name)
    run([uv, "build", "--quiet", "--wheel", "--out-dir", str(folder), str(source)], folder, dict(os.environ))
    return next(folder.glob("*.whl"))


def run(command: Sequence[str], folder: Path, environment: dict[str, str], timeout_s: float = 900) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no output"]
        raise Failed(f"{Path(command[0]).name} {' '.join(command[1:3])}: {said[-1][:300]}")
    return done.stdout


def resolve(uv: str, wheel: Path, line: Line, folder: Path) -> Path:
    """A file with the releases of a line; whether or not its Python is there.

    Resolved from the project's own list: below a wheel, even what it names itself would count as indirect.
    """
    out = folder / "releases.txt"
    command = [uv, "pip", "compile", "--quiet", "--no-annotate", "--no-header", "--only-binary", ":all:"]
    command += [f"--python-version={line.python}", f"--resolution={line.resolution}", f"--output-file={out}"]
    command += [f"--extra={extra}" for extra in line.extras.split(",")]
    run([*command, str(wheel.parent / "source/pyproject.toml")], folder, dict(os.environ))
    return out


def only_resolve(uv: str, wheel: Path, line: Line, folder: Path) -> Result:
    try:
        pinned = dict(
            entry.split("==") for entry in resolve(uv, wheel, line, folder).read_text().split() if "==" in entry
        )
    except Failed as error:
        return Result(line, "", {}, None, str(error), has_run=False)
    return Result(line, "", {name: pinned[name] for name in SHOWN if name in pinned}, None, None, has_run=False)


def try_line(uv: str, wheel: Path, line: Line, film: Path, reference: dict[str, Any], folder: Path) -> Result:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    home = folder / "home"
    home.mkdir()
    away = folder / "away"
    away.mkdir()
    for name in ("runtime.py", "kernels.py"):  # of the user, in the folder where he works
        (away / name).write_text("raise ImportError('the wrong module')\n")
    python = folder / "venv/bin/python"
    version, releases, difference, failure = "", {}, None, None
    try:
        install(uv, wheel, line, python, folder, environment)
        run([uv, "pip", "check", "--python", str(python)], folder, environment)
        environment |= {"HOME": str(home), "PATH": f"{python.parent}:{environment['PATH']}"}
        listing = "import json, platform, importlib.metadata as m; print(json.dumps([platform.python_version(), "
        listing += "{d.name.lower(): d.version for d in m.distributions()}]))"
        version, installed = json.loads(run([str(python), "-c", listing], home, environment))
        releases = {name: installed[name] for name in SHOWN if name in installed}
        difference = check_summary(python.parent, line.extras, film, reference, away, environment)
        tolerance = TOLERANCE if int(releases["av"].split(".")[0]) >= 17 else OF_OLD_SCALERS
        if difference > tolerance:
            raise Failed(f"scores differ from the reference by {difference:.1e}")
        for command in sorted(python.parent.glob("vsum-*")):
            run([str(command), "--help"], away, environment)
        run([str(python.parent / "vsum-summarize"), "--version"], away, environment)
        run([str(python.parent / "vsum-backends")], away, environment)
        if "serve" in line.extras:
            check_server(python, home, environment)
        if line.resolution == NEWEST and line.extras == "cpu,plot":
            check_other_kernels(uv, python, home, environment)
    except (Failed, subprocess.TimeoutExpired) as error:
        failure = str(error)
    return Result(line, version, releases, difference, failure)


def install(uv: str, wheel: Path, line: Line, python: Path, folder: Path, environment: dict[str, str]) -> None:
    """Make the environment of a line; raises Failed where it cannot be made."""
    if line.resolution == LOCKED:
        interpreter = run([uv, "python", "find", line.python], folder, environment).strip()
        run([interpreter, "-m", "venv", str(folder / "venv")], folder, environment)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--no-deps"]
        run([*pip, "--require-hashes", "--requirement", str(REPOSITORY / "locks/serve.txt")], folder, environment)
        run([*pip, "--no-build-isolation", str(wheel.parent / "source")], folder, environment)
        return
    run([uv, "venv", "--quiet", "--python", line.python, str(folder / "venv")], folder, environment)
    pip = [uv, "pip", "install", "--quiet", "--python", str(python), "--only-binary", ":all:"]
    run([*pip, "--requirement", str(resolve(uv, wheel, line, folder))], folder, environment)
    run([*pip, "--no-deps", str(wheel)], folder, environment)


def check_summary(
    commands: Path, extras: str, film: Path, reference: dict[str, Any], folder: Path, environment: dict[str, str]
) -> float:
    """The largest difference of a shot's score from the reference; raises Failed where a shot differs."""
    out = folder / "summary.json"
    options = ["--json", str(out), "-o", str(folder / "summary.mp4")]
    options += ["--plot", str(folder / "summary.png")] if "plot" in extras else []
    options += ["--backend", "openvino"] if extras == "openvino" else []
    run([str(commands / "vsum-summarize"), str(film), *options], folder, environment)
    summary = json.loads(out.read_text())
    bounds = [
        [(shot["start_frame"], shot["end_frame"], shot["chosen"]) for shot in s["shots"]] for s in (summary, reference)
    ]
    if bounds[0] != bounds[1]:
        raise Failed(f"other shots than the reference: {bounds[0]}")
    differences = [abs(a["score"] - b["score"]) for a, b in zip(summary["shots"], reference["shots"], strict=True)]
    return max(differences)


def check_other_kernels(uv: str, python: Path, folder: Path, environment: dict[str, str]) -> None:
    """Install the package ``kernels`` of Hugging Face beside ours, then take ours away."""
    pip, imports = [uv, "pip"], "import kernels; kernels.get_kernel"
    run([*pip, "install", "--quiet", "--python", str(python), "kernels"], folder, environment)
    run([str(python), "-c", f"{imports}; from vsum_runtime.kernels import kts; import runtime"], folder, environment)
    run([*pip, "uninstall", "--quiet", "--python", str(python), "vsum-runtime"], folder, environment)
    run([str(python), "-c", imports], folder, environment)


def check_server(python: Path, folder: Path, environment: dict[str, str]) -> None:
    """Start ``python -m runtime.serve``, score one request, stop it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(python), "-m", "runtime.serve", "--port", str(port)]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/v2"
    try:
        wait_until_ready(server, f"{url}/health/ready", folder / "server.log")
        body = json.dumps(REQUEST).encode()
        request = urllib.request.Request(f"{url}/models/default/infer", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            scores = json.load(answer)["outputs"][0]
        if scores["shape"] != [1, 4]:
            raise Failed(f"the server's scores have the shape {scores['shape']}")
    except OSError as error:
        raise Failed(f"the server: {error}") from error
    finally:
        server.terminate()
        server.wait(timeout=60)


def wait_until_ready(server: subprocess.Popen[bytes], url: str, log: Path, timeout_s: float = 300) -> None:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if server.poll() is not None:
            raise Failed(f"the server ended: {(log.read_text().splitlines() or ['no output'])[-1][:300]}")
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
        else:
            return
    raise Failed(f"the server was not ready within {timeout_s:g} s")


def table(results: Sequence[Result]) -> list[str]:
    rows = [
        "| Python | releases | extras | in it | shots | scores differ by |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        releases = ", ".join(f"{name} {release}" for name, release in result.releases.items())
        kind = {NEWEST: "newest", OLDEST: "oldest", LOCKED: "locked"}[result.line.resolution]
        outcome = "the same" if result.has_run else "not run: no such interpreter here; it resolves"
        outcome = outcome if result.failure is None else f"**{result.failure}**"
        difference = "" if result.difference is None else f"{result.difference:.0e}"
        version = result.python_version or result.line.python
        rows.append(f"| {version} | {kind} | `{result.line.extras}` | {releases} | {outcome} | {difference} |")
    return rows


def write_page(page: Path, results: Sequence[Result]) -> None:
    """Put date, machine and table between the marks of the page."""
    before, mark, rest = page.read_text().partition("<!-- matrix -->\n")
    _, end, after = rest.partition("<!-- /matrix -->")
    made = f"{datetime.date.today().isoformat()}, {platform.system()} {platform.machine()}, `make matrix`:"
    page.write_text("\n".join([before + mark + made, "", *table(results), end]) + after)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uv", default="uv")
    parser.add_argument("--demo", type=Path, default=REPOSITORY / "demo", help="film.mp4 and summary.json of make demo")
    parser.add_argument("--page", type=Path, help="where to write the table")
    parser.add_argument("--quick", action="store_true", help="two lines: oldest and newest releases")
    args = parser.parse_args()
    film, reference = args.demo.resolve() / "film.mp4", json.loads((args.demo / "summary.json").read_text())
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build_wheel(args.uv, folder)
        pythons = [python for python in PYTHONS if has(args.uv, python)]
        for line in lines(pythons, quick=args.quick):
            began = time.monotonic()
            place = folder / "line"
            place.mkdir()
            if line.python in pythons:
                results.append(try_line(args.uv, wheel, line, film, reference, place))
            else:
                results.append(only_resolve(args.uv, wheel, line, place))
            shutil.rmtree(place)
            print(f"{table(results)[-1]} {time.monotonic() - began:.0f} s", flush=True)
            if args.page is not None:
                write_page(args.page, results)
    return any(result.failure is not None for result in results)


if __name__ == "__main__":
    sys.exit(main())
