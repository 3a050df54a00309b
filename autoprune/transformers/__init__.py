"""Pruning Hugging Face models: heads and MLP widths, by data of tokens and masks.

A study is made from a model and its data; what a search finds is saved in the usual way, its config
following where it can say the new widths. See docs/transformers.md.

Raises
------
AutopruneError
    If transformers is not installed.
"""

from __future__ import annotations

from autoprune.extras import need_extra

need_extra("transformers")

from autoprune.transformers.saving import from_pretrained as from_pretrained  # noqa: E402
from autoprune.transformers.saving import save_pretrained as save_pretrained  # noqa: E402
from autoprune.transformers.study import study_from as study_from  # noqa: E402
from autoprune.transformers.task import TransformersTask as TransformersTask  # noqa: E402

__all__ = ["TransformersTask", "from_pretrained", "save_pretrained", "study_from"]
