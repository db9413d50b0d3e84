//! The node this daemon runs on, as the API server has it.
//!
//! In: its Node object, pruned. Out: [`OwnNode`]. What always holds: nothing here decides anything; what cannot be read
//! is as if it was not there.

use serde_json::Value;

use super::resource::PAUSED_UNTIL;

/// The own node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OwnNode {
    /// The annotation `flatfell.io/paused-until`, as it is written.
    pub paused_until: Option<String>,
    /// The keys of its taints, in order.
    pub taints: Vec<String>,
}

impl OwnNode {
    /// What a Node says.
    pub fn of(object: &Value) -> Self {
        let annotation = object.pointer("/metadata/annotations").and_then(|annotations| annotations.get(PAUSED_UNTIL));
        let taints = object.pointer("/spec/taints").and_then(Value::as_array);
        let key = |taint: &Value| taint.get("key").and_then(Value::as_str).unwrap_or_default().to_owned();
        Self {
            paused_until: annotation.and_then(Value::as_str).map(str::to_owned),
            taints: taints.map(|taints| taints.iter().map(key).collect()).unwrap_or_default(),
        }
    }
}
