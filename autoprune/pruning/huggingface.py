"""What Hugging Face's own layers ask for. They are known by name: transformers is not imported."""

from __future__ import annotations

from typing import Any

from autoprune.pruning.group_rules import GroupRule, group_rule


@group_rule("transformers.pytorch_utils.Conv1D")
class TransposedLinearRule(GroupRule):
    """A linear layer whose weight is [inputs, outputs]."""

    def fit(self, module: Any) -> None:
        module.nx, module.nf = module.weight.shape


@group_rule("transformers.models.gpt2.modeling_gpt2.GPT2Attention")
class JoinedHeadsRule(GroupRule):
    """GPT-2's attention: one layer makes queries, keys and values, which are split by size."""

    def fit(self, module: Any) -> None:
        if not module.is_cross_attention:
            module.split_size = module.c_attn.weight.shape[1] // 3
            module.num_heads = module.split_size // module.head_dim
