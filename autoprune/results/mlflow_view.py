"""How an experiment looks when it is opened: which columns, which metric, which kind.

MLflow keeps no columns with an experiment, but a shared view does: a tag of the experiment, which
the address of its page names. It is what its own "share" button writes.
"""

from __future__ import annotations

import json

VIEW = "autoprune"
"""The shared view's name in addresses."""
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"


def view_path(experiment: str) -> str:
    """Return the page of an experiment with the shared view, as an address below the server's.

    >>> view_path("1")
    '/#/experiments/1/runs?viewStateShareKey=autoprune&workflowType=machine_learning'
    """
    query = f"viewStateShareKey={VIEW}&workflowType=machine_learning"
    return f"/#/experiments/{experiment}/runs?{query}"


def _columns(kind: str, *names: str) -> list[str]:
    return [f"{kind}.`{name}`" for name in names]


_NAME, _CREATED, _DURATION = "attributes.`Run Name`", "runDateAndNestInfo", "duration"
_COLUMNS = [
    *_columns("metrics", "valid", "params_fraction", "params"),
    *_columns("metrics", "final_valid", "test", "final_latency_ms"),
    *_columns("tags", "front", "state"),
    *_columns("params", "criterion", "epochs", "parent"),
]
_STATE = {
    "selectedColumns": _COLUMNS,
    "columnOrder": [_NAME, *_COLUMNS, _CREATED, _DURATION],
    "columnWidths": {_NAME: 250},
    "orderByKey": "metrics.`params_fraction`",
    "orderByAsc": False,
}

VIEW_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.experiment.primaryMetric.name": "valid",
    VIEW_TAG: json.dumps(_STATE),
}
"""Tags that an experiment of ours begins with."""
