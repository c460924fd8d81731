"""Installed as ``runtime``: the short name of ``vsum_runtime.runtime``."""

from vsum_runtime.short_name import forward

forward(__name__)
