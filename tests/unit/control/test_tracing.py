"""Which syncs are traced, what a node is told of it, and the file of headers."""

from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control import tracing
from control.settings import ControlSettings, ControlSettingsError, check

URLS = {"metadata_url": "postgresql://u:p@127.0.0.1/d", "artifacts_url": "http://k:s@127.0.0.1:1/b"}
RELEASE = f"00-{'ab' * 16}-{'cd' * 8}-01"


def traced(share: float) -> tracing.Tracing:
    return tracing.Tracing(ControlSettings(**URLS, otlp_url="http://127.0.0.1:1", trace_share=share), "one")  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_share_of_the_syncs_of_a_traced_release_is_traced(share: float) -> None:
    spans = traced(share)
    ids = [str(UUID(int=(n << 118) + 1, version=4)) for n in range(1024)]
    parents = [spans.sync_parent(RELEASE, id) for id in ids]
    assert sum(map(bool, parents)) == share * 1024
    assert [bool(parent) for parent in parents] == [spans.is_sync_traced(id) for id in ids]
    assert spans.sync_parent("", ids[0]) == ""


@given(st.uuids(version=4))
def test_the_span_of_a_sync_is_made_of_its_id(sync_id: UUID) -> None:
    span = tracing.span_of_sync(str(sync_id))
    assert 0 < span < 2**64
    assert f"{span:016x}" == sync_id.hex[16:]


def test_a_file_of_headers_is_read_and_a_wrong_line_is_told_without_its_value(tmp_path: Path) -> None:
    path = tmp_path / "headers"
    path.write_text("Authorization:  Bearer abc\n\nx-scope: a: b\n")
    assert tracing.read_headers(path) == {"Authorization": "Bearer abc", "x-scope": "a: b"}
    for wrong in ("secret-value", "a b: secret-value", "x: \tsecret-value\x07", "x:"):
        path.write_text(f"x-good: 1\n{wrong}\n")
        with pytest.raises(ControlSettingsError) as error:
            tracing.read_headers(path)
        assert "line 2" in str(error.value)
        assert "secret-value" not in str(error.value)
    with pytest.raises(ControlSettingsError, match="can't be read"):
        tracing.read_headers(tmp_path / "none")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"otlp_url": "http://collector.example:4318"}, "plain http"),
        ({"otlp_url": "collector:4318"}, "SKERRY_OTLP_URL must begin"),
        ({"trace_share": 1.5}, "SKERRY_TRACE_SHARE must be at most 1"),
        ({"trace_share": 0.0}, "SKERRY_TRACE_SHARE must be more than 0"),
        ({"otlp_ca": Path("/nonexistent/ca.pem")}, "SKERRY_OTLP_CA: there is no file"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(ControlSettingsError, match=told):
        check(ControlSettings(**URLS, **wrong))  # type: ignore[arg-type]
