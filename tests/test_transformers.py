"""Hugging Face models lose heads and MLP widths, and are saved and loaded in the usual way."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface
import pytest
import torch
import torch.nn.functional as F
from helpers import UNTRACKED, Here
from huggingface import albert, bert, distilbert, gpt2, llama, neox, sentences, t5, vit
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("transformers", reason="needs it: pip install 'autoprune[transformers]'")

import transformers

import autoprune
from autoprune import AutopruneError, FineTune, PruningStudy, SearchResult, Space
from autoprune.pruning.cut import cut
from autoprune.pruning.graph import find_groups
from autoprune.results.store import Store
from autoprune.training.finetune import finetune
from autoprune.transformers import TransformersTask, from_pretrained, save_pretrained, study_from
from autoprune.transformers.collating import collated
from autoprune.transformers.configs import governed

SPACE = Space(epochs=2, lr=(1e-3, 5e-3), batch_size=16, dropout=None)
TRAINED = FineTune(epochs=8, lr=1e-2, batch_size=16)
IDS = torch.tensor([[1, 5, 9, 8, 7, 4], [1, 6, 2, 2, 9, 9]])


def study(model: Any = bert, **options: Any) -> PruningStudy:
    data = {"train": sentences(96, 0), "valid": sentences(48, 1), "test": sentences(48, 2)}
    return study_from(model(), **(data | {"space": SPACE} | options))


def searched(folder: Path, **options: Any) -> SearchResult:
    made = study(train_dense=TRAINED, **options)
    return autoprune.search(made, budget=2, out=folder, **UNTRACKED)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    return searched(tmp_path_factory.mktemp("bert"))


def same_answers(one: nn.Module, other: nn.Module, **inputs: Any) -> bool:
    with torch.no_grad():
        first, second = one(input_ids=IDS, **inputs), other(input_ids=IDS, **inputs)
    return torch.allclose(first.logits, second.logits, atol=1e-5)


def test_a_search_ends_with_smaller_models_that_are_saved_and_loaded(
    result: SearchResult, tmp_path: Path
) -> None:
    assert result.study == "bert"
    assert result.dense.valid > 0.8
    assert result.front
    for model in result.front:
        net: Any = autoprune.load(result.out / model.path, model=bert())
        assert type(net) is type(bert())
        files = {file.name for file in (result.out / model.path).iterdir()}
        assert {"model.safetensors", "model.pt2", "model.onnx"} <= files
        assert not save_pretrained(net, tmp_path / model.name)
        back: Any = from_pretrained(tmp_path / model.name)
        assert type(back) is type(net)
        assert same_answers(net, back)
        assert back.num_parameters() == model.params < result.dense.params
        layer = back.bert.encoder.layer[0]
        assert layer.attention.self.query.out_features % 4 == 0  # heads go whole
        assert layer.output.dense.in_features == layer.intermediate.dense.out_features
        task = study().task
        assert task.evaluate(back, "valid") == pytest.approx(model.valid)
        assert task.evaluate(back, "test") == pytest.approx(model.test)
        told = json.loads((tmp_path / model.name / "config.json").read_text())
        assert told["intermediate_size"] == 24  # as the model was built
        assert told["use_cache"] is True  # as it was before
        assert told["autoprune"]["sizes"]["classifier.weight"] == list(back.classifier.weight.shape)


@pytest.mark.usefixtures("quick_export")
def test_uniform_widths_are_in_the_config_and_load_anywhere(tmp_path: Path) -> None:
    result = searched(tmp_path / "out", uniform=True)
    groups = Store(tmp_path / "out").load_grouping().channels
    assert groups == {"bert.encoder.layer.0.intermediate.dense": 24}
    model = result.front[0]
    net: Any = result.load(model.name)
    assert save_pretrained(net, tmp_path / "saved")
    back: Any = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert (
        back.config.intermediate_size == net.bert.encoder.layer[1].intermediate.dense.out_features
    )
    assert back.num_parameters() == model.params < result.dense.params
    assert same_answers(net, back.eval())
    assert same_answers(net, from_pretrained(tmp_path / "saved"))


@pytest.mark.parametrize("form", ["module", "function"])
def test_channels_that_share_a_number_are_alike_and_nothing_else_changes(form: str) -> None:
    made = study(uniform=True) if form == "module" else study(lambda: bert, uniform=True)
    assert isinstance(made.model, nn.Module) == (form == "module")
    assert made.space.depth is False, "no config says which layers went"
    dense: Any = made.build()
    assert same_answers(dense, bert().eval())
    for layer in dense.bert.encoder.layer:
        parts = (layer.intermediate.dense.weight, layer.output.dense.weight.T)
        strength = sum(part.square().sum(1) for part in parts)
        strength = strength + layer.intermediate.dense.bias.square()
        assert bool((strength.diff() <= 1e-6).all())


IMAGES = {"pixel_values": torch.rand(6, 3, 8, 8), "labels": torch.arange(6) % 3}
OPEN: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "embeddings": (bert, {"prune_embeddings": True}),
    "embeddings of a decoder": (lambda: llama(head_dim=4), {"prune_embeddings": True}),
    "inputs": (
        lambda: vit(num_labels=3),
        {"prune_inputs": True, "train": IMAGES, "valid": IMAGES, "test": IMAGES},
    ),
    "kept": (bert, {"keep": ["*query"]}),
}


@pytest.mark.parametrize("case", OPEN)
def test_uniform_holds_whatever_else_a_study_may_prune(case: str, tmp_path: Path) -> None:
    model, options = OPEN[case]
    made = study(model, uniform=True, **options)
    dense = made.build()
    grouping = made.find_groups(dense)
    assert grouping.channels
    small = cut(dense, grouping, dict.fromkeys(grouping.channels, (0, 2)))
    assert save_pretrained(small, tmp_path)
    plain: Any = type(dense).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        found, expected = (net(**made.example).logits for net in (plain, small))
    torch.testing.assert_close(found, expected)


def test_a_layer_that_is_kept_keeps_the_width_that_all_share() -> None:
    with pytest.raises(AutopruneError, match="has none that can be pruned alone"):
        study(uniform=True, keep=["*layer.0.intermediate.dense"])


def test_a_function_that_builds_the_model_draws_nothing_of_others() -> None:
    built = []

    def build() -> Any:
        torch.rand(1)
        built.append(bert())
        return built[-1]

    before = torch.get_rng_state()
    study(lambda: build)
    assert len(built) == 1
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("model", [llama, gpt2], ids=["grouped queries", "joined heads"])
def test_decoders_lose_heads_and_widths_and_still_generate(
    model: Callable[[], Any], tmp_path: Path
) -> None:
    made = study(model)
    dense = made.build()
    grouping = made.find_groups(dense)
    attention = [n for n in grouping.channels if "attn" in n]
    widths = [n for n in grouping.channels if "mlp" in n]
    assert (len(attention), len(widths)) == (2, 2)
    kept = {n: tuple(range(c)) for n, c in grouping.channels.items()}
    kept |= {attention[0]: (1,), widths[1]: (0, 3, 5)}
    small: Any = cut(dense, grouping, kept)
    [epoch] = finetune(small, made.task, FineTune(epochs=1, lr=1e-2, batch_size=16))
    assert epoch.valid < made.task.evaluate(dense, "valid")
    save_pretrained(small, tmp_path)
    back: Any = from_pretrained(tmp_path)
    assert back.config.use_cache
    options = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    options |= {"pad_token_id": 0, "eos_token_id": None}
    with_cache = back.generate(IDS, use_cache=True, **options)
    assert torch.equal(with_cache, small.generate(IDS, use_cache=False, **options))
    assert with_cache.shape == (2, 11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_types_of_weights_and_how_to_generate_are_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    dense = llama(use_cache=False).to(dtype).eval()
    dense.generation_config.max_new_tokens = 3
    grouping = find_groups(dense, {"input_ids": IDS})
    one = next(name for name in grouping.channels if "mlp" in name)
    small: Any = cut(dense, grouping, grouping.all_kept() | {one: (0, 3)})
    assert not save_pretrained(small, tmp_path)
    back: Any = from_pretrained(tmp_path)
    types = {name: parameter.dtype for name, parameter in back.named_parameters()}
    assert types == {name: parameter.dtype for name, parameter in small.named_parameters()}
    assert types["model.norm.weight"] == dtype
    assert back.generate(IDS, do_sample=False, eos_token_id=None).shape == (2, 6 + 3)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(AutopruneError, match=r"generation_config.json must be a config of trans"):
        from_pretrained(tmp_path)


def test_whole_heads_go_where_positions_are_rotated() -> None:
    grouping = find_groups(llama(use_cache=False), {"input_ids": IDS})
    group = next(g for g in grouping.groups if g.name.endswith("layers.0.self_attn.q_proj"))
    rows = {(s.tensor.split(".")[-2], s.role): s.index.shape for s in group.slices}
    # Two heads of queries, of 4 numbers each, go with one of keys and values.
    assert rows == {
        ("q_proj", "out"): (2, 8),
        ("k_proj", "out"): (2, 4),
        ("v_proj", "out"): (2, 4),
        ("o_proj", "in"): (2, 8),
    }


def test_attention_that_cannot_be_pruned_is_named_by_doctor(tmp_path: Path, here: Here) -> None:
    (tmp_path / "study.py").write_text(
        "import torch\n"
        "from huggingface import bert, sentences, t5\n"
        "from autoprune import PruningStudy\n"
        "from autoprune.transformers import TransformersTask\n"
        "ids = torch.ones(2, 5, dtype=torch.long)\n"
        "task = TransformersTask(bert(), train=sentences(8, 0), valid=sentences(8, 1))\n"
        "example = {'input_ids': ids, 'decoder_input_ids': ids}\n"
        "study = PruningStudy(name='t5', model=t5(), example=example, task=task)\n"
    )
    run = here("doctor", "study.py", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    said = " ".join(run.stdout.split())
    assert "decoder.block.0.layer.1.EncDecAttention.q" in said
    assert "encoder.block.0.layer.1.DenseReluDense.wi" in said


def test_layers_that_were_left_out_stay_out(tmp_path: Path) -> None:
    dense = bert().eval()
    grouping = find_groups(dense, {"input_ids": IDS})
    [name] = [n for n in grouping.blocks if "layer.1" in n][:1]
    small = cut(dense, grouping, grouping.all_kept() | {name: ()})
    assert not save_pretrained(small, tmp_path)
    assert same_answers(from_pretrained(tmp_path), small)
    assert not same_answers(small, dense)


TEXT = {"input_ids": IDS}
ARCHITECTURES: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "distilbert": (distilbert, TEXT, "hidden_dim"),
    "albert": (albert, TEXT, "intermediate_size"),
    "gpt2": (gpt2, TEXT, "n_inner"),
    "neox": (neox, TEXT, "intermediate_size"),
    "llama": (lambda: llama(num_key_value_heads=4), TEXT, "intermediate_size"),
    "t5": (t5, {**TEXT, "decoder_input_ids": IDS}, "d_ff"),
    "vit": (vit, {"pixel_values": torch.rand(2, 3, 8, 8)}, "intermediate_size"),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_any_architecture_is_saved_and_its_config_follows_where_it_can(
    name: str, tmp_path: Path
) -> None:
    build, inputs, attribute = ARCHITECTURES[name]
    dense = build().eval()
    dense.config.use_cache = False
    grouping = find_groups(dense, inputs)
    uneven = {
        n: tuple(range(1, c) if number % 2 else range(c // 2))
        for number, (n, c) in enumerate(grouping.channels.items())
    }
    small = cut(dense, grouping, uneven)
    assert not save_pretrained(small, tmp_path / "uneven")
    back = from_pretrained(tmp_path / "uneven")
    with torch.no_grad():
        torch.testing.assert_close(back(**inputs).logits, small(**inputs).logits)

    [found] = governed(dense, grouping)  # heads of another size would give Llama the same shapes
    assert found.attribute == attribute
    same = {g.name: (0, 1, 5) for g in found.groups}
    small = cut(dense, grouping, grouping.all_kept() | same)
    assert save_pretrained(small, tmp_path / "uniform")
    plain: Any = type(dense).from_pretrained(tmp_path / "uniform").eval()
    assert getattr(plain.config, attribute) == 3
    with torch.no_grad():
        torch.testing.assert_close(plain(**inputs).logits, small(**inputs).logits)


# --- data ---------------------------------------------------------------------------------------


class Columns:
    """As `datasets.Dataset`: rows by number, columns that nobody asked for."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.rows[number] | {"idx": number}


def loader(rows: list[dict[str, Any]]) -> DataLoader[Any]:
    return DataLoader(rows, batch_size=16, collate_fn=lambda r: collated(r, None, padding=0))


FORMS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "list": lambda rows: rows,
    "dataset": Columns,
    "tensors": lambda rows: collated(rows, None, padding=0),
    "loader": loader,
}


@pytest.mark.parametrize("form", FORMS)
def test_data_of_any_form_say_the_same(form: str) -> None:
    made, model = FORMS[form], bert().eval()
    task = TransformersTask(model, train=made(sentences(32, 0)), valid=made(sentences(40, 1)))
    right = 0
    for row in sentences(40, 1):  # one by one, without any padding
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits
        right += int(logits.argmax(1)) == row["label"]
    assert task.evaluate(model, "valid") == pytest.approx(right / 40)
    assert len(list(task.batches("train", batch_size=16, seed=0))) == 2
    [epoch] = finetune(copy.deepcopy(model), task, FineTune(epochs=1, lr=1e-2, batch_size=16))
    assert epoch.loss > 0


@pytest.mark.parametrize("build", [bert, lambda: llama(pad_token_id=3)], ids=["bert", "llama"])
def test_sequences_without_masks_are_answered_as_one_by_one(build: Callable[[], Any]) -> None:
    model = build().eval()
    whole = isinstance(model, type(bert()))
    asked = ("input_ids", "label") if whole else ("input_ids",)
    rows = [{name: row[name] for name in asked} for row in sentences(12, 0)]
    task = TransformersTask(model, train=rows, valid=rows)
    [batch] = task.batches("valid", batch_size=12, seed=None)
    with torch.no_grad():
        together = model(**batch.inputs).logits
        for row, logits, label in zip(rows, together, batch.targets, strict=True):
            ids = torch.tensor(row["input_ids"])
            alone = model(input_ids=ids[None]).logits[0]
            torch.testing.assert_close(logits if whole else logits[: len(ids)], alone)
            assert whole or label[label != -100].equal(ids)


def test_columns_are_padded_with_what_says_nothing() -> None:
    class Plain(nn.Module):  # takes no mask, and is a language model by its name
        def forward(self, input_ids: Any) -> Any: ...

    rows: list[dict[str, Any]] = [
        {"input_ids": [5, 6], "position_ids": [0, 1], "decoder_input_ids": [7], "labels": [1, 2]},
        {"input_ids": [5], "position_ids": [0], "decoder_input_ids": [7], "labels": [1]},
    ]
    found = {name: column.tolist() for name, column in collated(rows, None, padding=9).items()}
    assert found == {
        "input_ids": [[5, 6], [5, 9]],
        "position_ids": [[0, 1], [0, 0]],
        "decoder_input_ids": [[7], [7]],
        "labels": [[1, 2], [1, -100]],
        "attention_mask": [[1, 1], [1, 0]],
    }
    own = [row | {"attention_mask": [0] * len(row["input_ids"])} for row in rows]
    assert not collated(own, None, padding=9)["attention_mask"].any()
    Plain.__name__ = "PlainForCausalLM"
    ids = [{"input_ids": row["input_ids"]} for row in rows]
    [batch] = TransformersTask(Plain(), train=ids, valid=ids).batches(
        "valid", batch_size=2, seed=None
    )
    assert batch.inputs.keys() == {"input_ids"}
    assert batch.targets.tolist() == [[5, 6], [5, -100]]


def test_padding_of_all_samples_is_not_computed() -> None:
    rows = sorted(sentences(64, 0), key=lambda row: len(row["input_ids"]))
    task = TransformersTask(bert(), train=rows, valid=rows)
    shapes = [b.inputs["input_ids"].shape for b in task.batches("valid", batch_size=8, seed=None)]
    longest = [max(len(row["input_ids"]) for row in rows[i : i + 8]) for i in range(0, 64, 8)]
    assert [shape[1] for shape in shapes] == longest
    assert longest[0] < longest[-1]


def test_a_collator_joins_the_samples() -> None:
    def fixed(rows: list[dict[str, Any]]) -> dict[str, Any]:
        ids = torch.tensor([row["input_ids"][:4] for row in rows])
        return {"input_ids": ids, "labels": torch.tensor([row["label"] for row in rows])}

    rows = sentences(32, 0)
    task = TransformersTask(bert(), train=rows, valid=rows, collator=fixed)
    [batch] = task.batches("train", batch_size=32, seed=None)
    assert batch.inputs.keys() == {"input_ids"}
    assert batch.inputs["input_ids"].shape == (32, 4)


def test_only_labelled_tokens_count() -> None:
    model = bert(head="TokenClassification").eval()
    labels = torch.tensor([[0, -100, 2, -100, 1, -100], [-100, -100, 1, 1, -100, -100]])
    rows = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": labels}
    task = TransformersTask(model, train=rows, valid=rows)
    [batch] = task.batches("train", batch_size=2, seed=None)
    loss, outputs = task.step(model, batch)
    with torch.no_grad():
        logits = model(input_ids=IDS).logits[labels >= 0]
    truth = labels[labels >= 0]
    assert float(loss.detach()) == pytest.approx(float(F.cross_entropy(logits, truth)))
    assert outputs["tokens"].shape == (5, 3)
    assert task.evaluate(model, "valid") == float((logits.argmax(1) == truth).float().mean())
    assert float(task.distance(outputs, outputs, 2.0).detach()) == pytest.approx(0, abs=1e-6)


def own_labels(rows: list[dict[str, Any]], made: Callable[[dict[str, Any]], Any]) -> Any:
    return [row | {"label": made(row)} for row in rows]


OTHER_KINDS: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "labels": (
        {"problem_type": "multi_label_classification"},
        lambda row: [int(row["label"] != n) for n in range(3)],
        lambda logits, truth: ((logits > 0) == (truth > 0)).float().mean(),
    ),
    "numbers": (
        {"num_labels": 1},
        lambda row: len(row["input_ids"]),
        lambda logits, truth: (
            1 - F.mse_loss(logits[:, 0], truth.float()) / truth.float().var(correction=0)
        ),
    ),
}
LOSSES: dict[str, Any] = {
    "labels": lambda logits, truth: F.binary_cross_entropy_with_logits(logits, truth.float()),
    "numbers": lambda logits, truth: F.mse_loss(logits[:, 0], truth.float()),
}


@pytest.mark.parametrize("form", ["list", "loader"])
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_several_labels_and_numbers_may_be_whole_numbers(kind: str, form: str) -> None:
    options, made, score = OTHER_KINDS[kind]
    model = bert(**options).eval()
    rows = own_labels(sentences(16, 0), made)
    task = TransformersTask(model, train=FORMS[form](rows), valid=FORMS[form](rows))
    assert task.kind == kind
    assert task.metric == ("accuracy" if kind == "labels" else "r2")
    [batch] = task.batches("train", batch_size=16, seed=None)
    loss, outputs = task.step(model, batch)
    truth = torch.tensor([row["label"] for row in rows])
    logits = torch.cat(
        [model(input_ids=torch.tensor([row["input_ids"]])).logits for row in rows]
    ).detach()
    assert loss.item() == pytest.approx(float(LOSSES[kind](logits, truth)), rel=1e-4)
    assert task.evaluate(model, "valid") == pytest.approx(float(score(logits, truth)), rel=1e-4)
    further = task.distance(outputs, outputs + 2, 1.0)
    assert further.item() == pytest.approx(4, rel=1e-4)  # squared difference
    [epoch] = finetune(model, task, FineTune(epochs=1, lr=1e-2, batch_size=16))
    assert epoch.loss > 0


@pytest.mark.parametrize("form", ["list", "loader"])
def test_masked_words_are_scored_alone(form: str) -> None:
    model = bert(head="MaskedLM").eval()
    rows = [
        {"input_ids": row["input_ids"], "labels": [-100, row["input_ids"][1], -100]}
        for row in ({"input_ids": r["input_ids"][:3]} for r in sentences(16, 0))
    ]
    made = FORMS[form](rows)
    task = TransformersTask(model, train=made, valid=made)
    assert (task.kind, task.metric, task.higher_is_better) == ("masked", "loss", False)
    [batch] = task.batches("train", batch_size=16, seed=None)
    logits = model(input_ids=torch.tensor([row["input_ids"] for row in rows])).logits[:, 1]
    truth = torch.tensor([row["input_ids"][1] for row in rows])
    expected = F.cross_entropy(logits, truth).item()
    loss, outputs = task.step(model, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert outputs["tokens"].shape == (16, huggingface.WORDS)
    assert task.evaluate(model, "valid") == pytest.approx(expected, rel=1e-4)
    accurate = TransformersTask(model, train=made, valid=made, scorer="accuracy")
    right = float((logits.argmax(1) == truth).float().mean())
    assert accurate.evaluate(model, "valid") == pytest.approx(right)


def test_a_loader_for_a_causal_language_model_needs_no_labels() -> None:
    rows = [{"input_ids": row["input_ids"]} for row in sentences(32, 0)]
    scores = [
        TransformersTask(llama(), train=made, valid=made).evaluate(llama(), "valid")
        for made in (rows, loader(rows))
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


def test_a_language_model_is_scored_by_the_loss_of_what_comes_next() -> None:
    made = study(llama)
    model: Any = made.build()
    assert (made.task.metric, made.task.higher_is_better) == ("loss", False)
    total, count = 0.0, 0
    for row in sentences(48, 1):
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert made.task.evaluate(model, "valid") == pytest.approx(total / count, rel=1e-4)


# --- bad input ----------------------------------------------------------------------------------

GOOD = sentences(8, 0)
BAD: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "no config": (
        lambda: nn.Linear(2, 2),
        {},
        "must be a Hugging Face model with a config, but is",
    ),
    "no head": (lambda: bert().bert, {}, "must have a head that is known (ForSequenceClassific"),
    "seq2seq": (t5, {}, "T5ForConditionalGeneration has none of them. Use SupervisedTask"),
    "no labels": (bert, {"train": [{"input_ids": [1, 2]}]}, "must have one of labels, label"),
    "no inputs": (bert, {"train": [{"words": [1], "label": 0}]}, "a column that the model takes"),
    "empty": (bert, {"train": []}, "Data must not be empty"),
    "text": (bert, {"train": ["a", "b"]}, "Samples must be dicts, as a tokeniser makes them"),
    "iterator": (bert, {"train": iter(GOOD)}, "but are a list_iterator. Tokenise them"),
    "ragged": (
        bert,
        {"train": [{"input_ids": [[1, 2], [3]], "label": 0}, {"input_ids": [1], "label": 1}]},
        "Column 'input_ids' must hold numbers or sequences of them",
    ),
    "collator": (
        bert,
        {"collator": lambda rows: {}["ids"]},
        "The collator must join the samples, but raised KeyError: 'ids'",
    ),
    "rows of numbers": (
        bert,
        {"train": own_labels(GOOD, lambda row: [0.5, 0.2, 0.3])},
        "set the config's problem_type to 'multi_label_classification'",
    ),
    "one label": (
        lambda: bert(problem_type="multi_label_classification"),
        {},
        "Labels must be rows of 0 and 1, one for each class",
    ),
    "tuple": (bert, {"train": ({"input_ids": IDS}, torch.tensor([0, 1]))}, "one is of type Tensor"),
    "loader of tuples": (
        bert,
        {"train": DataLoader(TensorDataset(IDS, IDS[:, 0]))},
        "A DataLoader must give dicts, as a tokeniser makes them, but gives a list",
    ),
    "a sample's label": (
        lambda: bert(head="TokenClassification"),
        {"train": loader(GOOD), "valid": loader(GOOD)},
        "must have one of labels, but have input_ids, attention_mask, label",
    ),
    "words as labels": (
        bert,
        {"train": {"input_ids": IDS, "labels": ["one", "two"]}},
        "Data must be numbers",
    ),
    "scorer": (llama, {"scorer": "acuracy"}, "Did you mean 'accuracy'?"),
    "no model": (lambda: "bert", {}, "must be a Hugging Face model with a config, but is a str"),
    "uniform depth": (
        bert,
        {"uniform": True, "space": Space(depth=True)},
        "With uniform=True `space.depth` must not be True",
    ),
    "uniform weights": (
        bert,
        {"uniform": True, "space": Space(granularity="weight")},
        "With uniform=True `space.granularity` must be 'channel'",
    ),
    "uniform": (
        lambda: bert(intermediate_size=1),
        {"uniform": True},
        "With uniform=True a config must have an attribute for a width",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_that_says_what_to_do(case: str) -> None:
    model, options, message = BAD[case]
    with pytest.raises(AutopruneError) as error:
        study_from(model(), **({"train": GOOD, "valid": GOOD} | options))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_folders_that_hold_no_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AutopruneError, match=r"must hold config.json and model.safetensors"):
        from_pretrained(tmp_path)
    save_pretrained(bert(), tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    for names in (["Nobodys"], ["pipeline"], [], "Bert"):  # a function is no model
        (tmp_path / "config.json").write_text(json.dumps(told | {"architectures": names}))
        with pytest.raises(AutopruneError, match=r"must name a model of transformers"):
            from_pretrained(tmp_path)
    assert same_answers(from_pretrained(tmp_path, model_class=type(bert())), bert().eval())
    (tmp_path / "config.json").write_text(json.dumps(told | {"hidden_size": 15}))
    with pytest.raises(AutopruneError, match="must be a config of BertForSequenceClassification"):
        from_pretrained(tmp_path)
    with pytest.raises(AutopruneError, match="must be a Hugging Face model"):
        save_pretrained(nn.Linear(2, 2), tmp_path)
