"""How an experiment looks when it is opened: which columns, which metric, which kind.

MLflow keeps no columns with an experiment, but a shared view does: a tag of the experiment, which
the address of its page names. It is what its own "share" button writes.
"""

from __future__ import annotations

import json

VIEW = "autoprune"
"""The shared view's name in addresses."""
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
FRONT_FILTER = "tags.front = 'true'"


def view_path(experiment: str) -> str:
    """Return the page of an experiment with the shared view, as an address below the server's.

    >>> view_path("1")
    '/#/experiments/1/runs?viewStateShareKey=autoprune'
    """
    return f"/#/experiments/{experiment}/runs?viewStateShareKey={VIEW}"


def _columns(kind: str, *names: str) -> list[str]:
    return [f"{kind}.`{name}`" for name in names]


_STATE = {
    "selectedColumns": [
        *_columns("metrics", "valid", "params_fraction", "params"),
        *_columns("tags", "front", "state"),
        *_columns("metrics", "final_valid", "test", "final_latency_ms"),
        *_columns("params", "criterion", "epochs", "parent"),
    ],
    "orderByKey": "metrics.`params_fraction`",
    "orderByAsc": False,
}

VIEW_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.experiment.primaryMetric.name": "valid",
    VIEW_TAG: json.dumps(_STATE),
}
"""Tags that an experiment of ours begins with."""
