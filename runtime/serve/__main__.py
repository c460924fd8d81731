"""The vsum-serve door, also ``python -m runtime.serve``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from vsum_runtime.runtime.cli import door
from vsum_runtime.runtime.serve.config import read_config


def main(argv: Sequence[str] | None = None) -> int:
    def serve() -> None:
        config = read_config(argv)
        from vsum_runtime.runtime.serve.rest.app import JsonFormatter
        from vsum_runtime.runtime.serve.server import Server

        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter())
        logging.basicConfig(level=config.log_level.upper(), handlers=[handler])
        Server(config).run()

    return door.end("vsum-serve", serve, extra="serve", interrupted="jobs that were not finished start again")


if __name__ == "__main__":
    sys.exit(main())
