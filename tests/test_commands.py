"""Every command as a newcomer meets it: one line for a mistake, one rule of exit codes, nothing needless installed."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from vsum_runtime import __version__
from vsum_runtime.runtime.cli import door
from vsum_runtime.runtime.errors import InputError, VideoError

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
COMMANDS = {name: place.partition(":")[0] for name, place in PROJECT["scripts"].items()}

every_command = pytest.mark.parametrize("name", COMMANDS)


def run(name: str, *argv: str) -> int:
    """The exit code of a command, in this process."""
    try:
        code: int = importlib.import_module(COMMANDS[name]).main(list(argv))
    except SystemExit as end:  # as after --help
        code = end.code if isinstance(end.code, int) else 1
    return code


def run_without(packages: list[str], name: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, where some packages are not installed."""
    script = f"import sys\nfor name in {packages!r}: sys.modules[name] = None\n"
    script += f"from {COMMANDS[name]} import main\nsys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", script, *argv],
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


@every_command
def test_version_help_and_mistakes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(name, "--version") == 0
    assert capsys.readouterr().out == f"{name} {__version__}\n"
    assert run(name, "--help") == 0
    shown = capsys.readouterr().out
    assert f"usage: {name}" in shown
    assert "example: vsum-" in shown
    for option in ("--version", "-q, --quiet", "-v, --verbose", "--print-completion"):
        assert option in shown
    assert run(name, "--no-such-option") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{name}: ")
    assert said.count("\n") == 1
    assert "--help" in said
    assert run(name, "-q", "-v") == 2


@every_command
@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_the_options(name: str, shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab", reason="completion is an extra: vsum-runtime[completion]")
    assert run(name, "--print-completion", shell) == 0
    script = capsys.readouterr().out
    assert "verbose" in script
    assert name in script or name.replace("-", "_") in script


def test_completion_says_what_to_install() -> None:
    ended = run_without(["shtab"], "vsum-backends", "--print-completion", "bash")
    assert ended.returncode == 1
    expected = '--print-completion needs shtab, which is not installed: pip install "vsum-runtime[completion]"'
    assert ended.stderr == f"vsum-backends: {expected}\n"


def test_extras_bring_what_the_messages_promise() -> None:
    distributions = {"grpc": "grpcio", "google": "protobuf"}
    for extra, modules in door.EXTRAS.items():
        listed = brought(extra)
        for module in modules:
            assert distributions.get(module, module.replace("_", "-")) in listed, f"{extra}: {module}"
    for extra in ("cpu", "openvino"):
        assert "av>=" in brought(extra), f"{extra} cannot read a video"
        assert "rich>=" in brought(extra), extra


def brought(extra: str) -> str:
    """The requirements of an extra, and of those that it includes."""
    listed = " ".join(PROJECT["optional-dependencies"][extra])
    return listed + "".join(brought(inner) for inner in re.findall(r"vsum-runtime\[(\w+)\]", listed))


NOT_CPU_PLOT = ["h5py", "torch", "safetensors", "onnx", "onnxscript", "starlette", "uvicorn", "grpc", "transformers"]


@every_command
def test_help_needs_no_extra(name: str) -> None:
    ended = run_without([*NOT_CPU_PLOT, "av", "onnxruntime", "rich", "matplotlib"], name, "--help")
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "argv", "package", "extra"),
    [
        ("vsum-evaluate", ["--dataset", "{h5}", "--splits", "{h5}"], "h5py", "features"),
        ("vsum-datasets", ["prepare", "{h5}", "out.h5"], "h5py", "features"),
        ("vsum-features", ["{h5}", "-o", "out.h5"], "h5py", "features"),
        ("vsum-train", ["--model", "csta", "--dataset", "{h5}", "--split", "whole"], "torch", "train"),
        ("vsum-export", ["--checkpoint", "{h5}"], "onnx", "export"),
        ("vsum-serve", [], "starlette", "serve"),
        ("vsum-summarize", ["{h5}", "--plot", "{h5}.png", "-o", "{h5}.mp4"], "matplotlib", "plot"),
    ],
)
def test_a_missing_package_is_one_line_that_names_the_extra(
    name: str, argv: list[str], package: str, extra: str, tmp_path: Path
) -> None:
    (tmp_path / "data.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    places = {"h5": tmp_path / "data.h5"}
    gone = [*NOT_CPU_PLOT, package]
    ended = run_without(gone, name, "-q", *(part.format(**places) for part in argv))
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert package in ended.stderr
    assert f'pip install "vsum-runtime[{extra}]"' in ended.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (VideoError("cannot be decoded"), 1),
        (PermissionError(13, "Permission denied", "report.jsonl"), 1),
        (InputError("another kind"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes_follow_the_rule(error: BaseException | None, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        if error is not None:
            raise error

    assert door.end("vsum-x", work, extra="cpu") == code
    said = capsys.readouterr().err
    assert said.count("\n") == (error is not None)
    assert said.startswith("vsum-x: " if error else "")


def test_the_rule_of_exit_codes_is_written_down() -> None:
    for place in (door.__doc__, (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")):
        for code in (door.DONE, door.FAILED, door.WRONG, door.INTERRUPTED):
            assert place is not None
            assert f"\n{code} " in place or f"| {code} |" in place


def test_whoever_reads_only_the_first_line_sees_no_traceback() -> None:
    command = [sys.executable, "-c", f"from {COMMANDS['vsum-models']} import main; raise SystemExit(main(['--json']))"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, said = process.communicate()
    assert said == b""


@pytest.mark.parametrize(
    ("name", "argv", "said"),
    [
        ("vsum-summarize", ["a.mp4", "--jobs", "0"], "--jobs: expected a whole number, 1 or more, got '0'"),
        ("vsum-summarize", ["a.mp4", "--threads", "two"], "--threads: expected a whole number, 1 or more, got 'two'"),
        ("vsum-summarize", ["a.mp4", "--memory-limit", "nan"], "--memory-limit: expected a number above zero"),
        ("vsum-summarize", ["a.mp4", "--budget", "120%"], "share of at most 1, which is 100%, got '120%'"),
        ("vsum-summarize", ["a.mp4", "--report", "r.jsonl"], "--report: is for several videos"),
        ("vsum-summarize", ["a.mp4", "-o", "out.webm"], "--out: expected a name ending in .mp4"),
        ("vsum-summarize", ["a.mp4", "b.mp4", "-o", "out.mp4"], "--out: expected a folder for the films of several"),
        ("vsum-summarize", ["a.mp4", "b.mp4", "--json", "x.json"], "--json, --plot: are for one video"),
        ("vsum-summarize", ["https://host.example/a.mp4"], "got the address https://host.example/a.mp4; download it"),
        ("vsum-summarize", ["."], "expected videos in this directory, found none; --recursive looks into"),
        ("vsum-features", ["a.mp4", "-o", "x.npz"], "--out: expected a name ending in .h5 or .hdf5, got x.npz"),
        ("vsum-serve", ["--port", "abc"], "port: expected a whole number, got 'abc'"),
        ("vsum-serve", ["--port", "99999"], "port: expected a port, 0 to 65535, got 99999"),
        ("vsum-serve", ["--timeout-s", "soon"], "timeout_s: expected a number, got 'soon'"),
        ("vsum-serve", ["--max-body-mb", "inf"], "max_body_mb: expected a number above zero, got inf"),
        ("vsum-evaluate", ["--dataset", "a.h5"], "required: --splits"),
        ("vsum-evaluate", ["--dataset", "a.h5", "--splits", "s.json", "--draws", "0"], "--draws: expected a whole"),
        ("vsum-export", ["--model", "cstta"], "--model: expected one of ac_sum_gan, csta,"),
        ("vsum-export", ["--model", "csta", "--split", "0"], "--split: expected a whole number, 1 or more"),
        ("vsum-export", ["--checkpoint", "none.safetensors"], "--checkpoint: expected a file of vsum-train"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_cure(
    name: str,
    argv: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(name, *argv) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_work_that_takes_long_says_what_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    monkeypatch.setattr(door, "_QUIETEST_S", 0.1)

    def work(*argv: str) -> str:
        parser = door.make_parser("vsum-x", description="", example="")

        def slow(args: object) -> None:
            with door.stage("reading film.mp4"):
                time.sleep(0.5)
            door.note("cut off")

        assert door.run(parser, slow, argv) == 0
        return capsys.readouterr().err

    assert work() == "reading film.mp4\nnote: cut off\n"
    assert work("-q") == ""


def test_tensorrt_that_is_missing_is_said_before_anything_is_exported(capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed here")
    assert run("vsum-export", "--model", "csta", "--engine", "tensorrt") == 1
    assert "tensorrt cannot be imported" in (said := capsys.readouterr().err)
    assert 'pip install "vsum-runtime[tensorrt]"' in said
