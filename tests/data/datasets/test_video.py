"""Videos and cameras, whose frames are predicted and written beside their maps."""

from typing import ClassVar

import cv2
import numpy as np
import pytest

from htt_lightning import ImageFolder
from htt_lightning.callbacks.video_file import VideoFile
from htt_lightning.cli import main
from htt_lightning.data.datasets.video import video_frames, video_info
from htt_lightning.errors import DataError, HTTError
from tests.tiny import tiny_checkpoint

LEVELS = [20, 60, 100, 140, 180, 220, 250]
SIZE = (48, 64)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("run"), tasks="semseg,depth")


@pytest.fixture
def clip(tmp_path):
    """A reddish video that grows brighter."""
    path = tmp_path / "clip.MP4"
    writer = cv2.VideoWriter(str(tmp_path / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, SIZE[::-1])
    for level in LEVELS:
        writer.write(np.full((*SIZE, 3), (level // 2, level // 2, level), np.uint8))
    writer.release()
    return (tmp_path / "clip.mp4").rename(path)


def test_frames_are_rgb_and_in_order(clip):
    assert video_info(str(clip)) == ("clip", 10, len(LEVELS), False)
    frames = list(video_frames(str(clip)))
    assert [frame.shape for frame in frames] == [(*SIZE, 3)] * len(LEVELS)
    assert np.abs([frame[..., 0].mean() - level for frame, level in zip(frames, LEVELS, strict=True)]).max() < 6
    assert all(frame[..., 0].mean() > frame[..., 2].mean() for frame in frames)


def test_files_that_are_no_video_are_named(tmp_path, capfd):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(DataError, match=r"text\.mp4 is corrupt or no video"):
        video_info(str(tmp_path / "text.mp4"))
    with pytest.raises(DataError, match=r"gone\.mp4 is missing"):
        list(video_frames(str(tmp_path / "gone.mp4")))


def test_consecutive_frames_make_batches(clip, checkpoint):
    data = ImageFolder(str(clip), checkpoint, batch_size=3)
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert [batch["id"] for batch in batches] == [
        [f"clip/{k}" for k in numbers] for numbers in ([0, 1, 2], [3, 4, 5], [6])
    ]
    assert {batch["view"].size for batch in batches} == {SIZE}
    assert data.count == len(LEVELS)


def test_predict_writes_a_video_of_frames_beside_maps(clip, checkpoint, tmp_path, in_empty_folder):
    words = ["--data", "ImageFolder", "--data.root", str(clip), "--ckpt_path", checkpoint, "--out", "maps"]
    main(["predict", *words, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"])
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["clip_panel.mp4", "maps.json"]
    assert video_info("maps/clip_panel.mp4") == ("clip_panel", 10, len(LEVELS), False)
    frames = list(video_frames("maps/clip_panel.mp4"))
    height, width = frames[0].shape[:2]
    assert width > 2 * height  # the image and two maps side by side
    image = [frame[height // 2 : height // 2 + 20, 100:200, 0].mean() for frame in frames]
    assert np.abs(np.subtract(image, LEVELS)).max() < 10


class FakeCamera:
    """A camera of 10 frames per second, each brighter; ``end`` raises or unplugs it after ``count`` frames."""

    count, end = 1000, None
    opened: ClassVar[list[int]] = []

    def __init__(self, source):
        self.opened.append(source)
        self.number = 0

    def isOpened(self):
        return self.opened[-1] == 1

    def get(self, key):
        return {cv2.CAP_PROP_FPS: 10.0, cv2.CAP_PROP_FRAME_COUNT: -1.0}[key]

    def read(self):
        if self.number == self.count:
            if self.end:
                raise self.end
            return False, None
        self.number += 1
        return True, np.full((*SIZE, 3), 20 * self.number, np.uint8)

    def release(self):
        pass


@pytest.fixture
def predict_camera(checkpoint, tmp_path, monkeypatch, in_empty_folder):
    """Run ``htt predict`` on a camera, and return the exit status and the brightness of the frames it wrote."""
    read_video = cv2.VideoCapture

    def run(*more, root="camera:1", **camera):
        monkeypatch.setattr(cv2, "VideoCapture", type("Camera", (FakeCamera,), {**camera, "opened": []}))
        words = ["--data", "ImageFolder", "--data.root", root, "--data.batch_size", "2", "--ckpt_path", checkpoint]
        quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--out", "maps"]
        status = 0
        try:
            main(["predict", *words, *quiet, *more])
        except SystemExit as error:
            status = error.code
        monkeypatch.setattr(cv2, "VideoCapture", read_video)
        if not (tmp_path / "maps/camera_1_panel.mp4").exists():
            return status, []
        frames = list(video_frames("maps/camera_1_panel.mp4"))
        assert video_info("maps/camera_1_panel.mp4").fps == 10
        height = frames[0].shape[0]
        return status, [round(frame[height // 2 : height // 2 + 20, 100:200].mean(), -1) for frame in frames]

    return run


def test_camera_frames_end_with_the_limit_of_batches(predict_camera):
    assert predict_camera("--trainer.limit_predict_batches", "2") == (0, [20, 40, 60, 80])


def test_camera_frames_end_when_it_is_unplugged(predict_camera):
    assert predict_camera(count=3) == (0, [20, 40, 60])


def test_ctrl_c_keeps_the_frames_of_a_camera(predict_camera, capsys):
    status, frames = predict_camera(count=6, end=KeyboardInterrupt())
    assert status == 130
    assert frames == [20, 40, 60, 80]  # Lightning has fetched the next batch
    assert "maps" in capsys.readouterr().out


@pytest.mark.parametrize("root", ["camera:0", "camera:", "camera:front", "camera:-1"])
def test_a_camera_that_does_not_open_is_named(root, predict_camera):
    message, frames = predict_camera(root=root)
    assert not frames
    assert message.startswith("error: data.root must be ")
    assert f"got {root}." in message


def test_an_interrupted_video_leaves_no_file(tmp_path):
    video = VideoFile(tmp_path / "a.mp4", 10)
    video.write(np.zeros((33, 47, 3), np.uint8))
    video.close(is_complete=False)
    assert list(tmp_path.iterdir()) == []
    video.write(np.zeros((33, 47, 3), np.uint8))
    video.close()
    assert next(video_frames(str(tmp_path / "a.mp4"))).shape == (32, 46, 3)


def test_a_video_that_cannot_be_written_is_named(tmp_path, capfd):
    (tmp_path / ".a.partial.mp4").mkdir()
    video = VideoFile(tmp_path / "a.mp4", 10)
    with pytest.raises(HTTError, match=r"Cannot write .*a\.mp4"):
        video.write(np.zeros((32, 32, 3), np.uint8))
    video.close()  # there is nothing to keep


@pytest.mark.parametrize("fps", [29.97, 119.917, 960.53])
def test_a_video_of_any_rate_is_written(fps, tmp_path):
    video = VideoFile(tmp_path / "a.mp4", fps)
    for _ in range(3):
        video.write(np.zeros((32, 48, 3), np.uint8))
    video.close()
    assert len(list(video_frames(str(tmp_path / "a.mp4")))) == 3
    assert video_info(str(tmp_path / "a.mp4")).fps == pytest.approx(fps, rel=1e-3)
