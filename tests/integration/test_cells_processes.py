"""Images of cells without an event loop, and through front ends: the answers are those of one process."""

import http.client
import json
from pathlib import Path
from typing import Any

import pytest

from cell_models import picture, png, write_cells
from isocenter import SyncService
from isocenter.core.errors import Draining
from serverproc import ServerProcess, running

OF_ITS_OWN = ("latency_ms", "timings_ms", "request_id", "batch_size")
"""What two answers to the same image need not share."""


@pytest.mark.may_block
def test_without_an_event_loop(tmp_path: Path) -> None:
    write_cells(tmp_path)
    with SyncService(tmp_path) as service:
        assert service.segment_image(picture(), threshold=0.7).count == 2
    with pytest.raises(Draining):
        service.segment_image(picture())


@pytest.mark.may_block
@pytest.mark.slow
def test_front_ends_answer_as_one_process_does(tmp_path: Path) -> None:
    write_cells(tmp_path, "hrnet")
    write_cells(tmp_path, "open", onnx=True)
    with SyncService(tmp_path) as service:
        meant = json.loads(service.segment_image(png(), model="open").render("json").body)
    with running(tmp_path, "--frontends", "2") as server:
        assert _alike(_asked(server, "/segment?model=open"), meant)
        assert _alike(_asked(server, "/segment?model=hrnet"), meant | {"model": "hrnet"})
        assert len(_asked(server, "/segment?model=hrnet&format=geojson")["features"]) == 3
        assert _asked(server, "/api/v1/segment")["polygons"] == meant["polygons"]
        assert _asked(server, "/api/v1/batch-segment")["successful_count"] == 3
        assert [each["name"] for each in server.get("/api/v1/models")[1]["models"]] == ["hrnet", "open"]
        assert server.get("/api/v1/health")[1]["status"] == "healthy"
        assert server.get("/api/v1/status")[1]["status"] == "idle"


def _asked(server: ServerProcess, path: str) -> Any:
    connection: http.client.HTTPConnection = server.connect()
    part = b'--b\r\nContent-Disposition: form-data; name="%b"; filename="1.png"\r\n\r\n%b\r\n'
    body = part % (b"files", png()) * 3 if "batch" in path else part % (b"file", png())
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    connection.request("POST", path, body=body + b"--b--\r\n", headers=headers)
    answer = connection.getresponse()
    found = json.loads(answer.read())
    connection.close()
    assert answer.status == 200, found
    return found


def _alike(found: dict[str, Any], meant: dict[str, Any]) -> bool:
    return {**found, **dict.fromkeys(OF_ITS_OWN)} == {**meant, **dict.fromkeys(OF_ITS_OWN)}
