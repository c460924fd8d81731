"""Build script: the package list lives here so that tests/ and benchmarks/ never become top-level modules."""

from setuptools import setup

setup(
    packages=[
        "kernels",
        "runtime",
        "runtime.backends",
        "runtime.serve",
        "training",
        "training.models",
        "training.procedures",
        "export",
    ],
    include_package_data=False,  # the list below says what goes in
    package_data={
        "kernels": ["py.typed"],
        "runtime": ["py.typed", "default_model/*"],
        "runtime.serve": ["static/*", "open_inference.*"],
        "training": ["py.typed"],
        "training.models": ["measured.json"],
        "export": ["py.typed", "fp16_islands.json"],
    },
)
