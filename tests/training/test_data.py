"""Data sets are read as they lie, and everything that is wrong with one is said at once."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.images import make_folder, spot_mask, texture, write, write_defect
from tests.training.reading import problems
from training.data import read_data, read_frame, read_mask
from vision.errors import DataError
from vision.preprocess import decode_image


class TestLayout:
    def test_labels_masks_and_sides(self, tmp_path: Path) -> None:
        data = read_data(make_folder(tmp_path, train={"good": 3, "scratch": 2}, test={"good": 1, "dent": 2}))
        assert Counter(sample.label for sample in data.train) == {"good": 3, "scratch": 2}
        assert Counter(sample.label for sample in data.test) == {"good": 1, "dent": 2}
        assert data.classes == ("good", "scratch")
        assert data.good_class == "good"
        for sample in (*data.train, *data.test):
            assert sample.is_defect == (sample.label != "good") == (sample.mask is not None)
            assert sample.defect_probability == float(sample.is_defect)
            if sample.mask is not None:
                assert sample.mask == tmp_path / "ground_truth" / sample.label / f"{sample.path.stem}_mask.png"
                assert read_mask(sample.mask).sum() == 256

    def test_one_class_data_knows_only_anomalies(self, tmp_path: Path) -> None:
        data = read_data(make_folder(tmp_path, train={"good": 2}, test={"good": 1, "dent": 1, "scratch": 1}))
        assert data.classes == ("good", "anomaly")
        assert {sample.label for sample in data.test} == {"good", "dent", "scratch"}

    def test_defects_alone_have_no_good_class(self, tmp_path: Path) -> None:
        data = read_data(make_folder(tmp_path, train={"dent": 2, "crack": 2}))
        assert data.classes == ("crack", "dent")
        assert data.good_class is None

    def test_a_part_may_be_missing(self, tmp_path: Path) -> None:
        assert read_data(make_folder(tmp_path / "a", train={"good": 2})).test == ()
        data = read_data(make_folder(tmp_path / "b", test={"good": 2, "dent": 1}))
        assert data.train == ()
        assert data.classes == ("good", "dent")

    def test_defects_without_masks_and_partly_with_masks_are_fine(self, tmp_path: Path) -> None:
        root = make_folder(tmp_path, train={"good": 2, "dent": 3})
        (root / "ground_truth" / "dent" / "t001_mask.png").unlink()
        data = read_data(root)
        assert [sample.mask is None for sample in data.train if sample.is_defect] == [False, True, False]

    def test_folders_inside_a_class_folder_keep_their_masks_apart(self, tmp_path: Path) -> None:
        for lot, at in (("lot1", (0, 0)), ("lot2", (32, 32))):
            write_defect(tmp_path / "train" / "dent" / lot / "1.png", at=at)
            write(tmp_path / "ground_truth" / "dent" / lot / "1_mask.png", spot_mask(at=at))
        by_lot = {sample.path.parent.name: sample for sample in read_data(tmp_path).train}
        assert by_lot["lot1"].mask is not None
        assert by_lot["lot2"].mask is not None
        assert read_mask(by_lot["lot1"].mask)[0, 0]
        assert read_mask(by_lot["lot2"].mask)[40, 40]

    def test_hidden_files_and_notes_are_no_images(self, tmp_path: Path) -> None:
        root = make_folder(tmp_path, train={"good": 2})
        (root / "train" / "good" / "._t000.png").write_bytes(b"a Mac was here")
        (root / "train" / "good" / "Thumbs.db").write_bytes(b"so was Windows")
        (root / "train" / ".cache").mkdir()
        assert len(read_data(root).train) == 2

    @pytest.mark.parametrize("names", [(), ("images/a.png", "labels.csv")])
    def test_an_unknown_layout_says_what_was_expected_and_found(self, tmp_path: Path, names: tuple[str, ...]) -> None:
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"")
        with pytest.raises(DataError, match="expected train/good/.*found " + ("images/" if names else "nothing")):
            read_data(tmp_path)

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="is no folder"):
            read_data(tmp_path / "nowhere")

    def test_images_outside_class_folders_are_not_skipped_in_silence(self, tmp_path: Path) -> None:
        root = make_folder(tmp_path, train={"good": 2})
        write(root / "train" / "loose.png", texture("loose"))
        (line,) = problems(root)
        assert "loose.png" in line
        assert "no class folder" in line


class TestPixels:
    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tiff", ".tif", ".webp", ".jpeg", ".PNG"])
    def test_every_format_is_found_and_read_as_the_server_reads_it(self, tmp_path: Path, suffix: str) -> None:
        path = write(tmp_path / "train" / "good" / f"a{suffix.lower()}", texture("a"))
        path = path.rename(path.with_suffix(suffix))
        (sample,) = read_data(tmp_path).train
        assert sample.path == path
        assert (read_frame(path, 65535) == decode_image(path.read_bytes())).all()

    def test_colour_is_rgb_and_alpha_is_dropped(self, tmp_path: Path) -> None:
        pixels = np.zeros((40, 50, 4), np.uint8)
        pixels[..., 2], pixels[..., 3] = 200, 7
        frame = read_frame(write(tmp_path / "red.png", pixels), 65535)
        assert frame.shape == (40, 50, 3)
        assert frame[0, 0].tolist() == [200, 0, 0]

    @pytest.mark.parametrize(
        ("peak", "white"),
        [(300, 1023), (1023, 1023), (1024, 4095), (4095, 4095), (4096, 16383), (16384, 65535), (65535, 65535)],
    )
    @pytest.mark.parametrize("suffix", [".png", ".tiff"])
    def test_white_level_of_16_bit_data(self, tmp_path: Path, peak: int, white: int, suffix: str) -> None:
        make_folder(tmp_path, train={"good": 2})  # 8-bit files among them say nothing about the white level
        pixels = texture("deep").astype(np.uint16)
        pixels[3, 3] = peak
        path = write(tmp_path / "test" / "good" / f"deep{suffix}", pixels)
        assert read_data(tmp_path).white_level == white
        assert read_frame(path, white)[3, 3] == round(255 * peak / white)

    def test_white_level_of_8_bit_data_is_the_full_range(self, tmp_path: Path) -> None:
        assert read_data(make_folder(tmp_path, train={"good": 2})).white_level == 65535

    def test_16_bit_colour(self, tmp_path: Path) -> None:
        pixels = np.zeros((32, 32, 3), np.uint16)
        pixels[5, 5] = (100, 2000, 4000)
        path = write(tmp_path / "train" / "good" / "deep.png", pixels)
        assert read_data(tmp_path).white_level == 4095
        assert read_frame(path, 4095)[5, 5].tolist() == [249, 125, 6]


class TestMasks:
    def with_mask(self, root: Path, mask: np.ndarray, suffix: str = ".png") -> Path:
        write_defect(root / "train" / "dent" / "1.png")
        write(root / "ground_truth" / "dent" / f"1_mask{suffix}", mask)
        return root

    @pytest.mark.parametrize("value", [1, 128, 255])
    def test_any_single_value_marks(self, tmp_path: Path, value: int) -> None:
        (sample,) = read_data(self.with_mask(tmp_path, spot_mask() // 255 * value)).train
        assert sample.mask is not None
        assert (read_mask(sample.mask) == (spot_mask() > 0)).all()

    def test_colour_and_alpha_masks(self, tmp_path: Path) -> None:
        mask = np.zeros((64, 96, 4), np.uint8)
        mask[..., 2], mask[..., 3] = spot_mask(), 255  # red paint on an opaque layer
        (sample,) = read_data(self.with_mask(tmp_path, mask)).train
        assert sample.mask is not None
        assert (read_mask(sample.mask) == (spot_mask() > 0)).all()

    def test_a_mask_may_have_the_name_of_its_image(self, tmp_path: Path) -> None:
        write_defect(tmp_path / "train" / "dent" / "1.jpg")
        mask = write(tmp_path / "ground_truth" / "dent" / "1.png", spot_mask())
        assert read_data(tmp_path).train[0].mask == mask

    @pytest.mark.parametrize("background", [0, 40])
    def test_not_binary(self, tmp_path: Path, background: int) -> None:
        mask = np.where(spot_mask() > 0, 200, background).astype(np.uint8)
        if background == 0:
            mask[0, 0] = 100
        (line,) = problems(self.with_mask(tmp_path, mask))
        assert "ground_truth/dent/1_mask.png" in line
        assert "not binary" in line

    def test_lossy_masks_are_refused(self, tmp_path: Path) -> None:
        (line,) = problems(self.with_mask(tmp_path, cv2.GaussianBlur(spot_mask(), (5, 5), 2), ".jpg"))
        assert "not binary" in line
        assert "lossless" in line

    def test_turned_masks_are_of_another_size(self, tmp_path: Path) -> None:
        (line,) = problems(self.with_mask(tmp_path, spot_mask().T))
        assert "64x96 px" in line
        assert "image 96x64 px" in line

    def test_a_mask_that_marks_nothing_is_no_mask_and_is_told(self, tmp_path: Path) -> None:
        data = read_data(self.with_mask(tmp_path, np.zeros((64, 96), np.uint8)))
        assert data.train[0].mask is None
        assert "1 defect image(s)" in data.remarks[0]

    def test_a_marked_good_image_is_a_contradiction(self, tmp_path: Path) -> None:
        write(tmp_path / "train" / "good" / "1.png", texture("1"))
        write(tmp_path / "train" / "good" / "2.png", texture("2"))
        write(tmp_path / "ground_truth" / "good" / "1_mask.png", np.zeros((64, 96), np.uint8))
        write(tmp_path / "ground_truth" / "good" / "2_mask.png", spot_mask())
        (line,) = problems(tmp_path)
        assert "good/2_mask.png" in line

    def test_one_mask_for_two_images_is_never_guessed(self, tmp_path: Path) -> None:
        self.with_mask(tmp_path, spot_mask())
        write_defect(tmp_path / "test" / "dent" / "1.png")
        (line,) = problems(tmp_path)
        assert "fits two images" in line


def test_all_problems_at_once(tmp_path: Path) -> None:
    root = make_folder(tmp_path, train={"good": 4, "dent": 3}, test={"good": 2, "dent": 2})
    whole = root / "train" / "good" / "t000.png"
    whole.write_bytes(whole.read_bytes()[:-200])
    (root / "train" / "good" / "t001.png").write_bytes(b"not an image at all")
    (root / "train" / "good" / "t002.png").write_bytes(b"")
    write(root / "ground_truth" / "dent" / "t000_mask.png", spot_mask(width=95))
    write(root / "ground_truth" / "dent" / "t001_mask.png", texture("grey"))
    write(root / "ground_truth" / "dent" / "gone_mask.png", spot_mask())
    (root / "ground_truth" / "dent" / "e000_mask.png").write_bytes(b"torn")
    (root / "test" / "fray").mkdir()
    (root / "test" / "fray" / "notes.txt").write_text("later")
    shutil.copy(root / "train" / "good" / "t003.png", root / "test" / "good" / "copied.png")
    found = problems(root)
    for start, words in {
        "train/good/t000.png": "ends too early",
        "train/good/t001.png": "no image",
        "train/good/t002.png": "no image",
        "ground_truth/dent/t000_mask.png": "95x64 px",
        "ground_truth/dent/t001_mask.png": "not binary",
        "ground_truth/dent/gone_mask.png": "a mask without an image",
        "ground_truth/dent/e000_mask.png": "no image",
        "test/fray": "1 other files such as notes.txt",
        "train/good/t003.png and test/good/copied.png": "same picture",
    }.items():
        assert [line for line in found if line.startswith(start) and words in line], (start, found)
    assert len(found) == 9


class TestDuplicates:
    def test_another_container_and_colour_do_not_hide_one(self, tmp_path: Path) -> None:
        write(tmp_path / "train" / "good" / "a.png", texture("a"))
        write(tmp_path / "test" / "good" / "b.bmp", cv2.cvtColor(texture("a"), cv2.COLOR_GRAY2BGR))
        (line,) = problems(tmp_path)
        assert "train/good/a.png and test/good/b.bmp" in line

    def test_the_same_pixels_in_another_shape_are_another_picture(self, tmp_path: Path) -> None:
        write(tmp_path / "train" / "good" / "a.png", np.full((32, 64), 9, np.uint8))
        write(tmp_path / "test" / "good" / "a.png", np.full((64, 32), 9, np.uint8))
        assert len(read_data(tmp_path).test) == 1

    def test_inside_training_they_are_one_part(self, tmp_path: Path) -> None:
        for name, picture in (("1", "a"), ("2", "b"), ("3", "a")):
            write(tmp_path / "train" / "good" / f"{name}.png", texture(picture))
        one, two, three = (sample.part for sample in read_data(tmp_path).train)
        assert one == three != two


class TestDigest:
    def test_it_moves_with_the_folder(self, tmp_path: Path) -> None:
        root = make_folder(tmp_path / "a", train={"good": 2, "dent": 1}, test={"good": 1})
        digest = read_data(root).digest
        assert read_data(shutil.copytree(root, tmp_path / "b")).digest == digest

    @pytest.mark.parametrize("change", ["pixels", "mask", "label", "gone"])
    def test_it_sees_every_change(self, tmp_path: Path, change: str) -> None:
        root = make_folder(tmp_path, train={"good": 3, "dent": 2})
        digest = read_data(root).digest
        if change == "pixels":
            write(root / "train" / "good" / "t000.png", texture("new"))
        elif change == "mask":
            write(root / "ground_truth" / "dent" / "t000_mask.png", spot_mask(at=(1, 1)))
        elif change == "label":
            (root / "train" / "crack").mkdir()
            (root / "train" / "good" / "t000.png").rename(root / "train" / "crack" / "t000.png")
        else:
            (root / "train" / "good" / "t000.png").unlink()
        assert read_data(root).digest != digest
