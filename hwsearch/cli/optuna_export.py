"""A run in Optuna's journal format, which optuna-dashboard opens: one trial for each evaluation at full fidelity."""

from __future__ import annotations

import warnings
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from hwsearch.errors import DependencyError, OutputError
from hwsearch.search.journal import Journal

__all__ = ["write_optuna"]


def write_optuna(journal: Journal, path: Path, *, name: str) -> int:
    """Writes a study called `name` and returns its trials: parameters are the choices of layers, by number.

    Raises OutputError where the file exists, DependencyError without Optuna.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
        from optuna.trial import FrozenTrial, TrialState
    except ModuleNotFoundError:
        raise DependencyError(
            "optuna", extra="optuna", purpose="writing an Optuna journal (CSV needs nothing)"
        ) from None
    if path.exists():
        raise OutputError(f"{path} exists: Optuna would append to it, choose another file")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names = journal.names[: journal.num_objectives]
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(path))),
        study_name=name,
        directions=["minimize"] * len(names),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(list(names))
    most = journal.genomes.max(axis=0).tolist()
    layers = {f"layer_{i:02}": optuna.distributions.IntDistribution(0, top) for i, top in enumerate(most)}
    rows = np.flatnonzero(np.array(journal.rows["fidelity"]) == 1).tolist()
    for number, row in enumerate(rows):
        failed = journal.rows["status"][row] == "failed"
        ended = datetime.fromtimestamp(journal.rows["ended"][row])
        values = journal.costs[row, : len(names)].tolist()
        trial = FrozenTrial(
            number=number,
            trial_id=number,
            state=TrialState.FAIL if failed else TrialState.COMPLETE,
            value=None,
            values=None if failed else values,
            datetime_start=ended - timedelta(seconds=journal.rows["seconds"][row]),
            datetime_complete=ended,
            params=dict(zip(layers, journal.genomes[row].tolist(), strict=True)),
            distributions=dict(layers),
            user_attrs={"generation": journal.rows["generation"][row], "error": journal.rows["error"][row]},
            # What Optuna's own samplers write of constraints: above zero is violated.
            system_attrs={} if failed else {"constraints": [journal.rows["violation"][row]]},
            intermediate_values={},
        )
        study.add_trial(trial)
    return len(rows)
