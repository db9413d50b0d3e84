//! What `deploy/monitoring` ships: rules, alerts, dashboards and the queries in them.
//!
//! In: the repository's files. Out: queries by the place they stand at. What always holds: every query of every file is
//! among them.
#![allow(dead_code, clippy::expect_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use flatfell::manifests::yaml;
use serde_json::Value;

/// The dashboards' files, without `.json`.
pub const DASHBOARDS: [&str; 3] = ["cluster", "policy", "node"];

/// A query, and where it stands.
#[derive(Clone, Debug)]
pub struct Query {
    /// `dashboard: panel: letter`, or an alert's or a recording rule's name.
    pub place: String,
    /// As it stands in the file.
    pub expr: String,
}

/// `deploy/monitoring`.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/monitoring")
}

/// The one document of a YAML file there.
pub fn document(file: &str) -> Value {
    let text = fs::read_to_string(directory().join(file)).expect(file);
    let mut documents = yaml::documents(&text).expect(file);
    assert_eq!(documents.len(), 1, "{file}");
    documents.remove(0).to_json()
}

/// The rules of a rule file, all groups together.
pub fn rules(file: &str) -> Vec<Value> {
    let groups = document(file)["groups"].as_array().expect("groups").clone();
    groups.iter().flat_map(|group| group["rules"].as_array().expect("rules").clone()).collect()
}

/// A dashboard.
pub fn dashboard(name: &str) -> Value {
    let text = fs::read_to_string(directory().join(format!("dashboards/{name}.json"))).expect(name);
    serde_json::from_str(&text).expect(name)
}

/// The panels of a dashboard that are no rows, those within rows too.
pub fn panels(dashboard: &Value) -> Vec<&Value> {
    let mut all: Vec<&Value> = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        all.push(panel);
        all.extend(panel["panels"].as_array().into_iter().flatten());
    }
    all.into_iter().filter(|panel| panel["type"] != "row").collect()
}

/// The text at a key.
pub fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("no {key}: {value}"))
}

/// Every query of a dashboard's panels.
pub fn panel_queries(name: &str) -> Vec<Query> {
    let dashboard = dashboard(name);
    let of_panel = |panel: &Value| -> Vec<Query> {
        let targets = panel["targets"].as_array().expect("targets").iter();
        let place = |target| format!("{name}: {}: {}", text(panel, "title"), text(target, "refId"));
        targets.map(|target| Query { place: place(target), expr: text(target, "expr").to_owned() }).collect()
    };
    panels(&dashboard).into_iter().flat_map(of_panel).collect()
}

/// Every query of a rule file.
pub fn rule_queries(file: &str) -> Vec<Query> {
    let place = |rule: &Value| rule["alert"].as_str().unwrap_or_else(|| text(rule, "record")).to_owned();
    rules(file).iter().map(|rule| Query { place: place(rule), expr: text(rule, "expr").to_owned() }).collect()
}

/// Every query of panels, alerts and recording rules.
pub fn queries() -> Vec<Query> {
    let panels = DASHBOARDS.into_iter().flat_map(panel_queries);
    let rules = ["alerts.yaml", "recording-rules.yaml"].into_iter().flat_map(rule_queries);
    panels.chain(rules).collect()
}

/// The names of metrics in a query: words that no quote encloses and that have the form of one of ours or of those that
/// others must provide.
pub fn metrics(expr: &str) -> BTreeSet<String> {
    let unquoted: String = expr.split('"').step_by(2).collect::<Vec<_>>().join(" ");
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
    let words = unquoted.split(|c| !is_name(c)).filter(|word| {
        ["flatfell_", "process_", "kube_"].iter().any(|start| word.contains(start)) || matches!(*word, "up" | "ALERTS")
    });
    words.map(str::to_owned).collect()
}
