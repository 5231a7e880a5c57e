"""Students of a small VGGT by every recipe, and what each loses: the table of students.

    python3 tools/students.py --bin target/release --teacher teacher.safetensors --out students/ [--target cuda:sm_90a] [--gpus 2] \
        [--jobs 8] [--only TEXT] [--scale 1] [--scenes 64,32,32] [--data synthetic:test]

Trains every student of RECIPES beside its dense teacher on rendered scenes (`lite3r train`), fits projections (`lite3r fit`), compiles them and the
forms that need no training (`lite3r-compile`), evaluates all of them on test scenes of 8, 16 and 24 views (`lite3r eval --split test`), times them
(`lite3r bench`) and prints a table a number of views. Attention errors are ||o - o'|| / ||o||, the root of the mean square over global layers, of 8 views of validation
scenes; of fitted projections the mean over layers on the scenes that they were fitted to. What is in the folder already is kept, so that it goes on
after an interruption. --scale divides the steps of training, for a rehearsal.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import subprocess

LAYOUT = "token_layout{kind=global}"
CENTROIDS = "block_k=16,router=sub16,form=centroid"
# Lists that 16 queries share, their own keys among them.
SMALL = f"{CENTROIDS},block_q=16,always=[own]"
KEEPS = ("0.3", "0.1", "0.05")
# A tenth and three tenths on average, most of it where matches are found: by layer.
TENTH_BY_LAYER = "0.2/0.2/0.08/0.08/0.02/0.02"
THIRD_BY_LAYER = "0.5/0.5/0.25/0.25/0.15/0.15"
BY_LAYER = (TENTH_BY_LAYER, THIRD_BY_LAYER)
# Shares that are trained with several seeds.
SEVERAL = ("0.1", TENTH_BY_LAYER)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a student is trained: a row of the table."""

    name: str
    # Of `sla`, without `keep`; none: the dense model learns on.
    sla: str | None
    # Patterns of the names of weights.
    train: tuple[str, ...]
    steps: int
    rate: float
    loss: dict[str, object]
    # Passes behind `sla` in training.
    aware: str = ""
    keeps: tuple[str, ...] = KEEPS
    # Factors of the rate by pattern.
    rates: tuple[tuple[str, float], ...] = ()


DISTIL = {"attention": "{ from = 0.1, to = 0.01 }"}
# Routers by themselves; the attention is only measured.
ROUTERS = {"router": 1.0, "camera": 0.0, "depth": 0.0, "attention": 1e-6}
RECIPES = [
    Recipe("dense, trained on", None, ("*",), 350, 2e-4, {}),
    Recipe("64x64 + linear branch, distilled", "form=add", ("proj_lin",), 200, 2e-3, DISTIL),
    Recipe("the same, aware of FP8", "form=add", ("proj_lin",), 200, 2e-3, DISTIL, ";fp8{mode=fake}"),
    Recipe("64x16 centroids, learned router", f"{CENTROIDS},router_weights=true", ("router",), 200, 3e-3, ROUTERS),
    Recipe("64x16 centroids, all weights", CENTROIDS, ("*",), 600, 3e-4, {"attention": 1.0}),
    Recipe("16x16 centroids, learned router", f"{SMALL},router_weights=true", ("router",), 300, 2e-3, ROUTERS,
           keeps=("0.3", *BY_LAYER)),
    Recipe("16x16 centroids, all weights and routers", f"{SMALL},router_weights=true", ("*",), 2000, 3e-4,
           {"attention": 1.0, "router": 0.1, "camera": 10.0}, keeps=BY_LAYER, rates=(("router", 10.0),)),
]  # fmt: skip
MEASURED = {"attention": 1.0}
# One step that moves nothing: what training measures of validation scenes.
UNTRAINED = [
    Recipe(name, sla, ("*",), 1, 1e-30, MEASURED)
    for name, sla in [
        ("64x64 pooled, sparse alone", "form=sparse"),
        ("64x16 sub16", "block_k=16,router=sub16,form=sparse"),
        ("64x16 sub16 centroids", CENTROIDS),
    ]
] + [Recipe("16x16 sub16 centroids", SMALL, ("*",), 1, 1e-30, MEASURED, keeps=("0.1", *BY_LAYER))]
FITTED = "64x64 + linear branch, ridge-fitted"


@dataclasses.dataclass(frozen=True)
class Run:
    """One training of a recipe."""

    recipe: Recipe
    keep: str
    seed: int

    @property
    def folder(self) -> str:
        return f"run_{(RECIPES + UNTRAINED).index(self.recipe)}_{self.keep.replace('/', '-')}_{self.seed}"


def runs(seeds: int) -> list[Run]:
    """Every recipe at every share, more seeds of training at 0.1; the first seed at 0.1 first, and the longest first."""
    found = []
    for recipe in RECIPES + UNTRAINED:
        for keep in recipe.keeps if recipe.sla else ("1",):
            more = seeds if keep in SEVERAL and recipe in RECIPES else 1
            found += [Run(recipe, keep, seed) for seed in range(1, 1 + more)]
    return sorted(found, key=lambda run: (run.keep not in (*SEVERAL, "1"), run.seed, -run.recipe.steps))


def layers(keep: str) -> list[tuple[int | None, str]]:
    """(layer, share), one for all or one for each."""
    shares = keep.split("/")
    return [(None, keep)] if len(shares) == 1 else list(enumerate(shares))


def passes(keep: str, sla: str) -> str:
    chosen = [(f"layers=[{layer}]," if layer is not None else "", share) for layer, share in layers(keep)]
    return ";".join([LAYOUT, *(f"sla{{kind=global,{which}keep={share},{sla}}}" for which, share in chosen)])


def rules(keep: str, sla: str) -> list[str]:
    """The same for the compiler."""
    named = [("global" if layer is None else f"global.{layer}", share) for layer, share in layers(keep)]
    return [word for which, share in named for word in ("--attention", f"{which}=sla{{keep={share},{sla}}}")]


def config(args, run: Run) -> str:
    recipe = run.recipe
    loss = "\n".join(f"{name} = {value}" for name, value in recipe.loss.items())
    student = f"[student]\npasses = '{passes(run.keep, recipe.sla)}{recipe.aware}'\n" if recipe.sla else ""
    return f"""[model]
arch = "vggt-small"
weights = "{args.teacher.resolve()}"
train = {json.dumps(recipe.train)}
rates = {json.dumps(recipe.rates)}
[data]
source = "synthetic:arc"
seed = {1000 + run.seed}
views = [{args.views}]
threads = {args.threads}
validation = {2 * args.batch if "attention" in recipe.loss else 0}
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


def fit(args, keep: str, gpu: int) -> None:
    """Projections in closed form, and what they leave of the attention errors."""
    report = args.out / f"fit_{keep}.json"
    if not report.exists():
        said = call(args, gpu, args.bin / "lite3r", "fit", "--teacher", "vggt-small", "--weights", args.teacher.resolve(),
                    "--student-passes", passes(keep, "form=add"), "--scenes", args.fit_scenes, "--views", args.views, "--data", "synthetic:arc",
                    "--target", args.target.split(":")[0], "--json", "-o", f"fit_{keep}.safetensors")  # fmt: skip
        report.write_text(said)


def attention_error(args, run: Run) -> float | None:
    """Of validation scenes after training."""
    last = json.loads((args.out / run.folder / "metrics.jsonl").read_text().splitlines()[-1])
    found = last.get("validation_losses", {}).get("attention")
    return None if found is None else found**0.5


@dataclasses.dataclass
class Row:
    """A row of the table."""

    name: str
    # Files of plans: one, or more that differ by the seed of their training.
    plans: list[str]
    # Of each.
    errors: list[float]
    precision: str = "fp8"
    # What the compiler is told of attention, and where weights lie that were trained, one a plan.
    rules: list[str] = dataclasses.field(default_factory=list)
    trained: list[str] | None = None


def rows(args, made: list[Run]) -> list[Row]:
    found = {"dense FP8": Row("dense FP8", ["dense_fp8.l3r"], [])}
    for run in made:
        recipe = run.recipe
        name = f"{recipe.name}, keep {run.keep}" if recipe.sla else recipe.name
        own = rules(run.keep, recipe.sla) if recipe.sla else []
        row = found.setdefault(name, Row(name, [], [], "fp8" if recipe.sla else "f32", own, None if recipe in UNTRAINED else []))
        row.plans.append(f"{run.folder}.l3r")
        row.errors += filter(None, [attention_error(args, run)])
        if row.trained is not None:
            row.trained.append(f"{run.folder}/weights.safetensors")
    for report in sorted(args.out.glob("fit_*.json"), reverse=True):
        keep = report.stem.removeprefix("fit_")
        after = [layer["after"] for layer in json.loads(report.read_text())]
        name = f"{FITTED}, keep {keep}"
        error = sum(after) / len(after)
        found[name] = Row(name, [f"{report.stem}.l3r"], [error], "fp8", rules(keep, "form=add"), [f"{report.stem}.safetensors"])
    return [row for row in found.values() if args.only in row.name]


DENSE = Row("dense f32", ["dense_f32.l3r"], [], "f32")


def compiled(args, row: Row, number: int) -> None:
    if (args.out / row.plans[number]).exists():
        return
    own = ["--trained", row.trained[number]] if row.trained else []
    counts = ",".join(map(str, args.counts))
    call(args, 0, args.bin / "lite3r-compile", "--arch", "vggt-small", "--size", "224x224", "--weights", args.teacher.resolve(), *own,
         "--bind", f"S={counts}", "--target", args.target, "--precision", row.precision, *row.rules, "--quiet", "-o", row.plans[number])  # fmt: skip


def evaluate(args, row: Row, views: int, scenes: int, gpu: int) -> dict:
    """The report of a row. Most of an evaluation is work of the host: many share a device."""
    path = args.out / f"eval_{views}_{row.plans[0]}.json"
    if not path.exists():
        report = call(args, gpu, args.bin / "lite3r", "eval", ",".join(row.plans), "--data", args.data, "--split", args.split, "--views", views,
                      "--scenes", scenes, "--protocol", "depth/none,pose/pairs", "--json")  # fmt: skip
        path.write_text(report)
    return json.loads(path.read_text())["runs"][0]


def cost(args, row: Row, entry: int) -> dict:
    """What a run of the first plan takes, with nothing beside it."""
    said = call(args, 0, args.bin / "lite3r", "bench", row.plans[0], "--entry", entry, "--runs", 20, "--trust", "--json")
    return json.loads(said)


def line(row: Row, dense: dict, own: dict, cost: dict) -> str:
    def mean(report: dict, protocol: str, measure: str) -> float:
        found = (row for row in report["tables"][0]["rows"] if (row["protocol"], row["measure"]) == (protocol, measure))
        return next(found)["mean"]["estimate"]

    depth, turn = ((mean(own, *what), mean(dense, *what)) for what in (("depth/none", "AbsRel"), ("pose/pairs", "rotation°")))
    auc = [mean(own, "pose/pairs", measure) for measure in ("AUC@5", "AUC@30")]
    error = f"{sum(row.errors) / len(row.errors):.3f}" if row.errors else ""
    return (f"| {row.name} | {depth[0]:.4f} | {depth[0] / depth[1]:.3f} | {turn[0]:.2f}° | {turn[0] / turn[1]:.3f} | {auc[0]:.4f} | {auc[1]:.3f} "
            f"| {error} | {cost['seconds'] * 1e3:.2f} | {cost['allocated_bytes'] / 1e6:.0f} |")  # fmt: skip


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
    parser.add_argument("--scenes", type=lambda text: [int(n) for n in text.split(",")], default=[64, 32, 32], help="of each number of views")
    parser.add_argument("--data", default="synthetic:arc", help="scenes of what to evaluate on")
    parser.add_argument("--split", default="test")
    parser.add_argument("--fit-scenes", type=int, default=32)
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--evaluate", action="store_true", help="what is there; nothing is trained")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    made = [run for run in runs(args.seeds) if args.only in run.recipe.name]
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        work = {} if args.evaluate else {pool.submit(train, args, run, number): run.folder for number, run in enumerate(made)}
        if args.only in FITTED and not args.evaluate:
            work |= {pool.submit(fit, args, keep, number): f"fit_{keep}" for number, keep in enumerate(KEEPS)}
        for done in concurrent.futures.as_completed(work):
            print(f"{work[done]}: {done.exception() or 'done'}", flush=True)
        made = [run for run in made if (args.out / run.folder / "weights.safetensors").exists()]
        table = rows(args, made)
        plans = [(row, number) for row in [DENSE, *table] for number in range(len(row.plans))]
        list(pool.map(lambda plan: compiled(args, *plan), plans))
        table.insert(0, DENSE)
        for entry, (views, scenes) in enumerate(zip(args.counts, args.scenes, strict=True)):
            found = list(pool.map(lambda at: evaluate(args, table[at], views, scenes, at), range(len(table))))
            print(f"\n{views} views\n\n| | AbsRel | of dense | rotation | of dense | AUC@5 | AUC@30 | attention error | ms | MB |"
                  "\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")  # fmt: skip
            for row, own in zip(table, found):
                print(line(row, found[0], own, cost(args, row, entry)), flush=True)


if __name__ == "__main__":
    main()
