"""The verbs of `streamlearn bench`: run the benchmark of continual learning, and make its report."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from streamlearn.errors import SettingsError

if TYPE_CHECKING:
    from streamlearn.bench.runs import Results
    from streamlearn.bench.trial import Spec

bench_app = typer.Typer(no_args_is_help=True, help="Benchmarks of continual learning; docs/bench.md has the protocol.")
err = Console(stderr=True)

_METHODS = "inbatch,moco,moco-matched,bmu-local,bmu,restart"
_RATES = "1e-4,2e-4,4e-4,8e-4"
_AGAINST = "bmu-local"
_QUICK_TAKES = frozenset({"out", "quick", "workers", "cache", "tuning_seed"})


@bench_app.command()
def cvlm(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder of trials.jsonl and the report; finished trials are kept.")],
    methods: Annotated[
        str, typer.Option(help="Separated by commas; docs/bench.md names them. NAME@RATE is not tuned.")
    ] = _METHODS,
    seeds: Annotated[str, typer.Option(help="Of the reported trials.")] = "1,2,3",
    orders: Annotated[
        str, typer.Option(help="forward, reverse, iid (joint training), or digits as 20413.")
    ] = "forward,reverse",
    learning_rates: Annotated[str, typer.Option(help="The grid; a single one is not tuned.")] = _RATES,
    tuning_seed: Annotated[int, typer.Option(min=0, help="Learning rates are picked on this seed alone.")] = 0,
    boundaries: Annotated[
        str, typer.Option(help="detector, oracle, doubled, halved, late25, late50 or none.")
    ] = "detector",
    mixing_clips: Annotated[int, typer.Option(min=0, help="One domain gives way to the next over about so many.")] = 0,
    clips: Annotated[int, typer.Option(min=64, help="Rendered clips of each domain that are learned from.")] = 1600,
    test: Annotated[int, typer.Option(min=10, help="... and that are asked for.")] = 100,
    passes: Annotated[int, typer.Option(min=1, help="How often each domain is gone through; 1 is a stream.")] = 1,
    stream: Annotated[
        list[Path] | None, typer.Option(help="A folder with manifest.jsonl, a domain each, in order.")
    ] = None,
    split: Annotated[str, typer.Option(help="The manifests' field that says what is asked for.")] = "split",
    eras: Annotated[bool, typer.Option(help="Seal eras and search them.")] = True,
    override: Annotated[
        list[str] | None, typer.Option("--set", "-s", metavar="NAME=VALUE", help="For all methods.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Trials at a time, one thread each.")] = 2,
    cache: Annotated[Path | None, typer.Option(help="Folder of decoded clips; below --out otherwise.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The small version that CI runs, and its checks.")] = False,
) -> None:
    """Continual video-language learning: methods x seeds x orders, each at its own best learning rate."""
    from streamlearn.bench.methods import method_of
    from streamlearn.bench.options import (
        read_boundaries,
        read_methods,
        read_orders,
        read_rates,
        read_seeds,
        read_shared,
    )
    from streamlearn.bench.quick import CLIPS, DOMAINS, TEST, check, quick_trials
    from streamlearn.bench.runs import Results, best_rates, grid
    from streamlearn.bench.trial import Spec
    from streamlearn.connectors.scenes import DOMAINS as ALL_DOMAINS

    cache = cache or out / "clips"
    if quick:
        _refuse_given(ctx, "--quick is always the same trials: leave out", but=_QUICK_TAKES)
        trials = quick_trials(_synthetic(cache, tuning_seed, CLIPS, TEST, DOMAINS), tuning_seed)
        results = Results(out)
        _run(trials, results, workers)
        _finish(results, out)
        if wrong := check(results.of("reported", [spec for _, spec in trials])):
            err.print("\n".join(wrong), style="red", markup=False, highlight=False)
            raise typer.Exit(1)
        return
    if stream:
        _refuse_given(ctx, "--stream brings clips of its own: leave out", those={"clips", "test"})
    else:
        _refuse_given(ctx, "without --stream there are no manifests: leave out", those={"split"})
    boundaries = read_boundaries(boundaries)
    shared = read_shared(override or (), decoded=bool(stream))
    media = shared.pop("media")
    rates, seed_numbers = read_rates(learning_rates), read_seeds(seeds)
    order_names = read_orders(orders, len(stream or ALL_DOMAINS))
    names, best = read_methods(methods, shared["learner"])
    if len(rates) == 1:
        best = dict.fromkeys(names, rates[0]) | best
    best = {name: best[of] for name in names if (of := method_of(name).rate_of) in best} | best
    results = Results(out)

    def corpus(seed: int) -> str:
        return str(
            _decoded(cache, stream, split, media, shared["model"]) if stream else _synthetic(cache, seed, clips, test)
        )

    plain = Spec(
        "", "", 0.0, 0, boundaries=boundaries, mixing_clips=mixing_clips, passes=passes, eras=eras, **shared
    )  # fmt: skip
    if unknown := [name for name in names if name not in best]:
        # What a control takes its rate from is tuned without being reported, unless an earlier run has done so.
        tuned = list(dict.fromkeys(method_of(name).rate_of or name for name in unknown))
        base = replace(
            plain, corpus=corpus(tuning_seed), seed=tuning_seed, order="forward", asked_per_task=1, eras=False
        )
        trials = [("tuning", spec) for spec in grid([base], methods=tuned, learning_rates=rates)]
        _run(trials, results, workers)
        best |= best_rates(results.of("tuning", [spec for _, spec in trials]), unknown)
    reported = [
        ("reported", replace(plain, corpus=corpus(seed), seed=seed, order=order, method=name, learning_rate=best[name]))
        for seed in seed_numbers
        for order in order_names
        for name in names
    ]
    _run(reported, results, workers)
    _finish(results, out)


@bench_app.command()
def report(
    out: Annotated[Path, typer.Argument(help="Folder with trials.jsonl.")],
    against: Annotated[
        str | None, typer.Option(help="The method that others are compared with; bmu-local where it is there.")
    ] = None,
) -> None:
    """Make report.md and its pictures anew from finished trials."""
    from streamlearn.bench.report import by_method, setups
    from streamlearn.bench.runs import RESULTS, Results

    if not (out / RESULTS).is_file() or not (results := Results(out)).lines:
        raise SettingsError(f"{out} holds no trials: name the --out of a `streamlearn bench cvlm`")
    known = {name for lines in setups(results.lines).values() for name in by_method(lines)}
    if against is not None and against not in known:
        raise SettingsError(f"--against {against}: must be one of {', '.join(sorted(known))}, which were reported")
    _finish(results, out, against or _AGAINST)


def _refuse_given(ctx: typer.Context, why: str, *, those: Set[str] | None = None, but: Set[str] = frozenset()) -> None:
    """Options that would do nothing, where somebody gave them: of all, or of `those`."""
    given = {
        param.name: param.opts[0]
        for param in ctx.command.params
        if param.name and (source := ctx.get_parameter_source(param.name)) is not None and source.name != "DEFAULT"
    }
    if wrong := [option for name, option in given.items() if name not in but and (those is None or name in those)]:
        raise SettingsError(f"{why} {', '.join(wrong)}")


def _run(trials: Sequence[tuple[str, Spec]], results: Results, workers: int) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    from streamlearn.bench.runs import Line, merit, run_all

    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=err) as bar:
        work = bar.add_task("trials", total=len(trials))

        def done(spec: Spec, line: Line | None) -> None:
            bar.advance(work)
            if line is not None:
                bar.console.print(
                    f"{line['role']} {spec.method} lr {spec.learning_rate:g} seed {spec.seed} {spec.order}:"
                    f" final R@5 {merit(line):.1f}",
                    highlight=False,
                    markup=False,
                )

        run_all(trials, results, workers=workers, on_done=done)


def _synthetic(cache: Path, seed: int, clips: int, test: int, domains: Sequence[str] | None = None) -> Path:
    from rich.progress import Progress

    from streamlearn.bench.corpus import render_corpus
    from streamlearn.connectors.scenes import DOMAINS

    with Progress(console=err, transient=True) as bar:
        work = bar.add_task(f"rendering seed {seed}", total=None)
        return render_corpus(
            cache, seed=seed, clips=clips, test=test, judges=64, domains=domains or DOMAINS,
            progress=lambda done, total: bar.update(work, completed=done, total=total),
        )  # fmt: skip


def _decoded(cache: Path, folders: Sequence[Path], split: str, media: dict[str, Any], model: dict[str, Any]) -> Path:
    from rich.progress import Progress

    from streamlearn.bench.corpus import decode_corpus
    from streamlearn.encoders_tiny import TinyVideo
    from streamlearn.settings import MediaSettings

    settings = MediaSettings(**media)
    learn_px = settings.size_px if model.get("video", "tiny") != "tiny" else TinyVideo.size_px
    with Progress(console=err, transient=True) as bar:
        work = bar.add_task("decoding", total=None)
        return decode_corpus(
            cache, folders=folders, split=split, media=settings, learn_px=min(learn_px, settings.size_px),
            progress=lambda done, total: bar.update(work, completed=done, total=total),
        )  # fmt: skip


def _finish(results: Results, out: Path, against: str = _AGAINST) -> None:
    from streamlearn.bench.plots import plot_all
    from streamlearn.bench.report import report

    text = report(results.lines, against)
    try:
        for path in plot_all(results.lines, out):
            text += f"\n![{path.stem}]({path.name})\n"
    except SettingsError as error:  # the tables are worth having without
        err.print(str(error), style="dim", markup=False)
    (out / "report.md").write_text(text, encoding="utf-8")
    err.print(f"{out / 'report.md'}", highlight=False)
