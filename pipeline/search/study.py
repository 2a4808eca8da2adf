"""The memory of a search: an Optuna study in a database, which says what was tried, what it came to, and what to try next.

It is the one truth about a search. A driver that was killed is followed by one that finds there which trials are over, which were
running, and what the sampler and the early stopping have seen. What Optuna's own fields do not hold is kept in a trial's attributes.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
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
"""How long a database server may take to answer."""

_POINT, _SCORES, _REASON, _TWIN = "point", "scores", "reason", "repeats"


@dataclass(frozen=True)
class Record:
    """What the study knows of a trial."""

    number: int
    state: State
    point: Mapping[str, Any]
    """Values of the space, by dotted path."""
    values: tuple[float, ...]
    """Objectives of a finished trial: the score, and the cost where there is one."""
    scores: Mapping[int, tuple[float, ...]]
    """Step → score on each run begun so far."""
    reason: str
    """Why it failed."""


class Study:
    """A search's study.

    Args:
        name: of the study; the same name goes on.
        storage: `sqlite:///FILE` or a PostgreSQL URL.
        config: sampler, scheduler, objective.
        space: what is drawn from.

    Raises:
        UserError: when the database cannot be reached.
    """

    def __init__(self, name: str, storage: str, config: SearchConfig, space: Space) -> None:
        self._space = space
        self._several = config.objective.cost != "none"
        with _quiet():
            self._study = _opened(name, storage, config)
            known = len(self._study.get_trials(deepcopy=False))
            # Sampler seeds are not stored: after a restart it would propose again what it proposed at the start.
            self._study.sampler = _sampler(config, known)
            self._study.pruner = _pruner(config)

    def left_running(self) -> list[Record]:
        """Trials that a dead driver left."""
        return [record for record in self.records() if record.state == "running"]

    def begin_with(self, values: Mapping[str, Any]) -> None:
        """Makes these the first trial's values (what they lack is drawn); nothing in a study that has begun."""
        with _quiet():
            if not self._study.get_trials(deepcopy=False):
                self._study.enqueue_trial(dict(values))

    def propose(self) -> Record:
        """A new trial with the values that the sampler proposes; running from now on."""
        with _quiet():
            trial = self._study.ask()
            point = self._space.draw(trial)
            trial.set_user_attr(_POINT, point)
        return Record(trial.number, "running", point, (), {}, "")

    def report(self, number: int, step: int, score: float, scores: Sequence[float]) -> bool:
        """Takes a step's score in; whether the trial should be stopped. A step that is reported again changes nothing."""
        frozen = self._frozen(number)
        trial = self._live(number)
        with _quiet():
            if step not in frozen.intermediate_values:
                trial.set_user_attr(f"{_SCORES}/{step}", [float(one) for one in scores])
                if self._several:
                    return False  # Optuna knows no intermediate values of several objectives.
                trial.report(score, step)
            elif step < max(frozen.intermediate_values):
                return False
            return not self._several and trial.should_prune()

    def settle(self, number: int, step: int, scores: Sequence[float]) -> None:
        """Puts the scores of the epochs that count in the place of those of the last epoch: what ranks compare."""
        self._live(number).set_user_attr(f"{_SCORES}/{step}", [float(one) for one in scores])

    def finish(self, number: int, values: Sequence[float]) -> None:
        """The trial came to its end."""
        self._tell(number, TrialState.COMPLETE, values)

    def stop(self, number: int) -> None:
        """The trial was stopped early; the sampler knows its last score."""
        self._tell(number, TrialState.PRUNED, None)

    def fail(self, number: int, reason: str) -> None:
        """The trial failed for good."""
        self._live(number).set_user_attr(_REASON, reason)
        self._tell(number, TrialState.FAIL, None)

    def repeat(self, number: int, twin: int) -> None:
        """The trial's values are those of an earlier one, which it takes over without being run."""
        earlier = self._frozen(twin)
        self._live(number).set_user_attr(_TWIN, twin)
        values = earlier.values if earlier.state == TrialState.COMPLETE else None
        self._tell(number, TrialState.COMPLETE if values else TrialState.FAIL, values)

    def records(self) -> list[Record]:
        """All trials in their order."""
        return _records(self._study)

    @property
    def optuna(self) -> optuna.Study:
        """The study itself, for plots."""
        return self._study

    def remember(self, key: str, value: str) -> None:
        """Keeps a word about the whole study."""
        self._study.set_user_attr(key, value)

    def remembered(self, key: str) -> str | None:
        """What `remember` kept."""
        value = self._study.user_attrs.get(key)
        return None if value is None else str(value)

    def _tell(self, number: int, state: TrialState, values: Sequence[float] | None) -> None:
        with _quiet():
            self._study.tell(number, values, state=state, skip_if_finished=True)

    def _frozen(self, number: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]

    def _live(self, number: int) -> Trial:
        return Trial(self._study, self._frozen(number)._trial_id)


DATABASE_ERRORS = (optuna.exceptions.StorageInternalError, SQLAlchemyError)


def lost(storage: str, error: Exception) -> UserError:
    """What to say when the database went away in mid-search."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    hint = "see to it, then go on with --resume"
    return UserError(f"the study's database was lost: {reason}", redact(storage), hint)


def forget_study(name: str, storage: str) -> None:
    """Deletes a study, where there is one, so that the search starts anew.

    Raises:
        UserError: when the database cannot be reached.
    """
    with _quiet(), _reaching(storage):
        if name in optuna.get_all_study_names(_storage(storage)):
            optuna.delete_study(study_name=name, storage=_storage(storage))


def study_size(name: str, storage: str) -> int | None:
    """Trials of a study, repeated ones not counted; None where there is no such study.

    Raises:
        UserError: when the database cannot be reached.
    """
    with _quiet(), _reaching(storage):
        if name not in optuna.get_all_study_names(_storage(storage)):
            return None
        study = optuna.load_study(study_name=name, storage=_storage(storage))
        return sum(record.state != "repeated" for record in _records(study))


def _opened(name: str, storage: str, config: SearchConfig) -> optuna.Study:
    directions: list[Literal["maximize", "minimize"]] = (
        ["maximize"] if config.objective.cost == "none" else ["maximize", "minimize"]
    )
    with _reaching(storage):
        return optuna.create_study(
            study_name=name, storage=_storage(storage), directions=directions, load_if_exists=True
        )


def _storage(url: str) -> optuna.storages.RDBStorage:
    scheme, _, place = url.partition("://")
    if scheme == "sqlite" and place.strip("/") not in ("", ":memory:"):
        Path(place.removeprefix("/")).parent.mkdir(parents=True, exist_ok=True)
        return optuna.storages.RDBStorage(url)
    if scheme.partition("+")[0] not in ("postgresql", "postgres"):
        hint = "use sqlite:///FILE or postgresql://USER@HOST/NAME"
        raise UserError(f"'{redact(url)}' names no database that keeps a study", "--study-storage", hint)
    # A trial may leave the connection idle for hours.
    waiting = {"connect_args": {"connect_timeout": CONNECT_SECONDS}, "pool_pre_ping": True}
    return optuna.storages.RDBStorage(with_installed_driver(url), engine_kwargs=waiting)


class _reaching:
    """Turns what Optuna and SQLAlchemy raise for a database that is away into one sentence."""

    def __init__(self, storage: str) -> None:
        self._storage = storage

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        known = OSError | SQLAlchemyError | ValueError | optuna.exceptions.StorageInternalError
        if isinstance(error, known) and not isinstance(error, UserError):
            # The complaint about an address that cannot be read quotes it, and with it a password.
            unreadable = isinstance(error, ValueError)
            reason = "no address" if unreadable else (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"the study's database cannot be reached: {reason}",
                redact(self._storage),
                "check --study-storage and the server",
            ) from error


class _quiet:
    """Optuna's experimental warnings and its log of every trial say nothing to a user of this command."""

    def __enter__(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._caught = warnings.catch_warnings()
        self._caught.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *about: object) -> None:
        self._caught.__exit__(None, None, None)


def _sampler(config: SearchConfig, known: int) -> BaseSampler:
    seed = (config.sampler.seed + 7919 * known) % 2**32  # numpy takes no more.
    match config.sampler.name:
        case "tpe":
            return optuna.samplers.TPESampler(
                seed=seed,
                n_startup_trials=config.sampler.startup_trials,
                # Conditions make groups of parameters; running trials are taken for bad ones, so that neighbours differ.
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
    """All trials but those that never began: what waits to be proposed, and what a driver died over before it had a point."""
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
