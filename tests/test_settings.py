"""The settings tree: where values come from, which win, and what is said of wrong ones."""

from __future__ import annotations

import json
import math
import os
import re
import traceback
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.coordinator.assignors.range import RangePartitionAssignor

from streamlearn.errors import SettingsError
from streamlearn.momentum import coefficient
from streamlearn.settings import Section, Settings, describe, load, momentum_horizon
from tests.said import Say


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("STREAMLEARN_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "streamlearn.toml"


def set_env(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"STREAMLEARN_{name}", value)


def refused(config: Path | None = None, overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        load(config, overrides)
    return str(caught.value)


def test_flags_win_over_the_environment_over_the_file_over_the_defaults(
    monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    file.write_text("[learner]\nbatch_size = 5\nqueue_size = 5\nseed = 5\n[api]\nport = 5\n")
    set_env(monkeypatch, LEARNER__BATCH_SIZE="6", LEARNER__QUEUE_SIZE="6")
    got = load(file, {"learner.batch_size": "7"})
    assert (got.learner.batch_size, got.learner.queue_size, got.learner.seed, got.api.port) == (7, 6, 5, 5)
    assert got.learner.learning_rate == Settings().learner.learning_rate


def test_the_names_that_others_rely_on_are_there_with_their_defaults() -> None:
    names = {name: json.loads(value) for name, value, _ in describe(None)}
    assert names["api.host"], names["api.port"] == ("127.0.0.1", 8080)
    promised = """
        state_dir source folder.path folder.watch kafka.bootstrap_servers kafka.topics kafka.group_id
        kafka.dead_letter_topic kafka.client media.allowed_roots media.max_bytes model.video model.text
        learner.method learner.learning_rate learner.batch_size drift.detector evaluate.heldout_ratio
        evaluate.interval_clips search.mode checkpoint.interval_clips api.host api.port api.token_file log.format
    """.split()
    assert set(promised) <= names.keys()


def test_every_setting_says_what_it_is_and_units_are_in_the_names() -> None:
    for name, _, meaning in describe(None):
        assert meaning.endswith((".", "...")), name


def test_every_setting_can_be_set_by_its_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value, _ in describe(None):
        if value != "null":
            text = json.loads(value) if value.startswith('"') else value
            monkeypatch.setenv("STREAMLEARN_" + name.upper().replace(".", "__"), text)
    assert describe(load()) == describe(None)


def test_lists_come_from_text_with_commas_or_json(monkeypatch: pytest.MonkeyPatch) -> None:
    set_env(monkeypatch, KAFKA__TOPICS="a, b,,c", MEDIA__ALLOWED_SCHEMES='["file", "s3"]', MEDIA__ALLOWED_ROOTS="")
    got = load()
    assert got.kafka.topics == ["a", "b", "c"]
    assert got.media.allowed_schemes == ["file", "s3"]
    assert got.media.allowed_roots == []


def test_maps_come_from_json_or_name_by_name(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    file.write_text('[kafka.client]\nsecurity_protocol = "SSL"\nretries = 3\n[source_options]\nfrom = "file"\n')
    assert load(file).kafka.client == {"security_protocol": "SSL", "retries": 3}
    assert load(file).source_options == {"from": "file"}
    set_env(monkeypatch, KAFKA__CLIENT='{"retries": 4}', SOURCE_OPTIONS='{"url": "x", "depth": 2}')
    assert load().kafka.client == {"retries": 4}
    assert load().source_options == {"url": "x", "depth": 2}
    assert load(None, {"kafka.client.sasl_mechanism": "PLAIN"}).kafka.client["sasl_mechanism"] == "PLAIN"
    assert load(None, {"source_options": '{"depth": 5}'}).source_options["depth"] == 5


def test_files_for_secrets_are_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_env(
        monkeypatch,
        API__TOKEN_FILE=str(tmp_path / "token"),
        KAFKA__CLIENT_SECRET_FILES=json.dumps({"sasl_plain_password": str(tmp_path / "password")}),
    )
    got = load()
    assert got.api.token_file == tmp_path / "token"
    assert got.kafka.client_secret_files == {"sasl_plain_password": tmp_path / "password"}


def test_the_environment_names_the_file_and_a_flag_names_another(
    monkeypatch: pytest.MonkeyPatch, file: Path, tmp_path: Path
) -> None:
    file.write_text("[api]\nport = 1\n")
    other = tmp_path / "other.toml"
    other.write_text("[api]\nport = 2\n")
    set_env(monkeypatch, CONFIG=str(file))
    assert load().api.port == 1
    assert load(other).api.port == 2


@pytest.mark.parametrize("text", ["[api\n", "port = ", "\xff", '[api]\nport = 1\n[api]\nhost = "x"\n'])
def test_a_file_that_is_no_toml_is_named(file: Path, text: str) -> None:
    file.write_bytes(text.encode("latin-1"))
    assert str(file) in refused(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "there is no such settings file" in refused(tmp_path / "nowhere.toml")
    assert "there is no such settings file" in refused(tmp_path)


@pytest.mark.parametrize("name", ["learner.batchsize", "lerner.batch_size", "batch_size", "", "kafka.topics.0.x"])
def test_an_unknown_flag_is_named(name: str) -> None:
    assert name.split(".")[0] in refused(None, {name: "1"})


def test_an_unknown_name_in_the_file_is_named_with_the_remedy(file: Path) -> None:
    file.write_text("[learner]\nbatchsize = 3\n[lerner]\nbatch_size = 3\n")
    said = refused(file)
    assert "learner.batchsize: there is no such setting" in said
    assert "lerner: there is no such setting" in said
    assert "config show --defaults" in said


def test_an_unknown_name_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    set_env(monkeypatch, LEARNER__BATCHSIZE="3")
    assert "learner.batchsize: there is no such setting" in refused()
    monkeypatch.delenv("STREAMLEARN_LEARNER__BATCHSIZE")
    set_env(monkeypatch, LERNER__BATCH_SIZE="3")
    assert "STREAMLEARN_LERNER__BATCH_SIZE: there is no such setting" in refused()


def test_other_variables_of_the_family_are_not_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    set_env(monkeypatch, URL="http://127.0.0.1:1", TEST_KAFKA="127.0.0.1:1")
    assert load().model_dump() == Settings().model_dump()


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("learner.batch_size", "0", "greater than or equal to 1"),
        ("learner.batch_size", "many", "valid integer"),
        ("learner.method", "bum", "'bmu', 'moco', 'inbatch', 'lwf' or 'ctp'"),
        ("learner.local_momentum", "1.5", "'640 clips'"),
        ("learner.local_momentum", "nan", "'640 clips'"),
        ("learner.local_momentum", "0 clips", "'640 clips'"),
        ("learner.local_momentum", "slow", "'640 clips'"),
        ("learner.seed", "-1", "greater than or equal to 0"),
        ("evaluate.heldout_ratio", "0.9", "less than or equal to 0.5"),
        ("evaluate.heldout_ratio", "nan", "finite"),
        ("media.timeout_s", "inf", "finite"),
        ("api.port", "70000", "65535"),
        ("kafka.topics", "", "at least 1 item"),
        ("kafka.client", "{", "dictionary"),
        ("source_options", "[1]", "dictionary"),
        ("media.sampling", "all", "'exact' or 'keyframe'"),
        ("folder.watch", "perhaps", "boolean"),
        ("learner", "5", "STREAMLEARN_LEARNER__NAME"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_right(name: str, value: str, remedy: str) -> None:
    said = refused(None, {name: value})
    assert said.startswith(name)
    assert remedy in said


def test_all_wrong_values_are_told_at_once() -> None:
    assert len(refused(None, {"api.port": "x", "learner.batch_size": "0"}).splitlines()) == 2


def test_rules_between_settings_name_both_and_the_remedy() -> None:
    said = refused(None, {"learner.global_pair": True, "learner.global_pull": "10 clips"})
    assert "global_pull" in said
    assert "longer horizon" in said
    assert "warmup_batches" in refused(None, {"drift.warmup_batches": 100})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"local_pull": "10 clips"}, r"local_pull .*local_momentum .*0\.\d\d of their plain speed.*longer horizon"),
        ({"local_momentum": 1.0}, r"local_pull .*would stall"),
        ({"global_pair": True, "global_momentum": 1.0}, r"global_pull .*would stall"),
        ({"serve": "global"}, r"serve = global needs the global pair"),
        ({"method": "moco", "serve": "global"}, r"serve = global needs the global pair.*method = bmu"),
        ({"method": "lwf", "global_loss_weight": 0.5}, r"global_loss_weight = 0\.5 needs the global pair"),
        ({"method": "moco", "global_pair": True}, r"global_pair = true .*method = moco.*leave it out"),
        ({"replay_ratio": 1.0}, r"replay_ratio.*less than 1"),
    ],
)
def test_settings_that_stall_learning_or_have_no_effect_are_refused(changes: dict[str, Any], named: str) -> None:
    assert re.search(named, refused(None, {f"learner.{name}": value for name, value in changes.items()}))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"search.max_limit": 10_001}, r"search\.max_limit = 10001: .*less than or equal to 10000"),
        ({"search.merge_loss": -0.1}, r"search\.merge_loss = -0\.1: .*greater than or equal to 0"),
        ({"model.pooling": "temporal"}, r"model\.pooling = temporal .*model\.video = tiny"),
        ({"model.pooling": "temporal", "model.text": "some/bert"}, r"model\.pooling = temporal .*model\.video = tiny"),
        ({"model.trainable": "heads"}, r"model\.trainable = heads .*pretrained"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(changes: dict[str, Any], named: str) -> None:
    assert re.search(named, refused(None, changes))


def test_a_task_that_returns_is_not_looked_for_without_the_frozen_judge() -> None:
    assert load().drift.revisits
    assert not load(None, {"drift.frozen_judge": False}).drift.revisits
    assert load(None, {"model.video": "some/vit", "model.pooling": "temporal", "model.trainable": "heads"})


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "moco", "local_pull": "10 clips", "global_pull": "10 clips"},  # unread by this method
        {"global_pull": "10 clips"},
        {"local_momentum": 1.0, "local_pull": 1.0},  # a frozen copy that does not pull
        {"global_pair": True, "global_momentum": 1.0, "global_pull": 1.0},
    ],
)
def test_settings_that_only_look_stalling_are_taken(changes: dict[str, Any]) -> None:
    assert load(None, {f"learner.{name}": value for name, value in changes.items()})


def test_long_run_speed_is_a_property_of_the_learners_settings() -> None:
    assert Settings().learner.speed == pytest.approx(0.5)
    assert load(None, {"learner.global_pair": True}).learner.speed == pytest.approx(0.45, abs=0.01)
    assert load(None, {"learner.method": "moco"}).learner.speed == 1


def test_more_pairs_than_a_task_is_ever_asked_are_refused_with_the_remedy() -> None:
    said = refused(None, {"evaluate.min_pairs": 500})
    assert "evaluate" in said
    assert "min_pairs (500) may not exceed heldout_max_per_task (200)" in said
    assert "lower the one or raise the other" in said
    assert load(None, {"evaluate.min_pairs": 200}).evaluate.min_pairs == 200


@pytest.mark.parametrize("order", [("learner", "learner.batch_size"), ("learner.batch_size", "learner")])
def test_a_section_and_a_setting_of_it_at_once_are_refused(order: tuple[str, str]) -> None:
    assert "learner" in refused(None, dict.fromkeys(order, "5"))


def test_momentum_means_the_same_from_a_file_and_as_text(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    file.write_text("[learner]\nlocal_momentum = 0.95\n")
    set_env(monkeypatch, LEARNER__LOCAL_PULL="0.95")
    got = load(file).learner
    assert got.local_momentum == got.local_pull == 0.95
    assert coefficient(got.local_pull, got.batch_size, got.batch_size) == 0.95
    assert momentum_horizon("640 clips", 32) == 640
    assert momentum_horizon(1.0, 32) == math.inf


def test_unknown_keys_of_every_section_are_errors() -> None:
    sections = [f.annotation for f in Settings.model_fields.values() if isinstance(f.annotation, type)]
    assert all(s.model_config["extra"] == "forbid" for s in sections if issubclass(s, Section))


def test_what_is_shown_holds_no_secret() -> None:
    client = {
        "sasl_plain_username": "alice",
        "sasl_plain_password": "hush-1",
        "ssl_password": "hush-2",
        "proxy_url": "socks5://user:hush-3@proxy:1080",
        "session": {"api_key": "hush-4"},
    }
    settings = load(None, {"kafka.client": client, "source_options": {"token": "hush-5", "path": "clips.db"}})
    shown = "".join(value for _, value, _ in describe(settings)) + settings.model_dump_json()
    assert "hush" not in shown
    for plain in ("alice", "proxy:1080", "clips.db"):
        assert plain in shown
    assert settings.kafka.client == client  # and is used as it is


SECRET = {"sasl_plain_username": "alice", "sasl_plain_password": "hush"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kafka.client", SECRET),
        ("kafka.client", [SECRET]),
        ("kafka.client", '{"sasl_plain_password": "hush"'),
        ("kafka", '{"client": {"sasl_plain_password": "hush"}'),
        ("kafka.client_secret_files", {"sasl_plain_password": ["hush"]}),
        ("kafka.client_secret_files", {"sasl_plain_password": "hush"}),
        ("kafka.oauth_client_secret_file", ["hush"]),
        ("kafka.oauth_token_url", "https://alice:hush@provider/token"),
        ("kafka.oauth_token_url", "alice:hush@provider/token"),
        ("kafka.schema_registry_url", "https://alice:hush@registry"),
        ("kafka.schema_registry_url", "https://alice:hu/hush@hush@registry"),
        ("kafka.schema_registry_url", ["https://alice:hush@registry"]),
        ("kafka.bootstrap_servers", ["alice:hush@broker:9092", "kafka://alice:hush@broker:9092"]),
        ("source_options", ["hush"]),
        ("source_options", "hush"),
        ("api.token_file", {"hush": "hush"}),
    ],
)
@pytest.mark.parametrize("way", ["flag", "file", "environment"])
def test_what_is_said_of_wrong_settings_holds_no_secret(
    name: str, value: Any, way: str, monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    also = {"kafka.dead_letter_topic": "clips", "drift.threshold": 0.5} if name != "kafka" else {"drift.threshold": 0.5}
    given = {name: value, **also}
    if way == "flag":
        said = refused(None, given)
    elif way == "file":
        file.write_text("".join(f"{each} = {_toml(content)}\n" for each, content in given.items()))
        said = refused(file)
    else:
        for each, content in given.items():
            text = content if isinstance(content, str) else json.dumps(content)
            monkeypatch.setenv("STREAMLEARN_" + each.upper().replace(".", "__"), text)
        said = refused()
    assert "hush" not in said
    assert "drift.threshold" in said


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value)


def test_no_exception_behind_the_sentence_holds_a_secret() -> None:
    """A traceback is printed whole, with what it came from."""
    with pytest.raises(SettingsError) as caught:
        load(None, {"kafka.client": SECRET, "kafka.dead_letter_topic": "clips"})
    assert "hush" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"drift.threshold": 0.5}, r"drift\.threshold = 0\.5 .*above 1, .*or 0"),
        ({"drift.warmup_batches": 100}, r"drift\.warmup_batches = 100 .*reference_batches = 16"),
        ({"drift.detector": "vote", "drift.vote_quorum": 9}, r"drift\.vote_quorum = 9 .*3 of vote"),
        ({"kafka.dead_letter_topic": "clips"}, r"kafka\.dead_letter_topic = 'clips' .*topics.*another"),
        ({"kafka.events_topic": "clips"}, r"kafka\.events_topic = 'clips' .*topics.*another"),
        ({"kafka.topic_pattern": "a", "kafka.partitions": ["a:0"]}, r"kafka\.topic_pattern and partitions .*give one"),
        ({"kafka.oauth_token_url": "https://a"}, r"kafka\.oauth_token_url needs oauth_client_id"),
        ({"learner.serve": "global"}, r"learner\.serve = global needs"),
        ({"search.merge_vectors": "encode"}, r"search\.merge_vectors = encode needs .*set both"),
        ({"media.frames": 100, "media.size_px": 1000}, r"media\.frames = 100 x size_px = 1000"),
    ],
)
def test_a_rule_between_settings_names_them_and_the_remedy_in_one_line(changes: dict[str, Any], said: str) -> None:
    sentence = refused(None, changes)
    assert re.match(said, sentence)
    assert "{" not in sentence
    assert len(sentence) < 300


@pytest.mark.parametrize("pair", ["kafka.client:hush", '{"sasl_plain_password":"hush"}', "kafka.client hush"])
def test_a_flag_that_is_no_setting_is_not_repeated(say: Say, pair: str) -> None:
    said = say("config", "check", "--set", pair)
    assert said.code == 2
    assert "NAME=VALUE" in said.err
    assert "hush" not in said.err


def test_verbs_neither_show_nor_say_a_secret(say: Say) -> None:
    flags = ("--set", f"kafka.client={json.dumps(SECRET)}", "--set", "kafka.dead_letter_topic=clips")
    for verb in (("config", "check"), ("config", "show"), ("dlq", "ls"), ("run",)):
        said = say(*verb, *flags)
        assert said.code == 2
        assert "kafka.dead_letter_topic = 'clips'" in said.err
        assert "hush" not in said.out + said.err
    for way in ((), ("--json",)):
        said = say("config", "show", *flags[:2], "--set", "source_options=" + json.dumps({"stores": [SECRET]}), *way)
        assert "alice" in said.out
        assert "hush" not in said.out


@pytest.mark.parametrize(
    "value",
    ["socks5://a:hush@proxy:1", "socks5://a:hu/hush@proxy:1", "a:hush@proxy:1", "http://x, https://a:hush@proxy:1"],
)
def test_a_login_in_a_url_is_masked_however_it_is_written(value: str) -> None:
    settings = load(None, {"source_options": {"proxies": [value], "proxy": value}})
    shown = dict((name, text) for name, text, _ in describe(settings))["source_options"]
    assert "hush" not in shown
    assert shown.count("proxy:1") == 2


PASSED_THROUGH = """
    api_version batch_size bootstrap_timeout_ms check_crcs client_dns_lookup client_id client_rack compression_type
    connections_max_idle_ms delivery_timeout_ms enable_incremental_fetch_sessions exclude_internal_topics
    fetch_max_bytes fetch_max_wait_ms fetch_min_bytes heartbeat_interval_ms isolation_level linger_ms max_block_ms
    max_in_flight_requests_per_connection max_partition_fetch_bytes max_poll_interval_ms max_request_size
    metadata_max_age_ms metric_group_prefix metrics_enabled metrics_num_samples metrics_sample_window_ms
    proxy_url receive_buffer_bytes receive_message_max_bytes reconnect_backoff_max_ms reconnect_backoff_ms retries
    retry_backoff_ms sasl_kerberos_domain_name sasl_kerberos_name sasl_kerberos_service_name sasl_mechanism
    sasl_plain_password sasl_plain_username security_protocol send_buffer_bytes socket_options socks5_proxy ssl_cafile
    ssl_certfile ssl_check_hostname ssl_ciphers ssl_crlfile ssl_keyfile ssl_password
""".split()


def test_every_option_of_the_client_is_passed_through_or_refused_with_a_reason() -> None:
    """A new version of kafka-python that has another one fails here: decide what becomes of it."""
    known = {name for each in (KafkaConsumer, KafkaProducer, KafkaAdminClient) for name in each.DEFAULT_CONFIG}
    for name in sorted(known):
        if name in PASSED_THROUGH:
            assert name in load(None, {"kafka.client": {name: "x://y"}}).kafka.client
            continue
        for way in ("client", "client_secret_files"):
            said = refused(None, {f"kafka.{way}": {name: "x://y"}})
            assert re.match(
                rf"kafka\.{way}: {name} (has a setting of its own, kafka\.{name}|has settings|cannot be)", said
            )


def test_options_that_would_break_a_promise_are_named_all_at_once() -> None:
    said = refused(None, {"kafka.client": {"acks": 1, "enable_auto_commit": True, "group_id": "other"}})
    assert re.search(r"acks cannot be chosen: .*all in-sync replicas", said)
    assert re.search(r"enable_auto_commit cannot be chosen: .*checkpoint", said)
    assert "group_id has a setting of its own, kafka.group_id" in said


@pytest.mark.parametrize("name", ["proxy_url", "socks5_proxy"])
def test_a_proxy_without_a_scheme_is_refused_without_its_login(name: str) -> None:
    """The client would say so too, and print all of it."""
    said = refused(None, {"kafka.client": {name: "alice:hush@proxy:1080"}})
    assert f"{name}: write scheme://host:port" in said
    assert "hush" not in said


def test_assignors_are_classes_that_a_program_may_give() -> None:
    for wrong in ("range", ["range"]):
        assert "cooperative-sticky" in refused(None, {"kafka.client": {"partition_assignment_strategy": wrong}})
    given = {"partition_assignment_strategy": [RangePartitionAssignor]}
    assert load(None, {"kafka.client": given}).kafka.client == given
