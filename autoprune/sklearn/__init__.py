"""Estimators for scikit-learn that search for a small network when they are fitted.

    from autoprune.sklearn import PrunedClassifier, PrunedRegressor

Importing them takes scikit-learn along, but not torch: that is imported by the first fit.
"""

from __future__ import annotations

from autoprune.sklearn.estimators import PrunedClassifier, PrunedRegressor

__all__ = ["PrunedClassifier", "PrunedRegressor"]
