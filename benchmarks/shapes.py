"""Which map finds what a word names, on pictures whose right answer is known and networks that saw words alone.

python benchmarks/shapes.py                       train both networks with three seeds, score every method, print the
                                                  tables; what is trained is kept in runs/shapes and not made again
python benchmarks/shapes.py --networks vit --seeds 0 --pictures 50
python benchmarks/shapes.py --device cuda         trains there; the maps are made on the CPU
python benchmarks/shapes.py --seeds 9 --dev       every method at every depth, on the pictures that choose defaults
python benchmarks/shapes.py --seeds 0 --picture docs/images/shapes.png    maps of four pictures

The networks learn twelve words (six colours, six shapes) from captions that name some of the things of a picture.
They are asked on other pictures, by words and by phrases of two words. The columns are described in shape_scores.py,
the methods in shape_methods.py. Intervals: 95 % of the bootstrap over the pictures of all seeds.
"""

import argparse
import json
from functools import cache, partial
from pathlib import Path

import torch
from pictures import row as panels
from PIL import Image
from shape_methods import METHODS, Net, activations
from shape_networks import RECIPES, as_input, train
from shape_pictures import SIDE, WORDS, Picture, draw
from shape_scores import SHARES, Maps, Score, answered, faithfulness, grids, localization, mixed
from torch import Tensor

from phrase_loc.drawing import save_picture
from phrase_loc.models.build import fold_batch_norm

TRAINED_ON = 8_000  # pictures of each lesson, of seeds 1 and 2 for all networks
DEV, TEST = 50, 100  # seeds of the pictures that chose, and of those that are reported (+ the network's seed)
PANEL, SHOWN = 150, 4  # pixels of a map in --picture, and rows
COLUMNS = ("words", "phrases", "R@1", "insertion", "deletion", "grid")

#: The depth at which a method reads (else 0), the share of the maximum at which its box is cut (else SHARE), by DEV.
DEPTHS: dict[str, dict[str, int]] = {
    "vit": {"Grad-CAM": 1, "LeGrad": 1},
    "conv": {"Grad-CAM": 2, "attn_lrp": 2, "class_lrp": 2, "AttnLRP": 2, "gradient x input": 2, "LeGrad": 2},
}
SHARE = {"vit": 0.2, "conv": 0.5}
CUTS: dict[str, dict[str, float]] = {
    "vit": {"attn_lrp": 0.3, "Grad-CAM": 0.3, "LeGrad": 0.6, "rollout": 0.3, "MWP, clamp": 0.3},
    "conv": {
        "attn_lrp": 0.3, "class_lrp": 0.3, "Chefer": 0.3, "AttnLRP": 0.2, "gradient x input": 0.2, "Grad-CAM": 0.6,
        "LeGrad": 0.6, "rollout": 0.4, "raw attention": 0.4,
    },
}  # fmt: skip


@cache
def lessons() -> list[list[Picture]]:
    """What is trained on: pictures of one thing, half as wide; of two to six."""
    one = [draw(2, index, (1, 1), SIDE // 2) for index in range(TRAINED_ON)]
    return [one, [draw(1, index) for index in range(TRAINED_ON)]]


def trained(kind: str, seed: int, folder: Path, device: str) -> Net:
    """A network in eval mode, from the folder or made now."""
    file = folder / f"{kind}{seed}.pt"
    torch.manual_seed(seed)
    recipe = RECIPES[kind]
    net = recipe.make()
    if not file.exists():
        for pictures, epochs in zip(lessons(), recipe.epochs, strict=True):
            say = partial(print, f"{kind} {seed}:", flush=True)
            train(net.to(device), pictures, recipe.rate, epochs, seed, say)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(net.cpu().state_dict(), file)
    net.load_state_dict(torch.load(file, map_location="cpu"))
    return fold_batch_norm(net.eval()).requires_grad_(False)


def asked(net: Net, method: str, depth: int) -> Maps:
    """A method as a function of images and weights."""
    units = net.words.weight.detach()

    def maps(images: Tensor, weights: Tensor) -> Tensor:
        with torch.no_grad():
            x = images if method == "occlusion" else activations(net, images, depth)
        return METHODS[method](net, x.detach(), depth, units, weights).detach()

    return maps


def scores(net: Net, kind: str, method: str, depth: int, seed: int, pictures: int) -> dict[str, Score]:
    """All columns of one method for one network; R@1 at every share."""
    drawn = [draw(seed, index) for index in range(pictures)]
    maps = asked(net, method, depth)
    found = answered(maps, drawn)
    return localization(found, drawn) | faithfulness(found, net, drawn) | grids(maps, seed + 10_000, pictures)


def joined(parts: list[dict[str, Score]], cut: float) -> dict[str, Score]:
    """The columns over several networks, with R@1 at one share."""
    names = {"R@1": f"R@1 {cut}"}
    of = {column: [part[names.get(column, column)] for part in parts] for column in COLUMNS}
    return {
        c: Score(torch.cat([s.gained for s in found]), torch.cat([s.asked for s in found]))
        for c, found in of.items()
    }


def best_cut(part: dict[str, Score]) -> float:
    """The share at which boxes are best."""
    return max(SHARES, key=lambda share: part[f"R@1 {share}"].mean())


def row(name: str, columns: dict[str, Score]) -> str:
    """One line of the table, in percent."""
    cells = (
        f"{100 * score.mean():.1f} ({100 * low:.1f}-{100 * high:.1f})"
        for score, (low, high) in ((s, s.interval()) for s in columns.values())
    )
    return f"| {name} | {' | '.join(cells)} |"


def shown(net: Net, kind: str, methods: list[str]) -> Image.Image:
    """The first reported pictures of the first seed, each asked for its frontmost thing: a row of maps a picture."""
    rows = []
    for picture in (draw(TEST, index) for index in range(SHOWN)):
        query, image = picture.things[-1].words, as_input([picture])
        found = [
            asked(net, m, DEPTHS[kind].get(m, 0))(image, mixed([query]))[0, 0].clamp(min=0) for m in methods
        ]
        heats = [torch.zeros_like(found[0]), *found]
        rows.append(panels(Image.fromarray(picture.pixels), heats, [" ".join(query), *methods], PANEL))
    sheet = Image.new("RGB", (rows[0].width, sum(r.height for r in rows)))
    for number, one in enumerate(rows):
        sheet.paste(one, (0, number * one.height))
    return sheet.quantize(64)


def word_accuracy(net: Net, seed: int, number: int = 300) -> float:
    """Mean over words of the area under precision and recall, against what is in the picture."""
    from sklearn.metrics import average_precision_score

    pictures = [draw(seed, index) for index in range(number)]
    with torch.no_grad():
        logits = net(as_input(pictures))
    there = [[bool(p.named((word,))) for p in pictures] for word in WORDS]
    return float(
        sum(average_precision_score(t, logits[:, i].numpy()) for i, t in enumerate(there)) / len(WORDS)
    )


def explore(net: Net, kind: str, methods: list[str], pictures: int) -> None:
    """Methods at every depth, with their best shares, on the pictures that choose."""
    for method in methods:
        for depth in range(len(net.parts())):
            part = scores(net, kind, method, depth, DEV, pictures)
            cut = best_cut(part)
            print(row(f"{method} at {depth}, boxes at {cut}", joined([part], cut)), flush=True)
            if method in ("Chefer", "rollout", "raw attention", "occlusion", "chance"):
                break  # they read where they read


def main() -> None:
    """Train what is missing, then one table for each kind of network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--pictures", type=int, default=100, help="asked of each network")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--device", default="cpu", help="to train on")
    parser.add_argument("--folder", type=Path, default=Path("runs/shapes"))
    parser.add_argument("--dev", action="store_true", help="every depth, on other pictures")
    parser.add_argument("--picture", type=Path, help="only this: maps of the first network")
    args = parser.parse_args()
    if args.picture:
        kind = args.networks[0]
        net = trained(kind, args.seeds[0], args.folder, args.device)
        save_picture(shown(net, kind, args.methods), args.picture)
        return
    for kind in args.networks:
        nets = {seed: trained(kind, seed, args.folder, args.device) for seed in args.seeds}
        print(
            f"\n{kind}: words found "
            + ", ".join(f"{100 * word_accuracy(n, TEST + s):.1f}" for s, n in nets.items())
        )
        if args.dev:
            for net in nets.values():
                explore(net, kind, args.methods, args.pictures)
            continue
        print(f"\n| {kind} | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
        kept = {}
        for method in args.methods:
            depth = DEPTHS[kind].get(method, 0)
            parts = [scores(net, kind, method, depth, TEST + s, args.pictures) for s, net in nets.items()]
            columns = joined(parts, CUTS[kind].get(method, SHARE[kind]))
            print(row(method, columns), flush=True)
            kept[method] = {c: [s.mean(), *s.interval()] for c, s in columns.items()}
        (args.folder / f"{kind}.json").write_text(json.dumps(kept, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
