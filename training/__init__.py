"""Training: architectures, data sets, the loop, evaluation.

Start reading at ``training/models/__init__.py`` (the model table) and ``training/train.py`` (the loop).
"""
