"""The arithmetic of video summarization: pure functions, arrays in, arrays out.

The alphabet of axes, used in every docstring and variable of this project:

====  =======================  ====  ==================
B     batch                    S     shots
T     sampled steps            P     proposals
D     feature size             U     annotators (users)
N     frames of the video      K     chosen
====  =======================  ====  ==================

Counts are ``n_steps``, ``n_frames``, ``n_shots``; ``picks[t]`` is the source frame of step ``t``. Ranges are half-open,
``[start, end)``. Every kernel raises ``ValueError`` on bad input and never writes into an argument.

===================================  =========================================================
kernel                               makes
===================================  =========================================================
``kts.change_points``                features -> first steps of new shots, number chosen too
``kts.change_points_at_slope``       the same at a given price of a cut
``kts_stream.Stream``                features that keep arriving -> first steps of new shots
``shot_scores.pool``                 step scores and shots -> mean frame score of each shot
``knapsack.pack``                    values, lengths, capacity -> chosen indices
``nms.keep``                         overlapping proposals -> kept proposals
``metrics.f_scores``                 a summary and the annotators' -> F-score against each
``metrics.kendall_tau``              a score curve and the annotators' -> tau-b against each
``metrics.spearman_rho``             a score curve and the annotators' -> rho against each
===================================  =========================================================

Below them: ``penalised`` (the pass that both forms of KTS follow), ``dense`` (the same for short input, without a
compiler), ``compiled`` (when numba is worth its start) and ``code_cache`` (where its code is kept).

To add a kernel: a new file here with a public door and a private compiled core, a call in ``__main__.py``, its slow
twin in ``tests/reference/``, a row in ``benchmarks/kernels.py`` and a line in the table above.
"""
