"""Uploads and downloads pass byte for byte."""

from __future__ import annotations

import hashlib
import random

import pytest
from streamlit.proto.WidgetStates_pb2 import WidgetState
from support import http, known
from support.app_client import AppClient

UPLOAD = random.Random(1).randbytes(3_000_000)
_BOUNDARY = "----heartbeat-sidecar-upload"


def _multipart(name: str, content: bytes) -> bytes:
    """The upload form with one file (RFC 7578)."""
    head = (
        f"--{_BOUNDARY}\r\n"
        f'Content-Disposition: form-data; name="{name}"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    return head.encode() + content + f"\r\n--{_BOUNDARY}--\r\n".encode()


def test_an_upload_reaches_the_app_byte_for_byte(sidecar) -> None:
    cookie, token = http.get(sidecar.address, "/_stcore/health").xsrf_cookie()
    with AppClient(sidecar.address, entries=[token]) as client:
        run = client.run()
        client.send(
            file_urls_request={"request_id": "upload-1", "file_names": ["random.bin"], "session_id": run.session_id}
        )
        response = client.receive_until(lambda frame: frame.kind == "file_urls_response")[-1].message.file_urls_response
        assert response.response_id == "upload-1" and not response.error_msg, f"rejected: {response.error_msg}"
        (urls,) = response.file_urls
        headers = {
            "Content-Type": f"multipart/form-data; boundary={_BOUNDARY}",
            "Cookie": f"{cookie}={token}",
            "X-Xsrftoken": token,
        }
        answer = http.request(sidecar.address, "PUT", urls.upload_url, headers, _multipart("random.bin", UPLOAD))
        assert answer.status == 204, f"the upload was rejected: {answer.status} {answer.body[:200]!r}"

        state = WidgetState(id=run.element("file_uploader", "Upload").id)
        file = state.file_uploader_state_value.uploaded_file_info.add()
        file.file_id, file.name, file.size = urls.file_id, "random.bin", len(UPLOAD)
        file.file_urls.CopyFrom(urls)
        texts = client.run([state]).texts
    assert f"upload random.bin {len(UPLOAD)} {hashlib.sha256(UPLOAD).hexdigest()}" in texts, f"the app shows {texts}"


@pytest.fixture
def media(sidecar):
    """The path of the download. The client stays open, because the file lives as long as its session."""
    with AppClient(sidecar.address) as client:
        yield client.run().element("download_button", "Download").url


def test_a_download_has_the_exact_bytes(sidecar, media) -> None:
    answer = http.get(sidecar.address, media)
    assert answer.status == 200
    assert answer.body == known.DOWNLOAD
    assert "known.bin" in (answer.header("content-disposition") or "")


def test_a_range_of_a_download_is_partial_content(sidecar, media) -> None:
    answer = http.get(sidecar.address, media, {"Range": "bytes=1000-1999"})
    assert answer.status == 206
    assert answer.header("content-range") == f"bytes 1000-1999/{len(known.DOWNLOAD)}"
    assert answer.body == known.DOWNLOAD[1000:2000]
