"""Trains all models on one toy dataset with one recipe and several seeds: FCNet, its ablations, and the others.

    python benchmarks/toy_models.py [--seeds 3] [--images 6000] [--work runs/toy-models]

Every run is `refseg/train.py toy-quick` in one process, in which only the model is changed. Scores are those of the
validation scenes. Finished runs are kept, so an interrupted comparison can be resumed.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

VARIANTS = {
    "FCNet": (),
    "FCNet without ECM": ("model.ecm=false",),
    "FCNet without EGM and ECM": ("model.ecm=false", "model.egm=false"),
    "CRFormer": ('model.name="crformer"',),
    "LTS": ('model.name="lts"',),
    "CRIS-style": ('model.name="cris"',),
}
TRAIN = Path(__file__).resolve().parents[1] / "refseg" / "train.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each model (default: 3)")
    parser.add_argument(
        "--images", type=int, default=6000, help="number of scenes; a run has two epochs (default: 6000)"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/toy-models"), help="folder for scenes and runs")
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), help="models to train")
    args = parser.parse_args()
    shards = _draw(args.work, args.images)
    scores: dict[str, list[tuple[float, float]]] = {name: [] for name in args.only}
    for seed in range(args.seeds):  # one seed after another, so that the finished runs can always be compared
        for name in args.only:
            scores[name].append(_train(name, seed, shards, args.work / f"{name.replace(' ', '-').lower()}-{seed}"))
            print(f"seed {seed}, {name}: oIoU {scores[name][-1][0]:.3f}", file=sys.stderr, flush=True)
    _print(scores)


def _draw(work: Path, images: int) -> Path:
    drawn, shards = work / f"drawn-{images}", work / f"shards-{images}"
    if not (shards / "refseg.json").is_file():
        _run("-m", "refseg", "toy", "--out", drawn, "--images", images, "--seed", 0)
        _run("-m", "refseg", "build-shards", "toy/refseg", "--annotations", drawn,
             "--out", shards, "--workers", 2)  # fmt: skip
    return shards


def _train(name: str, seed: int, shards: Path, out: Path) -> tuple[float, float]:
    """Train unless the run is finished, and return the overall and mean IoU of the last validation."""
    settings = (f"data.root={shards}", f"train.seed={seed}", *VARIANTS[name])
    _run(TRAIN, "toy-quick", "--out", out, *(word for setting in settings for word in ("--set", setting)))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "val"][-1]
    return last["oIoU"], last["mIoU"]


def _run(*words: object) -> None:
    subprocess.run([sys.executable, *map(str, words)], check=True, stdout=sys.stderr)


def _print(scores: dict[str, list[tuple[float, float]]]) -> None:
    print(f"{'':26}{'oIoU, mean':>12}{'of each seed':>28}{'mIoU, mean':>12}")
    for name, runs in scores.items():
        overall = [run[0] for run in runs]
        each = "  ".join(f"{100 * value:.1f}" for value in overall)
        mean_iou = statistics.mean(run[1] for run in runs)
        print(f"{name:26}{100 * statistics.mean(overall):>12.1f}{each:>28}{100 * mean_iou:>12.1f}")


if __name__ == "__main__":
    main()
