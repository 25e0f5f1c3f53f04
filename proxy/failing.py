"""Whether the origin counts as failing, judged by what became of the questions to it. Pure."""

from __future__ import annotations

_FAILING_SECONDS = 15.0  # after a failure; clients that can have an older answer get it at once
_TRY_SECONDS = 1.0  # between questions that find out whether the origin still fails


class Failing:
    """Times are in seconds, by a monotonic clock."""

    def __init__(self) -> None:
        self._failed_at = self._tried_at = float("-inf")
        self._slow = ""

    def is_failing(self, now: float) -> bool:
        return now - self._failed_at < _FAILING_SECONDS

    def failed(self, now: float) -> None:
        """No question can be answered."""
        self._failed_at = now

    def slow(self, question: str, now: float) -> None:
        """The origin was reached, but gave no answer in time; that may be due to the question.

        If another question has the same trouble, and none was answered in between, it is due to the origin.
        """
        if self._slow not in ("", question):
            self._failed_at = now
        self._slow = question

    def answered(self, at: float) -> bool:
        """The origin gave an answer, to any question. Returns whether it was failing before, as far as is known."""
        if at < self._failed_at:
            return False  # another node had the answer before the failure
        was_failing = self._failed_at > float("-inf")
        self._failed_at, self._slow = float("-inf"), ""
        return was_failing

    def may_try(self, now: float) -> bool:
        """Whether a question should be asked to find out whether the origin still fails; the caller then asks it."""
        if now - max(self._failed_at, self._tried_at) < _TRY_SECONDS:
            return False
        self._tried_at = now
        return True
