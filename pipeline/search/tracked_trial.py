"""The runs of one trial in the tracking store: opened one after another, each an ordinary run below the search's parent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.train.cell import Cell
from pipeline.train.fit import Fitted
from pipeline.train.messages import Failure
from pipeline.train.tracked import Opening, RunTracker, open_run
from pipeline.trials.plan import SealedPlan, TrialReport, TuneSpec
from pipeline.trials.site import Site


class TrackedTrial:
    """One trial: its cells, and the run that is open now.

    Args:
        number: of the trial.
        cells: its runs, in their order.
        site: where they are tracked and stored.
        opening: study, parent and placement of each.
        finished: positions of runs that an earlier driver has brought to their end.
    """

    def __init__(
        self,
        number: int,
        cells: Sequence[Cell],
        site: Site,
        opening: Opening,
        finished: Sequence[int] = (),
    ) -> None:
        self.number = number
        self.cells = cells
        self.over = False
        self.scores: list[float] = []
        """Of each run begun so far."""
        self.costs: list[float] = []
        """Of each run that has ended."""
        self._site = site
        self._opening = opening
        self._specs = [TuneSpec(**dict(site.spec(cell))) for cell in cells]
        self._finished = set(finished)
        self._tracker: RunTracker | None = None
        self._open(0)

    @property
    def epochs(self) -> int:
        """Of all its runs."""
        return sum(spec.epochs for spec in self._specs)

    def plan(self) -> SealedPlan:
        """As the trial is told it."""
        return SealedPlan(number=self.number, runs=tuple(self._specs), placement=self._opening.placement)

    def score(self, run: int, value: float) -> None:
        """Takes in the score of the run that is on, or the final one of the run that has ended."""
        del self.scores[run:]
        self.scores.append(value)

    def cost(self, run: int, value: float) -> None:
        """Takes in the cost of a run that has ended."""
        del self.costs[run:]
        self.costs.append(value)

    def run_finished(self, report: TrialReport) -> None:
        """Records a run, and opens the trial's next one; a trial that was started again tells of recorded runs once more."""
        assert report.checkpoint is not None
        if report.run < self._run:
            return
        if (tracker := self._tracker) is not None:
            folder, metrics = Path(report.checkpoint), report.metrics
            self._site.clerk.do(lambda: tracker.finished(Fitted.from_checkpoint(folder, metrics)))
            self._site.clerk.do(tracker.close)
            self._tracker = None
        if report.run + 1 < len(self.cells):
            self._open(report.run + 1)

    def fail(self, failure: Failure) -> None:
        """Ends the trial as failed."""
        if (tracker := self._tracker) is not None:
            self._site.clerk.do(lambda: tracker.failed(failure))
        self._close()

    def kill(self, reason: str) -> None:
        """Ends the trial as stopped; what was reported stays."""
        if (tracker := self._tracker) is not None:
            self._site.clerk.do(lambda: tracker.killed(reason))
        self._close()

    def done(self) -> None:
        """The trial came to its end."""
        self._close()

    def _open(self, run: int) -> None:
        self._run = run
        if run in self._finished:
            return
        self._tracker = open_run(self._site.store, self.cells[run], self._specs[run], self._opening)

    def _close(self) -> None:
        self.over = True
        if (tracker := self._tracker) is not None:
            self._site.clerk.do(tracker.close)
            self._tracker = None
