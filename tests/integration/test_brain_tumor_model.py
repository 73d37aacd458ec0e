"""The shipped head-scan model finds drawn lesions by the way that requests take, and nothing in a healthy head."""

from collections.abc import Iterator

import numpy as np
import pytest

from isocenter import SyncService
from isocenter.imaging.codecs.nifti_write import nifti_of
from isocenter.imaging.phantoms_3d import HeadPhantom, head_scan
from isocenter.repository.layout import find
from isocenter.serving.scan_answer import ScanAnswer
from patience import PATIENCE_S
from shipped_models import SHIPPED, served_alone

NAME = "brain-tumor-3d"
UNUSED_SEED = 9_500_000  # above those of training, of choosing the rule, and of the card


@pytest.fixture(scope="module")
def service() -> Iterator[SyncService]:
    with served_alone(NAME) as service:
        yield service


def answered(service: SyncService, phantom: HeadPhantom) -> ScanAnswer:
    data = nifti_of(phantom.volume.voxels[0], phantom.volume.geometry, compress=False)
    return service.segment_scan(data, formats=("json", "nifti"), timeout=PATIENCE_S)


def test_the_weights_are_small_enough_to_be_kept_with_the_code() -> None:
    assert (SHIPPED / NAME / "1" / "model.onnx").stat().st_size < 8_000_000


def test_the_manifest_prepares_scans_as_the_training_did() -> None:
    pytest.importorskip("torch")
    from brain_tumor_data import LABELS, STEPS

    manifest = find(SHIPPED, NAME, 1).manifest
    assert manifest.steps == STEPS
    assert tuple(manifest.output.labels) == LABELS


@pytest.mark.slow
def test_a_drawn_lesion_of_an_unused_seed_is_found_where_it_is(service: SyncService) -> None:
    phantom = head_scan(UNUSED_SEED, kind="ring", contrast="t1c")

    found = answered(service, phantom)

    assert found.findings is not None
    assert found.findings.present
    mask, truth = found.segmentation.of("tumor"), phantom.truth > 0
    assert mask.shape == truth.shape
    assert 2 * np.count_nonzero(mask & truth) / (np.count_nonzero(mask) + np.count_nonzero(truth)) >= 0.75
    assert found.findings.volume_ml == pytest.approx(phantom.lesions[0].volume_ml, rel=0.35)
    away_mm = np.subtract(found.findings.lesions[0].centroid_lps_mm, phantom.lesions[0].centre_lps_mm)
    assert np.linalg.norm(away_mm) < 8.0


@pytest.mark.slow
def test_a_healthy_head_of_an_unused_seed_has_no_finding(service: SyncService) -> None:
    found = answered(service, head_scan(UNUSED_SEED + 1, kind="healthy", contrast="t1c"))

    assert found.findings is not None
    assert not found.findings.present
    assert not found.segmentation.mask.any()
