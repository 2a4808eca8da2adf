"""State of a search: an Optuna study in a database, which holds every trial, its scores, and what sampler and pruner have seen.

A driver that goes on with a search reads there which trials ended and which were running. What Optuna's own fields do not hold is kept in
a trial's attributes.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from mgmrn.errors import UserError
from pipeline.databases import with_installed_driver
from pipeline.redaction import redact
from pipeline.search.config import SearchConfig
from pipeline.search.space import Space

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

State = Literal["running", "finished", "stopped", "failed", "repeated"]

CONNECT_SECONDS = 10
"""Seconds that a database server may take to answer."""

_POINT, _SCORES, _REASON, _TWIN = "point", "scores", "reason", "repeats"


@dataclass(frozen=True)
class Record:
    """A trial as the study holds it."""

    number: int
    state: State
    point: Mapping[str, Any]
    """Values of the space, by dotted path."""
    values: tuple[float, ...]
    """Objectives of a finished trial: the score, and the cost where there is one."""
    scores: Mapping[int, tuple[float, ...]]
    """Step → score on each run begun so far."""
    reason: str
    """Reason of a failure."""


class Study:
    """Optuna study of a search.

    Args:
        name: name of the study; an existing one is continued.
        storage: `sqlite:///FILE` or a PostgreSQL URL.
        config: sampler, scheduler, objective.
        space: parameters to draw.

    Raises:
        UserError: when the database cannot be reached.
    """

    def __init__(self, name: str, storage: str, config: SearchConfig, space: Space) -> None:
        self._name, self._space = name, space
        self._several = config.objective.cost != "none"
        with _quiet():
            with _reaching(storage):
                self._storage = _storage(storage)
                self._study = optuna.create_study(
                    study_name=name, storage=self._storage, directions=_directions(config), load_if_exists=True
                )
            known = len(self._study.get_trials(deepcopy=False))
            # A study stores no sampler: with the same seed a restarted one would repeat its first proposals.
            self._study.sampler = _sampler(config, known)
            self._study.pruner = _pruner(config)

    def left_running(self) -> list[Record]:
        """Trials that a dead driver left running."""
        return [record for record in self.records() if record.state == "running"]

    def begin_with(self, values: Mapping[str, Any]) -> None:
        """Enqueues values of the first trial, unless the study has trials; parameters without a value are drawn."""
        with _quiet():
            if not self._study.get_trials(deepcopy=False):
                self._study.enqueue_trial(dict(values))

    def propose(self) -> Record:
        """Starts a trial with the values that the sampler proposes."""
        with _quiet():
            trial = self._study.ask()
            point = self._space.draw(trial)
            trial.set_user_attr(_POINT, point)
        return Record(trial.number, "running", point, (), {}, "")

    def report(self, number: int, step: int, score: float, scores: Sequence[float]) -> bool:
        """Stores the score of a step and returns whether to stop the trial; a step that is reported again changes nothing."""
        frozen = self._frozen(number)
        trial = self._live(number)
        with _quiet():
            if step not in frozen.intermediate_values:
                trial.set_user_attr(f"{_SCORES}/{step}", [float(one) for one in scores])
                if self._several:
                    return False  # Optuna has no intermediate values of several objectives.
                trial.report(score, step)
            elif step < max(frozen.intermediate_values):
                return False
            return not self._several and trial.should_prune()

    def settle(self, number: int, step: int, scores: Sequence[float]) -> None:
        """Replaces the scores of the last epoch by those of the epochs that count, which ranks compare."""
        self._live(number).set_user_attr(f"{_SCORES}/{step}", [float(one) for one in scores])

    def finish(self, number: int, values: Sequence[float]) -> None:
        """Ends a trial with its objectives."""
        self._tell(number, TrialState.COMPLETE, values)

    def stop(self, number: int) -> None:
        """Ends a trial that was stopped early, with its last score."""
        self._tell(number, TrialState.PRUNED, None)

    def fail(self, number: int, reason: str) -> None:
        """Ends a trial as failed."""
        self._live(number).set_user_attr(_REASON, reason)
        self._tell(number, TrialState.FAIL, None)

    def repeat(self, number: int, twin: int) -> None:
        """Ends a trial whose values repeat those of an earlier one, with that one's objectives."""
        earlier = self._frozen(twin)
        self._live(number).set_user_attr(_TWIN, twin)
        values = earlier.values if earlier.state == TrialState.COMPLETE else None
        self._tell(number, TrialState.COMPLETE if values else TrialState.FAIL, values)

    def records(self) -> list[Record]:
        """All trials by number."""
        return _records(self._study)

    @property
    def optuna(self) -> optuna.Study:
        """Optuna's study, for plots."""
        return self._study

    def remember(self, key: str, value: str) -> None:
        """Stores an attribute of the study."""
        self._study.set_user_attr(key, value)

    def remembered(self, key: str) -> str | None:
        """Attribute that `remember` stored; None where there is none."""
        value = self._study.user_attrs.get(key)
        return None if value is None else str(value)

    def _tell(self, number: int, state: TrialState, values: Sequence[float] | None) -> None:
        with _quiet():
            self._study.tell(number, values, state=state, skip_if_finished=True)

    def _frozen(self, number: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]

    def _live(self, number: int) -> Trial:
        study_id = self._storage.get_study_id_from_name(self._name)
        return Trial(self._study, self._storage.get_trial_id_from_study_id_trial_number(study_id, number))


DATABASE_ERRORS = (optuna.exceptions.StorageInternalError, SQLAlchemyError)


def lost(storage: str, error: Exception) -> UserError:
    """Error for a database that became unreachable during a search."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    hint = "see to it, then go on with --resume"
    return UserError(f"the study's database was lost: {reason}", redact(storage), hint)


def forget_study(name: str, storage: str) -> None:
    """Deletes a study if it exists.

    Raises:
        UserError: when the database cannot be reached.
    """
    with _quiet(), _reaching(storage):
        if name in optuna.get_all_study_names(_storage(storage)):
            optuna.delete_study(study_name=name, storage=_storage(storage))


def study_size(name: str, storage: str) -> int | None:
    """Number of trials of a study, without repeated ones; None where there is no such study.

    Raises:
        UserError: when the database cannot be reached.
    """
    with _quiet(), _reaching(storage):
        if name not in optuna.get_all_study_names(_storage(storage)):
            return None
        study = optuna.load_study(study_name=name, storage=_storage(storage))
        return sum(record.state != "repeated" for record in _records(study))


def _directions(config: SearchConfig) -> list[Literal["maximize", "minimize"]]:
    return ["maximize"] if config.objective.cost == "none" else ["maximize", "minimize"]


def _storage(url: str) -> optuna.storages.RDBStorage:
    scheme, _, place = url.partition("://")
    if scheme == "sqlite" and place.strip("/") not in ("", ":memory:"):
        Path(place.removeprefix("/")).parent.mkdir(parents=True, exist_ok=True)
        return optuna.storages.RDBStorage(url)
    if scheme.partition("+")[0] not in ("postgresql", "postgres"):
        hint = "use sqlite:///FILE or postgresql://USER@HOST/NAME"
        raise UserError(f"'{redact(url)}' names no database that keeps a study", "--study-storage", hint)
    # The connection may be idle for hours during a trial.
    waiting = {"connect_args": {"connect_timeout": CONNECT_SECONDS}, "pool_pre_ping": True}
    return optuna.storages.RDBStorage(with_installed_driver(url), engine_kwargs=waiting)


@contextmanager
def _reaching(storage: str) -> Iterator[None]:
    """Turns errors of Optuna and SQLAlchemy about an unreachable database into one sentence."""
    try:
        yield
    except UserError:
        raise
    except (OSError, SQLAlchemyError, ValueError, optuna.exceptions.StorageInternalError) as error:
        # The message about an unreadable address quotes it, and with it a password.
        unreadable = isinstance(error, ValueError)
        reason = "no address" if unreadable else (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = "check --study-storage and the server"
        raise UserError(f"the study's database cannot be reached: {reason}", redact(storage), hint) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences Optuna's warnings about experimental features and its log of every trial."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _sampler(config: SearchConfig, known: int) -> BaseSampler:
    seed = (config.sampler.seed + 7919 * known) % 2**32  # numpy takes no more.
    match config.sampler.name:
        case "tpe":
            return optuna.samplers.TPESampler(
                seed=seed,
                n_startup_trials=config.sampler.startup_trials,
                # Conditions make groups of parameters. Running trials count as bad, so that parallel proposals differ.
                multivariate=True,
                group=True,
                constant_liar=True,
            )
        case "random":
            return optuna.samplers.RandomSampler(seed=seed)
        case "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        case "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=_population(config.trials))
        case "nsga3":
            return optuna.samplers.NSGAIIISampler(seed=seed, population_size=_population(config.trials))


def _population(trials: int) -> int:
    """Several generations within the trials of the search."""
    return max(4, min(50, round(math.sqrt(2 * trials))))


def _pruner(config: SearchConfig) -> BasePruner:
    scheduler = config.scheduler
    match scheduler.name:
        case "asha":
            return optuna.pruners.SuccessiveHalvingPruner(
                min_resource=scheduler.grace_epochs, reduction_factor=scheduler.reduction
            )
        case "median":
            return optuna.pruners.MedianPruner(n_warmup_steps=scheduler.grace_epochs)
        case "none":
            return optuna.pruners.NopPruner()


_STATES: Mapping[TrialState, State] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
}


def _records(study: optuna.Study) -> list[Record]:
    """Trials that began: without enqueued ones, and without running ones whose driver died before it stored a point."""
    return [
        _record(trial)
        for trial in study.get_trials(deepcopy=False)
        if trial.state != TrialState.WAITING and (trial.state != TrialState.RUNNING or _POINT in trial.user_attrs)
    ]


def _record(trial: FrozenTrial) -> Record:
    attributes = trial.user_attrs
    scores = {
        int(key.partition("/")[2]): tuple(value) for key, value in attributes.items() if key.startswith(f"{_SCORES}/")
    }
    return Record(
        number=trial.number,
        state="repeated" if _TWIN in attributes else _STATES[trial.state],
        point=attributes.get(_POINT, {}),
        values=tuple(trial.values or ()),
        scores=scores,
        reason=attributes.get(_REASON, ""),
    )
