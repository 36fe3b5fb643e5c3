"""The configuration of the services: units are read, ranges kept, and everything wrong is named at once."""

from __future__ import annotations

import pathlib

import pytest
import yaml

from shannon.services.common import config
from shannon.services.common.values import seconds, size

ROOT = pathlib.Path(__file__).resolve().parents[2]


def problems(raw: object) -> list[str]:
    with pytest.raises(config.ConfigError) as caught:
        config.parse(raw)
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "expected"), [("250ms", 0.25), ("30s", 30), ("1m30s", 90), ("720h", 2592000), (5, 5), (0.5, 0.5)]
)
def test_durations(text: object, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["30", "soon", "", "1s2", "-5s", True, None, [1]])
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        seconds(text)


def test_sizes() -> None:
    assert size("64MiB") == 64 * 2**20
    assert size(12) == 12
    for wrong in ("64", "many", True, 1.5):
        with pytest.raises(ValueError, match="size"):
            size(wrong)


def test_the_shipped_file_can_be_used_and_says_what_the_facts_say() -> None:
    shipped = config.load(ROOT / "config" / "shannon.yaml")
    assert shipped.session.ttl == 720 * 3600
    assert shipped.rate_limits.tiers["max"].day == 100000
    assert shipped.embeddings.dimension == 1536


def test_integers_of_the_file_count() -> None:
    # Facts in full, 10.2, item 10: the original ignores every whole number in its file.
    assert config.parse({"orchestrator": {"concurrency": 3}}).orchestrator.concurrency == 3


def test_every_mistake_is_named_with_key_value_and_range() -> None:
    found = problems(
        {
            "gateway": {"port": 99999, "max_streems": 5},
            "service": {"log_level": "loud", "graceful_timeout": "soon"},
            "unknown": {},
            "degradation": {"thresholds": {"minor": {"error_rate": 0.1}}},
        }
    )
    text = "\n".join(found)
    assert "gateway.port is 99999: input should be less than or equal to 65535" in text
    assert "gateway.max_streems: this key is unknown" in text
    assert "service.log_level is 'loud': input should be 'debug', 'info', 'warning' or 'error'" in text
    assert "service.graceful_timeout is 'soon': 'soon' is no duration" in text
    assert "unknown: this key is unknown" in text
    assert "degradation.thresholds.minor.latency: this key is missing" in text


def test_sections_that_contradict_themselves() -> None:
    assert "more than max_connections (2)" in problems({"database": {"max_connections": 2}})[0]
    assert "upstream.base_url is empty" in problems({"llm_service": {"provider": "openai"}})[0]
    assert "is no cell (main)" in problems({"routing": {"tenants": {"x": "other"}}})[0]
    assert "not below chunk_tokens" in problems({"embeddings": {"chunk_tokens": 5, "chunk_overlap": 5}})[0]


@pytest.mark.parametrize(("text", "said"), [("[1]", "list, not a mapping"), ("a: [", "no YAML"), ("\x00", "no YAML")])
def test_a_file_that_is_none(tmp_path: pathlib.Path, text: str, said: str) -> None:
    path = tmp_path / "shannon.yaml"
    path.write_text(text)
    with pytest.raises(config.ConfigError, match=said):
        config.load(path)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(config.ConfigError, match="can't be read: No such file"):
        config.load("/nowhere/shannon.yaml")


def test_an_empty_file_is_all_defaults() -> None:
    assert config.parse(yaml.safe_load("")) == config.Config()


def test_a_key_is_given_by_its_hash_only() -> None:
    text = "\n".join(
        problems({"auth": {"api_keys": [{"id": "x", "sha256": "plain", "tenant_id": "t", "user_id": "u"}]}})
    )
    assert "auth.api_keys.0.sha256" in text and "auth.api_keys.0.tenant_id" in text


def test_the_generated_code_is_that_of_the_interface(tmp_path: pathlib.Path) -> None:
    """As make proto writes it."""
    from grpc_tools import protoc

    folder = ROOT / "services" / "src" / "shannon" / "services" / "proto"
    options = [f"-I{folder}", f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}", "shannon.proto"]
    assert protoc.main(["protoc", *options]) == 0
    for name in ("shannon_pb2.py", "shannon_pb2_grpc.py"):
        made = (tmp_path / name).read_text().replace("\nimport shannon_pb2 as", "\nfrom . import shannon_pb2 as")
        assert made == (folder / name).read_text(), f"{name} is not what shannon.proto says; run make proto"
