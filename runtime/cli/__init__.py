"""The commands of the runtime, one per file: ``summarize`` (with ``many`` videos), ``features``, ``backends``."""
