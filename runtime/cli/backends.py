"""The vsum-backends door: what can run models here, and what keeps the others from it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from vsum_runtime.runtime.cli import door


def main(argv: Sequence[str] | None = None) -> int:
    parser = door.make_parser(
        "vsum-backends",
        description="List the backends, and for those that cannot run here the reason and what to install.",
        example="vsum-backends",
    )
    return door.run(parser, _list, argv)


def _list(args: argparse.Namespace) -> None:
    from vsum_runtime.runtime.backends import absences
    from vsum_runtime.runtime.releases import unsupported

    with door.stage("opening the libraries of the backends"):
        reasons = absences()
    width = max(map(len, reasons))
    for name, reason in reasons.items():
        print(f"{name:<{width}}  {'can run here' if reason is None else 'absent: ' + reason}")
    for sentence in unsupported():
        door.note(sentence)


if __name__ == "__main__":
    sys.exit(main())
