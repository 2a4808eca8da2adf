"""State of a search: an Optuna study in a database, from which a driver that resumes it reads trials, scores, and which were running."""

import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from mgmrn.errors import UserError
from pipeline.databases import SQLITE, database_address, sqlite_file, why_not_writable
from pipeline.redaction import redact_address
from pipeline.search.config import SearchConfig
from pipeline.search.space import Space

Ending = Literal["finished", "stopped", "failed"]
State = Literal["running", "repeated"] | Ending

CONNECT_SECONDS = 10

_POINT, _SCORES, _REASON, _TWIN = "point", "scores", "reason", "repeats"
"""Attributes of a trial in the study."""
_STATES: Mapping[TrialState, State] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True)
class Record:
    """A trial as the study holds it."""

    number: int
    state: State
    point: Mapping[str, Any]
    values: tuple[float, ...]
    """Objectives of a finished trial: the score, and the cost where there is one."""
    scores: Mapping[int, tuple[float, ...]]
    """Percent of the trial's epochs → score on each run begun so far."""
    reason: str


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Optuna's warnings about experimental features and its log of every trial."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Study:
    """Optuna study of a search, in a `sqlite:///FILE` or a PostgreSQL database; an existing one is continued."""

    @_quiet()
    def __init__(self, name: str, storage: str, config: SearchConfig, space: Space) -> None:
        self._name, self._space = name, space
        self._has_cost = len(config.objective.names) > 1
        directions: list[Literal["maximize", "minimize"]] = ["maximize", "minimize"]
        with study_errors(storage, OSError, ValueError, RuntimeError):
            self._storage = _storage(storage)
            self.optuna = optuna.create_study(
                study_name=name,
                storage=self._storage,
                directions=directions[: len(config.objective.names)],
                load_if_exists=True,
            )
        # A study stores no sampler: with the same seed a restarted one would repeat its first proposals.
        self.optuna.sampler = _sampler(config, len(self.optuna.get_trials(deepcopy=False)))
        self.optuna.pruner = _pruner(config)

    def records(self) -> list[Record]:
        """Trials by number, without enqueued ones and running ones whose driver died before it stored a point."""
        return [
            _record(trial)
            for trial in self.optuna.get_trials(deepcopy=False)
            if trial.state != TrialState.WAITING and (trial.state != TrialState.RUNNING or _POINT in trial.user_attrs)
        ]

    @property
    def size(self) -> int:
        return sum(record.state != "repeated" for record in self.records())

    @_quiet()
    def delete(self) -> None:
        optuna.delete_study(study_name=self._name, storage=self._storage)

    @_quiet()
    def begin_with(self, values: Mapping[str, Any]) -> None:
        if not self.optuna.get_trials(deepcopy=False):
            self.optuna.enqueue_trial(dict(values))

    @_quiet()
    def propose(self) -> Record:
        trial = self.optuna.ask()
        point = self._space.draw(trial)
        trial.set_user_attr(_POINT, point)
        return Record(trial.number, "running", point, (), {}, "")

    @_quiet()
    def report(self, number: int, percent: int, score: float, scores: Sequence[float]) -> bool:
        """Store the score at a percent of a trial; returns whether to stop it. What is reported again changes nothing."""
        known = self.optuna.get_trials(deepcopy=False)[number].intermediate_values
        trial = self._live(number)
        if percent not in known:
            self.settle(number, percent, scores)
            if self._has_cost:
                return False  # Optuna has no intermediate values of several objectives.
            trial.report(score, percent)
        elif percent < max(known):
            return False
        return not self._has_cost and trial.should_prune()

    def settle(self, number: int, percent: int, scores: Sequence[float]) -> None:
        """Store the scores of the runs at a percent of a trial; at its end, those of the epochs that count."""
        self._live(number).set_user_attr(f"{_SCORES}/{percent}", [float(one) for one in scores])

    @_quiet()
    def end(self, number: int, state: Ending, values: Sequence[float] | None = None, reason: str = "") -> None:
        """End a trial: finished with its objectives, stopped early with its last score, or failed for a reason."""
        if reason:
            self._live(number).set_user_attr(_REASON, reason)
        (trial_state,) = (known for known, name in _STATES.items() if name == state)
        self.optuna.tell(number, values, state=trial_state, skip_if_finished=True)

    def repeat(self, number: int, twin: int) -> None:
        """End a trial whose values repeat those of an earlier one, with the objectives of that one."""
        earlier = self.optuna.get_trials(deepcopy=False)[twin]
        self._live(number).set_user_attr(_TWIN, twin)
        values = earlier.values if earlier.state == TrialState.COMPLETE else None
        self.end(number, "finished" if values else "failed", values)

    def _live(self, number: int) -> Trial:
        study_id = self._storage.get_study_id_from_name(self._name)
        return Trial(self.optuna, self._storage.get_trial_id_from_study_id_trial_number(study_id, number))


@contextmanager
def study_errors(storage: str, *more: type[Exception]) -> Iterator[None]:
    """Turn errors of Optuna and SQLAlchemy about an unreachable database, and `more`, into one sentence."""
    errors: tuple[type[Exception], ...] = (optuna.exceptions.StorageInternalError, SQLAlchemyError, *more)
    try:
        yield
    except UserError:
        raise
    except errors as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        # The message about an unreadable address quotes it, and with it a password.
        reason = "no address" if isinstance(error, ValueError) else first_line
        hint = "check --study-storage and the server; a search that was begun goes on with --resume"
        raise UserError(f"the study's database cannot be reached: {reason}", redact_address(storage), hint) from error


def _storage(url: str) -> optuna.storages.RDBStorage:
    address = database_address(url, "--study-storage")
    if address.startswith(SQLITE):
        if reason := why_not_writable(sqlite_file(address)):
            raise UserError(f"the study's database cannot be written ({reason})", url, "check --study-storage")
        sqlite_file(address).parent.mkdir(parents=True, exist_ok=True)
        return optuna.storages.RDBStorage(address)
    if not address.startswith("postgresql"):
        hint = "use sqlite:///FILE or postgresql://USER@HOST/NAME"
        raise UserError(f"'{redact_address(url)}' names no database that keeps a study", "--study-storage", hint)
    # The connection may be idle for hours during a trial.
    waiting = {"connect_args": {"connect_timeout": CONNECT_SECONDS}, "pool_pre_ping": True}
    return optuna.storages.RDBStorage(address, engine_kwargs=waiting)


def _sampler(config: SearchConfig, known: int) -> optuna.samplers.BaseSampler:
    samplers = optuna.samplers
    seed = (config.sampler.seed + 7919 * known) % 2**32  # numpy takes no more.
    population = max(4, min(50, round(math.sqrt(2 * config.trials))))  # Several generations within the search.
    match config.sampler.name:
        case "tpe":
            # Conditions make groups of parameters. Running trials count as bad, so that parallel proposals differ.
            startup = config.sampler.startup_trials
            return samplers.TPESampler(
                seed=seed, n_startup_trials=startup, multivariate=True, group=True, constant_liar=True
            )
        case "random":
            return samplers.RandomSampler(seed=seed)
        case "cmaes":
            return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        case "nsga2":
            return samplers.NSGAIISampler(seed=seed, population_size=population)
        case "nsga3":
            return samplers.NSGAIIISampler(seed=seed, population_size=population)


def _pruner(config: SearchConfig) -> optuna.pruners.BasePruner:
    grace, reduction = config.scheduler.grace_percent, config.scheduler.reduction
    match config.scheduler.name:
        case "asha":
            return optuna.pruners.SuccessiveHalvingPruner(min_resource=grace, reduction_factor=reduction)
        case "median":
            return optuna.pruners.MedianPruner(n_warmup_steps=grace)
        case "none":
            return optuna.pruners.NopPruner()


def _record(trial: FrozenTrial) -> Record:
    attributes, prefix = trial.user_attrs, f"{_SCORES}/"
    return Record(
        number=trial.number,
        state="repeated" if _TWIN in attributes else _STATES[trial.state],
        point=attributes.get(_POINT, {}),
        values=tuple(trial.values or ()),
        scores={int(key.removeprefix(prefix)): tuple(v) for key, v in attributes.items() if key.startswith(prefix)},
        reason=attributes.get(_REASON, ""),
    )
