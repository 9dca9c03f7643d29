"""The pictures of the documentation, made by the shipped model from a shipped photograph.

python benchmarks/pictures.py                    writes docs/images/: astronaut.png (README), methods.png, words.png
                                                 and, where a Chromium is found, notebook.png
python benchmarks/pictures.py --out FOLDER       the same elsewhere
"""

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from phrase_loc.__main__ import main as phrase_loc
from phrase_loc.drawing import glow, save_picture
from phrase_loc.images import load_image
from phrase_loc.localizer import PhraseLocalizer

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("mwp", "contrastive_mwp", "cam", "grad_cam")
README_PHRASES = ("a smiling woman", "an orange suit")
SIDE = 300  # longest side of a panel, in pixels
CAPTION = 24  # height of the line under it, in pixels


def methods(localizer: PhraseLocalizer, photograph: Path, phrase: str) -> Image.Image:
    """One phrase under several attention methods, each map over its own maximum."""
    image = load_image(photograph)
    scene = localizer.look(image)
    maps = [localizer.attend(scene, [phrase], method)[0] for method in METHODS]
    return row(image, [localizer.heat(m[None], scene.size)[0] for m in maps], METHODS)


def words(localizer: PhraseLocalizer, photograph: Path, phrase: str) -> Image.Image:
    """A phrase beside each of its known words, with their weights."""
    image = load_image(photograph)
    scene = localizer.look(image)
    known = [word for word in localizer.encode([phrase])[0].words if word.known]
    maps = localizer.attend(scene, [phrase, *(word.text for word in known)])
    captions = [phrase, *(f"{word.text}  {word.weight:.2f}" for word in known)]
    return row(image, list(localizer.heat(maps, scene.size)), captions)


def notebook(localizer: PhraseLocalizer, photograph: Path, phrases: Sequence[str], target: Path) -> None:
    """What a notebook shows of the answers, photographed by a headless Chromium; nothing without one."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("no Chromium: notebook.png is left as it is")
        return
    shown = localizer(photograph, phrases)._repr_html_()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(f'<meta charset="utf-8"><body style="margin:8px">{shown}', encoding="utf-8")
        told = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        told += ["--window-size=860,490", f"--screenshot={target.resolve()}", page.as_uri()]
        subprocess.run(told, check=True, capture_output=True, timeout=120)


def row(
    image: Image.Image, heats: Sequence[Tensor], captions: Sequence[str], side: int = SIDE
) -> Image.Image:
    """The photograph under each map, side by side, with a line of text under each."""
    scale = side / max(image.size)
    small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    sheet = Image.new("RGB", (len(heats) * small.width, small.height + CAPTION), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for number, (heat, caption) in enumerate(zip(heats, captions, strict=True)):
        sheet.paste(glow(small, heat), (number * small.width, 0))
        draw.text((number * small.width + 6, small.height + 3), caption, fill="black", font=font)
    return sheet


def main() -> None:
    """Draw them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="folder for the pictures")
    parser.add_argument("--photograph", type=Path, default=ROOT / "phrase_loc" / "examples" / "astronaut.png")
    parser.add_argument("--phrase", default="an orange suit", help="of methods.png")
    parser.add_argument("--caption", default="a smiling woman in an orange suit", help="of words.png")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    picture = str(args.out / "astronaut.png")
    phrase_loc(["query", str(args.photograph), *README_PHRASES, "--overlay", picture, "--device", "cpu"])
    localizer = PhraseLocalizer.from_pretrained("default", device="cpu")
    notebook(localizer, args.photograph, README_PHRASES, args.out / "notebook.png")
    save_picture(methods(localizer, args.photograph, args.phrase), args.out / "methods.png")
    save_picture(words(localizer, args.photograph, args.caption), args.out / "words.png")


if __name__ == "__main__":
    main()
