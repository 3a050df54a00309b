import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import optuna
import pytest
from nets import grouped
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import TrialState

from autoprune import AutopruneError, Space
from autoprune.pruning.cost import CostModel
from autoprune.searching.allocation import Allocator
from autoprune.searching.forecast import Forecast
from autoprune.searching.history import PARAMS, PARENT, VALID, History, front
from autoprune.searching.lineage import choose_parent, covers
from autoprune.searching.moves import Proposal
from autoprune.searching.pareto import pareto
from autoprune.searching.sampler import (
    SAMPLERS,
    PruningSampler,
    SamplerContext,
    check_sampler,
    make_sampler,
)
from autoprune.searching.space import SearchSpace
from autoprune.searching.strategy import Strategy
from autoprune.searching.surrogate import Prediction
from autoprune.training.device import SEEDS

CHANNELS = grouped("residual").channels
COST = CostModel(grouped("residual"))
SPACE = SearchSpace(
    channels=CHANNELS,
    space=Space(epochs=(2, 8), lr=(2e-3, 8e-3), criteria=("taylor", "l1", "fisher")),
    has_dropout=True,
)
WIDE = SearchSpace(channels=CHANNELS, space=Space(epochs=(2, 8), lr=(1e-4, 1e-1)), has_dropout=True)
"""With many learning rates to choose from."""


def context(seed: int = 0, budget: int = 12, **changes: Any) -> SamplerContext:
    settings = {"space": SPACE, "allocator": Allocator(COST), "budget": budget, "seed": seed}
    return SamplerContext(**{**settings, **changes})


def fake_score(widths: dict[str, int]) -> float:
    """Larger is better, with less and less to gain; stem matters most."""
    return 1 - math.exp(-sum(w / CHANNELS[n] for n, w in widths.items()) - widths["stem"] / 8)


def run(
    name: str, trials: int = 12, *, ended: dict[int, TrialState] | None = None, **changes: Any
) -> optuna.Study:
    """Ask and tell `trials` trials of a study in which nothing is trained."""
    sampler = make_sampler(name, context(**changes))
    sign = 1.0 if changes.get("higher_is_better", True) else -1.0
    study = optuna.create_study(
        directions=["maximize" if sign > 0 else "minimize", "minimize"], sampler=sampler
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        for number in range(trials):
            trial = study.ask(SPACE.distributions)
            trial.set_user_attr(PARENT, "dense")  # it began
            if ended and number in ended:
                study.tell(trial, state=ended[number])
                continue
            if "macs" in changes.get("costs", ()):
                trial.set_user_attr("macs", COST.macs(SPACE.widths(trial.params)))
            tell(study, trial, sign=sign)
    return study


def tell(study: optuna.Study, trial: optuna.Trial, *, sign: float = 1.0) -> None:
    """End a trial as complete, with the score that its widths have."""
    widths = SPACE.widths(trial.params)
    score, params = sign * fake_score(widths), COST.params(widths)
    trial.set_user_attr(VALID, score)
    trial.set_user_attr(PARAMS, params)
    study.tell(trial, [score, math.log10(params)])


def proposals(study: optuna.Study) -> list[dict[str, int]]:
    return [SPACE.widths(t.params) for t in study.trials]


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


# --- the contract of every sampler --------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_proposals_lie_in_the_space(name: str) -> None:
    # Optuna's samplers draw at random until 10 trials are complete.
    study = run(name, trials=15, ended={3: TrialState.PRUNED, 4: TrialState.FAIL})
    assert len(study.trials) == 15
    for trial in study.trials:
        assert trial.params.keys() == SPACE.distributions.keys()
        for key, distribution in SPACE.distributions.items():
            value = trial.params[key]
            if isinstance(distribution, CategoricalDistribution):
                assert value in distribution.choices
            else:
                assert distribution.low <= value <= distribution.high
                assert isinstance(value, int if key == "epochs" else float)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_trials_parameters_alone_give_its_plan(name: str) -> None:
    study = run(name, trials=6)
    for trial in study.trials:
        params = json.loads(json.dumps(trial.params))
        plan = SPACE.plan(params)
        assert all(1 <= plan.widths[n] <= count for n, count in CHANNELS.items())
        assert COST.params(plan.widths) == trial.user_attrs[PARAMS]
        assert plan == SPACE.plan(trial.params)
    assert len({tuple(w.items()) for w in proposals(study)}) > 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_seed_decides_the_proposals(name: str) -> None:
    def params(seed: int) -> list[dict[str, Any]]:
        return [t.params for t in run(name, trials=13, seed=seed).trials]

    first = params(1)
    assert params(1) == first
    assert params(2) != first


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_largest_seed_goes_on_like_any_other(name: str) -> None:
    sampler = make_sampler(name, replace(context(), seed=SEEDS - 1, trials=3))
    asked = optuna.create_study(sampler=sampler).ask(SPACE.distributions)
    assert set(asked.params) == set(SPACE.distributions)


def test_unknown_samplers_are_refused() -> None:
    for ask in (check_sampler, lambda name: make_sampler(name, context())):
        with pytest.raises(AutopruneError, match=r"Unknown sampler 'prunin'.*mean 'pruning'"):
            ask("prunin")
    check_sampler("tpe")


# --- ours ---------------------------------------------------------------------------------------

CHAIN = 12  # of 14 sizes, 0.7 of a budget of 20: some are of one plan
PLAIN = Strategy(scouts=0, chain_share=0.7)
BLIND = Strategy(scouts=0, chain_share=0.7, foresight=False)


def test_the_chain_descends_and_nests() -> None:
    chain = proposals(run("pruning", trials=CHAIN, budget=20, strategy=PLAIN))
    distinct = [w for i, w in enumerate(chain) if w not in chain[:i]]
    assert len(distinct) >= 10
    sizes = [COST.params(w) for w in distinct]
    assert sizes == sorted(sizes, reverse=True)
    assert all(covers(a, b) for a, b in pairwise(distinct))


def test_the_chain_spans_the_sizes() -> None:
    chain = proposals(run("pruning", trials=CHAIN, budget=20, strategy=PLAIN))
    dense = COST.params(CHANNELS)
    assert 0.3 * dense < COST.params(chain[0]) <= 0.5 * dense
    assert min(COST.params(w) for w in chain) == COST.params(SPACE.minimum_widths())


def test_the_chains_recipes_follow_the_size_unless_told_otherwise() -> None:
    by_size = run("pruning", trials=CHAIN, budget=20, strategy=PLAIN)
    flat = run("pruning", trials=CHAIN, budget=20, strategy=replace(PLAIN, recipe_by_size=False))
    assert proposals(by_size) == proposals(flat)
    rates = [[t.params["lr"] for t in study.trials] for study in (by_size, flat)]
    ratios = [mine / other for mine, other in zip(*rates, strict=True)]
    assert ratios[0] < 1.0 < ratios[-1]


def test_scouts_train_for_the_fewest_epochs_and_the_chain_for_as_many_each() -> None:
    study = run("pruning", trials=12, budget=40, strategy=Strategy(scouts=2))
    epochs = [trial.params["epochs"] for trial in study.trials]
    distribution = SPACE.distributions["epochs"]
    assert isinstance(distribution, IntDistribution)
    assert epochs[:2] == [distribution.low] * 2
    assert len(set(epochs[2:])) == 1
    assert distribution.low < epochs[2] < distribution.high


def search_of_rates(
    best: float,
    *,
    trials: int = 24,
    ended: dict[int, TrialState] | None = None,
    study: optuna.Study | None = None,
    **changes: Any,
) -> optuna.Study:
    """Run a search of `WIDE` in which a score is how near the learning rate is to the best one."""
    settings = {"space": WIDE, "budget": 40, "strategy": Strategy(scouts=2)} | changes
    sign = 1.0 if settings.get("higher_is_better", True) else -1.0
    study = study or optuna.create_study()
    study.sampler = make_sampler("pruning", context(**settings))
    while len(study.trials) < trials:
        trial = study.ask(WIDE.distributions)
        trial.set_user_attr(PARENT, "dense")
        state = (ended or {}).get(trial.number, TrialState.COMPLETE)
        if state == TrialState.RUNNING:
            continue
        if state == TrialState.COMPLETE:
            trial.set_user_attr(VALID, -sign * abs(math.log(trial.params["lr"] / best)))
            trial.set_user_attr(PARAMS, COST.params(WIDE.widths(trial.params)))
        study.tell(trial, 0.0 if state == TrialState.COMPLETE else None, state=state)
    return study


def rates_asked(best: float, **changes: Any) -> list[optuna.trial.FrozenTrial]:
    return search_of_rates(best, **changes).trials


def mean_rate(trials: Sequence[optuna.trial.FrozenTrial]) -> float:
    return math.exp(sum(math.log(trial.params["lr"]) for trial in trials) / len(trials))


PROBES = 7  # a factor of 1,000, in steps of less than 3
MIDDLE = math.sqrt(1e-4 * 1e-1)


def test_a_search_begins_with_learning_rates_on_models_of_a_size() -> None:
    probes = rates_asked(1e-2, trials=PROBES)
    rates = [trial.params["lr"] for trial in probes]
    assert rates == sorted(rates)
    assert 1e-4 < rates[0] < 3e-4
    assert 3e-2 < rates[-1] < 1e-1
    assert {trial.params["epochs"] for trial in probes} == {2}
    widths = [WIDE.widths(trial.params) for trial in probes]
    assert not any(covers(a, b) for a, b in pairwise(widths))  # none is cut from another
    assert COST.params(widths[-1]) < 2 * COST.params(widths[0])
    same = ("criterion", "batch_size", "weight_decay", "temperature")
    assert len({tuple(trial.params[name] for name in same) for trial in probes}) == 1


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize("best", [3e-4, 3e-2])
def test_the_best_learning_rate_is_gone_on_with(best: float, higher: bool) -> None:
    later = rates_asked(best, higher_is_better=higher)[PROBES:]
    assert all(0.1 < trial.params["lr"] / best < 10 for trial in later)
    assert 0.3 < mean_rate(later) / best < 3.5


def test_a_larger_budget_goes_on_with_the_learning_rate_that_was_found() -> None:
    study = search_of_rates(3e-4, trials=PROBES, budget=36)
    later = search_of_rates(3e-4, study=study, budget=120).trials[PROBES:]
    assert mean_rate(later) < 2e-3 < MIDDLE


def test_no_learning_rate_is_the_best_while_one_is_being_tried() -> None:
    for number in (0, PROBES - 1):
        later = rates_asked(3e-4, trials=12, ended={number: TrialState.RUNNING})[PROBES:]
        assert 0.5 < mean_rate(later) / MIDDLE < 2
    failed = {0: TrialState.FAIL, PROBES - 1: TrialState.PRUNED}
    assert mean_rate(rates_asked(3e-4, trials=12, ended=failed)[PROBES:]) < 2e-3


def test_only_the_models_that_try_a_learning_rate_tell_of_it() -> None:
    failed = dict.fromkeys(range(1, PROBES), TrialState.FAIL)
    study = search_of_rates(3e-4, trials=PROBES, ended=failed)
    again = study.trials[1].params | WIDE.sparsities(WIDE.minimum_widths())
    study.enqueue_trial(again)
    later = search_of_rates(3e-4, study=study, trials=12).trials[PROBES:]
    assert later[0].params == again
    assert 0.5 < mean_rate(later[1:]) / MIDDLE < 2  # one finished model of its size is not enough


@pytest.mark.parametrize("higher", [True, False])
def test_a_best_learning_rate_at_an_end_of_what_was_tried_is_told(higher: bool) -> None:
    def advice(best: float, **settings: Any) -> str | None:
        study = search_of_rates(best, higher_is_better=higher, **settings)
        assert isinstance(study.sampler, PruningSampler)
        return study.sampler.advice(study)

    assert advice(3e-3) is None
    assert advice(1e-1, strategy=Strategy(try_rates=False)) is None
    assert advice(1e-1, trials=1) is None
    assert advice(1e-1, noise=10.0) is None  # it need not be better than the one below
    # What failed is no end: too high a rate is what diverges.
    assert advice(1e-1, ended={PROBES - 1: TrialState.FAIL}) is None
    assert str(advice(1e-1)).endswith("rates above `space.lr`'s 0.1 may do better still.")
    assert str(advice(1e-4)).endswith("rates below `space.lr`'s 0.0001 may do better still.")
    assert "Of 7 learning rates that were tried the lowest, 0.00016, did" in str(advice(1e-4))


def test_of_two_learning_rates_one_is_always_at_an_end() -> None:
    narrow = SearchSpace(
        channels=CHANNELS, space=Space(epochs=(2, 8), lr=(1e-3, 8e-3)), has_dropout=True
    )
    sampler = make_sampler("pruning", context(space=narrow, budget=40))
    assert isinstance(sampler, PruningSampler)
    study = optuna.create_study(sampler=sampler)
    for number in range(2):
        trial = study.ask(narrow.distributions)
        trial.set_user_attr(VALID, float(number))
        trial.set_user_attr(PARAMS, COST.params(narrow.widths(trial.params)))
        study.tell(trial, 0.0)
    rates = [trial.params["lr"] for trial in study.trials]
    assert rates == pytest.approx([1e-3 * 8**0.25, 1e-3 * 8**0.75])
    assert sampler.advice(study) is None


def test_models_that_try_a_learning_rate_are_not_sparsified_first() -> None:
    space = SearchSpace(
        channels=CHANNELS,
        space=Space(epochs=(2, 8), sparsify=("none", "l1"), steps=(1, 2)),
        has_dropout=True,
    )
    sampler = make_sampler("pruning", context(space=space, budget=40))
    trial = optuna.create_study(sampler=sampler).ask(space.distributions)
    assert (trial.params["sparsify"], trial.params["steps"], trial.params["epochs"]) == (
        "none",
        1,
        2,
    )


def test_learning_rates_are_not_tried_where_that_is_switched_off() -> None:
    trials = rates_asked(3e-4, trials=8, strategy=Strategy(scouts=2, try_rates=False))
    assert all(0.1 < trial.params["lr"] / MIDDLE < 10 for trial in trials)


@pytest.mark.parametrize("rule", [{"max_sparsity": 0.5}, {"round_to": 4}, {"min_width": 3}])
def test_no_proposal_breaks_a_rule_for_widths(rule: dict[str, Any]) -> None:
    space = SearchSpace(channels=CHANNELS, space=Space(**rule), has_dropout=False)
    allocator = Allocator(COST, allowed=space.allowed)
    sampler = make_sampler("pruning", context(space=space, allocator=allocator))
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    for number in range(24):
        trial = study.ask(space.distributions)
        widths = space.widths(trial.params)
        assert all(widths[n] in space.allowed[n] for n in CHANNELS)
        assert trial.params == trial.params | space.sparsities(widths)
        trial.set_user_attr(VALID, fake_score(widths))
        trial.set_user_attr(PARAMS, COST.params(widths))
        study.tell(trial, [0.5, number])


def after_the_chain(**changes: Any) -> tuple[optuna.Study, list[optuna.trial.FrozenTrial]]:
    changes = {"strategy": PLAIN} | changes
    study = run("pruning", trials=30, budget=20, **changes)
    return study, study.trials[CHAIN:]


@pytest.mark.parametrize("higher", [True, False])
def test_later_proposals_can_be_cut_from_the_front(higher: bool) -> None:
    study, later = after_the_chain(higher_is_better=higher)
    sign = 1.0 if higher else -1.0
    for trial in later:
        members = pareto(
            study.trials[: trial.number],
            score=lambda t: sign * t.user_attrs[VALID],
            costs=lambda t: [t.user_attrs[PARAMS]],
        )
        widths = SPACE.widths(trial.params)
        assert any(covers(SPACE.widths(t.params), widths) for t in members)


@pytest.mark.parametrize("inherit", [True, False])
def test_proposals_have_parents_only_where_trials_inherit(
    inherit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weighed: list[Proposal] = []

    class Spy(Forecast):
        def predict(self, proposals: Sequence[Proposal]) -> Prediction:
            weighed.extend(proposals)
            return super().predict(proposals)

    monkeypatch.setattr("autoprune.searching.sampler.Forecast", Spy)
    run("pruning", trials=CHAIN + 3, budget=20, strategy=PLAIN, inherit=inherit)
    assert len(weighed) > 100
    assert any(proposal.parent for proposal in weighed) is inherit


def test_each_cost_has_its_turn_at_the_front() -> None:
    study, later = after_the_chain(costs=("params", "macs"))
    _, alone = after_the_chain()
    assert {t.number % 2 for t in later} == {0, 1}
    for trial in later:
        cost = ("params", "macs")[trial.number % 2]
        members = pareto(
            study.trials[: trial.number],
            score=lambda t: t.user_attrs[VALID],
            costs=lambda t, cost=cost: [t.user_attrs[cost]],
        )
        widths = SPACE.widths(trial.params)
        assert any(covers(SPACE.widths(t.params), widths) for t in members)
    assert [t.params for t in later] != [t.params for t in alone]


def test_later_proposals_are_new_sizes_and_members_again() -> None:
    study, later = after_the_chain(strategy=BLIND)
    new = [SPACE.widths(t.params) not in proposals(study)[: t.number] for t in later]
    assert any(new)
    assert not all(new)


def test_foresight_leaves_what_gains_nothing() -> None:
    # Scores follow from widths alone here, so that training on is worth nothing.
    study, later = after_the_chain()
    again = [SPACE.widths(t.params) in proposals(study)[: t.number] for t in later]
    blind, others = after_the_chain(strategy=BLIND)
    blindly = [SPACE.widths(t.params) in proposals(blind)[: t.number] for t in others]
    assert sum(again) < sum(blindly)


def test_foresight_says_what_it_expects() -> None:
    sampler = make_sampler("pruning", context(budget=20, strategy=PLAIN))
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    for _ in range(60):
        trial = study.ask(SPACE.distributions)
        widths = SPACE.widths(trial.params)
        known = History(SPACE, higher_is_better=True, costs=("params",)).finished(study)
        parent = choose_parent(front(known), widths)
        trial.set_user_attr("parent", f"t{parent.number:03d}" if parent else "dense")
        trial.set_user_attr(VALID, fake_score(widths))
        trial.set_user_attr(PARAMS, COST.params(widths))
        study.tell(trial, [fake_score(widths), 1.0])
    assert isinstance(sampler, PruningSampler)
    assert sampler.predictions.keys() == set(range(CHAIN, 60))
    scores = [fake_score(w) for w in proposals(study)]
    errors = [abs(expected - scores[number]) for number, expected in sampler.predictions.items()]
    assert sum(errors[-6:]) < 0.7 * sum(errors[:6])  # epochs are believed to help; here they do not
    assert max(errors[-6:]) < 0.5 * (max(scores) - min(scores))


def test_a_resumed_search_goes_on_as_it_would_have() -> None:
    whole = run("pruning", trials=18, budget=20)
    half = run("pruning", trials=16, budget=20)
    half.sampler = make_sampler("pruning", context(budget=20))
    assert half.ask(SPACE.distributions).params == whole.trials[16].params


def test_without_a_finished_trial_the_chain_starts_again() -> None:
    study = run("pruning", trials=20, budget=4, ended=dict.fromkeys(range(20), TrialState.FAIL))
    found = proposals(study)
    links = next(n for n in range(1, 20) if found[n] == found[0])
    assert links > 1
    assert all(found[n] == found[n % links] for n in range(20))


@pytest.mark.parametrize("budget", [1, 2, 3])
def test_small_budgets_have_a_chain(budget: int) -> None:
    found = proposals(run("pruning", trials=budget, budget=budget))
    assert len({COST.params(w) for w in found}) == budget


def test_a_searched_recipe_varies() -> None:
    study = run("pruning", trials=30, budget=20)
    for key in ("lr", "weight_decay", "distill_weight", "temperature", "criterion"):
        assert len({t.params[key] for t in study.trials}) > 1


def test_a_trial_that_is_tried_again_takes_no_place_of_the_chain() -> None:
    plain = run("pruning", trials=5, budget=20)
    study = run("pruning", trials=3, budget=20)
    stopped = study.ask(SPACE.distributions)
    stopped.set_user_attr(PARENT, "dense")
    study.tell(stopped, state=TrialState.FAIL)
    study.enqueue_trial(stopped.params, user_attrs={"retry_of": stopped.number})
    again = study.ask(SPACE.distributions)
    assert again.params == stopped.params
    later = study.ask(SPACE.distributions)
    assert SPACE.widths(later.params) == SPACE.widths(plain.trials[4].params)


def test_some_later_sizes_are_spread_by_lamp_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {n: [(i + 1) / c for i in range(c)] for n, c in CHANNELS.items()}
    by_lamp: list[dict[str, int]] = []

    class Spy(Allocator):
        def lamp_widths(self, params: int, **bounds: Any) -> dict[str, int]:
            by_lamp.append(super().lamp_widths(params, **bounds))
            return by_lamp[-1]

    study = run("pruning", trials=40, budget=20, allocator=Spy(COST, lamp=scores), strategy=BLIND)
    assert 1 <= len(by_lamp) < 26 / 2
    later = proposals(study)[CHAIN:]
    assert all(w in later for w in by_lamp)
    assert proposals(study)[:CHAIN] == proposals(
        run("pruning", trials=CHAIN, budget=20, strategy=PLAIN)
    )
