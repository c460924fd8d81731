"""What we use of other packages' private parts is still there; a failure names the file of ours that leans on it."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def files_with(phrase: str, *folders: str) -> str:
    """The files of ours that hold a phrase; fails where there are none, since the test is then about nothing."""
    files = [path for folder in folders for path in (REPOSITORY / folder).rglob("*.py") if phrase in path.read_text()]
    assert files, f"no file holds {phrase!r} any more: remove its test"
    return ", ".join(str(path.relative_to(REPOSITORY)) for path in files)


def names_of(kind: type) -> set[str]:
    """Methods of a class, and every attribute that they read or set."""
    methods = [value for value in vars(kind).values() if inspect.isfunction(value)]
    return set(vars(kind)) | {name for method in methods for name in method.__code__.co_names}


def test_numba_has_the_cache_that_ours_is_made_of() -> None:
    ours = files_with("import numba.core.caching", "kernels")
    numba = pytest.importorskip("numba")
    caching = importlib.import_module("numba.core.caching")
    locators = ("InTreeCacheLocator", "UserProvidedCacheLocator", "UserWideCacheLocator")
    classes = ("CompileResultCacheImpl", "FunctionCache", "IndexDataCacheFile")
    lacking = [name for name in classes if not hasattr(caching, name)]
    lacking += [name for name in locators if not (hasattr(caching, name) or hasattr(caching, f"_{name}"))]

    @numba.njit
    def double(x: float) -> float:
        return 2 * x

    lacking += [name for name in ("_cache", "py_func") if not hasattr(double, name)]
    methods = ("cache_path", "load_overload", "save_overload", "enable", "disable", "flush")
    lacking += [name for name in methods if not hasattr(caching.FunctionCache, name)]
    assert not lacking, f"numba {numba.__version__} has no {lacking}, which {ours} uses"


def test_uvicorn_has_the_protocol_that_ours_extends() -> None:
    ours = files_with("from uvicorn.protocols.http.httptools_impl import", "runtime")
    uvicorn = pytest.importorskip("uvicorn")
    module = importlib.import_module("uvicorn.protocols.http.httptools_impl")
    expected = {
        "HttpToolsProtocol": {
            *("connection_made", "connection_lost", "data_received", "eof_received", "pause_writing", "resume_writing"),
            *("on_message_begin", "on_url", "on_header", "on_headers_complete", "on_body", "on_message_complete"),
            *("parser", "headers", "url", "scope", "cycle", "flow", "transport", "resume_reading"),
        },
        "RequestResponseCycle": {
            *("more_body", "body", "message_event", "disconnected", "response_started", "response_complete"),
            *("keep_alive", "waiting_for_100_continue"),
        },
    }
    lacking = [
        f"{name}.{part}" for name, parts in expected.items() for part in sorted(parts - names_of(getattr(module, name)))
    ]
    assert not lacking, f"uvicorn {uvicorn.__version__} has no {lacking}, which {ours} uses"


def test_pyav_has_the_side_data_that_pictures_carry() -> None:
    ours = files_with("from av.sidedata.sidedata import", "runtime")
    av = pytest.importorskip("av")
    kinds = importlib.import_module("av.sidedata.sidedata").Type
    expected = ("DISPLAYMATRIX", "MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL")
    lacking = [name for name in expected if not hasattr(kinds, name)]
    assert not lacking, f"PyAV {av.__version__} has no side data {lacking}, which {ours} uses"
    assert hasattr(av.VideoFrame(2, 2, "rgb24").side_data, "get"), f"side data is no mapping; {ours} uses it as one"


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of torch about itself
def test_the_exporter_says_which_module_a_node_came_from(tmp_path: Path) -> None:
    ours = files_with("NAME_SCOPES", "export")
    torch, onnx = pytest.importorskip("torch"), pytest.importorskip("onnx")
    scopes_key: Any = importlib.import_module("vsum_runtime.export.onnx_from_torch").NAME_SCOPES
    network = torch.nn.Sequential(torch.nn.Linear(2, 2)).eval()
    exported = torch.onnx.export(network, (torch.ones(3, 2),), dynamo=True, verbose=False)
    path = tmp_path / "network.onnx"
    exported.save(path)
    nodes = onnx.load(path).graph.node
    scopes = [entry.value for node in nodes for entry in node.metadata_props if entry.key == scopes_key]
    assert any("'0'" in scope for scope in scopes), f"no {scopes_key} in an exported graph: {ours} reads it"


def test_tritonclient_has_what_the_tests_of_the_server_speak() -> None:
    ours = files_with("service_pb2", "tests")
    triton = pytest.importorskip("tritonclient.grpc.service_pb2", reason="tritonclient[grpc] is not installed")
    shared = importlib.import_module("tritonclient.utils.shared_memory")
    messages = (
        *("ModelInferRequest", "ModelInferResponse", "ModelStreamInferResponse"),
        *("SystemSharedMemoryRegisterRequest", "SystemSharedMemoryUnregisterRequest"),
    )
    functions = ("create_shared_memory_region", "set_shared_memory_region", "get_contents_as_numpy")
    lacking = [name for name in messages if not hasattr(triton, name)]
    lacking += [name for name in functions if not hasattr(shared, name)]
    assert not lacking, f"tritonclient has no {lacking}, which {ours} uses"
