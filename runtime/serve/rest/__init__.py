"""The HTTP entry point.

``app`` (all routes), ``wire`` (bodies as they arrive), ``v2`` (the Open Inference Protocol), ``videos``
(``/v1/summarize`` and its jobs), ``page`` with its ``static`` files.
"""
