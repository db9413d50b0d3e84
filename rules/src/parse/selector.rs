//! Label selectors (metav1 LabelSelector) and the syntax of what they name.
//!
//! In: a node of an object. Out: a [`Selector`], or a fault. What always holds: a selector is understood whole or not
//! at all; keys and values have only the characters a label may have, so that the canonical text of a selector is
//! unambiguous.

use super::walk::{Fields, Node, Report};
use crate::policy::{Operator, Requirement, Selector};

/// Longest label value, and longest part of a key behind the slash (apimachinery validation).
const LABEL_MAX: usize = 63;

/// A label selector; `None` with a fault when it is not understood.
pub(super) fn selector(node: &Node<'_>, report: &mut Report) -> Option<Selector> {
    let faults = report.faults.len();
    let fields = node.object(report)?;
    for unknown in fields.unknown(&["matchLabels", "matchExpressions"]) {
        report.fault(&unknown, "is not known in a label selector");
    }
    let mut requirements = match_labels(&fields, report);
    for expression in fields.items("matchExpressions", report) {
        requirements.extend(requirement(&expression, report));
    }
    (report.faults.len() == faults).then(|| Selector::new(requirements))
}

fn match_labels(fields: &Fields<'_>, report: &mut Report) -> Vec<Requirement> {
    let Some(labels) = fields.get("matchLabels").and_then(|node| node.object(report)) else { return Vec::new() };
    let mut requirements = Vec::new();
    for (key, node) in labels.all() {
        check_key(key, &node, report);
        if let Some(value) = label_value(&node, report) {
            requirements.push(Requirement { key: key.to_owned(), operator: Operator::In(vec![value]) });
        }
    }
    requirements
}

fn requirement(node: &Node<'_>, report: &mut Report) -> Option<Requirement> {
    let fields = node.object(report)?;
    for unknown in fields.unknown(&["key", "operator", "values"]) {
        report.fault(&unknown, "is not known in a label selector requirement");
    }
    let values: Vec<String> =
        fields.items("values", report).iter().filter_map(|value| label_value(value, report)).collect();
    let Some(key_node) = fields.get("key") else {
        report.fault(node, "key is missing");
        return None;
    };
    let key = key_node.text(report)?;
    check_key(key, &key_node, report);
    let Some(operator_node) = fields.get("operator") else {
        report.fault(node, "operator is missing");
        return None;
    };
    let operator = operator(operator_node.text(report)?, values, &operator_node, report)?;
    Some(Requirement { key: key.to_owned(), operator })
}

fn operator(word: &str, values: Vec<String>, node: &Node<'_>, report: &mut Report) -> Option<Operator> {
    let (wants_values, operator) = match word {
        "In" => (true, Operator::In(values.clone())),
        "NotIn" => (true, Operator::NotIn(values.clone())),
        "Exists" => (false, Operator::Exists),
        "DoesNotExist" => (false, Operator::DoesNotExist),
        _ => {
            report.fault(node, format!("must be In, NotIn, Exists or DoesNotExist, not {word:?}"));
            return None;
        }
    };
    match (wants_values, values.is_empty()) {
        (true, true) => report.fault(node, format!("{word} needs values")),
        (false, false) => report.fault(node, format!("{word} takes no values")),
        _ => return Some(operator),
    }
    None
}

fn label_value(node: &Node<'_>, report: &mut Report) -> Option<String> {
    let value = node.text(report)?;
    if !value.is_empty() && !is_label_word(value) {
        report.fault(node, format!("{value:?} is no label value"));
    }
    Some(value.to_owned())
}

fn check_key(key: &str, node: &Node<'_>, report: &mut Report) {
    let valid = match key.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && is_label_word(name),
        None => is_label_word(key),
    };
    if !valid {
        report.fault(node, format!("{key:?} is no label key"));
    }
}

/// Letters, digits and `-_.` between two letters or digits, at most 63.
fn is_label_word(text: &str) -> bool {
    let ends = [text.chars().next(), text.chars().next_back()];
    text.len() <= LABEL_MAX
        && ends.iter().all(|end| end.is_some_and(|c| c.is_ascii_alphanumeric()))
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// A DNS-1123 subdomain: labels joined by dots, at most 253 characters.
pub(super) fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_word)
}

/// A DNS-1123 label: small letters, digits and inner dashes, at most 63.
pub(super) fn is_dns_label(text: &str) -> bool {
    text.len() <= LABEL_MAX && is_dns_word(text)
}

fn is_dns_word(text: &str) -> bool {
    let small = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    !text.is_empty() && text.chars().all(|c| small(c) || c == '-') && !text.starts_with('-') && !text.ends_with('-')
}
