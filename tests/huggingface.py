"""Tiny Hugging Face models from configs, and sentences of two kinds to tell apart."""

from __future__ import annotations

import os
from typing import Any

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
WORDS, LENGTH = 30, 10
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "vocab_size": WORDS,
    "initializer_range": 0.3,  # at the usual 0.02, whatever is cut, the answer is nearly the same
}


def sentences(samples: int, seed: int) -> list[dict[str, Any]]:
    """Return token ids of 4 to 10 words, as a tokeniser gives them, of three vocabularies."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(samples):
        length = int(torch.randint(4, LENGTH + 1, (1,), generator=generator))
        label = number % 3
        words = torch.randint(9, (length - 1,), generator=generator) + 3 + 9 * label
        found.append(
            {
                "input_ids": [1, *words.tolist()],
                "attention_mask": [1] * length,
                "text": "left out",
                "label": label,
            }
        )
    return found


def bert(head: str = "SequenceClassification", **options: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    sizes = SIZES | {"num_labels": 3} | options
    config = transformers.BertConfig(max_position_embeddings=12, **sizes)
    return getattr(transformers, f"BertFor{head}")(config)


def llama(**options: Any) -> Any:
    """Grouped queries: two heads share keys and values."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    own = {"num_key_value_heads": 2, "max_position_embeddings": 16, "pad_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(**(SIZES | own | options)))


def gpt2(**options: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=WORDS,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=4,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
        **options,
    )
    return GPT2LMHeadModel(config)


def t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=WORDS, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, use_cache=False
    )
    return T5ForConditionalGeneration(config)


def distilbert() -> Any:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(vocab_size=WORDS, dim=16, n_layers=2, n_heads=4, hidden_dim=24)
    return DistilBertForSequenceClassification(config)


def albert() -> Any:
    """All layers share their weights."""
    from transformers import AlbertConfig, AlbertForSequenceClassification

    return AlbertForSequenceClassification(AlbertConfig(embedding_size=8, **SIZES))


def neox() -> Any:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(GPTNeoXConfig(use_cache=False, **SIZES))


def vit(**options: Any) -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {name: size for name, size in SIZES.items() if name != "vocab_size"}
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **(sizes | options)))
