"""Before anybody asks, a made series is read and a segmentation of it written."""

import sys
from typing import Any

import pytest

from isocenter.core.errors import NotDicom
from isocenter.imaging.codecs import dicom_rehearsal
from isocenter.imaging.codecs.dicom_rehearsal import rehearse_dicom
from isocenter.imaging.codecs.released import check_seg

highdicom: Any = pytest.importorskip("highdicom")


def test_what_was_written_is_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []

    def checking(data: bytes, *what: Any) -> None:
        check_seg(data, *what)
        checked.append(len(data))

    monkeypatch.setattr(dicom_rehearsal, "check_seg", checking)
    rehearse_dicom()

    assert len(checked) == 1


@pytest.mark.parametrize("library", ["pydicom", "highdicom"])
def test_without_the_extra_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)

    rehearse_dicom()


def test_a_library_that_does_not_write_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: Any) -> None:
        raise AttributeError

    monkeypatch.setattr(highdicom.seg, "Segmentation", broken)

    with pytest.raises(NotDicom):
        rehearse_dicom()
