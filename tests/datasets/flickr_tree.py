"""Small trees in the official format of Flickr30k Entities."""

from pathlib import Path

from PIL import Image


def thing(names, *boxes, scene=0, nobndbox=0):
    """One <object> for each box (1-based corners), or one without a box."""
    named = "".join(f"<name>{name}</name>" for name in ([names] if isinstance(names, str) else names))
    if not boxes:
        return f"<object>{named}<scene>{scene}</scene><nobndbox>{nobndbox}</nobndbox></object>"
    keys = ("xmin", "ymin", "xmax", "ymax")
    return "".join(
        f"<object>{named}<bndbox>"
        + "".join(f"<{k}>{v}</{k}>" for k, v in zip(keys, box))
        + "</bndbox></object>"
        for box in boxes
    )


def annotation(width, height, *things):
    """The XML of an image."""
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>x.jpg</filename>{size}{''.join(things)}</annotation>"


def tree(root: Path, images: dict[str, tuple[list[str], str]], split="val", photographs=False) -> Path:
    """Write {id: (captions, xml)} as a tree; photographs are grey 32 x 32 squares."""
    for folder in ("Sentences", "Annotations", "flickr30k-images"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for image_id, (captions, xml) in images.items():
        (root / "Sentences" / f"{image_id}.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
        (root / "Annotations" / f"{image_id}.xml").write_text(xml, encoding="utf-8")
        if photographs:
            Image.new("RGB", (32, 32), "grey").save(root / "flickr30k-images" / f"{image_id}.jpg")
    (root / f"{split}.txt").write_text("\n".join(images) + "\n", encoding="utf-8")
    return root
