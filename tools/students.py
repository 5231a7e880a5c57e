"""Students of a small VGGT by every recipe, and what each loses: the table of students.

    python3 tools/students.py --bin target/release --teacher teacher.safetensors --out students/ [--target cuda:sm_90a] [--gpus 2] \
        [--jobs 6] [--only TEXT] [--scale 1] [--scenes 64]

Trains every student of RECIPES beside its dense teacher on rendered scenes (`lite3r train`), compiles it and the forms that need no training
(`lite3r-compile`), evaluates all of them on test scenes of 8, 16 and 24 views (`lite3r eval --data synthetic:test`) and prints a table a number
of views. What is in the folder already is kept, so that it goes on after an interruption. --scale divides the steps of training, for a rehearsal.
"""

import argparse
import concurrent.futures
import dataclasses
import itertools
import json
import os
import pathlib
import subprocess

LAYOUT = "token_layout{kind=global}"
CENTROIDS = "block_k=16,router=sub16,form=centroid"
KEEPS = ("0.3", "0.1", "0.05")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a student is trained: a row of the table."""

    name: str
    # Of `sla`, without `keep`; none: the dense model learns on.
    sla: str | None
    train: str
    steps: int
    rate: float
    loss: dict[str, object]
    # Passes behind `sla` in training.
    aware: str = ""


DISTIL = {"attention": "{ from = 0.1, to = 0.01 }"}
RECIPES = [
    Recipe("dense, trained on", None, "*", 350, 2e-4, {}),
    Recipe("64x64 + linear branch, distilled", "form=add", "proj_lin", 200, 2e-3, DISTIL),
    Recipe("the same, aware of FP8", "form=add", "proj_lin", 200, 2e-3, DISTIL, ";fp8{mode=fake}"),
    Recipe("64x16 centroids, learned router", f"{CENTROIDS},router_weights=true", "router", 200, 3e-3,
           {"router": 1.0, "camera": 0.0, "depth": 0.0}),
    Recipe("64x16 centroids, all weights", CENTROIDS, "*", 350, 2e-4, {"attention": 1.0}),
]  # fmt: skip
UNTRAINED = [
    ("64x64 pooled, sparse alone", "form=sparse"),
    ("64x16 sub16", "block_k=16,router=sub16,form=sparse"),
    ("64x16 sub16 centroids", CENTROIDS),
]


@dataclasses.dataclass(frozen=True)
class Run:
    """One training of a recipe."""

    recipe: Recipe
    keep: str
    seed: int

    @property
    def folder(self) -> str:
        return f"run_{RECIPES.index(self.recipe)}_{self.keep}_{self.seed}"


def runs(seeds: int) -> list[Run]:
    """Every recipe at every share, more seeds at 0.1, those of 0.1 first."""
    found = []
    for recipe in RECIPES:
        for keep in KEEPS if recipe.sla else ("1",):
            found += [Run(recipe, keep, seed) for seed in range(1, 1 + (seeds if keep == "0.1" else 1))]
    return sorted(found, key=lambda run: (run.keep != "0.1", run.seed))


def config(args, run: Run) -> str:
    recipe = run.recipe
    loss = "\n".join(f"{name} = {value}" for name, value in recipe.loss.items())
    passes = f"{LAYOUT};sla{{kind=global,keep={run.keep},{recipe.sla}}}{recipe.aware}"
    student = f"[student]\npasses = '{passes}'\n" if recipe.sla else ""
    return f"""[model]
arch = "vggt-small"
weights = "{args.teacher.resolve()}"
train = ["{recipe.train}"]
[data]
source = "synthetic:arc"
seed = {1000 + run.seed}
views = [{args.views}]
threads = {args.threads}
validation = 0
[run]
steps = {max(1, recipe.steps // args.scale)}
scenes = {args.batch}
together = {args.batch}
precision = "{"bf16" if args.target.startswith("cuda") else "f32"}"
rate = {recipe.rate}
warmup = 10
checkpoint = 50
[loss]
{loss}
{student}"""


def call(args, gpu: int, *command: object) -> str:
    """Runs a command in the folder; what it prints."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": str(gpu % args.gpus)}
    done = subprocess.run([str(part) for part in command], cwd=args.out, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command[:2]))} … failed: {done.stderr.strip()[-400:]}")
    return done.stdout


def train(args, run: Run, gpu: int) -> None:
    folder = args.out / run.folder
    if (folder / "weights.safetensors").exists():
        return
    device = args.target.split(":")[0]
    how = ["--resume"]
    if not (folder / "last.safetensors").exists():
        (args.out / f"{run.folder}.toml").write_text(config(args, run))
        how = [f"{run.folder}.toml"]
        (folder / "metrics.jsonl").unlink(missing_ok=True)
    call(args, gpu, args.bin / "lite3r", "train", *how, "-o", run.folder, "--target", device, "--quiet")


def compiled(args, name: str, precision: str, sla: str | None, trained: str | None = None) -> None:
    if (args.out / name).exists():
        return
    rule = ["--attention", f"global=sla{{{sla}}}"] if sla else []
    own = ["--trained", f"{trained}/weights.safetensors"] if trained else []
    counts = ",".join(map(str, args.counts))
    call(args, 0, args.bin / "lite3r-compile", "--arch", "vggt-small", "--size", "224x224", "--weights", args.teacher.resolve(), *own,
         "--bind", f"S={counts}", "--target", args.target, "--precision", precision, *rule, "--quiet", "-o", name)  # fmt: skip


def rows(args, made: list[Run]) -> dict[str, list[tuple]]:
    """Name to the plans of a row: file, precision, options of `sla`, folder of what was trained."""
    table = {"dense f32": [("dense_f32.l3r", "f32", None, None)], "dense FP8": [("dense_fp8.l3r", "fp8", None, None)]}
    for (name, sla), keep in itertools.product(UNTRAINED, KEEPS):
        file = f"form_{UNTRAINED.index((name, sla))}_{keep}.l3r"
        table[f"{name}, keep {keep}"] = [(file, "fp8", f"keep={keep},{sla}", None)]
    for run in made:
        keep = f", keep {run.keep}" if run.recipe.sla else ""
        sla = f"keep={run.keep},{run.recipe.sla}" if run.recipe.sla else None
        precision = "fp8" if run.recipe.sla else "f32"
        table.setdefault(run.recipe.name + keep, []).append((f"{run.folder}.l3r", precision, sla, run.folder))
    return {name: plans for name, plans in table.items() if args.only in name or name == "dense f32"}


def evaluate(args, name: str, plans: list[tuple], views: int, gpu: int) -> dict:
    """The report of a row beside the dense model."""
    files = ",".join(file for file, *_ in plans)
    path = args.out / f"eval_{views}_{files.replace(',', '+')}.json"
    if not path.exists():
        own = [files] if name != "dense f32" else []
        report = call(args, gpu, args.bin / "lite3r", "eval", "dense_f32.l3r", *own, "--data", "synthetic:test", "--views",
                   views, "--scenes", args.scenes, "--protocol", "depth/none,depth/median-scene,pose/pairs", "--json")  # fmt: skip
        path.write_text(report)
    return json.loads(path.read_text())["runs"]


def line(name: str, reports: list[dict]) -> str:
    def mean(report: dict, protocol: str, measure: str) -> float:
        found = (row for row in report["tables"][0]["rows"] if (row["protocol"], row["measure"]) == (protocol, measure))
        return next(found)["mean"]["estimate"]

    dense, own = reports[0], reports[-1]
    depth, turn = ((mean(own, *what), mean(dense, *what)) for what in (("depth/none", "AbsRel"), ("pose/pairs", "rotation°")))
    auc = [mean(own, "pose/pairs", measure) for measure in ("AUC@5", "AUC@30")]
    cost = own["costs"][0]
    return (f"| {name} | {depth[0]:.4f} | {depth[0] / depth[1]:.3f} | {turn[0]:.2f}° | {turn[0] / turn[1]:.3f} | {auc[0]:.4f} | {auc[1]:.3f} "
            f"| {cost['seconds'] * 1e3:.2f} | {(cost['run_bytes'] + cost['weight_bytes']) / 1e6:.0f} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=lambda p: pathlib.Path(p).resolve(), required=True)
    parser.add_argument("--teacher", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--target", default="cuda:sm_90a")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--threads", type=int, default=4, help="that render scenes, for each training")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--counts", type=lambda text: [int(n) for n in text.split(",")], default=[8, 16, 24])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    made = [run for run in runs(args.seeds) if args.only in run.recipe.name]
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        trained = {pool.submit(train, args, run, number): run for number, run in enumerate(made)}
        for done in concurrent.futures.as_completed(trained):
            failed = done.exception()
            print(f"{trained[done].folder}: {failed or 'trained'}", flush=True)
        made = [run for run in made if (args.out / run.folder / "weights.safetensors").exists()]
        table = rows(args, made)
        compiled(args, *table["dense f32"][0])
        list(pool.map(lambda plan: compiled(args, *plan), itertools.chain(*table.values())))
    # One evaluation a device: what a run takes is measured on the way.
    with concurrent.futures.ThreadPoolExecutor(args.gpus) as pool:
        for views in args.counts:
            found = {name: pool.submit(evaluate, args, name, plans, views, n) for n, (name, plans) in enumerate(table.items())}
            print(f"\n{views} views\n\n| | AbsRel | of dense | rotation | of dense | AUC@5 | AUC@30 | ms | MB |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
            for name, report in found.items():
                print(f"{name}: {report.exception()}" if report.exception() else line(name, report.result()), flush=True)


if __name__ == "__main__":
    main()
