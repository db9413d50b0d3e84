//! What `deploy/monitoring` ships holds together: rules that promtool takes and tests, alerts with a runbook, dashboards in
//! Grafana's form, queries for metrics that exist.
#![allow(clippy::expect_used)]

mod shipped;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use flatfell::metrics::catalogue::{ALL, Kind};
use serde_json::Value;
use shipped::{DASHBOARDS, dashboard, directory, document, panels, queries, rules, text};

/// Grafana's schema of dashboards in this form.
const SCHEMA: u64 = 42;
/// Panels that Grafana has without a plugin and has not deprecated.
const PANELS: [&str; 3] = ["stat", "table", "timeseries"];
const RUNBOOKS: &str = "https://github.com/flatfell/flatfell/blob/main/docs/runbooks.md#";

fn promtool(arguments: &[&str], files: &[String]) -> String {
    let output = Command::new("promtool").args(arguments).args(files).output().expect("promtool (Debian's prometheus)");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
    said
}

fn files(folder: &str, ending: &str) -> Vec<String> {
    let entries = fs::read_dir(directory().join(folder)).expect("a directory");
    let paths = entries.map(|entry| entry.expect("an entry").path().to_string_lossy().into_owned());
    let mut files: Vec<String> = paths.filter(|path| path.ends_with(ending)).collect();
    files.sort();
    files
}

fn alerts() -> Vec<Value> {
    rules("alerts.yaml")
}

#[test]
fn promtool_takes_the_rules() {
    promtool(
        &["check", "rules"],
        &["alerts.yaml", "recording-rules.yaml"].map(|file| directory().join(file).to_string_lossy().into_owned()),
    );
}

#[test]
fn each_alert_is_seen_to_fire_and_not_to_fire() {
    promtool(&["test", "rules"], &files("tests", ".yaml"));
    let (mut fires, mut rests) = (BTreeSet::new(), BTreeSet::new());
    for file in files("tests", ".yaml") {
        let file = format!("tests/{}", Path::new(&file).file_name().expect("a name").to_string_lossy());
        let tests = document(&file)["tests"].as_array().expect("tests").clone();
        for case in tests.iter().flat_map(|test| test["alert_rule_test"].as_array().expect("cases").clone()) {
            let is_expected = case["exp_alerts"].as_array().is_some_and(|alerts| !alerts.is_empty());
            if is_expected { &mut fires } else { &mut rests }.insert(text(&case, "alertname").to_owned());
        }
    }
    let all: BTreeSet<String> = alerts().iter().map(|alert| text(alert, "alert").to_owned()).collect();
    assert!(all.len() >= 12, "{all:?}");
    assert_eq!(fires, all, "without a test that it fires");
    assert_eq!(rests, all, "without a test that it does not fire");
}

#[test]
fn each_alert_says_what_to_do() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/runbooks.md");
    let page = fs::read_to_string(page).expect("docs/runbooks.md");
    let sections: BTreeMap<String, &str> = page
        .split("\n## ")
        .skip(1)
        .map(|section| section.split_once('\n').expect("a heading"))
        .map(|(heading, body)| (heading.to_lowercase().replace(' ', "-"), body))
        .collect();
    for alert in alerts() {
        let name = text(&alert, "alert");
        let severity = text(&alert["labels"], "severity");
        assert!(["critical", "warning", "info"].contains(&severity), "{name}: {severity}");
        assert!(text(&alert, "for").ends_with('m'), "{name}");
        let annotations = &alert["annotations"];
        assert!(text(annotations, "summary").len() > 10 && text(annotations, "description").len() > 40, "{name}");
        let anchor = text(annotations, "runbook_url").strip_prefix(RUNBOOKS).expect(name);
        assert_eq!(anchor, name.to_lowercase(), "{name}");
        let section = sections.get(anchor).unwrap_or_else(|| panic!("no section {anchor} in docs/runbooks.md"));
        for part in ["**Meaning.**", "**Check.**", "**Remedy.**"] {
            assert!(section.contains(part), "{name} has no {part}");
        }
    }
    let denials = ["FlatfellDropsRising", "FlatfellGuardDrops", "FlatfellFlowLogLost"];
    let is_info =
        |name: &str| alerts().iter().any(|alert| alert["alert"] == name && alert["labels"]["severity"] == "info");
    assert!(denials.into_iter().all(is_info), "that something is denied is no page");
}

#[test]
fn the_operators_object_has_the_same_rules() {
    let object = document("prometheus-rule.yaml");
    let groups = |file: &str| document(file)["groups"].as_array().expect("groups").clone();
    let expected = [groups("recording-rules.yaml"), groups("alerts.yaml")].concat();
    assert_eq!(
        object["spec"]["groups"],
        Value::Array(expected),
        "run deploy/monitoring/wrap.sh > prometheus-rule.yaml"
    );
}

#[test]
fn each_query_asks_for_metrics_that_exist() {
    let mut known: BTreeSet<String> = ["up", "ALERTS", "kube_node_info"].map(str::to_owned).into();
    for family in ALL {
        let ends: &[&str] =
            if family.kind == Kind::Histogram { &["_bucket", "_sum", "_count"] } else { &[family.suffix()] };
        known.extend(ends.iter().map(|end| format!("{}{end}", family.name)));
    }
    known.extend(rules("recording-rules.yaml").iter().map(|rule| text(rule, "record").to_owned()));
    let variables = DASHBOARDS.into_iter().flat_map(|name| {
        let dashboard = dashboard(name);
        let list = dashboard["templating"]["list"].as_array().expect("variables").clone();
        list.into_iter().filter_map(|variable| variable["definition"].as_str().map(str::to_owned))
    });
    let all: Vec<String> = queries().into_iter().map(|query| query.expr).chain(variables).collect();
    assert!(all.len() > 60, "{}", all.len());
    for expr in all {
        let unknown: Vec<String> = shipped::metrics(&expr).difference(&known).cloned().collect();
        assert!(unknown.is_empty() && !shipped::metrics(&expr.replace('"', " ")).is_empty(), "{unknown:?} in {expr}");
    }
}

#[test]
fn the_dashboards_have_grafanas_form() {
    let mut uids = BTreeSet::new();
    for name in DASHBOARDS {
        let dashboard = dashboard(name);
        assert_eq!(dashboard["schemaVersion"], SCHEMA, "{name}");
        assert!(
            uids.insert(text(&dashboard, "uid").to_owned()) && text(&dashboard, "title").starts_with("Flatfell / ")
        );
        assert!(dashboard.get("id").is_none() && dashboard.get("__inputs").is_none(), "{name}: as it is imported");
        let variables = dashboard["templating"]["list"].as_array().expect("variables");
        let names: Vec<&str> = variables.iter().map(|variable| text(variable, "name")).collect();
        assert_eq!(names[0], "datasource", "{name}");
        let expected: &[&str] = match name {
            "cluster" => &["node", "namespace"],
            "policy" => &["namespace", "policy", "pod"],
            _ => &["node", "namespace", "pod"],
        };
        assert_eq!(&names[1..], expected, "{name}");
        assert_eq!(variables[0]["type"], "datasource");
        assert!(variables[1..].iter().all(|variable| variable["datasource"]["uid"] == "${datasource}"), "{name}");
        check_panels(name, &dashboard);
    }
}

fn check_panels(name: &str, dashboard: &Value) {
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{name}: {}", panel["title"]);
        let place = |key: &str| panel["gridPos"][key].as_u64().expect(key);
        let (x, y, w, h) = (place("x"), place("y"), place("w"), place("h"));
        assert!(x + w <= 24 && h > 0, "{name}: {}", panel["title"]);
        let cells = (x..x + w).flat_map(|column| (y..y + h).map(move |row| (column, row)));
        assert!(cells.into_iter().all(|cell| taken.insert(cell)), "{name}: {} lies over another", panel["title"]);
    }
    for panel in panels(dashboard) {
        let title = text(panel, "title");
        assert!(PANELS.contains(&text(panel, "type")), "{name}: {title}: {}", panel["type"]);
        assert!(text(panel, "description").len() > 5, "{name}: {title}");
        assert!(!text(&panel["fieldConfig"]["defaults"], "unit").is_empty(), "{name}: {title}");
        let sources = panel["targets"].as_array().expect("targets").iter().chain([panel]);
        for source in sources {
            assert_eq!(
                source["datasource"],
                serde_json::json!({"type": "prometheus", "uid": "${datasource}"}),
                "{title}"
            );
        }
    }
}
