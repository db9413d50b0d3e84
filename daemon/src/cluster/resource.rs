//! What is watched, and which fields of it are of use.
//!
//! In: nothing. Out: for each [`Resource`] its place in the API and what is kept of an object. What always holds: every
//! field that `flatfell_rules::parse` looks at is kept (a test compares both on the same objects); of a policy's spec
//! everything is, since a field that is not known may narrow it.

use super::prune::Keep;

/// The annotation of a Node that opens it until a time.
pub const PAUSED_UNTIL: &str = "flatfell.io/paused-until";

/// The annotation of the bookmark behind the last object of a list that comes as a stream.
pub const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// A kind of object that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// All pods.
    Pods,
    /// All namespaces.
    Namespaces,
    /// All network policies.
    Policies,
    /// This daemon's own node.
    Node,
}

impl Resource {
    /// Everything that is watched.
    pub const ALL: [Self; 4] = [Self::Pods, Self::Namespaces, Self::Policies, Self::Node];

    /// The name in roles and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Namespaces => "namespaces",
            Self::Policies => "networkpolicies",
            Self::Node => "nodes",
        }
    }

    /// The kind of its objects.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Pods => "Pod",
            Self::Namespaces => "Namespace",
            Self::Policies => "NetworkPolicy",
            Self::Node => "Node",
        }
    }

    /// Where the API has it.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Pods => "/api/v1/pods",
            Self::Namespaces => "/api/v1/namespaces",
            Self::Policies => "/apis/networking.k8s.io/v1/networkpolicies",
            Self::Node => "/api/v1/nodes",
        }
    }

    /// Whether policy cannot be evaluated without its list.
    pub const fn is_needed(self) -> bool {
        !matches!(self, Self::Node)
    }

    /// What is kept of one event of a watch.
    pub const fn event(self) -> Keep {
        match self {
            Self::Pods => Keep::Fields(&[("type", Keep::All), ("object", POD)]),
            Self::Namespaces => Keep::Fields(&[("type", Keep::All), ("object", NAMESPACE)]),
            Self::Policies => Keep::Fields(&[("type", Keep::All), ("object", POLICY)]),
            Self::Node => Keep::Fields(&[("type", Keep::All), ("object", NODE)]),
        }
    }

    /// What is kept of one page of a list.
    pub const fn page(self) -> Keep {
        match self {
            Self::Pods => {
                Keep::Fields(&[("kind", Keep::All), ("metadata", PAGE_METADATA), ("items", Keep::Items(&POD))])
            }
            Self::Namespaces => {
                Keep::Fields(&[("kind", Keep::All), ("metadata", PAGE_METADATA), ("items", Keep::Items(&NAMESPACE))])
            }
            Self::Policies => {
                Keep::Fields(&[("kind", Keep::All), ("metadata", PAGE_METADATA), ("items", Keep::Items(&POLICY))])
            }
            Self::Node => {
                Keep::Fields(&[("kind", Keep::All), ("metadata", PAGE_METADATA), ("items", Keep::Items(&NODE))])
            }
        }
    }
}

/// What is kept of a Status, the answer when something is wrong.
pub const STATUS: Keep =
    Keep::Fields(&[("kind", Keep::All), ("code", Keep::All), ("message", Keep::All), ("reason", Keep::All)]);

const PAGE_METADATA: Keep = Keep::Fields(&[("resourceVersion", Keep::All), ("continue", Keep::All)]);

const MODE: (&str, Keep) = (flatfell_rules::parse::MODE_ANNOTATION, Keep::All);
const END: (&str, Keep) = (INITIAL_EVENTS_END, Keep::All);
const KIND: (&str, Keep) = ("kind", Keep::All);
// An event's object may be a Status instead.
const CODE: (&str, Keep) = ("code", Keep::All);
const MESSAGE: (&str, Keep) = ("message", Keep::All);
const REASON: (&str, Keep) = ("reason", Keep::All);

const POD: Keep = Keep::Fields(&[
    KIND,
    CODE,
    MESSAGE,
    REASON,
    (
        "metadata",
        Keep::Fields(&[
            ("name", Keep::All),
            ("namespace", Keep::All),
            ("uid", Keep::All),
            ("resourceVersion", Keep::All),
            ("creationTimestamp", Keep::All),
            ("labels", Keep::All),
            ("annotations", Keep::Fields(&[END])),
        ]),
    ),
    (
        "spec",
        Keep::Fields(&[
            ("nodeName", Keep::All),
            ("hostNetwork", Keep::All),
            ("containers", Keep::Items(&CONTAINER)),
            ("initContainers", Keep::Items(&CONTAINER)),
        ]),
    ),
    (
        "status",
        Keep::Fields(&[
            ("phase", Keep::All),
            ("podIP", Keep::All),
            ("podIPs", Keep::Items(&Keep::Fields(&[("ip", Keep::All)]))),
        ]),
    ),
]);

const CONTAINER: Keep = Keep::Fields(&[
    ("restartPolicy", Keep::All),
    (
        "ports",
        Keep::Items(&Keep::Fields(&[("name", Keep::All), ("protocol", Keep::All), ("containerPort", Keep::All)])),
    ),
]);

const NAMESPACE: Keep = Keep::Fields(&[
    KIND,
    CODE,
    MESSAGE,
    REASON,
    (
        "metadata",
        Keep::Fields(&[
            ("name", Keep::All),
            ("uid", Keep::All),
            ("resourceVersion", Keep::All),
            ("deletionTimestamp", Keep::All),
            ("labels", Keep::All),
            ("annotations", Keep::Fields(&[END, MODE])),
        ]),
    ),
]);

const POLICY: Keep = Keep::Fields(&[
    KIND,
    CODE,
    MESSAGE,
    REASON,
    (
        "metadata",
        Keep::Fields(&[
            ("name", Keep::All),
            ("namespace", Keep::All),
            ("uid", Keep::All),
            ("resourceVersion", Keep::All),
            ("creationTimestamp", Keep::All),
            ("annotations", Keep::Fields(&[END, MODE])),
        ]),
    ),
    ("spec", Keep::All),
]);

const NODE: Keep = Keep::Fields(&[
    KIND,
    CODE,
    MESSAGE,
    REASON,
    (
        "metadata",
        Keep::Fields(&[
            ("name", Keep::All),
            ("uid", Keep::All),
            ("resourceVersion", Keep::All),
            ("annotations", Keep::Fields(&[END, (PAUSED_UNTIL, Keep::All)])),
        ]),
    ),
    ("spec", Keep::Fields(&[("taints", Keep::All), ("podCIDR", Keep::All), ("podCIDRs", Keep::All)])),
]);

#[cfg(test)]
mod tests {
    use flatfell_rules::parse;
    use serde_json::{Value, json};

    use super::super::prune;
    use super::*;

    fn pod() -> Value {
        json!({
            "kind": "Pod",
            "metadata": {
                "name": "a", "namespace": "x", "uid": "u", "resourceVersion": "7", "labels": {"app": "a"},
                "creationTimestamp": "2026-01-02T03:04:05Z", "managedFields": [{"manager": "kubelet"}],
                "annotations": {"big": "x", "flatfell.io/mode": "audit"},
            },
            "spec": {
                "nodeName": "n", "hostNetwork": false, "volumes": [{"name": "v"}],
                "containers": [{"name": "c", "env": [], "ports": [{"name": "web", "containerPort": 80, "protocol": "TCP"}]}],
                "initContainers": [{"restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 81}]}],
            },
            "status": {"phase": "Running", "conditions": [], "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]},
        })
    }

    fn namespace() -> Value {
        json!({
            "kind": "Namespace",
            "metadata": {
                "name": "x", "uid": "u", "resourceVersion": "7", "labels": {"app": "a"}, "finalizers": ["f"],
                "deletionTimestamp": "2026-01-02T03:04:05Z", "annotations": {"big": "x", "flatfell.io/mode": "audit"},
            },
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
        })
    }

    fn policy() -> Value {
        json!({
            "kind": "NetworkPolicy",
            "metadata": {
                "name": "p", "namespace": "x", "uid": "u", "resourceVersion": "7", "labels": {"app": "a"},
                "annotations": {"big": "x", "flatfell.io/mode": "audit"},
            },
            "spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}], "unknown": 1},
        })
    }

    /// Every place in a value.
    fn pointers(value: &Value, at: &str, all: &mut Vec<String>) {
        all.push(at.to_owned());
        let mut below = |name: &str, value: &Value| {
            pointers(value, &format!("{at}/{}", name.replace('~', "~0").replace('/', "~1")), all);
        };
        match value {
            Value::Object(fields) => fields.iter().for_each(|(name, value)| below(name, value)),
            Value::Array(items) => items.iter().enumerate().for_each(|(at, value)| below(&at.to_string(), value)),
            _ => {}
        }
    }

    /// The object, and it with something else in each of its places.
    fn variants(object: &Value) -> Vec<Value> {
        let mut places = Vec::new();
        pointers(object, "", &mut places);
        let others =
            [json!(null), json!(5), json!(true), json!("x"), json!([]), json!({}), json!([1]), json!({"a": 1})];
        let mut all = vec![object.clone()];
        for place in &places {
            for other in &others {
                let mut variant = object.clone();
                *variant.pointer_mut(place).expect("its own place") = other.clone();
                all.push(variant);
            }
        }
        all
    }

    fn pruned(resource: Resource, object: &Value) -> Value {
        let event = json!({"type": "ADDED", "object": object}).to_string();
        prune::decode(event.as_bytes(), resource.event()).expect("JSON")["object"].take()
    }

    #[test]
    fn what_is_kept_means_what_the_whole_object_means() {
        for pod in variants(&pod()) {
            assert_eq!(parse::pod(&pruned(Resource::Pods, &pod)), parse::pod(&pod), "{pod}");
        }
        for namespace in variants(&namespace()) {
            let kept = pruned(Resource::Namespaces, &namespace);
            assert_eq!(parse::namespace(&kept), parse::namespace(&namespace), "{namespace}");
        }
        for policy in variants(&policy()) {
            assert_eq!(parse::policy(&pruned(Resource::Policies, &policy)), parse::policy(&policy), "{policy}");
        }
    }

    #[test]
    fn what_nobody_looks_at_is_not_kept() {
        let kept = pruned(Resource::Pods, &pod()).to_string();
        for word in ["managedFields", "annotations\":{\"big", "env", "volumes", "conditions"] {
            assert!(!kept.contains(word), "{word} in {kept}");
        }
    }
}
