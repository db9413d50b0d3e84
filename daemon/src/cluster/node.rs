//! The node this daemon runs on, as the API server has it.
//!
//! In: its Node object, pruned. Out: [`OwnNode`]. What always holds: nothing here decides anything; what cannot be read
//! is as if it was not there.

use ipnetwork::IpNetwork;
use serde_json::Value;

use super::resource::PAUSED_UNTIL;

/// The own node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OwnNode {
    /// The annotation `flatfell.io/paused-until`, as it is written.
    pub paused_until: Option<String>,
    /// The keys of its taints, in order.
    pub taints: Vec<String>,
    /// Where its pods have their addresses, sorted.
    pub pod_ranges: Vec<IpNetwork>,
}

impl OwnNode {
    /// What a Node says.
    pub fn of(object: &Value) -> Self {
        let annotation = object.pointer("/metadata/annotations").and_then(|annotations| annotations.get(PAUSED_UNTIL));
        let taints = object.pointer("/spec/taints").and_then(Value::as_array);
        let key = |taint: &Value| taint.get("key").and_then(Value::as_str).unwrap_or_default().to_owned();
        Self {
            paused_until: annotation.and_then(Value::as_str).map(str::to_owned),
            pod_ranges: pod_ranges(object),
            taints: taints.map(|taints| taints.iter().map(key).collect()).unwrap_or_default(),
        }
    }
}

/// spec.podCIDRs, else spec.podCIDR; without what is no prefix, or every address there is.
fn pod_ranges(object: &Value) -> Vec<IpNetwork> {
    let text = |value: &Value| value.as_str().filter(|text| text.contains('/')).and_then(|text| text.parse().ok());
    let many = object.pointer("/spec/podCIDRs").and_then(Value::as_array).into_iter().flatten();
    let mut ranges: Vec<IpNetwork> = many.filter_map(text).collect();
    if ranges.is_empty() {
        ranges.extend(object.pointer("/spec/podCIDR").and_then(text));
    }
    ranges.retain(|range| range.prefix() > 0);
    ranges.sort_unstable();
    ranges
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_says_where_its_pods_are() {
        let ranges = |spec: Value| -> Vec<String> {
            OwnNode::of(&json!({"spec": spec})).pod_ranges.iter().map(ToString::to_string).collect()
        };
        let both = json!({"podCIDR": "10.244.1.0/24", "podCIDRs": ["fd00:10:244:1::/64", "10.244.1.0/24"]});
        assert_eq!(ranges(both), ["10.244.1.0/24", "fd00:10:244:1::/64"]);
        assert_eq!(ranges(json!({"podCIDR": "10.244.1.0/24"})), ["10.244.1.0/24"]);
        for none in [json!({}), json!({"podCIDRs": ["10.0.0.1", 5, "0.0.0.0/0"]}), json!({"podCIDRs": 5})] {
            assert!(ranges(none.clone()).is_empty(), "{none}");
        }
    }
}
