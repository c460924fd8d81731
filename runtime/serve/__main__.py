"""The door ``python -m runtime.serve``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from vsum_runtime.runtime.errors import InputError, VsumError


def main(argv: Sequence[str] | None = None) -> int:
    try:
        from vsum_runtime.runtime.serve.config import read_config

        config = read_config(argv)
        from vsum_runtime.runtime.serve.rest.app import JsonFormatter
        from vsum_runtime.runtime.serve.server import Server

        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter())
        logging.basicConfig(level=config.log_level.upper(), handlers=[handler])
        Server(config).run()
    except VsumError as error:
        sys.stderr.write(f"vsum-serve: {error}\n")
        return 2 if isinstance(error, InputError) else 1
    except ImportError as error:
        sys.stderr.write(f'vsum-serve: {error}; pip install "vsum-runtime[serve,cpu]", and grpc for --grpc-port\n')
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
