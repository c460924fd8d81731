"""Training: architectures, data sets, the training loop, evaluation.

Start reading at ``training/models/__init__.py`` (the model table) and ``training/train.py`` (the loop).

- ``datasets`` reads videos and splits; ``config`` and ``declared`` check what a command asks for.
- ``procedures`` says how each system is trained; ``train`` loops over epochs, ``selection`` chooses one,
  ``saver`` writes what a run keeps, ``runs`` knows where; ``many`` trains several runs.
- ``judge`` compares scores with people; ``rows`` and ``trained_rows`` collect its results, ``report`` prints them.
- ``cli``, ``evaluate`` and ``catalogue`` are the commands ``vsum-train``, ``vsum-evaluate`` and ``vsum-models``.
"""
