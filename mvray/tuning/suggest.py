"""Which settings a search tries next. Each is a pure function of the search, the trial's number and what is known.

So a search that is repeated after it was killed suggests what it would have suggested, and nothing of a sampler's
state has to be kept. What is known of other trials matters to "tpe" after its first STARTUP trials, and to
population-based training.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from mvray.experiment import Choice, Domain, Integers, LogUniform, Search

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

STARTUP = 6
"""So many trials are drawn at random before "tpe" learns from them."""
ATTEMPTS = 100
"""How often settings that were tried already are drawn again."""
RESAMPLED, QUANTILE = 0.25, 0.25
"""Of population-based training: how likely a setting is drawn anew, and how many members are replaced."""

Settings = dict[str, Any]


@dataclass(frozen=True)
class Known:
    """What is known of a trial. ``ended`` is "finished", "stopped", "failed", or "" while it runs."""

    number: int
    settings: Mapping[str, Any]
    ended: str = ""
    value: float = math.nan
    epochs: int = 0


def suggest(search: Search, number: int, trials: Sequence[Known]) -> Settings | None:
    """The settings of trial ``number``, none of those of ``trials``; None where all have been tried."""
    tried = {_key(trial.settings) for trial in trials}
    if search.size is not None and len(tried) >= search.size:
        return None
    if search.sampler == "grid":
        return next(settings for at in range(search.size or 0) if _key(settings := search.grid(at)) not in tried)
    for attempt in range(ATTEMPTS):
        if search.sampler == "tpe" and number >= STARTUP and attempt < ATTEMPTS // 10:
            settings = _by_tpe(search, _seeded(search, number, attempt), trials)
        else:
            settings = drawn(search, number, attempt)
        if _key(settings) not in tried:
            return settings
    if search.size is not None:
        return next((settings for at in range(search.size) if _key(settings := search.grid(at)) not in tried), None)
    return settings


def drawn(search: Search, number: int, attempt: int = 0) -> Settings:
    """Settings at random."""
    random = Random(f"{search.seed} {number} {attempt}")
    return {name: domain.draw(random) for name, domain in search.space}


def _key(settings: Mapping[str, Any]) -> str:
    return repr(sorted(settings.items()))


def _seeded(search: Search, number: int, attempt: int) -> int:
    return zlib.crc32(f"{search.seed} {number} {attempt}".encode())


# -- the tree of Parzen estimators, by Optuna ----------------------------------------------------


def _by_tpe(search: Search, seed: int, trials: Sequence[Known]) -> Settings:
    """Settings near those of good trials. A trial that was stopped counts by how far it came, then by its value."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(
        seed=seed, multivariate=True, constant_liar=True, n_startup_trials=STARTUP // 2
    )
    study = optuna.create_study(direction="maximize" if search.maximise else "minimize", sampler=sampler)
    space = dict(search.space)
    for trial in sorted(trials, key=lambda trial: trial.number):
        if (frozen := as_optuna(search, trial)) is not None:
            study.add_trial(frozen)
    proposal = study.ask({name: distribution(domain) for name, domain in search.space})
    return {name: _from_optuna(space[name], value) for name, value in proposal.params.items()}


def distribution(domain: Domain) -> BaseDistribution:
    """The domain as Optuna has it; of a Choice, the number of the option."""
    from optuna import distributions

    if isinstance(domain, Choice):
        return distributions.CategoricalDistribution(tuple(range(len(domain.options))))
    if isinstance(domain, Integers):
        return distributions.IntDistribution(domain.low, domain.high, log=domain.log)
    low, high = domain.ends
    return distributions.FloatDistribution(low, high, log=isinstance(domain, LogUniform))


def as_optuna(search: Search, trial: Known) -> FrozenTrial | None:
    """A trial as Optuna has it; None for one that has no say (it failed, or its value is not a number)."""
    import optuna
    from optuna.trial import TrialState

    space = dict(search.space)
    fields: dict[str, Any] = {
        "params": {name: _to_optuna(space[name], value) for name, value in trial.settings.items()},
        "distributions": {name: distribution(domain) for name, domain in search.space},
    }
    if not trial.ended:
        return optuna.trial.create_trial(state=TrialState.RUNNING, **fields)
    if trial.ended == "failed" or math.isnan(trial.value):
        return None
    if trial.ended == "stopped":
        fields["intermediate_values"] = {trial.epochs: trial.value}
        return optuna.trial.create_trial(state=TrialState.PRUNED, **fields)
    return optuna.trial.create_trial(state=TrialState.COMPLETE, value=trial.value, **fields)


def _to_optuna(domain: Domain, value: Any) -> Any:
    return domain.options.index(value) if isinstance(domain, Choice) else value


def _from_optuna(domain: Domain, value: Any) -> Any:
    if isinstance(domain, Choice):
        return domain.options[value]
    return domain.fitted(value)  # type: ignore[attr-defined]


# -- population-based training -------------------------------------------------------------------


def bred(search: Search, number: int, before: Sequence[Known]) -> tuple[int, Settings]:
    """Whose weights member ``number`` of a generation goes on from, and with which settings.

    ``before`` are the members of the generation before, all ended. Each of the worst quarter takes over from one of
    the best quarter, and changes its settings a little; so does a member that failed. The others go on as they are.
    """
    ranked = sorted(before, key=lambda trial: (trial.ended == "failed", search.order(trial.value), trial.number))
    count = max(1, int(len(ranked) * QUANTILE))
    best = [trial for trial in ranked[:count] if trial.ended != "failed"] or ranked[:1]
    own = next(trial for trial in before if trial.number % search.trials == number % search.trials)
    if own.ended != "failed" and own not in ranked[len(ranked) - count :]:
        return own.number, dict(own.settings)
    random = Random(f"{search.seed} {number}")
    parent = random.choice(best)
    return parent.number, explored(search, parent.settings, random)


def explored(search: Search, settings: Mapping[str, Any], random: Random) -> Settings:
    """Settings near ``settings``, some of them drawn anew."""
    return {
        name: domain.draw(random) if random.random() < RESAMPLED else domain.near(settings[name], random)
        for name, domain in search.space
    }
