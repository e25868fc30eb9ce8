"""Many eras' text encoders in one pass: the same answers, little more memory."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from streamlearn.encoders import Towers
from streamlearn.era_view import QueryEncoder
from streamlearn.schemas import Query
from streamlearn.text_stack import HeadStack, TinyStack, stacked
from tests.models import save_model
from tests.parts import Parts

TEXTS = ["a red ball rolls to the left", "night", "", "a " * 100, "drei Bälle, blau!"]


def encoders(count: int, dim: int = 16) -> list[QueryEncoder]:
    return [QueryEncoder(Towers(dim=dim, seed=seed).frozen_copy()) for seed in range(count)]


@pytest.mark.parametrize("count", [2, 3, 16])
def test_a_stack_encodes_as_each_tower_does(count: int) -> None:
    pairs = encoders(count)
    with torch.inference_mode():
        one_by_one = torch.stack([pair.towers.encode_text(TEXTS) for pair in pairs])
    stack = stacked(pairs)
    assert stack is not None
    torch.testing.assert_close(stack.encode(TEXTS), one_by_one, atol=1e-5, rtol=0)


def test_primed_encoders_answer_from_what_the_stack_told_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = encoders(3)
    alone = [pair.towers.encode_text(TEXTS).numpy() for pair in encoders(3)]
    stack = TinyStack(pairs)
    pairs[1].texts(TEXTS[:2])
    stack.prime(TEXTS)
    for pair, expected in zip(pairs, alone, strict=True):
        monkeypatch.delattr(pair.towers.text, "head")  # to encode once more would fail
        np.testing.assert_allclose(pair.texts(TEXTS), expected, atol=1e-5)
    stack.prime(TEXTS)


def test_a_stack_that_is_made_meanwhile_leaves_a_search_under_way_its_weights() -> None:
    pairs = encoders(2)
    tower = pairs[0].towers.text
    expected = pairs[0].towers.encode_text(TEXTS)
    seen: list[list[int]] = []

    def addresses() -> list[int]:
        return [weight.data_ptr() for weight in tower.parameters()]

    def in_the_middle(*_: object) -> None:
        seen.append(addresses())
        stack = TinyStack(pairs)
        seen.append(addresses())
        stack.prime(["once more"])

    hook = tower.blocks[0].register_forward_hook(in_the_middle)  # type: ignore[index, union-attr]
    vectors = pairs[0].texts(TEXTS)
    hook.remove()
    assert seen[0] == seen[1], "the weights moved under a running search"
    np.testing.assert_array_equal(vectors, expected)


def test_a_stack_grows_by_an_era_and_shares_what_is_large() -> None:
    pairs = encoders(4)
    first = TinyStack(pairs[:3])
    grown = stacked(pairs, first)
    assert isinstance(grown, TinyStack)
    torch.testing.assert_close(grown.encode(TEXTS), TinyStack(pairs).encode(TEXTS), rtol=0, atol=0)
    other = stacked([pairs[3], *pairs[:2]], first)  # it begins with another era
    assert other is not None
    torch.testing.assert_close(other.encode(TEXTS)[1:], first.encode(TEXTS)[:2])
    own = sum(weight.nbytes for weight in grown._weights.values())
    assert own < sum(weight.nbytes for pair in pairs for weight in pair.towers.text.parameters()) / 4
    for pair, table in zip(pairs, grown._tables, strict=True):
        assert table.data_ptr() == pair.towers.text.get_parameter("words.weight").data_ptr()


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return str(save_model(folder / "vit", "vit")), str(save_model(folder / "bert", "bert"))


def test_heads_over_one_trunk_encode_as_each_tower_does(pretrained: tuple[str, str]) -> None:
    first = Towers(*pretrained, dim=16)
    first.train_only("heads")
    pairs = []
    for _ in range(3):
        torch.nn.init.normal_(first.text.get_parameter("head.weight"))
        pairs.append(QueryEncoder(first.frozen_copy()))
    many = [*TEXTS, *(f"a red screen {n}" for n in range(20))]
    alone = [pair.towers.encode_text(many).numpy() for pair in pairs]
    assert not np.allclose(alone[0], alone[1], atol=0.1)
    stack = stacked(pairs)
    assert isinstance(stack, HeadStack)
    stack.prime(many)
    for pair, expected in zip(pairs, alone, strict=True):
        assert pair.unknown(many) == []
        np.testing.assert_allclose(pair.texts(many), expected, atol=1e-5)
    other = Towers(*pretrained, dim=16)  # a trunk of its own, with the same weights
    other.train_only("heads")
    assert stacked([*pairs, QueryEncoder(other)]) is None


@pytest.mark.parametrize(("what", "reads"), [("heads", 1), ("all", 4)])
def test_a_trunk_that_does_not_move_reads_a_query_once_for_all_eras(
    tmp_path: Path, pretrained: tuple[str, str], what: str, reads: int
) -> None:
    towers = Towers(*pretrained, dim=16)
    towers.train_only(what)
    seen = Counter[str]()
    for part, tower in (("video", towers.video), ("text", towers.text)):
        tower.trunk.register_forward_hook(lambda *_, part=part: seen.update([part]))  # copies copy it
    parts = Parts(tmp_path, towers=towers)
    for task in ("t2", "t3", "t4"):
        parts.learn(4)
        parts.boundary(task)
    rows = parts.learn(4)
    parts.finish_reencoding()
    snapshot = parts.publish()
    seen.clear()
    assert parts.ask("a red screen").results
    assert seen == {"text": reads}
    seen.clear()
    clip = parts.catalog.clips(rows[:1])[rows[0]]
    encode = parts.searcher.queries.encoder(Query(video_id=clip.video_id), dim=16, model_version="m")
    frames = parts.frames.get(rows[0])
    assert frames is not None
    for era in snapshot.eras[:-1]:  # in the last one its vector is
        np.testing.assert_allclose(encode(era), era.encoder.clips(np.stack([frames])), atol=1e-6)
    assert seen["video"] == max(1, reads - 1) + 3  # and each once more in the line above


def test_towers_that_do_not_fit_on_each_other_are_asked_one_by_one() -> None:
    assert stacked([]) is None
    assert stacked(encoders(1)) is None
    assert stacked([*encoders(1, dim=8), *encoders(1, dim=16)]) is None
    other = encoders(2)
    other[0].towers.text = torch.nn.Linear(2, 2)
    assert stacked(other) is None


def test_a_search_asks_all_eras_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts(tmp_path)
    for task in ("t2", "t3", "t4"):
        parts.learn(4)
        parts.boundary(task)
    parts.learn(4)
    parts.finish_reencoding()
    snapshot = parts.publish()
    with torch.inference_mode():
        expected = {era.number: era.encoder.towers.encode_text(["a star"]).numpy() for era in snapshot.eras}
    asked: list[int] = []
    encode_text = Towers.encode_text

    def counting(towers: Towers, texts: list[str]) -> torch.Tensor:
        asked.append(id(towers))
        return encode_text(towers, texts)

    monkeypatch.setattr(Towers, "encode_text", counting)
    parts.ask("a star")
    assert asked == []
    for era in snapshot.eras:
        np.testing.assert_allclose(era.encoder.texts(["a star"]), expected[era.number], atol=1e-5)


def test_what_the_one_pass_takes_is_the_time_of_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts(tmp_path)
    parts.learn(4)
    parts.boundary("t2")
    parts.learn(4)
    parts.publish()
    now, encode = [0.0], TinyStack.encode

    def slow(stack: TinyStack, texts: list[str]) -> torch.Tensor:
        now[0] += 5
        return encode(stack, texts)

    monkeypatch.setattr(TinyStack, "encode", slow)
    monkeypatch.setattr("streamlearn.search.time.perf_counter", lambda: now[0])
    parts.ask("a star")
    took = {
        stage: parts.registry.get_sample_value("streamlearn_search_seconds_sum", {"stage": stage})
        for stage in ("encode", "index")
    }
    assert took == {"encode": 5, "index": 0}
