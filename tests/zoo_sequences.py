"""The zoo's networks of Linear layers, bare parameters, recurrent layers and attention."""

from __future__ import annotations

from dataclasses import dataclass

import nets
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo_case import Case, token_ids

VOCABULARY = 20
TOKENS = token_ids(2, 6, VOCABULARY)
SEQUENCE = torch.zeros(2, 6, 5)

# --- feed-forward -------------------------------------------------------------------------------


def rms_norm() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 12), nn.RMSNorm(12), nn.SiLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)
    )


class UsedTwice(nn.Module):
    """One layer applied twice: it reads the channels that it produces."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(self.shared(torch.relu(self.shared(x)))))


class Siamese(nn.Module):
    """One encoder for two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8))
        self.head = nn.Linear(16, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        a, b = self.encoder(left), self.encoder(right)
        return self.head(torch.cat([(a - b).abs(), a * b], dim=1))


class TransposedWeight(nn.Module):
    """An autoencoder whose decoder is the encoder's weight, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(10, 6)
        self.bias = nn.Parameter(torch.linspace(-1, 1, 10))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.encoder(x)), self.encoder.weight.t(), self.bias)


class TiedLayers(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


class TiedEmbedding(nn.Module):
    """A small language model: the head's weight is the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.hidden, self.project = nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        return self.head(x + self.project(torch.relu(self.hidden(x))))


class BareParameters(nn.Module):
    """Weights without layers, through `torch.nn.functional`."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 3, 3, 3) / 5)
        self.shift = nn.Parameter(torch.randn(8))
        self.weight = nn.Parameter(torch.randn(10, 8) / 3)
        self.bias = nn.Parameter(torch.randn(10))
        self.last = nn.Parameter(torch.randn(3, 10) / 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.kernel, self.shift, padding=1)).mean((2, 3))
        return F.linear(F.relu(F.linear(x, self.weight, self.bias)), self.last)


class Products(nn.Module):
    """Weights without layers, through `matmul`, `@` and `einsum`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(6, 12) / 3)
        self.second = nn.Parameter(torch.randn(12, 8) / 3)
        self.third = nn.Parameter(torch.randn(9, 8) / 3)
        self.head = nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(torch.matmul(x, self.first))
        x = torch.relu(x @ self.second)
        return self.head(torch.relu(torch.einsum("...i,oi->...o", x, self.third)))


# --- inputs and outputs -------------------------------------------------------------------------


class TwoHeads(nn.Module):
    """Two inputs, two outputs in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.table = nn.Conv2d(3, 8, 3), nn.Linear(4, 8)
        self.body = nn.Linear(16, 12)
        self.kind, self.amount = nn.Linear(12, 3), nn.Linear(12, 1)

    def forward(self, image: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        image = F.relu(self.image(image)).mean((2, 3))
        x = F.relu(self.body(torch.cat([image, F.relu(self.table(table))], dim=1)))
        return self.kind(x), self.amount(x)


class Detector(nn.Module):
    """Takes keywords, returns a dict with a dict in it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.neck = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.boxes, self.scores = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 2, 1)

    def forward(self, *, image: Tensor, brightness: Tensor) -> dict[str, object]:
        x = F.relu(self.neck(F.relu(self.body(image * brightness))))
        return {"boxes": self.boxes(x), "extra": {"scores": self.scores(x)}}


@dataclass
class Answer:
    logits: Tensor
    confidence: Tensor


class DataclassOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.middle = nn.Linear(6, 10), nn.Linear(10, 8)
        self.logits, self.confidence = nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Answer:
        x = torch.relu(self.middle(torch.relu(self.body(x))))
        return Answer(logits=self.logits(x), confidence=torch.sigmoid(self.confidence(x)))


class TextClassifier(nn.Module):
    """Embeddings plus learned positions, averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.positions = nn.Parameter(torch.randn(1, 6, 8))
        self.hidden, self.head = nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.tanh(self.embedding(ids) + self.positions[:, : ids.shape[1]])
        return self.head(torch.relu(self.hidden(x.mean(1))))


# --- attention ----------------------------------------------------------------------------------


class AttentionNet(nn.Module):
    """nn.MultiheadAttention of 4 heads, a residual, an MLP."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.stem = nn.Linear(5, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=batch_first)
        self.hidden, self.head = nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) if self.batch_first else self.stem(x.transpose(0, 1))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x.mean(1 if self.batch_first else 0)
        return self.head(torch.relu(self.hidden(x)))


class CrossAttention(nn.Module):
    """Learned queries attend to a sequence of another width; its weights are returned, too."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 3, 16))
        self.attention = nn.MultiheadAttention(16, 4, kdim=5, vdim=5, batch_first=True)
        self.hidden, self.head = nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        queries = self.queries.expand(x.shape[0], -1, -1)
        y, _ = self.attention(queries, x, x)
        return self.head(torch.relu(self.hidden(y)))


class TransformerClassifier(nn.Module):
    """nn.TransformerEncoder of 2 layers: 4 heads, 24 hidden units."""

    def __init__(self, *, norm_first: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 24, 0.1, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.stem(x)).mean(1))


class HeadsAttention(nn.Module):
    """Reshapes by its number of heads; one Linear for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        samples, length, _ = x.shape
        qkv = self.qkv(x).reshape(samples, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        weights = (query @ key.transpose(-2, -1) * self.scale).softmax(dim=-1)
        return self.project((weights @ value).transpose(1, 2).reshape(samples, length, -1))


class HeadDimAttention(nn.Module):
    """Reshapes by its heads' size: how many heads there are, it never asks."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.project = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.view(*y.shape[:2], -1, self.head_dim).transpose(1, 2)

        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        y = F.scaled_dot_product_attention(query, key, value)
        return self.project(y.transpose(1, 2).flatten(2))


class AttentionBlock(nn.Module):
    """Pre-norm: an attention layer, then an MLP."""

    def __init__(self, attention: nn.Module, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = attention
        self.expand, self.shrink = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.shrink(F.gelu(self.expand(self.norm2(x))))


class OwnTransformer(nn.Module):
    def __init__(self, kind: type[HeadsAttention] | type[HeadDimAttention]) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 16), nn.Linear(16, 3)
        self.blocks = nn.Sequential(
            AttentionBlock(kind(16, 4), 16, 20), AttentionBlock(kind(16, 4), 16, 18)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean(1))


# --- recurrent layers ---------------------------------------------------------------------------


class LSTMClassifier(nn.Module):
    """The last hidden state is classified; time comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(x.transpose(0, 1))
        return self.head(hidden[-1])


class BidirectionalLSTM(nn.Module):
    """Tags every step by two layers that read both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.lstm = nn.LSTM(8, 6, num_layers=2, bidirectional=True, batch_first=True)
        self.hidden, self.head = nn.Linear(12, 10), nn.Linear(10, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x, _ = self.lstm(self.embedding(ids))
        return self.head(torch.relu(self.hidden(x)))


class GRUClassifier(nn.Module):
    """All steps' outputs are averaged; a convolution comes before."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(5, 10, 3, padding=1)
        self.gru = nn.GRU(10, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x.transpose(1, 2))).transpose(1, 2)
        return self.head(self.gru(x)[0].mean(1))


class GRUState(nn.Module):
    """Both layers' last hidden states are classified together."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(5, 7, num_layers=2, batch_first=True)
        self.head = nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        _, hidden = self.gru(x)
        return self.head(torch.cat([hidden[0], hidden[1]], dim=1))


class Elman(nn.Module):
    """nn.RNN; its output at the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(5, 8, nonlinearity="tanh", batch_first=True)
        self.hidden, self.head = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(self.rnn(x)[0][:, -1])))


SEQUENCES = (
    Case(name="mlp", factory=nets.mlp, example=torch.zeros(2, 6), expected={"0": 12, "2": 8}),
    Case(
        name="layer_norm", factory=nets.layer_norm, example=torch.zeros(2, 6),
        expected={"0": 12, "1": 12, "3": 8},
    ),
    Case(
        name="rms_norm", factory=rms_norm, example=torch.zeros(2, 6),
        expected={"0": 12, "1": 12, "3": 8},
    ),
    Case(
        name="used_twice", factory=UsedTwice, example=torch.zeros(2, 6),
        expected={"stem": 8, "shared": 8},
    ),
    Case(
        name="siamese", factory=Siamese, example=(torch.zeros(2, 6), torch.zeros(2, 6)),
        expected={"encoder.0": 10, "encoder.2": 8},
    ),
    Case(
        name="transposed_weight", factory=TransposedWeight, example=torch.zeros(2, 10),
        expected={"encoder": 6}, tied=("encoder.weight",),
    ),
    Case(
        name="tied_layers", factory=TiedLayers, example=torch.zeros(2, 6),
        expected={"stem": 8, "first": 8, "second": 8},
    ),
    Case(
        name="tied_embedding",
        options={"embeddings": True}, factory=TiedEmbedding, example=TOKENS,
        expected={"embedding": 8, "hidden": 12, "project": 8}, tied=("embedding.weight",),
    ),
    Case(
        name="bare_parameters", factory=BareParameters, example=torch.zeros(2, 3, 6, 6),
        expected={"kernel": 8, "shift": 8, "weight": 10, "bias": 10},
    ),
    Case(
        name="products", factory=Products, example=torch.zeros(2, 6),
        expected={"first": 12, "second": 8, "third": 9},
    ),
    Case(
        name="two_heads", factory=TwoHeads, example=(torch.zeros(2, 3, 6, 6), torch.zeros(2, 4)),
        expected={"image": 8, "table": 8, "body": 12},
    ),
    Case(
        name="dict_in_dict_out", factory=Detector,
        example={"image": torch.zeros(2, 3, 6, 6), "brightness": torch.ones(2, 1, 1, 1)},
        expected={"body": 8, "neck": 6},
    ),
    Case(
        name="dataclass_output", factory=DataclassOutput, example=torch.zeros(2, 6),
        expected={"body": 10, "middle": 8},
    ),
    Case(
        name="text_classifier",
        options={"embeddings": True}, factory=TextClassifier, example=TOKENS,
        expected={"embedding": 8, "positions": 8, "hidden": 10},
    ),
    Case(
        name="attention", factory=lambda: AttentionNet(batch_first=True), example=SEQUENCE,
        expected={"attention.in_proj_weight": 4, "attention.in_proj_bias": 4, "hidden": 12},
    ),
    Case(
        name="attention_time_first", factory=lambda: AttentionNet(batch_first=False),
        example=SEQUENCE, expected={"attention.in_proj_weight": 4, "hidden": 12},
    ),
    Case(
        name="cross_attention", factory=CrossAttention, example=SEQUENCE,
        expected={"attention.q_proj_weight": 4, "attention.k_proj_weight": 4,
                  "attention.v_proj_weight": 4, "hidden": 12},
    ),
    *(
        Case(
            name=f"transformer_{'pre' if norm_first else 'post'}_norm",
            factory=lambda norm_first=norm_first: TransformerClassifier(norm_first=norm_first),
            example=SEQUENCE,
            expected={
                name: channels
                for i in range(2)
                for name, channels in (
                    (f"encoder.layers.{i}.self_attn.in_proj_weight", 4),
                    (f"encoder.layers.{i}.linear1", 24),
                )
            },
        )
        for norm_first in (False, True)
    ),
    Case(
        name="own_attention_heads", factory=lambda: OwnTransformer(HeadsAttention),
        example=SEQUENCE,
        expected={"blocks.0.attention.qkv": 4, "blocks.0.expand": 20,
                  "blocks.1.attention.qkv": 4, "blocks.1.expand": 18},
    ),
    Case(
        name="own_attention_head_dim", factory=lambda: OwnTransformer(HeadDimAttention),
        example=SEQUENCE,
        expected={
            **{f"blocks.{i}.attention.{part}": 4 for i in range(2) for part in
               ("query", "key", "value")},
            "blocks.0.expand": 20, "blocks.1.expand": 18,
        },
    ),
    Case(name="lstm", factory=LSTMClassifier, example=SEQUENCE, expected={"lstm": 8}),
    Case(
        name="lstm_both_ways",
        options={"embeddings": True}, factory=BidirectionalLSTM, example=TOKENS,
        expected={"embedding": 8, "lstm": 6, "hidden": 10},
    ),
    Case(
        name="gru", factory=GRUClassifier, example=SEQUENCE, expected={"conv": 10, "gru": 8}
    ),
    Case(name="gru_state", factory=GRUState, example=SEQUENCE, expected={"gru": 7}),
    Case(name="rnn", factory=Elman, example=SEQUENCE, expected={"rnn": 8, "hidden": 6}),
)  # fmt: skip
