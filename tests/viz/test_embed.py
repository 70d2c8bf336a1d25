"""Images as vectors: what the head reads, what is alike, a map."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

import atnet
from atnet.cli import main
from atnet.data.decode import decode
from atnet.errors import ConfigError, DataError
from atnet.inference.embed import on_plane
from atnet.viz.embed import draw_map


@pytest.fixture
def run(quick, tmp_path):
    return atnet.train(**quick, out=tmp_path / "run").folder


def test_a_vector_is_what_the_head_reads_and_the_table_holds_it(run, quick, digits, tmp_path):
    found = atnet.embed(digits, run, batch=7, workers=0)
    assert {part: len(samples) for part, samples in found.parts.items()} == {"train": 200, "val": 50}
    assert found.vectors.shape == (250, 192)
    model, info = atnet.load(run)
    rows = list(found.rows())
    for k in (0, 123, 249):
        with torch.inference_mode():
            image = torch.from_numpy(info.preprocess(decode(rows[k][0])))[None]
            logits = model(image)[0]
            mine = model.head(torch.from_numpy(found.vectors[k]))
        torch.testing.assert_close(mine, logits, atol=1e-4, rtol=1e-4)
    found.write(tmp_path / "vectors.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "vectors.parquet")
    assert table.column_names == ["path", "part", "class", "name", "vector"]
    np.testing.assert_array_equal(np.stack(table["vector"].to_numpy()), found.vectors)
    assert list(zip(*(table[name].to_pylist() for name in table.column_names[:4]), strict=True)) == rows
    assert json.loads(table.schema.metadata[b"atnet"])["model"] == f"atnet_{quick['model']}"


def test_the_nearest_image_is_the_images_own_copy(run, digits, tmp_path):
    asked = sorted((digits / "train" / "four").iterdir())[3]
    shutil.copy(asked, tmp_path / "asked.png")
    found = atnet.embed(digits / "train", run, like=tmp_path / "asked.png", top=4, workers=0).neighbours
    assert found[0].image == str(asked)
    assert found[0].name == "four"
    assert found[0].similarity == pytest.approx(1, abs=1e-5)
    assert [one.similarity for one in found] == sorted((one.similarity for one in found), reverse=True)
    assert len({one.image for one in found}) == 4


def test_images_in_no_class_folder_have_no_class(run, digits, tmp_path):
    folder = digits / "val" / "six"
    (folder / "more").mkdir()
    shutil.copy(next(folder.glob("*.png")), folder / "more" / "again.png")
    found = atnet.embed(folder, run, workers=0)
    assert sorted({row[1:] for row in found.rows()}) == [("", "", ""), ("", "more", "more")]
    found.write(tmp_path / "vectors.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "vectors.parquet")
    assert (table["part"].null_count, table["class"].null_count) == (6, 5)


def test_the_command_lists_what_it_cannot_read_and_writes_the_rest(run, quick, digits, tmp_path, capsys):
    spoilt = sorted((digits / "val" / "two").iterdir())[0]
    spoilt.write_text("text")
    words = ["embed", str(digits / "val"), "--weights", str(run), "--workers", "0"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--out", "v.parquet", "--like", str(next((digits / "val" / "one").iterdir())), "--map", "m.png"])
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert f"1 images could not be read and were left out:\n  {spoilt}: text, not a whole JPEG" in said.err
    assert f"49 images, vectors of 192 numbers, by atnet_{quick['model']}" in " ".join(said.out.split())
    assert "1.000  one" in said.out
    assert "Written: v.parquet" in said.out
    assert pyarrow.parquet.read_table("v.parquet").num_rows == 49
    with pytest.raises(SystemExit):
        main([*words, "--out", "v.parquet"])
    assert "v.parquet: exists; choose another --out" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "--map", "nowhere/m.png"])
    assert "nowhere: no such folder; make it, or choose another --map" in capsys.readouterr().err
    main(["embed", str(digits / "train"), "--weights", str(run), "--workers", "0"])
    assert pyarrow.parquet.read_table("vectors.parquet").num_rows == 200


def test_what_cannot_be_embedded_says_so(run, digits, tmp_path):
    with pytest.raises(DataError, match=r"gone.png: no such image"):
        atnet.embed(digits, run, like=tmp_path / "gone.png")
    with pytest.raises(ConfigError, match="top=0 must be 1 or more"):
        atnet.embed(digits, run, top=0)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        atnet.embed("nowhere", run)
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "one.png").write_text("text")
    with pytest.raises(DataError, match=r"none of its 1 images can be read; the first: .*one.png: text"):
        atnet.embed(bad, run, workers=0)


def test_like_vectors_lie_together_on_the_plane_the_same_each_time():
    rng = np.random.default_rng(0)
    middles = rng.normal(size=(3, 16))
    vectors = (np.repeat(middles, 20, 0) + 0.1 * rng.normal(size=(60, 16))).astype(np.float32)
    plane = on_plane(vectors)
    apart = np.linalg.norm(plane[:, None] - plane[None], axis=-1) + np.diag(np.full(60, np.inf))
    assert (apart.argmin(1) // 20 == np.arange(60) // 20).all()
    assert (plane == on_plane(vectors)).all()
    for count in (1, 2, 3, 4, 5):
        assert np.isfinite(on_plane(vectors[:count])).all()
        assert len(np.unique(on_plane(vectors[:count]), axis=0)) == count
    assert np.isfinite(on_plane(np.zeros((9, 16), np.float32))).all()


def test_the_map_shows_images_in_frames_of_their_class(run, digits, tmp_path):
    found = atnet.embed(digits / "val", run, workers=0)
    draw_map(found, tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    assert {(31, 119, 180), (255, 127, 14), (0, 0, 0)} <= colours
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(next(Path(digits / "val" / "six").iterdir()), alone)
    draw_map(atnet.embed(alone, run, workers=0), tmp_path / "alone.png")
    with Image.open(tmp_path / "alone.png") as image:
        assert image.size == (84, 84)
