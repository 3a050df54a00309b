import optuna
from optuna.trial import TrialState

from autoprune import Space
from autoprune.searching.history import PARAMS, PARENT, RETRY_OF, VALID, History, places_of
from autoprune.searching.space import SearchSpace

SPACE = SearchSpace(channels={"a": 8}, space=Space(epochs=(1, 4)), has_dropout=False)


def study_of(*retries: int | None) -> optuna.Study:
    """Return a study of failed trials, by whom each of them tries again."""
    study = optuna.create_study()
    for first in retries:
        if first is not None:
            study.enqueue_trial({}, user_attrs={RETRY_OF: first})
        trial = study.ask()
        trial.set_user_attr(PARENT, "dense")
        study.tell(trial, state=TrialState.FAIL)
    return study


def test_places_are_counted() -> None:
    assert places_of(study_of(None, None, None)) == {0: 0, 1: 1, 2: 2}


def test_a_trial_that_is_tried_again_takes_its_own_place_and_no_other() -> None:
    # Three attempts at trial 1, between others that have places of their own.
    assert places_of(study_of(None, None, 1, None, 1, None)) == {0: 0, 1: 1, 2: 1, 3: 2, 4: 1, 5: 3}


def test_the_next_one_takes_the_place_of_a_trial_that_never_began() -> None:
    study = study_of(None)
    study.tell(study.ask(), state=TrialState.FAIL)  # its driver was killed while it was asked for
    study.ask()
    assert places_of(study) == {0: 0, 1: 1, 2: 1}
    study.enqueue_trial({})
    study.tell(study.ask(), state=TrialState.FAIL)  # a user's own wish is not asked for again
    study.ask()
    assert places_of(study) == {0: 0, 1: 1, 2: 1, 3: 2, 4: 3}


def test_an_attempt_that_waits_leaves_its_place_alone() -> None:
    study = study_of(None)
    study.enqueue_trial({}, user_attrs={RETRY_OF: 0})
    study.enqueue_trial({})  # a user's own wish
    assert places_of(study) == {0: 0, 1: 0, 2: 1}


def test_whose_first_attempt_is_unknown_has_a_place() -> None:
    assert places_of(study_of(None, 7, None)) == {0: 0, 1: 1, 2: 2}


# --- what has finished --------------------------------------------------------------------------


def test_a_finished_trial_has_the_parent_that_it_was_cut_from() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for parent, epochs in (("dense", 2), ("t000", 3), ("dense", 4), ("t001", 1)):
        trial = study.ask(SPACE.distributions)
        for name, value in ((VALID, 0.5), (PARAMS, 10), (PARENT, parent), ("epochs", epochs)):
            trial.set_user_attr(name, value)
        study.tell(trial, 0.5)
    known = History(SPACE, higher_is_better=True, costs=()).finished(study)
    assert [f.parent and f.parent.number for f in known] == [None, 0, None, 1]
    assert [f.lineage_epochs for f in known] == [2, 5, 4, 6]


def test_what_is_known_is_not_read_again() -> None:
    study = study_of(None)
    history = History(SPACE, higher_is_better=False, costs=())
    for number, score in enumerate((0.5, 0.25)):
        trial = study.ask(SPACE.distributions)
        trial.set_user_attr(VALID, score)
        trial.set_user_attr(PARAMS, 10)
        study.tell(trial, score)
        assert [f.score for f in history.finished(study)] == [-0.5, -0.25][: number + 1]
    first, second = history.finished(study)
    assert [first, second] == history.finished(study)
    assert history.finished(study)[0] is first
