//! What the API server would refuse in a NetworkPolicy, and what of it can be read all the same.
//!
//! In: a policy as raw JSON. Out: its [`Fault`]s. What always holds: a policy without a fault is understood whole
//! ("parsed once, refused whole").

use std::collections::BTreeSet;

use serde_json::Value;

use super::address::Block;

/// What is wrong with a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Its podSelector cannot be read.
    Selector,
    /// Its policyTypes cannot be read.
    Types,
    /// "ipBlock beside another peer field refuses the policy".
    BlockBesidePeer,
    /// Anything else.
    Other,
}

/// Everything wrong with a policy.
pub fn faults(policy: &Value) -> BTreeSet<Fault> {
    let spec = &policy["spec"];
    let mut faults = BTreeSet::new();
    if !selector_readable(&spec["podSelector"]) {
        faults.insert(Fault::Selector);
    }
    if !types_readable(spec) {
        faults.insert(Fault::Types);
    }
    for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
        match list(&spec[rules]) {
            Some(rules) => rules.iter().for_each(|rule| rule_faults(rule, peers, &mut faults)),
            None => drop(faults.insert(Fault::Other)),
        }
    }
    faults
}

/// A list; null and missing are empty ones; `None` is something else.
fn list(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Null => Some(&[]),
        Value::Array(items) => Some(items),
        _ => None,
    }
}

/// "policyTypes: ... Valid options are ["Ingress"], ["Egress"], or ["Ingress", "Egress"]"; an entry twice is legal. Unset
/// types follow from the egress rules, which must then be a list.
fn types_readable(spec: &Value) -> bool {
    match list(&spec["policyTypes"]) {
        Some([]) => list(&spec["egress"]).is_some(),
        Some(types) => types.iter().all(|word| word == "Ingress" || word == "Egress"),
        None => false,
    }
}

/// metav1.LabelSelector: matchLabels maps strings to strings; "values ... If the operator is In or NotIn, the values array
/// must be non-empty. If the operator is Exists or DoesNotExist, the values array must be empty."
fn selector_readable(selector: &Value) -> bool {
    let labels = match &selector["matchLabels"] {
        Value::Null => true,
        Value::Object(labels) => labels.values().all(Value::is_string),
        _ => false,
    };
    let expressions = list(&selector["matchExpressions"]);
    (selector.is_null() || selector.is_object())
        && labels
        && expressions.is_some_and(|expressions| expressions.iter().all(requirement_readable))
}

/// One entry of matchExpressions.
fn requirement_readable(requirement: &Value) -> bool {
    let Some(values) = list(&requirement["values"]) else { return false };
    let values_fit = match requirement["operator"].as_str() {
        Some("In" | "NotIn") => !values.is_empty(),
        Some("Exists" | "DoesNotExist") => values.is_empty(),
        _ => false,
    };
    values_fit && values.iter().all(Value::is_string) && requirement["key"].as_str().is_some_and(|key| !key.is_empty())
}

fn rule_faults(rule: &Value, peers: &str, faults: &mut BTreeSet<Fault>) {
    let (Some(peers), Some(ports), true) = (list(&rule[peers]), list(&rule["ports"]), rule.is_object()) else {
        faults.insert(Fault::Other);
        return;
    };
    faults.extend(peers.iter().filter_map(peer_fault));
    if !ports.iter().all(port_readable) {
        faults.insert(Fault::Other);
    }
}

/// NetworkPolicyPeer: "ipBlock ... If this field is set then neither of the other fields can be."
fn peer_fault(peer: &Value) -> Option<Fault> {
    let selectors = [&peer["podSelector"], &peer["namespaceSelector"]];
    if !peer.is_object() || !selectors.iter().all(|selector| selector_readable(selector)) {
        return Some(Fault::Other);
    }
    if peer["ipBlock"].is_null() {
        return None;
    }
    if selectors.iter().any(|selector| !selector.is_null()) {
        return Some(Fault::BlockBesidePeer);
    }
    (!block_readable(&peer["ipBlock"])).then_some(Fault::Other)
}

/// IPBlock: "except is a slice of CIDRs that should not be included within an ipBlock ... Except values will be rejected if
/// they are outside the cidr range".
fn block_readable(block: &Value) -> bool {
    let Some(cidr) = block["cidr"].as_str().and_then(Block::read) else { return false };
    let inside = |except: &Value| except.as_str().and_then(Block::read).is_some_and(|it| it.strictly_inside(&cidr));
    list(&block["except"]).is_some_and(|excepts| excepts.iter().all(inside))
}

/// NetworkPolicyPort: "endPort ... cannot be defined if the port field is not defined or if the port field is defined as a
/// named (string) port. The endPort must be equal or greater than port."
fn port_readable(entry: &Value) -> bool {
    let protocol = matches!(entry["protocol"].as_str(), Some("TCP" | "UDP" | "SCTP")) || entry["protocol"].is_null();
    let (port, end) = (&entry["port"], &entry["endPort"]);
    let port_fits = match port {
        Value::Null => true,
        Value::Number(_) => port_number(port).is_some(),
        Value::String(name) => port_name(name),
        _ => false,
    };
    let end_fits = match (port_number(port), end) {
        (_, Value::Null) => true,
        (Some(first), _) => port_number(end).is_some_and(|last| last >= first),
        (None, _) => false,
    };
    entry.is_object() && protocol && port_fits && end_fits
}

/// A port number, 1 to 65535.
fn port_number(value: &Value) -> Option<u64> {
    value.as_u64().filter(|number| (1..=65535).contains(number))
}

/// An IANA_SVC_NAME: at most 15 of [a-z0-9-], a letter among them, no hyphen at an end or beside another.
fn port_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && name.bytes().any(|byte| byte.is_ascii_lowercase())
        && !name.contains("--")
        && !name.starts_with('-')
        && !name.ends_with('-')
}
