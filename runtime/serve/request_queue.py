"""Many waiting requests -> one call of the model after another, every request answered once.

A request is a few videos of any length. Where a model gains from batches (``batch_tokens`` above 1) requests that wait
together are run together, up to that many steps; elsewhere, as on a CPU but for recurrent networks, each runs alone on
one of some threads. Padding and its removal belong to ``runtime.calls``, so a request's answer does not depend on its
company.

The queue gives three promises: it is bounded, it refuses early what it expects to finish too late, and a request that
is cancelled gives back its place at once. Which request is next, and which too late, ``schedule`` says.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from vsum_runtime.runtime.errors import BackendError, BusyError, InputError, VsumError
from vsum_runtime.runtime.serve.schedule import PRIORITIES, Call, QueueConfig, Rows, Schedule, Ticket


class ClosedError(BusyError):
    """This queue takes no more: its model is being replaced or removed, or the server stops."""


Run = Callable[[list[Rows]], list[Rows]]


class Batcher:
    """A bounded queue before one model, and the threads that empty it.

    >>> import numpy as np
    >>> with Batcher(lambda videos: [rows[:, 0] for rows in videos]) as batcher:
    ...     batcher.submit([np.ones((3, 8), np.float32)]).future.result()
    [array([1., 1., 1.], dtype=float32)]

    Parameters
    ----------
    run : list of float32 [T, D] -> list of float32 [T]
        may be called from several threads
    batch_tokens
        steps worth running together; 1 where requests run best alone
    """

    def __init__(self, run: Run, *, batch_tokens: int = 1, config: QueueConfig | None = None) -> None:
        self.config = config or QueueConfig()
        self.executions = 0
        """Calls of the model that ended well."""
        self._run = run
        self._schedule = Schedule(self.config, batch_tokens)
        self._changed = threading.Condition(threading.RLock())
        self._closing = False
        self._threads = [
            threading.Thread(target=self._work, name=f"batcher-{i}", daemon=True) for i in range(self.config.workers)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Batcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def n_waiting(self) -> int:
        return self._schedule.n_waiting

    @property
    def n_running(self) -> int:
        """Calls of the model that run."""
        return self._schedule.n_running

    def submit(self, videos: Sequence[Rows], *, priority: int = 0, timeout_s: float | None = None) -> Ticket:
        """Queue one request; its ``future`` gives the scores, or may be cancelled.

        Parameters
        ----------
        videos
            float32 [T, D] each
        priority
            1 (first) to 10, or 0 for the default, 5; equals are served in the order they came
        timeout_s
            the answer is of no use after this

        Raises
        ------
        InputError
            a priority or timeout that cannot be
        BusyError
            the queue is full, or the answer is expected after the timeout
        ClosedError
            the queue takes no more
        """
        if not 0 <= priority <= PRIORITIES:
            raise InputError(f"priority: expected 1 (first) to {PRIORITIES}, or 0 for the default, got {priority}")
        timeout_s = self.config.timeout_s if timeout_s is None else timeout_s
        if not timeout_s > 0:
            raise InputError(f"timeout: expected a time above zero, got {timeout_s} s")
        now = time.monotonic()
        n_steps = sum(len(rows) for rows in videos)
        ticket = Ticket(list(videos), n_steps, priority or PRIORITIES // 2, now + timeout_s, now)
        with self._changed:
            if self._closing:
                raise ClosedError("the model is being removed or the server stops; try again")
            self._schedule.add(ticket, now)
            self._changed.notify()
        ticket.future.add_done_callback(lambda _: self._leave(ticket))
        return ticket

    def close(self, *, grace_s: float = 30.0) -> None:
        """Take no more, finish what waits within the grace time, refuse the rest."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        until = time.monotonic() + grace_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        with self._changed:
            rest = self._schedule.drain()
        for ticket in rest:
            if ticket.future.set_running_or_notify_cancel():
                ticket.future.set_exception(BusyError("the server stopped before this request's turn"))

    def _work(self) -> None:
        while work := self._take():
            self._answer(*work)

    def _take(self) -> tuple[list[Ticket], Call] | None:
        """The next requests to run together, which run from now on; None when there is nothing left to do."""
        with self._changed:
            batch: list[Ticket] = []
            while True:
                complete = self._schedule.take(batch)
                if not batch:
                    if self._closing:
                        return None
                    self._changed.wait()
                    continue
                company_s = batch[0].arrived + self.config.max_delay_s - time.monotonic()
                if complete or self._closing or company_s <= 0:
                    return batch, self._started(batch)
                self._changed.wait(company_s)

    def _leave(self, ticket: Ticket) -> None:
        """The ticket runs, is answered, or was cancelled."""
        with self._changed:
            self._schedule.leave(ticket)
            if ticket.future.cancelled():
                ticket.videos = []

    def _started(self, batch: list[Ticket]) -> Call:
        with self._changed:
            return self._schedule.start(sum(ticket.n_steps for ticket in batch), time.monotonic())

    def _answer(self, batch: list[Ticket], call: Call) -> None:
        began = call.started
        for ticket in batch:
            ticket.started = began
        batch = [ticket for ticket in batch if not self._is_late(ticket, began, "the request waited")]
        try:
            outcome = self._outcome(batch) if batch else []
        finally:
            with self._changed:
                self._schedule.end(call)
        if len(batch) > 1 and isinstance(outcome, Exception):
            # One bad request must not fail its company, so each is run again alone.
            for ticket in batch:
                self._answer([ticket], self._started([ticket]))
            return
        ended = time.monotonic()
        if batch and not isinstance(outcome, Exception):
            with self._changed:
                self.executions += 1
                self._schedule.call_times.add(sum(ticket.n_steps for ticket in batch), ended - began)
        at = 0
        for ticket in batch:
            ticket.finished = ended
            n = len(ticket.videos)
            ticket.videos = []
            if isinstance(outcome, Exception):
                ticket.future.set_exception(outcome)
            elif not self._is_late(ticket, ended, "it was computed"):
                ticket.future.set_result(outcome[at : at + n])
            at += n

    def _is_late(self, ticket: Ticket, now: float, stage: str) -> bool:
        """Whether its deadline has passed; then it is refused, and never answered late without a word."""
        late = now > ticket.deadline
        if late:
            ticket.videos = []
            ticket.future.set_exception(BusyError(f"the deadline passed while {stage}"))
        return late

    def _outcome(self, batch: list[Ticket]) -> list[Rows] | Exception:
        videos = [rows for ticket in batch for rows in ticket.videos]
        try:
            scores = self._run(videos)
            if [len(rows) for rows in scores] != [len(rows) for rows in videos]:
                raise BackendError("the model gave scores for other steps than it was asked for")
        except VsumError as error:
            return error
        except BaseException as error:  # whatever it is, the clients get an answer and the thread lives on
            return BackendError(f"the model failed: {type(error).__name__}: {error}")
        return scores
