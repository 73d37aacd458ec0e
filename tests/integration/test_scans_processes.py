"""Scans without an event loop; and a server as it is started: the manual's call, front ends as one process."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from isocenter import SyncService
from patience import PATIENCE_S
from scan_files import ball, nifti
from segmenters import write_segmenter
from serverproc import ServerProcess, running

pytestmark = pytest.mark.may_block

OF_ITS_OWN = ("latency_ms", "timings_ms", "request_id", "batch_size")
"""What two answers to the same scan need not share."""


@pytest.mark.slow
def test_without_an_event_loop(tmp_path: Path) -> None:
    write_segmenter(tmp_path)
    with SyncService(tmp_path) as service:
        assert service.segment_scan(nifti(ball())).voxels[1] == int((ball() > 0).sum())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_curl_is_answered_by_one_process_and_by_front_ends_alike(tmp_path: Path) -> None:
    models, root = tmp_path / "models", tmp_path / "scans"
    output = {"tensor": "scores", "activation": "softmax", "labels": ["background", "blob"]}
    write_segmenter(models, onnx=True, output={**output, "findings": {"labels": ["blob"]}})
    root.mkdir()
    (root / "brain.nii").write_bytes(nifti(ball()))
    found = []
    for frontends in ("0", "2"):
        with running(models, "--frontends", frontends, ISOCENTER_SCANS__ROOTS=str(root)) as server:
            found.append(_curl(server, str(root / "brain.nii")))
            assert _curl(server, "/etc/passwd")["error"]["code"] == "path_not_allowed"

    assert found[0]["prediction"] == "present"
    assert [{**each, **dict.fromkeys(OF_ITS_OWN)} for each in found[:1]] == [
        {**each, **dict.fromkeys(OF_ITS_OWN)} for each in found[1:]
    ]


def _curl(server: ServerProcess, path: str) -> Any:
    head = ["-H", "Content-Type: application/json"]
    body = json.dumps({"scan_path": path})
    command = ["curl", "-s", "-X", "POST", *head, "-d", body, f"localhost:{server.port}/predict"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S).stdout)
