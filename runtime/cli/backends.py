"""The vsum-backends door: what can run models here, and what keeps the others from it."""

from __future__ import annotations

import argparse
import sys

from vsum_runtime.runtime.backends import absences


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="vsum-backends",
        description="List the backends, and for those that cannot run here the reason and what to install.",
        epilog="example: vsum-backends",
    )
    parser.parse_args(argv)
    reasons = absences()
    width = max(map(len, reasons))
    for name, reason in reasons.items():
        print(f"{name:<{width}}  {'can run here' if reason is None else 'absent: ' + reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
