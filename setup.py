"""Build script: where the packages lie. All are installed as `vsum_runtime.…`, beside the short name `runtime`."""

from setuptools import setup

FOLDERS = [
    "kernels",
    "runtime",
    "runtime.backends",
    "runtime.backends.tensorrt",
    "runtime.cli",
    "runtime.media",
    "runtime.serve",
    "runtime.serve.rest",
    "training",
    "training.datasets",
    "training.models",
    "training.procedures",
    "export",
]

setup(
    packages=["vsum_runtime", *(f"vsum_runtime.{name}" for name in FOLDERS), "runtime"],
    package_dir={
        "vsum_runtime": "vsum_runtime",
        **{f"vsum_runtime.{name}": name.replace(".", "/") for name in FOLDERS},
        "runtime": "vsum_runtime/forward",
    },
    include_package_data=False,  # the list below says what goes in
    package_data={
        "vsum_runtime": ["py.typed"],
        "vsum_runtime.runtime": ["default_model/*"],
        "vsum_runtime.runtime.serve": ["open_inference.*"],
        "vsum_runtime.runtime.serve.rest": ["static/*"],
        "vsum_runtime.training.models": ["measured.json"],
        "vsum_runtime.export": ["fp16_islands.json"],
    },
)
