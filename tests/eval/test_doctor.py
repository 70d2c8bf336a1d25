import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atnet.cli import main
from atnet.data.duplicates import near_pairs, sketch
from atnet.eval.doctor import examine


def anew(path, quality=70, scale=1.0):
    """The image's JPEG of another quality and size."""
    with Image.open(path) as image:
        size = (round(image.width * scale), round(image.height * scale))
        stream = io.BytesIO()
        image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def said(found, grave):
    return " | ".join(finding.what for finding in found.findings if finding.grave == grave)


def test_a_sound_data_set_is_healthy(few_photos):
    found = examine(str(few_photos))
    assert found.healthy
    assert "All 102 images can be read" in said(found, "fine")
    assert "No image is there twice" in said(found, "fine")
    assert found.advice.command == ""
    assert (found.sides.shape, found.sides.min()) == ((102, 2), 224)


def test_copies_between_training_and_validation_are_found(few_photos):
    training = sorted((few_photos / "train").rglob("*.*"))
    for number, image in enumerate(training[::6]):
        name = few_photos / "val" / image.parent.name / f"copy-{number}.jpg"
        name.write_bytes(image.read_bytes() if number % 2 else anew(image, 60, 0.7))
    found = examine(str(few_photos))
    assert not found.healthy
    assert "6 times a training and a validation image are the same file" in said(found, "wrong")
    assert "6 times a training and a validation image are nearly the same image" in said(found, "wrong")
    [first] = [finding for finding in found.findings if finding.what.endswith("the same file")]
    for line in first.examples:
        one, other = line.split("  =  ")
        assert "/train/" in one
        assert "/val/" in other
        assert Path(one).read_bytes() == Path(other).read_bytes()


def test_one_image_in_two_classes_is_a_contradiction(few_photos):
    one, other = sorted((few_photos / "train").iterdir())[:2]
    shutil.copy(min(one.iterdir()), other / "again.jpg")
    found = examine(str(few_photos))
    assert "1 time images of two classes are the same file" in said(found, "wrong")


def test_what_is_wrong_with_classes_and_files_is_said(few_photos, tmp_path):
    train, val = few_photos / "train", few_photos / "val"
    first, second, third = sorted(path.name for path in train.iterdir())
    (train / "empty").mkdir()
    (train / ".hidden").mkdir()
    for image in sorted((train / first).iterdir())[2:]:
        image.unlink()
    broken = min((val / second).iterdir())
    broken.write_bytes(broken.read_bytes()[:3000])
    shutil.rmtree(val / third)
    Image.open(max((train / second).iterdir())).save(train / second / "called.png", "JPEG")
    Image.new("CMYK", (40, 40), (9, 80, 3, 0)).save(train / second / "print.jpg")
    Image.effect_noise((6100, 70), 80).save(train / second / "wide.png")
    found = examine(str(few_photos))
    assert "1 of 20 validation images cannot be read (5.00%)" in said(found, "wrong")
    assert "No validation images of 1 class" in said(found, "wrong")
    assert "The classes are uneven: 2 training images of" in said(found, "odd")
    assert "Fewer than 20 training images of 1 of 3 classes" in said(found, "odd")
    assert "No images in 1 folder" in said(found, "odd")
    assert "1 image: a JPEG called .png" in said(found, "odd")
    assert "1 image: huge" in said(found, "odd")
    assert "Left out: 1 hidden folder" in said(found, "fine")
    assert "1 image: CMYK colours" in said(found, "fine")
    assert found.advice.options == ("--data.balance loss",)


@pytest.mark.slow
def test_the_command_writes_a_page_and_ends_with_1_if_something_is_wrong(few_photos, capsys, tmp_path):
    main(["doctor", str(few_photos)])
    page = (tmp_path / "doctor.html").read_text()
    assert "Nothing found would corrupt a result" in page
    assert page.count("data:image/jpeg") == 3
    out = capsys.readouterr().out
    assert "Next: atnet train --data" in out
    assert "epochs take about" in out
    image = min((few_photos / "train" / "n01440764").iterdir())
    shutil.copy(image, few_photos / "val" / "n01440764" / "<script>alert(1)<b>.jpg")
    with pytest.raises(SystemExit) as ended:
        main(["doctor", str(few_photos), "--out", "again.html"])
    assert ended.value.code == 1
    page = (tmp_path / "again.html").read_text()
    assert "<script>" not in page
    assert "would corrupt a result" in page
    assert "WRONG  1 time a training and a validation image are the same file" in capsys.readouterr().out


def test_sketches_know_an_image_again_and_others_apart(few_photos):
    paths = sorted(few_photos.rglob("*.*"))
    originals = [sketch(Image.open(path).convert("RGB")) for path in paths]
    copies = [sketch(Image.open(io.BytesIO(anew(path, 40, 0.5)))) for path in paths]
    bands, miniatures = (np.stack([getattr(s, what) for s in originals + copies]) for what in ("bands", "miniature"))
    pairs = {tuple(pair) for pair in near_pairs(bands, miniatures).tolist()}
    count = len(paths)
    expected = {(i, count + i) for i in range(count)}
    assert len(pairs & expected) >= 0.97 * count
    assert len(pairs - expected) <= 1


def test_flat_images_are_not_taken_for_each_other():
    flat = [sketch(Image.new("RGB", (64, 64), (shade, shade, shade))) for shade in range(0, 250, 10)]
    assert len(near_pairs(np.stack([s.bands for s in flat]), np.stack([s.miniature for s in flat]))) == 0


def test_what_training_would_not_see_is_said(digits):
    one = digits / "train" / "one"
    shutil.copy(min(one.iterdir()), one / "a.cr2")
    shutil.copy(min(one.iterdir()), one / "b.png.1")
    shutil.copy(min(one.iterdir()), digits / "val" / "stray.png")
    shutil.copytree(digits / "train" / "two", digits / "train" / "Two")
    shutil.copytree(digits / "val" / "two", digits / "val" / "Two")
    for path in sorted(one.glob("*.png"))[:3]:
        Image.fromarray(np.full((28, 28), 4000, np.uint16)).save(path)
    found = examine(str(digits))
    assert "Left out: 2 files that look like images (1 .cr2, 1 .1)" in said(found, "odd")
    assert "Left out: 1 image in no class folder" in said(found, "odd")
    assert "1 time classes have names that differ only in case" in said(found, "odd")
    assert "3 images: nearly black, with 14 or fewer of 16 bits" in said(found, "odd")
    assert "told by a word" not in said(found, "odd")


def test_folders_that_may_be_parts_are_said(digits):
    (digits / "train").rename(digits / "seg_train")
    (digits / "val").rename(digits / "seg_test")
    assert "'seg_train' is for training, 'seg_test' for validation" in said(examine(str(digits)), "odd")
    (digits / "seg_train").rename(digits / "first")
    (digits / "seg_test").rename(digits / "second")
    assert "all hold the same folders: 'eight', 'five'" in said(examine(str(digits)), "odd")
