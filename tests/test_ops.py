"""The files of ops/ and the Dockerfile, against the series the daemon exports and against the tools that read them."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from streamlearn import settings
from streamlearn.errors import CODES
from streamlearn.metrics import series_names
from tests.ops import dashcheck, exporter

ROOT = Path(__file__).parents[1]
OPS = ROOT / "ops"
RULES = OPS / "prometheus/rules/streamlearn.yml"
RULE_TESTS = sorted((OPS / "prometheus/tests").glob("*_test.yml"))
DASHBOARD = OPS / "grafana/dashboards/streamlearn.json"
ALERTING = OPS / "grafana/provisioning/alerting/streamlearn.yml"
COMPOSE = OPS / "compose.yaml"
SCHEMAS = ROOT / "tests/ops"
GUIDE = ROOT / "docs/operations.md"

#: Labels that Prometheus adds, and the bucket's bound.
ADDED = {"job", "instance", "le"}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """The labels of each series as Prometheus shows it."""
    labels: dict[str, set[str]] = {}
    for family in exporter.filled_registry().collect():
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


def alert_rules() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def recorded() -> set[str]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}


def grafana_rule() -> dict[str, Any]:
    rule: dict[str, Any] = yaml.safe_load(ALERTING.read_text())["groups"][0]["rules"][0]
    return rule


def expressions() -> Iterator[tuple[str, str]]:
    """Every PromQL expression of ops/, with the place where it stands."""
    loaded = json.loads(DASHBOARD.read_text())
    for place, expr, _ in dashcheck.queries(loaded):
        yield f"dashboard, {place}", expr
    for variable in loaded["templating"]["list"]:
        if variable["type"] == "query":
            yield f"dashboard, variable {variable['name']}", variable["query"]["query"]
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            yield f"rule {rule.get('alert') or rule['record']}", rule["expr"]
    for query in grafana_rule()["data"]:
        if "expr" in query["model"]:
            yield f"Grafana's rule {grafana_rule()['title']}", query["model"]["expr"]
    for path in RULE_TESTS:
        for case in yaml.safe_load(path.read_text())["tests"]:
            for series in case["input_series"]:
                yield f"{path.name}, {case['name']}", series["series"]


def tool(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        sentence = f"{name} is not on PATH; apt-get install {package}, or tests/ops/install.sh as root, brings it"
        if os.environ.get("STREAMLEARN_REQUIRE_OPS") == "1":
            pytest.fail(sentence)
        pytest.skip(sentence)
    return path


def run(*command: str | Path) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


# --- the series -------------------------------------------------------------------------------------------------------


def test_the_test_exporter_has_a_value_for_every_series_of_the_daemon(exported: dict[str, set[str]]) -> None:
    families = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in exported}
    assert set(series_names()) <= families | {"streamlearn_build_info"}


@pytest.mark.parametrize(("place", "expr"), [pytest.param(*e, id=f"{i}-{e[0]}") for i, e in enumerate(expressions())])
def test_queries_name_only_series_and_labels_that_are_exported(
    place: str, expr: str, exported: dict[str, set[str]]
) -> None:
    known = set(ADDED)
    for name, selector in re.findall(r"(?<![\w:])(streamlearn_\w+)(?:\{([^}]*)\})?", expr):
        assert name in exported, f"{place}: there is no series {name}"
        labels = exported[name] | ADDED
        known |= labels
        matched = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector)
        assert set(matched) <= labels, f"{place}: {name} has no label {set(matched) - labels}"
    for name in re.findall(r"[\w]+:streamlearn_\w+:\w+", expr):
        assert name in recorded(), f"{place}: no rule records {name}"
        known |= {"topic"}
    for group in re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", expr):
        named = {label.strip() for label in group.split(",")}
        assert named <= known, f"{place}: nothing there has the label {named - known}"


def test_every_series_is_on_the_dashboard(dashboard: dict[str, Any]) -> None:
    shown = json.dumps(dashboard)
    assert [name for name in series_names() if name not in shown] == []


def test_dashboard_draws_no_threshold_of_the_drift_detector_which_each_stream_calibrates(
    dashboard: dict[str, Any],
) -> None:
    by_title = {panel["title"]: panel for panel in dashcheck.panels(dashboard)}
    assert settings.DriftSettings.model_fields["threshold"].default == 0
    assert len(by_title["Drift score"]["fieldConfig"]["defaults"]["thresholds"]["steps"]) == 1


def test_operations_guide_explains_every_dead_letter_code() -> None:
    guide = GUIDE.read_text()
    assert [code for codes in CODES.values() for code in codes if f"`{code}`" not in guide] == []


def test_operations_guide_names_settings_that_exist() -> None:
    sections = settings.Settings.model_fields
    named = re.findall(r"`(\w+)\.(\w+)(?: = [^`]+)?`", GUIDE.read_text())
    settings_named = [(section, name) for section, name in named if section in sections]
    assert len(settings_named) > 10
    for section, name in settings_named:
        kind = sections[section].annotation
        assert isinstance(kind, type)
        assert issubclass(kind, settings.Section)
        assert name in kind.model_fields, f"{section}.{name}"


# --- Prometheus and Alertmanager --------------------------------------------------------------------------------------


def test_promtool_accepts_configuration_and_rules() -> None:
    run(
        tool("promtool", "prometheus"),
        "check",
        "config",
        "--lint=all",
        "--lint-fatal",
        OPS / "prometheus/prometheus.yml",
    )


def test_alerts_fire_and_keep_quiet_as_their_cases_say() -> None:
    run(tool("promtool", "prometheus"), "test", "rules", *RULE_TESTS)


def test_promtool_finds_nothing_to_say_against_the_names_of_the_series() -> None:
    from prometheus_client import generate_latest

    promtool = tool("promtool", "prometheus")
    text = generate_latest(exporter.filled_registry())
    result = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, timeout=60, check=False)
    assert (result.returncode, result.stdout + result.stderr) == (0, b"")


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    fires: set[str] = set()
    quiet: set[str] = set()
    for path in RULE_TESTS:
        for case in yaml.safe_load(path.read_text())["tests"]:
            for moment in case["alert_rule_test"]:
                (fires if moment["exp_alerts"] else quiet).add(moment["alertname"])
    assert fires == quiet == set(alert_rules())


@pytest.mark.parametrize("name", sorted(alert_rules()))
def test_alert_says_how_bad_it_is_and_what_to_do(name: str) -> None:
    rule = alert_rules()[name]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    file, anchor = rule["annotations"]["runbook_url"].split("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / file).read_text(), re.MULTILINE)
    assert anchor in [heading.lower().replace(" ", "-") for heading in headings]
    assert anchor == name.lower()


def test_alertmanager_accepts_its_configuration_and_routes_every_alert() -> None:
    amtool = tool("amtool", "prometheus-alertmanager")
    path = OPS / "alertmanager/alertmanager.yml"
    run(amtool, "check-config", path)
    for name, rule in alert_rules().items():
        labels = (f"alertname={name}", f"severity={rule['labels']['severity']}")
        run(amtool, "config", "routes", "test", f"--config.file={path}", "--verify.receivers=webhook", *labels)


# --- Grafana ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("schema", "path"), [("dashboard", DASHBOARD), ("alerting", ALERTING)])
def test_grafana_files_follow_their_schema(schema: str, path: Path) -> None:
    # YAML is a superset of JSON
    jsonschema.validate(
        yaml.safe_load(path.read_text()), json.loads((SCHEMAS / f"grafana-{schema}.schema.json").read_text())
    )


def test_panels_have_their_own_ids_and_places(dashboard: dict[str, Any]) -> None:
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    cells: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in own) < 24, panel["title"]
        assert not cells & own, f"{panel['title']} lies on another panel"
        cells |= own


def test_counters_are_shown_as_rates_over_grafanas_interval(dashboard: dict[str, Any]) -> None:
    # How many generations were rejected at the start is a fact, not a rate.
    whole = "streamlearn_generations_rejected_total"
    for place, expr, _ in dashcheck.queries(dashboard):
        for before, name in re.findall(r"(\w*)\(?(streamlearn_\w+(?:_total|_bucket|_sum|_count))\b", expr):
            assert name == whole or before in ("rate", "increase", "changes"), f"{place}: {expr}"
        for window in re.findall(r"\[([^\]]+)\]", expr):
            assert window in ("$__rate_interval", "$__interval"), f"{place}: {expr}"


def test_grafanas_alert_is_the_one_of_prometheus() -> None:
    ours, theirs = grafana_rule(), alert_rules()[grafana_rule()["title"]]
    query, reduce, threshold = (query["model"] for query in ours["data"])
    limit = threshold["conditions"][0]["evaluator"]
    assert limit["type"] == "gt"
    left, right = theirs["expr"].split(f" > {limit['params'][0]}\n")
    assert query["expr"].split() == left.split() + right.split()
    assert (ours["for"], ours["labels"]) == (theirs["for"], theirs["labels"])
    assert ours["annotations"]["runbook_url"] == theirs["annotations"]["runbook_url"]
    assert reduce["reducer"] == "last"


def test_grafanas_alert_refers_only_to_what_exists(dashboard: dict[str, Any]) -> None:
    rule = grafana_rule()
    sources = yaml.safe_load((OPS / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    uids = {source["uid"] for source in sources} | {"__expr__"}
    seen: set[str] = set()
    for query in rule["data"]:
        assert query["datasourceUid"] in uids
        assert query["model"]["refId"] == query["refId"]
        assert query["model"].get("expression", next(iter(seen), None)) in seen | {None}
        seen.add(query["refId"])
    assert rule["condition"] in seen
    assert rule["dashboardUid"] == dashboard["uid"]
    linked = next(panel for panel in dashboard["panels"] if panel["id"] == rule["panelId"])
    assert linked["title"].startswith("Forgetting")
    # Grafana fills variables of the environment into provisioning files.
    assert "$" not in json.dumps(rule)


# --- the image and the stack ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return loaded


def test_compose_file_follows_the_specification() -> None:
    run(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE)


def test_stack_publishes_on_loopback_only_and_gives_no_privileges(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_stack_pins_its_images_and_mounts_files_that_exist(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        image = re.fullmatch(r"\$\{\w+:-([\w./-]+):([\w.-]+)\}", service["image"])
        assert image, f"{name}: {service['image']} has no tag, or cannot be replaced by the environment"
        assert image[2] != "latest"
        for mount in service.get("volumes", []):
            source = mount.removesuffix(":ro").rpartition(":")[0]
            if source.startswith("."):
                assert (OPS / source).exists(), f"{name}: {source}"
            elif not source.startswith("$"):
                assert source in compose["volumes"], f"{name}: {source}"


def test_stack_waits_for_the_health_of_what_it_needs(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[needed], f"{name} waits for the health of {needed}, which has none"
            else:
                assert how["condition"] == "service_completed_successfully"
                assert services[needed]["restart"] == "no"
    assert "topics" in services["streamlearn"]["depends_on"]


def test_settings_of_the_stack_and_the_image_are_understood(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = dict(re.findall(r"(STREAMLEARN_\w+)=(\S+)", (ROOT / "Dockerfile").read_text()))
    for name, value in {**image, **compose["services"]["streamlearn"]["environment"]}.items():
        monkeypatch.setenv(name, value)
    loaded = settings.load()
    assert loaded.source == "streamlearn.connectors.kafka:KafkaSource"
    assert loaded.kafka.bootstrap_servers == ["kafka:9092"]
    created = re.findall(r"--topic (\S+)", compose["services"]["topics"]["command"][0])
    assert created == [*loaded.kafka.topics, loaded.kafka.dead_letter_topic]
    assert (loaded.api.host, loaded.log.format) == ("0.0.0.0", "json")
    assert str(loaded.state_dir) in [mount.split(":")[1] for mount in compose["services"]["streamlearn"]["volumes"][:1]]
    assert compose["services"]["streamlearn"]["ports"] == [f"127.0.0.1:{loaded.api.port}:{loaded.api.port}"]


def test_what_the_shell_gives_the_stack_is_no_name_of_a_setting() -> None:
    # Exported for compose, such a name would be taken for a setting by every verb that the same shell runs.
    names = re.findall(r"\$\{(\w+)", COMPOSE.read_text())
    assert "MEDIA_FOLDER" in names
    assert [name for name in names if name.startswith("STREAMLEARN_")] == []


def test_scrape_targets_and_data_sources_are_services_of_the_stack(compose: dict[str, Any]) -> None:
    config = yaml.safe_load((OPS / "prometheus/prometheus.yml").read_text())
    sources = yaml.safe_load((OPS / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    named = [t for job in config["scrape_configs"] for target in job["static_configs"] for t in target["targets"]]
    named += [source["url"].removeprefix("http://") for source in sources]
    named += config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    for address in named:
        host, port = address.split(":")
        service = "prometheus" if host == "localhost" else host
        assert compose["services"][service]["ports"] == [f"127.0.0.1:{port}:{port}"], address
    assert sources[0]["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]


def test_dockerfile_copies_what_the_build_context_holds_and_runs_as_nobody_special() -> None:
    text = (ROOT / "Dockerfile").read_text()
    allowed = {line.strip("!/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for source in line.split()[:-1]
    }
    assert copied == allowed
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    assert "/readyz" in re.findall(r"^HEALTHCHECK .+$", text, re.MULTILINE)[0]
    # Its builder comes with the engine: a syntax line would fetch another one.
    assert "# syntax=" not in text


@pytest.mark.parametrize("script", sorted(SCHEMAS.glob("*.sh")), ids=lambda path: path.name)
def test_script_parses_and_can_be_run(script: Path) -> None:
    assert os.access(script, os.X_OK)
    run("bash" if "bash" in script.read_text().splitlines()[0] else "sh", "-n", script)


# --- a live Prometheus ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dashcheck.Prometheus]:
    tool("prometheus", "prometheus")
    with exporter.serve() as target, dashcheck.prometheus(target, tmp_path_factory.mktemp("prometheus")) as server:
        yield server


@pytest.mark.slow
def test_every_query_of_the_dashboard_returns_data(live: dashcheck.Prometheus, dashboard: dict[str, Any]) -> None:
    assert dashcheck.check_dashboard(live, dashboard) == []


@pytest.mark.slow
def test_every_rule_can_be_evaluated(live: dashcheck.Prometheus) -> None:
    assert dashcheck.check_rules(live) == []
    assert live.recent("instance:streamlearn_served_recall_ratio:avg")


@pytest.mark.slow
def test_grafanas_alert_sees_the_forgetting(live: dashcheck.Prometheus) -> None:
    query = grafana_rule()["data"][0]["model"]["expr"]
    assert [series["metric"]["task"] for series in live.recent(query)] == ["t1"]


def _misspell(target: dict[str, Any]) -> None:
    target["expr"] = target["expr"].replace("streamlearn_recall_ratio", "streamlearn_recal_ratio")


def _unbalance(target: dict[str, Any]) -> None:
    target["expr"] = target["expr"] + ")"


def _invent_variable(target: dict[str, Any]) -> None:
    target["expr"] = target["expr"].replace("$view", "$viewpoint")


def _invent_label(target: dict[str, Any]) -> None:
    target["legendFormat"] = "{{tsk}}"


def _ask_for_an_unknown_value(target: dict[str, Any]) -> None:
    target["expr"] = target["expr"].replace('"$k"', '"3"')


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_misspell, "no data"),
        (_unbalance, "parse error"),
        (_invent_variable, "unknown variable $viewpoint"),
        (_invent_label, "the legend names a label 'tsk'"),
        (_ask_for_an_unknown_value, "no data"),
    ],
)
def test_dashboard_check_finds_a_damaged_query(
    live: dashcheck.Prometheus,
    dashboard: dict[str, Any],
    damage: Callable[[dict[str, Any]], None],
    sentence: str,
) -> None:
    damaged = copy.deepcopy(dashboard)
    panel = next(panel for panel in dashcheck.panels(damaged) if panel["title"] == "Recall@$k per task")
    damaged["panels"] = [panel]
    damage(panel["targets"][0])
    problems = dashcheck.check_dashboard(live, damaged)
    assert problems
    assert all("Recall@$k per task" in problem and sentence in problem for problem in problems)


@pytest.mark.slow
def test_dashboard_check_lets_a_series_be_absent_only_where_it_may(
    live: dashcheck.Prometheus, dashboard: dict[str, Any]
) -> None:
    damaged = copy.deepcopy(dashboard)
    panel = next(panel for panel in dashcheck.panels(damaged) if panel["title"] == "Dead letters by code")
    damaged["panels"] = [panel]
    panel["targets"][0]["expr"] = panel["targets"][0]["expr"].replace('job="$job"', 'job="$job", code="none"')
    assert len(dashcheck.check_dashboard(live, damaged)) == 1
    assert dashcheck.check_dashboard(live, damaged, may_be_empty=["streamlearn_dead_letters_total"]) == []
