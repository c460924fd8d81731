"""TensorRT: ``native`` runs our own engines, ``providers`` goes through ONNX Runtime.

Below them: ``profiles`` (the shapes an engine is built for), ``engine_cache`` and ``cuda`` (memory and streams).
"""
