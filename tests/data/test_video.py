"""Videos that OpenCV writes, and files that are none."""

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

import atnet
from atnet.cli import main
from atnet.data.video import camera_frames, count_frames, frames
from atnet.errors import DataError, MissingExtraError
from atnet.inference.prediction import Unread, predict_each
from atnet.weights.info import SHIPPED

CHINA, FLOWER = (Image.fromarray(load_sample_image(f"{name}.jpg")).resize((320, 240)) for name in ("china", "flower"))


def write(path, images, rate=10, code="mp4v"):
    """A video of so many frames of each image, one after the other."""
    made = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), rate, CHINA.size)
    for image, count in images:
        for _ in range(count):
            made.write(np.asarray(image)[:, :, ::-1])
    made.release()
    return path


@pytest.mark.parametrize(("name", "code"), [("a.mp4", "mp4v"), ("a.avi", "MJPG"), ("a.mkv", "mp4v"), ("a.MOV", "mp4v")])
def test_a_frame_a_second_comes_with_its_time(tmp_path, name, code):
    path = write(tmp_path / name, [(CHINA, 20), (FLOWER, 15)], code=code)
    seen = list(frames(path))
    assert [round(seconds, 2) for seconds, _ in seen] == [0, 1, 2, 3]
    assert count_frames(path) == 4
    for (_, found), image in zip(seen, (CHINA, CHINA, FLOWER, FLOWER), strict=True):
        assert np.abs(np.asarray(found).astype(int) - np.asarray(image)).mean() < 8


def test_a_video_that_is_slower_than_a_frame_a_second_gives_all_of_them(tmp_path):
    path = write(tmp_path / "slow.avi", [(CHINA, 3)], rate=0.5, code="MJPG")
    assert [seconds for seconds, _ in frames(path)] == [0, 2, 4]


def test_its_frames_are_answered_as_photos_are(tmp_path):
    path = write(tmp_path / "clip.mp4", [(CHINA, 20), (FLOWER, 10)])
    for number, (_, image) in enumerate(frames(path)):
        image.save(tmp_path / f"{number}.png")
    photos = [tmp_path / f"{number}.png" for number in range(3)]
    expected = atnet.predict(photos, SHIPPED)
    said = list(predict_each([photos[0], path, photos[1]], SHIPPED))
    assert [one.image for one in said] == [
        str(photos[0]), f"{path}#t=0", f"{path}#t=1", f"{path}#t=2", str(photos[1]),
    ]  # fmt: skip
    for one, other in zip(said[1:4], expected, strict=True):
        assert one.top[0] == (*other.top[0][:2], pytest.approx(other.top[0][2], abs=1e-5))


def test_what_is_no_video_has_a_row_that_says_so(tmp_path):
    whole = write(tmp_path / "whole.mp4", [(CHINA, 12)]).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[:200])
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n")
    (tmp_path / "empty.mov").write_bytes(b"")
    (tmp_path / "folder.mp4").mkdir()
    names = ["cut.mp4", "list.mp4", "empty.mov", "absent.mp4"]
    said = list(predict_each([tmp_path / name for name in [*names, "whole.mp4"]], SHIPPED))
    assert [type(one) for one in said[:4]] == [Unread] * 4
    assert "a damaged video" in str(said[0].error)
    assert "not a whole MP4" in str(said[1].error)
    assert "not a whole MP4" in str(said[2].error)
    assert "no such" in str(said[3].error)
    assert [one.image for one in said[4:]] == [f"{tmp_path}/whole.mp4#t=0", f"{tmp_path}/whole.mp4#t=1"]


def test_the_command_writes_a_row_a_second_and_sorts_none(tmp_path, capsys):
    path = write(tmp_path / "clip.mp4", [(CHINA, 15)])
    main(["predict", str(path), "--csv", str(tmp_path / "rows.csv"), "--top", "1"])
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["image", f"{path}#t=0", f"{path}#t=1"]
    for words, message in (
        ([str(path), "--sort-into", "sorted"], "a video's frames are none"),
        ([str(path), "--camera", "0"], "without images"),
        (["--camera", "97"], "camera 97: cannot be opened"),
    ):
        with pytest.raises(SystemExit):
            main(["predict", *words])
        assert message in capsys.readouterr().err


def test_a_camera_is_looked_at_once_a_second(monkeypatch):
    """By a stand-in, for a test machine has none: frames come as fast as they are taken."""
    clock = iter(range(10_000))
    monkeypatch.setattr("atnet.data.video.time", type("Clock", (), {"monotonic": lambda: next(clock) / 8}))
    monkeypatch.setattr(cv2, "VideoCapture", _Camera)
    seen = []
    with pytest.raises(DataError, match="camera 0: gives no more frames"):
        seen.extend(seconds for seconds, _ in camera_frames(0))
    assert seen == [0.125, 1.0, 2.0]


class _Camera:
    def __init__(self, number):
        self.left = 20

    def isOpened(self):  # noqa: N802 - OpenCV's name
        return True

    def grab(self):
        self.left -= 1
        return self.left >= 0

    def retrieve(self):
        return True, np.zeros((4, 4, 3), np.uint8)

    def release(self):
        pass


def test_without_opencv_the_extra_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "clip.mp4", [(CHINA, 5)])
    monkeypatch.setattr("atnet.extras.find_spec", lambda module: None if module == "cv2" else module)
    with pytest.raises(MissingExtraError, match=r"pip install 'atnet\[video\]'"):
        predict_each(path, SHIPPED)
