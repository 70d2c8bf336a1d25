"""Makes the folder that recipes/general.yaml trains on: one class folder for each ImageNet class of several data sets.

python recipes/general_data.py OUT tiny-imagenet=FOLDER mini-imagenet=FOLDER dogs120=FOLDER imagenette=FOLDER

Each FOLDER has train/ and val/ with a folder of images for each class, named by WordNet id (n01440764). OUT gets links
to the images, called NAME_IMAGE, so that an evaluation can tell where each is from. A training image with the same
content as a validation image of any source is left out, and so are whole classes by --leave-out NAME/CLASS. For the
published weights these were mini-imagenet/n03417042 and dogs120/n02102040, which hold validation images of Imagenette
at other sizes.
"""

import argparse
import hashlib
from pathlib import Path

PARTS = ("val", "train")


def images(root: Path, part: str) -> list[Path]:
    """The files of a part, by class and name."""
    folders = sorted(path for path in (root / part).iterdir() if path.is_dir())
    return [path for folder in folders for path in sorted(folder.iterdir()) if path.is_file()]


def main(out: Path, sources: dict[str, Path], left_out: set[str]) -> None:
    if out.exists():
        raise SystemExit(f"{out}: exists; name a new folder")
    validation: set[bytes] = set()
    copies, counts = 0, dict.fromkeys(PARTS, 0)
    for part in PARTS:
        for name, root in sources.items():
            for path in images(root, part):
                if f"{name}/{path.parent.name}" in left_out:
                    continue
                content = hashlib.sha256(path.read_bytes()).digest()
                if part == "val":
                    validation.add(content)
                elif content in validation:
                    copies += 1
                    continue
                link = out / part / path.parent.name / f"{name}_{path.name}"
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.resolve())
                counts[part] += 1
    classes = len(list((out / "train").iterdir()))
    print(f"{out}: {classes} classes, {counts['train']:,} training images ({copies} copies of validation images left "
          f"out), {counts['val']:,} validation images")  # fmt: skip
    print(f"Next: atnet train recipes/general.yaml --data {out} --teacher timm:tf_efficientnet_lite0")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("sources", nargs="+", help="NAME=FOLDER")
    parser.add_argument("--leave-out", nargs="*", default=[], help="NAME/CLASS")
    said = parser.parse_args()
    main(
        said.out,
        {name: Path(folder) for name, _, folder in (one.partition("=") for one in said.sources)},
        set(said.leave_out),
    )
