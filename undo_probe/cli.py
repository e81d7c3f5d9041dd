"""The command line. No logic: every command is one or two calls of the package.

Over 400 lines because every option says what it is for.
"""

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, NoReturn

import typer

app = typer.Typer(
    name="undo-probe",
    help="Is this capability gone, or only hidden? Runs UNDO and looks inside at every stage.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
INTERRUPTED = 130
store_app = typer.Typer(help="Keep house in a stage store.", no_args_is_help=True)
app.add_typer(store_app, name="store")
rug_app = typer.Typer(help="The Persian Rug: an autoencoder whose loss is known.", no_args_is_help=True)
app.add_typer(rug_app, name="rug")

Folder = Annotated[Path, typer.Argument(help="A run folder.", show_default=False)]
Workers = Annotated[
    int | None, typer.Option(help="Processes; one a core by default. Results do not depend on it.")
]

Neutral = Annotated[
    Path | None,
    typer.Option(help="A file or folder of text that is neither forget nor retain, compared on as well."),
]


@app.command()
def run(
    settings: Annotated[
        list[str] | None, typer.Argument(help="A preset or a file, then a.b=c overrides.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/run"),
    until: Annotated[
        str, typer.Option(help="Stop after: original, unlearned, noised, distilled, attack, score, report.")
    ] = "report",
    workers: Workers = None,
    store: Annotated[Path | None, typer.Option(help="A stage store shared by several runs.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would cost on this machine.")
    ] = False,
) -> None:
    """Run the pipeline, the attack, the scorecard and the report; again to resume."""
    words = list(settings or [])
    source = words.pop(0) if words and "=" not in words[0] else "tiny"
    config = _load(source, words)  # before the slow imports: a mistake is told at once

    from undo_probe import ranks
    from undo_probe.attacks import attack as run_attack
    from undo_probe.pipeline import run_undo
    from undo_probe.plan import UNTIL

    last = _until(until)
    if last >= 1 or dry_run:
        ranks.refuse(
            "--dry-run" if dry_run else f"--until {until}",
            "give --until distilled here, and the same command without accelerate launch afterwards for the rest",
        )
    if dry_run:
        _say_costs(config, workers)
        return
    with _phase("stages") as phase:
        made = run_undo(
            config,
            out,
            until=until if until in UNTIL else UNTIL[-1],
            workers=workers,
            store=store,
            progress=phase.event,
        )
    if last >= 1:
        with _phase("attack") as phase:
            made = run_attack(made, workers=workers, progress=phase.event)
    if last >= 2:
        _score(made.folder, workers)
    if last >= 3:
        _report(made.folder, None)


@app.command()
def known(
    settings: Annotated[
        list[str] | None, typer.Argument(help="A preset or a file, then a.b=c overrides.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Where it goes; a run reads it with task.known.")] = Path(
        "known.json"
    ),
) -> None:
    """Ask the model of original.source which facts of task.name=facts it knows, and write them down."""
    words = list(settings or [])
    source = words.pop(0) if words and "=" not in words[0] else "tiny"
    config = _load(source, words)

    from undo_probe.measures.known import known_of

    typer.echo(known_of(config, out).to_string(index=False, float_format="%.3f"))


@app.command()
def attack(folder: Folder, workers: Workers = None) -> None:
    """Relearning attack on every arm of a run."""
    from undo_probe.attacks import attack as run_attack
    from undo_probe.store import Run

    with _phase("attack") as phase:
        run_attack(Run(folder), workers=workers, progress=phase.event)


@app.command()
def score(
    folder: Folder,
    workers: Workers = None,
    also: Annotated[
        list[str] | None, typer.Option(help="A measure beside the usual ones: depth, lens or weights.")
    ] = None,
) -> None:
    """Measure every arm and write the scorecard."""
    _score(folder, workers, also)


@app.command()
def report(
    folder: Folder,
    out: Annotated[
        Path | None, typer.Option(help="Where the page goes; report.html in the run folder by default.")
    ] = None,
) -> None:
    """Write the report from what the run folder holds; nothing is computed anew."""
    _report(folder, out)


@app.command()
def compare(
    a: Annotated[
        str, typer.Argument(help="The reference: a model's folder or hub id, or RUN:arm.", show_default=False)
    ],
    b: Annotated[str, typer.Argument(help="What is compared with it.", show_default=False)],
    task: Annotated[
        str | None,
        typer.Option(
            help="A preset, a run folder, or a JSON file of prompts by split; that of A's run by default."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("compare.html"),
    twin: Annotated[str | None, typer.Option(help="A model that lost nothing but its basis.")] = None,
    second: Annotated[str | None, typer.Option(help="A from another seed: the noise floor.")] = None,
    gold: Annotated[str | None, typer.Option(help="A model that never knew, for the depth score.")] = None,
    neutral: Neutral = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="For prompts and text, if neither task nor model brings one.")
    ] = None,
    rows: Annotated[int, typer.Option(min=8, help="Rows of a split, at most.")] = 256,
    save: Annotated[Path | None, typer.Option(help="A folder for the table as well.")] = None,
) -> None:
    """Put two models side by side, layer by layer, and write the page."""
    from undo_probe.comparison import compare as run_compare

    made = run_compare(
        a,
        b,
        task,
        twin=twin,
        second_seed=second,
        gold=gold,
        neutral=neutral,
        tokenizer=tokenizer,
        max_rows=rows,
    )
    if save is not None:
        made.save(save)
    typer.echo(f"{made.words.headline}\ncomparison: {made.write(out)}")


@app.command()
def show(folder: Folder) -> None:
    """Print a run's stages."""
    from undo_probe.store import Run

    table = Run(folder).stages.drop(columns=["arm"])
    typer.echo(table.to_string(index=False, float_format=lambda value: f"{value:.3g}", na_rep="-"))


@app.command()
def export(
    place: Annotated[Path, typer.Argument(help="A run folder, or a checkpoint.", show_default=False)],
    folder: Annotated[Path, typer.Argument(help="Where the model goes.", show_default=False)],
    arm: Annotated[
        str, typer.Option(help="Which model of a run: UNDO 0.4, or distilled-maxent-0.4.", show_default=False)
    ] = "",
    source: Annotated[
        str | None, typer.Option(help="The Hugging Face model it came from, if the run does not say.")
    ] = None,
) -> None:
    """Write a model as a folder that transformers loads."""
    from undo_probe.export import export as write

    typer.echo(write(place, folder, arm=arm, source=source))


@app.command()
def sweep(
    file: Annotated[
        Path, typer.Argument(help="A TOML or JSON file: a base, a grid, how far.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="The sweep's folder.")] = Path("runs/sweep"),
    workers: Workers = None,
    backend: Annotated[
        str, typer.Option(help="Where the processes are: loky (this machine), ray or dask.")
    ] = "loky",
    store: Annotated[Path | None, typer.Option(help="A stage store shared with other runs.")] = None,
) -> None:
    """Run every cell of a grid, each shared stage once; again to resume."""
    from undo_probe.cells import load_cells

    load_cells(file)  # before the slow imports: a mistake is told at once

    from undo_probe.sweep import run_sweep

    made = run_sweep(file, out, workers=workers, backend=backend, store=store, phase=_phase)
    typer.echo(f"{len(made.cells) - len(made.failed)} of {len(made.cells)} cells done: {out / 'sweep.html'}")
    made.check()


@app.command()
def audit(
    original: Annotated[
        str, typer.Option(help="The model before: a folder, a hub id, or RUN:arm.", show_default=False)
    ],
    unlearned: Annotated[
        list[str],
        typer.Option(help="The model after, or NAME=MODEL; several times for several.", show_default=False),
    ],
    task: Annotated[
        str, typer.Option(help="A task, a preset, a settings file or a run.", show_default=False)
    ],
    settings: Annotated[list[str] | None, typer.Argument(help="a.b=c overrides.", show_default=False)] = None,
    oracle: Annotated[str, typer.Option(help="A model that was never shown the forget data.")] = "",
    out: Annotated[Path, typer.Option(help="The audit's run folder.")] = Path("runs/audit"),
    with_attack: Annotated[
        bool, typer.Option("--attack", help="Relearn every model: trains copies.")
    ] = False,
    also: Annotated[list[str] | None, typer.Option(help="A measure beside the usual ones.")] = None,
    neutral: Neutral = None,
    workers: Workers = None,
) -> None:
    """Measure finished models: nothing is trained unless --attack is given."""
    from undo_probe.auditing import audit as run_audit
    from undo_probe.auditing import compared, named_places

    places, wanted = named_places(unlearned), also or ()
    with _phase("audit") as phase:
        made = run_audit(
            original,
            places,
            task,
            out,
            *(settings or ()),
            oracle=oracle,
            attack=with_attack,
            also=wanted,
            neutral=neutral,
            workers=workers,
            progress=phase.event,
        )
    typer.echo("\n".join(map(str, (out / "report.html", *compared(made).values()))))


@app.command()
def presets(name: Annotated[str | None, typer.Argument(help="Print this preset as JSON.")] = None) -> None:
    """List the presets, or print one."""
    from undo_probe.presets import PRESETS, preset

    if name is not None:
        typer.echo(preset(name).model_dump_json(indent=2))
        return
    for key, config in PRESETS.items():
        alphas = ", ".join(f"{alpha:g}" for alpha in config.noise.alphas)
        size = f"{config.model.n_layers} layers, d_model {config.model.d_model}"
        typer.echo(f"{key:17} {config.original.source or size}, alphas {alphas}")


@app.command()
def text(
    folder: Annotated[Path, typer.Argument(help="Where the text goes; made if missing.", show_default=False)],
    debs: Annotated[
        Path | None, typer.Option(help="A folder of .deb files to use in place of downloading.")
    ] = None,
) -> None:
    """Gather English and Korean text from Debian packages, for the language presets."""
    from undo_probe.tasks.gather import gather

    gather(folder, debs, say=typer.echo)
    typer.echo(
        f"Their licences are in {folder / 'licences'}. Now: undo-probe run language-tiny task.text={folder}"
    )


@store_app.command("list")
def store_list(
    folder: Annotated[Path, typer.Argument(help="A store, or a run folder.", show_default=False)],
) -> None:
    """List what a store holds."""
    store = _open_store(folder)
    for key in store.keys():
        entry = store.entry(key)
        typer.echo(f"{key[:12]}  {entry.kind:9} {store.size(key) / 1e6:8.2f} MB  {entry.stopped}")


@store_app.command("prune")
def store_prune(
    folder: Annotated[Path, typer.Argument(help="A run folder.", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it, only say what would go.")] = False,
) -> None:
    """Delete the results in a run's own store that the run does not use."""
    from undo_probe.store import Run, unused

    opened = Run(folder)
    for key in unused(opened):
        size = opened.store.size(key) / 1e6
        typer.echo(f"{'deleted' if yes else 'would delete'} {key[:12]}  {size:.2f} MB")
        if yes:
            opened.store.remove(key)
    shared = opened.store.shared
    if shared.is_dir():
        size = sum(path.stat().st_size for path in shared.rglob("*") if path.is_file()) / 1e6
        typer.echo(f"{'deleted' if yes else 'would delete'} what stages share  {size:.2f} MB")
        if yes:
            opened.store.forget_shared()


Ratios = Annotated[list[float] | None, typer.Option("--r", help="Dimensions over features; several times.")]
Rates = Annotated[list[float] | None, typer.Option("--p", help="How often a feature is on; several times.")]
Ratio = Annotated[float, typer.Option("--r", help="Dimensions over features.")]
Rate = Annotated[float, typer.Option("--p", help="How often a feature is on.")]
Seeds = Annotated[int, typer.Option(help="How many, from 0.")]


@rug_app.command("theory")
def rug_theory(r: Ratios = None, p: Rates = None) -> None:
    """Print the best loss, its parameters, and what it is measured against."""
    from undo_probe.persian_rug.pictures import theory_table

    for rate in p or [0.045]:
        _print(theory_table(r or [0.1, 0.25, 0.5, 0.75], rate))


@rug_app.command("train")
def rug_train(
    settings: Annotated[
        list[str] | None, typer.Argument(help="decoder=topk start=tied fit.steps=3000", show_default=False)
    ] = None,
    n_s: Annotated[list[int] | None, typer.Option("--n-s", help="Features; several times.")] = None,
    r: Ratios = None,
    p: Rates = None,
    seed: Annotated[list[int] | None, typer.Option("--seed", help="Several times.")] = None,
    out: Annotated[Path, typer.Option(help="The grid's folder.")] = Path("runs/rug"),
    workers: Workers = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
    figure_grid: Annotated[
        bool,
        typer.Option(
            "--figure-grid", help="Short trainings of the paper's 20 x 20 (r, p), at n_s 128 and 1024."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would cost here.")] = False,
) -> None:
    """Train autoencoders of every combination; again to resume."""
    from undo_probe.persian_rug import grid as grids
    from undo_probe.persian_rug.training import rug_config, settings_from

    given = settings_from(settings or ())
    if figure_grid:
        cells = grids.figure_cells(n_s or grids.FIGURE_SIZES, r or (), p or (), seed or (0,), **given)
    else:
        cells = grids.combinations(rug_config(**given), n_s or (), r or (), p or (), seed or ())
    if dry_run:
        typer.echo(grids.costs(cells, workers))
        return
    with _phase("rug") as phase:
        grid = grids.train_cells(cells, out, workers=workers, device=device, progress=phase.event)
    _print(grid.table())
    grid.check()


@rug_app.command("erase")
def rug_erase(
    n_s: Annotated[int, typer.Option("--n-s", help="Features.")] = 512,
    r: Ratio = 0.25,
    p: Rate = 0.045,
    seeds: Seeds = 4,
) -> None:
    """Print what every erasure costs and leaves behind: foretold, measured, their ratio."""
    from undo_probe.persian_rug.effects import erasure_table

    _print(erasure_table(n_s, r, p, seeds=range(seeds)))


@rug_app.command("calibrate")
def rug_calibrate(
    n_s: Annotated[int, typer.Option("--n-s", help="Features.")] = 256,
    r: Ratio = 0.25,
    p: Rate = 0.045,
    phi: Annotated[float, typer.Option(help="Share of the features whose dose is varied.")] = 0.1,
    seeds: Seeds = 10,
) -> None:
    """Print how far each measure is to be trusted where the truth is known: bias, coverage, rank agreement."""
    from undo_probe.persian_rug.calibration import calibrate, scores

    cells = calibrate(
        n_s, r, p, phi=phi, seeds=range(seeds), progress=lambda done: typer.echo(done, err=True)
    )
    _print(scores(cells))


@rug_app.command("figure")
def rug_figure(
    out: Annotated[Path, typer.Option(help="Where the page goes: .html or .json.")] = Path("rug.html"),
    carpet: Annotated[bool, typer.Option("--carpet", help="The matrix, not the loss.")] = False,
    p: Rate = 0.045,
    n_s: Annotated[int, typer.Option("--n-s", help="Features of the carpet.")] = 64,
    r: Annotated[float, typer.Option("--r", help="Dimensions over features of the carpet.")] = 0.25,
) -> None:
    """Draw the loss against r, or the rug itself."""
    from undo_probe.persian_rug.pictures import carpet_figure, loss_figure

    figure = carpet_figure(n_s, r) if carpet else loss_figure(p)
    typer.echo(figure.save(out))


@rug_app.command("report")
def rug_report(
    folder: Annotated[
        Path | None, typer.Argument(help="A folder of `rug train`; theory alone without.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("rug.html"),
) -> None:
    """Write one page: theory, training beside it, symmetry, the plateau and its curvature."""
    from undo_probe.report.rug_page import write_rug_page

    typer.echo(write_rug_page(folder, out))


def _print(table: Any) -> None:
    typer.echo(table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))


def _open_store(folder: Path) -> Any:
    from undo_probe.errors import UndoProbeError
    from undo_probe.store import Run, Store

    if (folder / "run.json").is_file():
        return Run(folder).store
    if not folder.is_dir():
        raise UndoProbeError(f"{folder} is no folder: give a store or a run folder")
    return Store(folder)


def _load(source: str, words: list[str]) -> Any:
    from undo_probe.errors import UndoProbeError
    from undo_probe.presets import load_config

    plain = [word for word in words if "=" not in word]
    if plain:
        raise UndoProbeError(
            f"{plain[0]!r} is no override: write section.key=value, for example noise.beta=0.05"
        )
    return load_config(source, *words)


def _say_costs(config: Any, workers: int | None) -> None:
    from undo_probe.estimate import estimate
    from undo_probe.jobs import default_workers

    typer.echo(estimate(config).text(workers or default_workers()))


def _until(until: str) -> int:
    """0 for a stage of the pipeline, then 1 attack, 2 score, 3 report."""
    from undo_probe.errors import UndoProbeError
    from undo_probe.plan import UNTIL

    known = (*UNTIL, "attack", "score", "report")
    if until not in known:
        raise UndoProbeError(f"--until is {until!r}: expected one of {', '.join(known)}")
    return max(0, known.index(until) - len(UNTIL) + 1)


def _phase(title: str) -> Any:
    from undo_probe import ranks
    from undo_probe.progress import PhaseProgress

    if not ranks.is_main():  # one of several processes speaks
        return nullcontext(SimpleNamespace(event=None))
    return PhaseProgress(title)


def _score(folder: Path, workers: int | None, also: list[str] | None = None) -> None:
    from undo_probe.scorecard import score as make_scorecard
    from undo_probe.store import Run

    with _phase("scorecard") as phase:
        make_scorecard(Run(folder), workers=workers, progress=phase.event, also=also or None)


def _report(folder: Path, out: Path | None) -> None:
    from undo_probe.report import write_report

    typer.echo(f"report: {write_report(folder, out or folder / 'report.html')}")


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 failed, 2 the input is wrong, 130 interrupted."""
    from undo_probe.errors import UndoProbeError

    # typer brings a click of its own, other versions of it the one that is installed
    usage_error: Any = typer.BadParameter.__mro__[1]
    try:
        result = app(standalone_mode=False)
        code = result if isinstance(result, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except usage_error as error:
        error.show()
        code = 2
    except UndoProbeError as error:
        _stop(error.exit_code, str(error))
    except Exception as error:
        if os.environ.get("UNDO_PROBE_DEBUG"):
            raise
        _stop(1, f"failed: {type(error).__name__}: {error} (UNDO_PROBE_DEBUG=1 shows where)")
    if code == INTERRUPTED:
        _stop(code, "interrupted: the same command goes on where this one stopped")
    raise SystemExit(code)


def _stop(code: int, text: str) -> NoReturn:
    print(f"undo-probe: {text}", file=sys.stderr, flush=True)  # noqa: T201
    raise SystemExit(code)


if __name__ == "__main__":  # accelerate launch -m undo_probe.cli
    main()
