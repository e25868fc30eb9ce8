"""The benchmark: one stream for every method, trials that repeat, rates tuned where nothing is reported."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from streamlearn import cli
from streamlearn.bench import quick
from streamlearn.bench.corpus import JUDGE, LEARN, TEST, Corpus, decode_corpus, open_corpus, render_corpus
from streamlearn.bench.curve import Curve
from streamlearn.bench.gallery import both_ways, caption_search, encode_clips, encode_texts, questions, thinned
from streamlearn.bench.methods import METHODS, learner_settings, method_of
from streamlearn.bench.options import read_orders
from streamlearn.bench.plots import plot_all
from streamlearn.bench.remembered import remember_captions
from streamlearn.bench.report import differences, mean_and_error, report, shown, value
from streamlearn.bench.revisits import revisits
from streamlearn.bench.runs import RESULTS, Results, best_rates, grid, run_all
from streamlearn.bench.schedule import announced, make_schedule, order_of
from streamlearn.bench.trial import Spec, Trial, run_trial
from streamlearn.connectors.synthetic import DOMAINS, write_stream
from streamlearn.encoders import Towers
from streamlearn.errors import SettingsError, SourceError
from streamlearn.settings import MediaSettings, SearchSettings
from tests.models import save_model


def nothing(*_: object) -> None:
    """A progress that nobody watches."""


def listed(clips: int = 64, test: int = 10, judges: int = 12, domains: int = 5) -> Corpus:
    """A corpus without pictures."""
    part = np.tile(np.repeat([LEARN, TEST, JUDGE], [clips, test, judges]), domains)
    n = len(part)
    return Corpus(
        np.zeros((n, 1, 1, 1, 3), np.uint8),
        tuple((f"clip number {i}",) for i in range(n)),
        tuple(map(str, range(n))),
        np.repeat(np.arange(domains), clips + test + judges),
        part,
        DOMAINS[:domains],
    )


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small corpus."""
    return render_corpus(tmp_path_factory.mktemp("clips"), seed=3, clips=64, test=10, judges=12, progress=nothing)


# --- the stream -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "tasks"), [("forward", (0, 1, 2, 3, 4)), ("reverse", (4, 3, 2, 1, 0)), ("20413", (2, 0, 4, 1, 3))]
)
def test_every_clip_to_learn_from_comes_once_in_its_domains_turn(order: str, tasks: tuple[int, ...]) -> None:
    corpus = listed()
    schedule = make_schedule(corpus, order=order, seed=0)
    assert schedule.tasks == tasks
    assert schedule.starts == (0, 64, 128, 192, 256)
    assert sorted(schedule.rows) == sorted(corpus.rows(LEARN))
    assert corpus.domain[schedule.rows].tolist() == np.repeat(tasks, 64).tolist()


def test_clips_that_are_asked_for_arrive_evenly_within_their_domains_turn() -> None:
    corpus = listed()
    schedule = make_schedule(corpus, order="forward", seed=0)
    places = np.sort(schedule.place[corpus.rows(TEST, 1)])
    assert places[0] >= 64
    assert places[-1] < 128
    assert set(np.diff(places)) <= {6, 7}


def test_seed_alone_decides_the_order_within_a_domain() -> None:
    first, again, other = (make_schedule(listed(), order="forward", seed=seed).rows.tolist() for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_mixing_lets_domains_give_way_gradually_and_keeps_their_counts() -> None:
    corpus = listed()
    mixed = corpus.domain[make_schedule(corpus, order="forward", seed=0, mixing_clips=32).rows]
    assert np.bincount(mixed).tolist() == [64] * 5
    assert 0 < np.count_nonzero(np.diff(mixed) != 0) - 4
    assert set(mixed[:40]) == {0}
    assert set(mixed[60:68]) == {0, 1}


def test_joint_order_has_no_tasks() -> None:
    schedule = make_schedule(listed(), order="iid", seed=0)
    assert schedule.starts == (0,)
    assert len(set(listed().domain[schedule.rows[:32]])) == 5


def test_passes_go_through_a_domain_again_before_the_next() -> None:
    corpus = listed()
    schedule = make_schedule(corpus, order="forward", seed=0, passes=3)
    assert schedule.starts == (0, 192, 384, 576, 768)
    assert np.bincount(schedule.rows)[corpus.rows(LEARN)].tolist() == [3] * 320
    assert schedule.place[schedule.rows[0]] == 0  # of several, a clip's first arrival


def test_announced_boundaries_are_true_or_wrong_as_asked() -> None:
    schedule = make_schedule(listed(), order="forward", seed=0)
    assert announced(schedule, "oracle", 32) == {64, 128, 192, 256}
    assert announced(schedule, "doubled", 32) == {32, 64, 96, 128, 160, 192, 224, 256, 288}
    assert announced(schedule, "halved", 32) == {128, 256}
    assert announced(schedule, "late25", 1) == {89, 153, 217, 281}
    assert announced(schedule, "detector", 32) == announced(schedule, "none", 32) == set()
    with pytest.raises(SettingsError, match="must be one of detector, oracle, doubled"):
        announced(schedule, "orakle", 32)


def test_batches_end_where_a_task_is_announced() -> None:
    schedule = make_schedule(listed(), order="forward", seed=0)
    batches = list(schedule.batches(48, frozenset({64, 1000})))
    assert [len(b) for b in batches] == [48, 16, 48, 48, 48, 48, 48, 16]
    assert np.concatenate(batches).tolist() == schedule.rows.tolist()


@pytest.mark.parametrize("order", ["backward", "01234567", ""])
def test_unknown_order_is_refused(order: str) -> None:
    with pytest.raises(SettingsError, match=r"digits from 0 to 4$"):
        order_of(order, 5)


def test_domain_that_comes_back_brings_its_other_clips() -> None:
    corpus = listed()
    schedule = make_schedule(corpus, order="000120", seed=0)
    assert schedule.tasks == (0, 1, 2, 0)
    assert schedule.starts == (0, 48, 112, 176)
    assert len(schedule.rows) == len(set(schedule.rows)) == 192
    assert corpus.domain[schedule.rows].tolist() == [0] * 48 + [1] * 64 + [2] * 64 + [0] * 16
    asked = schedule.place[corpus.rows(TEST, 0)]
    assert [sum(asked < 48), sum((asked >= 176) & (asked < 192))] == [7, 3]
    assert set(schedule.place[corpus.rows(TEST, 4)]) == {192}  # never comes


# --- clips ------------------------------------------------------------------------------------------------------------


def test_rendered_corpus_has_its_parts_and_is_made_once(rendered: Path) -> None:
    corpus = open_corpus(rendered)
    assert corpus.frames.shape == (430, 8, 32, 32, 3)
    assert [len(corpus.rows(part, 2)) for part in (LEARN, TEST, JUDGE)] == [64, 10, 12]
    for domain in range(5):
        captions = [corpus.captions[row] for row in np.flatnonzero(corpus.domain == domain)]
        assert len(set(captions)) == 86
    stamp = (rendered / "frames.npy").stat().st_mtime_ns
    again = render_corpus(rendered.parent, seed=3, clips=64, test=10, judges=12, progress=nothing)
    assert again == rendered
    assert (rendered / "frames.npy").stat().st_mtime_ns == stamp


def _folder(path: Path, domain: str, splits: Mapping[int, str]) -> Path:
    write_stream(path, domains=[domain], clips_per_domain=12, seed=0, size_px=64)
    manifest = path / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows = [row | {"split": splits.get(i, "train")} for i, row in enumerate(rows)]
    (path / rows[5]["path"]).write_bytes(b"no video")
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_folders_are_decoded_by_the_daemons_decoder_and_damaged_clips_left_out(tmp_path: Path) -> None:
    folders = [
        _folder(tmp_path / "a", "studio", {0: "test", 1: "val"}),
        _folder(tmp_path / "b", "night", {2: "heldout"}),
    ]
    made = decode_corpus(
        tmp_path / "cache", folders=folders, split="split", media=MediaSettings(), learn_px=32, progress=nothing
    )
    corpus = open_corpus(made)
    assert corpus.domains == ("a", "b")
    assert corpus.frames.shape == (22, 8, 32, 32, 3)
    assert corpus.ids[0] == "a/studio-000000"
    assert corpus.rows(TEST).tolist() == [0, 13]
    assert corpus.rows(JUDGE, 0).tolist() == [1]


def test_folder_without_clips_to_ask_for_is_refused(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "a", "studio", {})
    with pytest.raises(SourceError, match="gives no clip to ask for"):
        decode_corpus(tmp_path, folders=[folder], split="split", media=MediaSettings(), learn_px=32, progress=nothing)


def test_row_without_the_field_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").write_text('{"path": "a.mp4", "caption": "a ball"}\n')
    with pytest.raises(SourceError, match="line 1: must name path, caption and instance_split"):
        decode_corpus(
            tmp_path, folders=[tmp_path], split="instance_split", media=MediaSettings(), learn_px=32, progress=nothing
        )


def test_blank_lines_do_not_count_and_only_a_line_feed_ends_a_row(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "a", "studio", {0: "test"})
    manifest = folder / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows[1]["caption"] = "one\u2028line"
    manifest.write_text("\n".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    made = decode_corpus(
        tmp_path / "cache", folders=[folder], split="split", media=MediaSettings(), learn_px=32, progress=nothing
    )
    assert open_corpus(made).captions[1] == ("one\u2028line",)
    manifest.write_text(manifest.read_text(encoding="utf-8") + "[1]\n", encoding="utf-8")
    with pytest.raises(SourceError, match="line 24: must name path, caption and split"):
        decode_corpus(
            tmp_path / "cache", folders=[folder], split="split", media=MediaSettings(), learn_px=32, progress=nothing
        )


@pytest.mark.parametrize(("folders", "name"), [(("x/a", "y/a"), "a"), (("a", "./a"), "a"), (("b", "pooled"), "pooled")])
def test_domains_that_would_not_be_told_apart_are_refused(tmp_path: Path, folders: list[str], name: str) -> None:
    with pytest.raises(SourceError, match=f"--stream .*: a domain is called as its folder, and '{name}' is taken"):
        decode_corpus(
            tmp_path, folders=[tmp_path / folder for folder in folders], split="split", media=MediaSettings(),
            learn_px=32, progress=nothing,
        )  # fmt: skip


# --- methods ----------------------------------------------------------------------------------------------------------


def test_speed_matched_control_runs_base_moco_at_the_speed_of_bmu() -> None:
    control = learner_settings(method_of("moco-matched"), {}, 4e-4, 0)
    bmu = learner_settings(method_of("bmu-local"), {}, 4e-4, 0)
    assert control.method == "moco"
    assert control.learning_rate == pytest.approx(2e-4)
    assert bmu.learning_rate == 4e-4


def test_method_takes_settings_behind_a_colon() -> None:
    settings = learner_settings(method_of("bmu:global_momentum=3200 clips&queue_size=64"), {"queue_size": 32}, 1e-3, 7)
    assert (settings.global_momentum, settings.queue_size, settings.seed) == ("3200 clips", 64, 7)


@pytest.mark.parametrize("text", ["bmv", "bmu+500", "bmu+replay", "bmu:queue_size"])
def test_method_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(f"method '{text}'")):
        method_of(text)


# --- questions --------------------------------------------------------------------------------------------------------


def test_perfect_scores_are_perfect_both_ways() -> None:
    found = both_ways(np.eye(4))
    assert found["t2v"] == found["v2t"] == {"1": 100.0, "5": 100.0, "10": 100.0, "median": 1.0}


def test_thinned_question_loses_words_and_never_all() -> None:
    asked = thinned(["a b c d e f g h i j"] * 50 + ["word"], 0)
    assert 280 < sum(len(text.split()) for text in asked[:50]) < 320
    assert asked[-1] == "word"


def test_caption_search_finds_the_question_itself() -> None:
    found = caption_search(listed(), 0)
    assert found["full"]["1"] == 100
    assert found["thinned"]["1"] < 100


# --- trials -----------------------------------------------------------------------------------------------------------


def _timeless(result: Mapping[str, Any]) -> dict[str, Any]:
    return {name: v for name, v in result.items() if name != "pairs_per_s"}


@pytest.mark.parametrize(("what", "asked"), [("heads", [2, 1]), ("all", [3, 2, 3, 2])])
@torch.no_grad()
def test_fixed_text_trunk_is_asked_once_for_each_caption(tmp_path: Path, what: str, asked: list[int]) -> None:
    towers = Towers("tiny", str(save_model(tmp_path, "bert")), 24).eval()
    towers.train_only(what)
    seen: list[int] = []
    towers.text.trunk.register_forward_hook(lambda *of: seen.append(len(of[2][0])))
    texts = ["a red screen", "a", "a red screen", "green"]
    plain = towers.encode_text(texts)
    seen.clear()
    remember_captions(towers)
    for copy in (towers.frozen_copy(), towers.frozen_copy()):
        found = torch.cat([copy.encode_text(texts[:3]), copy.encode_text(texts[2:])[1:]])
        torch.testing.assert_close(found, plain)
    assert seen == asked


@pytest.mark.slow
def test_trial_repeats_to_the_last_bit_and_measures_every_copy(rendered: Path) -> None:
    spec = Spec(str(rendered), "bmu", 3e-4, 0, boundaries="oracle")
    result = run_trial(spec)
    assert _timeless(result) == _timeless(run_trial(spec))
    assert list(result["copies"]) == ["local", "online", "global"]
    assert result["pairs"] == 320
    assert [b["clips"] for b in result["boundaries"]] == [64, 128, 192, 256]
    assert len(result["sealed_with"]) == 5
    assert set(result["served"]["judged"]) == {"1", "2", "4", "all"}
    lost = result["served"]["plain"]["all"]
    assert 0 <= lost["forgetting_pool"]["5"] < lost["forgetting"]["5"] < 100  # the pool's growth counts as loss
    assert set(result["served"]["single"]) == {"t2v", "v2t", "among"}
    for asked in (result["served"]["single"], result["served"]["judged"]["all"]):
        assert asked["among"]["median"] > asked["t2v"]["median"]  # 430 clips, of which 50 are test clips
    assert result["revisits"] == []
    local = result["copies"]["local"]
    assert set(local["tasks"]) == set(DOMAINS)
    assert local["learned"]["5"] - local["final"]["5"] == pytest.approx(-local["bwt"]["5"] * 4 / 5)
    served = [entry for entry in result["course"] if entry["copy"] == "local"]
    assert [entry["clips"] for entry in served] == [32, 64, 96, 128, 160, 192, 224, 256, 288, 320]
    assert [len(entry["recall"]) for entry in served] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("what", ["all", "heads", "lora"])
def test_trial_learns_seals_and_asks_on_cuda(tmp_path: Path, rendered: Path, what: str) -> None:
    model = {"device": "cuda"}
    if what != "all":
        model |= {"text": str(save_model(tmp_path, "bert")), "trainable": what}
    result = run_trial(Spec(str(rendered), "bmu", 3e-4, 0, boundaries="oracle", model=model))
    assert len(result["sealed_with"]) == 5
    assert set(result["served"]["judged"]) == {"1", "2", "4", "all"}


@pytest.mark.slow
def test_clips_that_come_back_are_asked_for_as_each_era_would_encode_them(rendered: Path) -> None:
    trial = Trial(Spec(str(rendered), "moco", 1e-3, 0, order="000120", boundaries="oracle", asked_per_task=1))
    result = trial.run()
    (visit,) = result["revisits"]
    assert (visit["domain"], visit["clips"]) == ("studio", 16)
    assert len(result["sealed_with"]) == 4
    pool = result["served"]["plain"]["all"]["t2v"]
    assert visit["anew"]["all"] == pool
    first, *sealed, last = trial.eras.eras
    asked = np.concatenate([era.tests for era in trial.eras.eras])
    texts = encode_texts(last.pairs["local"], questions(trial.corpus, asked))
    stored = [era.of(era.tests, era.chosen) for era in (first, *sealed)]
    single = both_ways(texts @ np.concatenate([*stored, last.of(last.tests, "local")]).T)
    assert {way: result["served"]["single"][way] for way in single} == single
    curve = Curve(trial.corpus, trial.eras.eras, SearchSettings())
    plain = curve.ranks_with(last.tests, 3)  # they are there already
    assert sorted(plain) == sorted(row for era in trial.eras.eras for row in era.tests)
    assert visit["anew"]["all"]["5"] == 100 * np.mean([rank <= 5 for rank in plain.values()])
    for way, era in (("old", 0), ("before", 2)):
        moved = curve.ranks_with(last.tests, era)
        assert visit[way]["came"]["1"] == 100 * np.mean([moved[row] <= 1 for row in last.tests])
    assert moved != plain  # an era that knows neither these clips nor their words
    third, place = sealed[-1], trial.schedule.place  # a boundary that was dated early takes a clip of the visit before
    stray = third.tests[[np.argmax(place[third.tests])]]
    rows = np.union1d(last.rows, stray)
    vectors = {name: encode_clips(pair, trial.corpus, rows) for name, pair in last.pairs.items()}
    early = [*trial.eras.eras[:2], replace(third, tests=np.setdiff1d(third.tests, stray))]
    early += [replace(last, rows=rows, tests=np.union1d(last.tests, stray), vectors=vectors)]
    curve = Curve(trial.corpus, early, SearchSettings())
    (again,) = revisits(curve, trial.corpus, trial.schedule)
    expected = curve.ranks_with(last.tests, 2)
    assert again["before"]["came"]["1"] == 100 * np.mean([expected[row] <= 1 for row in last.tests])
    assert again["before"]["all"]["5"] == 100 * np.mean([rank <= 5 for rank in expected.values()])
    assert set(first.tests) | set(last.tests) == set(trial.corpus.rows(TEST, 0))
    local = result["copies"]["local"]  # the first domain is the current one again; two are past
    assert local["learned"]["5"] - local["final"]["5"] == pytest.approx(-local["bwt"]["5"] * 2 / 3)


@pytest.mark.slow
def test_restarted_weights_know_the_last_task_alone(rendered: Path) -> None:
    spec = Spec(str(rendered), "restart", 1e-3, 0, boundaries="oracle", eras=False)
    alone = replace(spec, method="moco", boundaries="none", order="forward")
    restarted, going_on = run_trial(spec), run_trial(alone)
    # The first task is learned alike; what came between is gone from the weights.
    first = [result["course"][0]["recall"]["studio"] for result in (restarted, going_on)]
    assert first[0] == first[1]
    assert restarted["copies"]["local"]["tasks"] != going_on["copies"]["local"]["tasks"]


# --- many trials ------------------------------------------------------------------------------------------------------


def _line(method: str, rate: float, final: float, *, role: str = "reported", seed: int = 1) -> dict[str, Any]:
    spec = {"method": method, "learning_rate": rate, "seed": seed, "order": "forward", "corpus": "c", "boundaries": "x"}
    spec |= {"mixing_clips": 0, "passes": 1, "learner": {}, "model": {}, "drift": {}, "search": {}}
    recalls = {"1": final / 2, "5": final, "10": final, "median": 3.0}
    copy = {what: recalls for what in ("final", "learned", "forgetting", "bwt", "harmonic", "minimum")}
    pooled = {"t2v": recalls, "v2t": recalls}
    result = {
        "copies": {"local": copy | {"pooled": pooled}},
        "served": {"judged": {"all": {"t2v": recalls, "among": recalls}}, "single": {"among": recalls}},
        "captions": {"full": recalls, "thinned": recalls},
        "sealed_with": ["local"],
        "pairs_per_s": 100.0,
        "state_bytes": 2**20,
    }
    facts = {"key": "k", "role": role, "commit": "c0ffee", "machine": "m", "date": "2026-11-21"}
    return facts | {"spec": spec, "result": result}


def test_rate_is_picked_by_final_recall() -> None:
    lines = [
        _line("bmu-local", 1e-4, 40.0, role="tuning"),
        _line("bmu-local", 4e-4, 50.0, role="tuning"),
        _line("bmu-local", 8e-4, 50.0, role="tuning"),
        _line("moco", 1e-4, 45.0, role="tuning"),
        _line("moco", 2e-4, 44.0, role="tuning"),
    ]
    names = ["bmu-local", "moco", "moco-matched", "restart", "bmu-local+replay500", "moco:queue_size=1024"]
    assert list(best_rates(lines, names).values()) == [4e-4, 1e-4, 4e-4, 1e-4, 4e-4, 1e-4]
    with pytest.raises(SourceError, match="inbatch has no tuning trial"):
        best_rates(lines, ["inbatch"])


def test_rates_are_picked_among_trials_of_the_same_settings_alone(tmp_path: Path) -> None:
    plain = Spec("/somewhere/corpus", "moco", 1e-4, 0)
    longer = replace(plain, learner={"queue_size": "1024"})
    results = Results(tmp_path)
    for spec, rate, final in ((plain, 1e-4, 90.0), (plain, 4e-4, 50.0), (longer, 1e-4, 50.0), (longer, 4e-4, 60.0)):
        trial = replace(spec, learning_rate=rate)
        for role, found in (("tuning", final), ("reported", 100 - final)):
            results.add(role, trial, _line("moco", rate, found)["result"])
    for base, best in ((plain, 1e-4), (longer, 4e-4)):
        mine = results.of("tuning", grid([base], methods=["moco"], learning_rates=[1e-4, 4e-4]))
        assert [line["spec"]["learning_rate"] for line in mine] == [1e-4, 4e-4]
        assert best_rates(mine, ["moco"]) == {"moco": best}


def test_grid_is_every_method_at_every_rate() -> None:
    specs = list(grid([Spec("c", "", 0.0, 5)], methods=["moco", "bmu"], learning_rates=[1e-4, 2e-4]))
    assert [(s.method, s.learning_rate, s.seed) for s in specs] == [
        ("moco", 1e-4, 5), ("moco", 2e-4, 5), ("bmu", 1e-4, 5), ("bmu", 2e-4, 5),
    ]  # fmt: skip


def test_finished_trials_are_not_run_again_and_half_a_line_is(tmp_path: Path) -> None:
    spec = Spec("/somewhere/corpus", "moco", 3e-4, 0)
    Results(tmp_path).add("reported", spec, {"anything": 1})
    with (tmp_path / RESULTS).open("a") as file:
        file.write('{"key": "half')
    results = Results(tmp_path)
    assert [line["result"] for line in results.lines] == [{"anything": 1}]
    moved = replace(spec, corpus="/elsewhere/corpus")  # the same clips, by the folder's name
    done: list[object] = []
    run_all([("reported", moved)], results, workers=1, on_done=lambda s, line: done.append(line))
    assert done == [None]
    assert not results.has("tuning", spec)
    assert not results.has("reported", replace(spec, seed=1))


@pytest.mark.parametrize("line", ["nothing", "[1]", '{"key": "k", "role": "reported", "spec": {}}'])
def test_damaged_line_is_refused_with_its_number(tmp_path: Path, line: str) -> None:
    (tmp_path / RESULTS).write_text(f"{json.dumps(_line('moco', 1e-4, 50.0))}\n{line}\n")
    with pytest.raises(SourceError, match="line 2 is no trial; remove it"):
        Results(tmp_path)


def test_trial_that_fails_costs_those_beside_it_nothing(tmp_path: Path, rendered: Path) -> None:
    bad, good = (Spec(corpus, "inbatch", 1e-4, 0, asked_per_task=1, eras=False) for corpus in ("absent", str(rendered)))
    results = Results(tmp_path)
    with pytest.raises(SourceError, match="absent holds no corpus"):
        run_all([("reported", bad), ("reported", good)], results, workers=1, on_done=nothing)
    assert [line["key"] for line in Results(tmp_path).lines] == [good.key]


_ENDLESS = """
import multiprocessing, signal, sys, threading, time
from pathlib import Path
from streamlearn.bench.runs import Results, run_all
from streamlearn.bench.trial import Spec

def tell():
    while not (workers := multiprocessing.active_children()):
        time.sleep(0.01)
    print(workers[0].pid, flush=True)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored below a shell's background job, as CI may be
    threading.Thread(target=tell).start()
    endless = Spec(sys.argv[1], "moco", 1e-4, 0, passes=5000)
    run_all([("reported", endless)], Results(Path(sys.argv[2])), workers=1, on_done=print)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_trials_end_with_the_benchmark_that_was_told_to(tmp_path: Path, rendered: Path, how: signal.Signals) -> None:
    script = tmp_path / "endless.py"
    script.write_text(_ENDLESS)
    command = [sys.executable, str(script), str(rendered), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as bench:
        assert bench.stdout is not None
        worker = os.pidfd_open(int(bench.stdout.readline()))
        bench.send_signal(how)
        ended, _, _ = select.select([worker], [], [], 30)
        if not ended:
            signal.pidfd_send_signal(worker, signal.SIGKILL)
            bench.kill()
        os.close(worker)
        assert ended
        assert bench.wait(30) != 0


# --- the report -------------------------------------------------------------------------------------------------------


def test_standard_error_is_that_of_the_mean() -> None:
    mean, error = mean_and_error([1.0, 2.0, 3.0, 4.0])
    assert (mean, error) == (2.5, pytest.approx(np.std([1, 2, 3, 4], ddof=1) / 2))
    assert shown([40.0]) == "40.0"
    assert shown([40.0, 42.0], signed=True) == "+41.0 ± 1.0"
    assert shown([]) == ""


def test_differences_are_taken_on_the_same_seed_and_order() -> None:
    mine = [_line("bmu-local", 1e-4, 50.0, seed=1), _line("bmu-local", 1e-4, 60.0, seed=2)]
    others = [_line("moco", 1e-4, 40.0, seed=2), _line("moco", 1e-4, 45.0, seed=1), _line("moco", 1e-4, 0.0, seed=3)]
    assert differences(mine, others, value("copies.local.final.5")) == [5.0, 20.0]


def test_report_ranks_by_final_recall_and_leaves_tuning_out() -> None:
    lines = [_line("moco", 1e-4, 40.0), _line("bmu-local", 2e-4, 50.0), _line("inbatch", 1e-4, 99.0, role="tuning")]
    text = report(lines)
    assert text.index("| `bmu-local` | 0.0002 | 50.0") < text.index("| `moco` | 0.0001 | 40.0")
    assert "inbatch" not in text
    assert "commit c0ffee" in text
    assert "| `moco` | -10.0" in text
    among = text[text.index("among all clips") :]
    assert "| `bmu-local` | 25.0 / 50.0 |  |  |  | 25.0 / 50.0 | 1 |" in among


def test_report_names_the_rates_of_a_method_that_has_several() -> None:
    lines = [_line("moco", 2e-4, 40.0), _line("moco", 4e-4, 45.0), _line("bmu-local", 4e-4, 50.0)]
    text = report(lines)
    assert "| `moco@0.0004` | -5.0" in text
    assert "| `moco@0.0002` | -10.0" in text
    assert "`bmu-local@" not in text


def test_report_shows_each_direction_of_each_task_and_of_all_in_one() -> None:
    lines = [_line("moco", 4e-4, 50.0, seed=seed) for seed in (1, 2)]
    for line, there in zip(lines, (10.0, 20.0), strict=True):
        ways = {
            way: {"1": one, "5": 2 * one, "10": 3 * one, "median": 4.0} for way, one in (("t2v", there), ("v2t", 5.0))
        }
        line["result"]["copies"]["local"]["tasks"] = {"v1.0": ways}
    text = report(lines)
    assert "Domains v1.0; seeds 1, 2; orders forward." in text
    rows = [row for row in text.splitlines() if row.startswith("| `moco`, ")]
    assert rows == [
        "| `moco`, v1.0 | 15.0 ± 5.0 | 30.0 ± 10.0 | 45.0 ± 15.0 | 4.0 ± 0.0"
        " | 5.0 ± 0.0 | 10.0 ± 0.0 | 15.0 ± 0.0 | 4.0 ± 0.0 |",
        "| `moco`, all in one |" + 2 * " 25.0 ± 0.0 | 50.0 ± 0.0 | 50.0 ± 0.0 | 3.0 ± 0.0 |",
    ]


def test_orders_that_are_the_same_by_other_names_are_run_once() -> None:
    assert read_orders("forward,01234,reverse,iid,43210,20413", 5) == ["forward", "reverse", "iid", "20413"]
    assert read_orders("forward,reverse", 1) == ["forward"]


def test_report_shows_domains_that_come_back() -> None:
    found = {way: {who: {"1": 10.0, "5": 50.0} for who in ("came", "earlier", "all")} for way in ("anew", "before")}
    found["old"] = {who: {"1": 20.0, "5": 60.0} for who in ("came", "earlier", "all")}
    line = _line("bmu-local", 4e-4, 50.0)
    line["result"]["revisits"] = [{"domain": "studio", "clips": 400, **found}]
    assert "| `bmu-local`, forward, 400 clips | 10.0 / 50.0 | 20.0 / 60.0 | 10.0 / 50.0 |" in report([line])
    assert "come back" not in report([_line("bmu-local", 4e-4, 50.0)])


# --- the command ------------------------------------------------------------------------------------------------------


def test_wrong_setting_is_refused(tmp_path: Path) -> None:
    runner = CliRunner()
    answer = runner.invoke(cli.app, ["bench", "cvlm", "--out", str(tmp_path), "--set", "kafka.topics=x"])
    assert isinstance(answer.exception, SettingsError)
    assert "the section being one of learner, model, drift, search, media" in str(answer.exception)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--boundaries orakle", "--boundaries orakle: must be one of detector, oracle,"),
        ("--orders forward,backwards", "--orders forward,backwards: order 'backwards': must be forward, reverse, iid,"),
        ("--seeds x", "--seeds x: write whole numbers"),
        ("--seeds -1", "--seeds -1: write whole numbers"),
        ("--learning-rates a,b", "--learning-rates a,b: a learning rate is a number above 0, as in 2e-4, not 'a'"),
        ("--learning-rates 1e-4,0", "is a number above 0, as in 2e-4, not '0'"),
        ("--methods moko", "--methods moko: method 'moko': must begin with one of inbatch,"),
        ("--methods moco@1e-4,moco@2e-4", "moco is there twice"),
        ("--methods moco:queue_sise=1", "learner.queue_sise: Extra inputs are not permitted"),
        ("--methods moco:learning_rate=1e-3", "each trial has its own learning_rate; a rate comes last, as in @2e-4"),
        ("--set learner.learning_rate=1e-3", "each trial has its own; give it by --learning-rates"),
        ("--set learner.seed=3", "each trial has its own; give it by --seeds"),
        ("--set learner.method=moco", "each trial has its own; give it by --methods"),
        ("--set learner.queue_size=-1", "learner.queue_size: Input should be greater"),
        ("--set search.max_eraz=9", "search.max_eraz: Extra inputs are not permitted"),
        ("--set media.frames=4", "it needs --stream"),
        ("--set model.threads=2", "--workers says how many run at a time"),
        ("--set model.device=cuda:99", "model.device = 'cuda:99' is not usable here"),
        ("--set model.device=meta", "model.device = 'meta' is not usable here: nothing is learned on meta"),
        ("--set drift.detector=kswin", "the benchmark's detector is mean_shift"),
        ("--split part", "without --stream there are no manifests: leave out --split"),
        ("--stream a --clips 100", "--stream brings clips of its own: leave out --clips"),
        ("--quick --methods moco --seeds 1", "--quick is always the same trials: leave out --methods, --seeds"),
        ("--quick --no-eras -s learner.queue_size=9", "leave out --eras, --set"),
    ],
)
def test_option_that_cannot_be_meant_is_refused_before_anything_is_rendered(
    tmp_path: Path, options: str, sentence: str
) -> None:
    out = tmp_path / "out"
    answer = CliRunner().invoke(cli.app, ["bench", "cvlm", "--out", str(out), *options.split()])
    assert isinstance(answer.exception, SettingsError), answer.output
    assert sentence in str(answer.exception)
    assert not out.exists()


def test_folder_that_cannot_be_written_is_refused_before_the_first_trial(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in ("file", "file/below"):
        answer = CliRunner().invoke(cli.app, ["bench", "cvlm", "--out", str(tmp_path / out)])
        assert isinstance(answer.exception, SettingsError)
        assert "cannot be written" in str(answer.exception)


def test_pictures_of_one_domain_have_no_legend_of_nothing(tmp_path: Path) -> None:
    lines = [_line("moco", 4e-4, 50.0), _line("moco", 4e-4, 50.0)]
    for line, order in zip(lines, ("0", "iid"), strict=True):
        line["spec"]["order"] = order
        del line["result"]["copies"]["local"]["learned"]
        line["result"] |= {"course": [{"clips": 64, "copy": "local", "recall": {}}], "starts": [0]}
    assert len(plot_all(lines[:1], tmp_path)) == len(plot_all(lines[1:], tmp_path)) == 3


def test_report_of_no_trials_or_against_no_method_is_refused(tmp_path: Path) -> None:
    def refused(*words: str) -> str:
        answer = CliRunner().invoke(cli.app, ["bench", "report", *words])
        assert isinstance(answer.exception, SettingsError), answer.output
        return str(answer.exception)

    absent = tmp_path / "absent"
    assert "holds no trials: name the --out" in refused(str(absent))
    assert not absent.exists()
    (tmp_path / RESULTS).touch()
    assert "holds no trials" in refused(str(tmp_path))
    (tmp_path / RESULTS).write_text(json.dumps(_line("moco", 1e-4, 50.0)) + "\n")
    assert "--against bmv: must be one of moco, which were reported" in refused(str(tmp_path), "--against", "bmv")
    assert not (tmp_path / "report.md").exists()


def test_rate_behind_a_method_is_not_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, str, float]] = []

    def run(trials: list[tuple[str, Spec]], results: Results, **_: Any) -> None:
        for role, spec in trials:
            ran.append((role, spec.method, spec.learning_rate))
            results.add(role, spec, _line(spec.method, spec.learning_rate, 50.0)["result"])

    monkeypatch.setattr("streamlearn.bench.runs.run_all", run)
    monkeypatch.setattr("streamlearn.bench.plots.plot_all", lambda lines, folder: [])
    monkeypatch.setattr("streamlearn.bench.corpus.render_corpus", lambda cache, **_: cache)
    command = ["bench", "cvlm", "--out", str(tmp_path), "--seeds", "1"]
    command += ["--orders", "forward", "--methods", "moco@2e-4,bmu", "--learning-rates", "1e-4,3e-4"]
    answer = CliRunner().invoke(cli.app, command)
    assert answer.exit_code == 0, answer.output
    assert ran[:2] == [("tuning", "bmu", 1e-4), ("tuning", "bmu", 3e-4)]
    assert ran[2:] == [("reported", "moco", 2e-4), ("reported", "bmu", 1e-4)]
    wrong = CliRunner().invoke(cli.app, ["bench", "cvlm", "--out", str(tmp_path), "--methods", "moco@fast"])
    assert "after @ comes a learning rate, as in moco@2e-4" in str(wrong.exception)
    ran.clear()
    command[-3] = "bmu-local@2e-4,moco-matched,restart"  # one base has its rate, the other is tuned for its control
    assert CliRunner().invoke(cli.app, command).exit_code == 0
    assert ran[:2] == [("tuning", "moco", 1e-4), ("tuning", "moco", 3e-4)]
    assert ran[2:] == [
        ("reported", name, rate) for name, rate in (("bmu-local", 2e-4), ("moco-matched", 2e-4), ("restart", 1e-4))
    ]
    ran.clear()
    command[-3] = "moco@2e-4,bmu"
    command[-1] = "3e-4,1e-3"  # what the first run found at other rates counts no longer
    assert CliRunner().invoke(cli.app, command).exit_code == 0
    assert ran[-1] == ("reported", "bmu", 3e-4)


def _quick() -> list[dict[str, Any]]:
    lines = []
    for method in quick.METHODS:
        line = _line(method, 4e-4, 50.0)
        line["result"]["copies"]["online"] = {"learned": {"5": 80.0}}
        lines.append(line)
    return lines


def test_quick_checks_name_what_is_not_as_it_must_be() -> None:
    lines = _quick()
    assert [text.split(" ends")[0] for text in quick.check(lines)] == [
        "bmu-local+replay500",
        "bmu-local:queue_size=1024",
    ]
    for line in lines:
        if "+" in line["spec"]["method"] or line["spec"]["method"].startswith("bmu-local:"):
            line["result"]["copies"]["local"]["final"]["5"] = 70.0
    assert quick.check(lines) == []
    lines[1]["result"]["copies"]["online"]["learned"]["5"] = 59.0
    assert quick.check(lines) == ["moco has R@5 59.0 when it has learned a task; at least 60.0 is due"]


def test_quick_checks_its_own_trials_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = {line["spec"]["method"]: line["result"] for line in _quick()}
    for method in ("bmu-local+replay500", f"bmu-local:{quick.LONG_QUEUE}"):
        good[method] = _line(method, 4e-4, 70.0)["result"]
        good[method]["copies"]["online"] = {"learned": {"5": 80.0}}

    def run(trials: list[tuple[str, Spec]], results: Results, **_: Any) -> None:
        for role, spec in trials:
            results.add(role, spec, good[spec.method])
        for method in quick.METHODS:  # others' trials, which came later and learned nothing
            bad = _line(method, 1e-4, 0.0)["result"]
            bad["copies"]["online"] = {"learned": {"5": 0.0}}
            results.add("reported", Spec("elsewhere", method, 1e-4, 7), bad)

    monkeypatch.setattr("streamlearn.bench.runs.run_all", run)
    monkeypatch.setattr("streamlearn.bench.plots.plot_all", lambda lines, folder: [])
    monkeypatch.setattr("streamlearn.bench.corpus.render_corpus", lambda cache, **_: cache)
    answer = CliRunner().invoke(cli.app, ["bench", "cvlm", "--out", str(tmp_path), "--quick", "--workers", "1"])
    assert answer.exit_code == 0, answer.output


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_quick_benchmark_finds_what_must_be_so_and_writes_its_report(tmp_path: Path) -> None:
    answer = CliRunner().invoke(cli.app, ["bench", "cvlm", "--out", str(tmp_path), "--quick"])
    assert answer.exit_code == 0, answer.output
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert all(f"`{method}`" in text for method in quick.METHODS)
    for picture in ("learned-1.png", "course-1.png", "encoders-1.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
        assert f"]({picture})" in text


def test_known_methods_are_valid_settings() -> None:
    for name in METHODS:
        assert learner_settings(method_of(name), {}, 1e-3, 0).learning_rate > 0
