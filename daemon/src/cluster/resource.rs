//! What is watched, and which fields of it are of use.
//!
//! In: nothing. Out: for each [`Resource`] its place in the API and what is kept of an object. What always holds: every
//! field that `flatfell_rules::parse` looks at is kept (a test compares both on the same objects); of a policy's spec
//! everything is, since a field that is not known may narrow it. Numbers are those of Kubernetes' `generated.proto`.

use flatfell_rules::parse::MODE_ANNOTATION;

use super::prune::{Field, Keep};

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

    /// What is kept of one object.
    pub const fn object(self) -> Keep {
        match self {
            Self::Pods => POD,
            Self::Namespaces => NAMESPACE,
            Self::Policies => POLICY,
            Self::Node => NODE,
        }
    }

    /// What is kept of one event of a watch.
    pub const fn event(self) -> Keep {
        match self {
            Self::Pods => Keep::Fields(&[TYPE, ("object", 2, POD)]),
            Self::Namespaces => Keep::Fields(&[TYPE, ("object", 2, NAMESPACE)]),
            Self::Policies => Keep::Fields(&[TYPE, ("object", 2, POLICY)]),
            Self::Node => Keep::Fields(&[TYPE, ("object", 2, NODE)]),
        }
    }

    /// What is kept of one page of a list.
    pub const fn page(self) -> Keep {
        match self {
            Self::Pods => Keep::Fields(&[KIND, PAGE_METADATA, ("items", 2, Keep::Items(&POD))]),
            Self::Namespaces => Keep::Fields(&[KIND, PAGE_METADATA, ("items", 2, Keep::Items(&NAMESPACE))]),
            Self::Policies => Keep::Fields(&[KIND, PAGE_METADATA, ("items", 2, Keep::Items(&POLICY))]),
            Self::Node => Keep::Fields(&[KIND, PAGE_METADATA, ("items", 2, Keep::Items(&NODE))]),
        }
    }
}

/// What is kept of a Status, the answer when something is wrong.
pub const STATUS: Keep =
    Keep::Fields(&[KIND, ("message", 3, Keep::Text), ("reason", 4, Keep::Text), ("code", 6, Keep::Number)]);

const TYPE: Field = ("type", 1, Keep::Text);
const PAGE_METADATA: Field =
    ("metadata", 1, Keep::Fields(&[("resourceVersion", 2, Keep::Text), ("continue", 3, Keep::Text)]));

// In protobuf it stands before the object, which may be a Status instead.
const KIND: Field = ("kind", 0, Keep::Text);
const CODE: Field = ("code", 0, Keep::Number);
const MESSAGE: Field = ("message", 0, Keep::Text);
const REASON: Field = ("reason", 0, Keep::Text);

const NAME: Field = ("name", 1, Keep::Text);
const IN_NAMESPACE: Field = ("namespace", 3, Keep::Text);
const UID: Field = ("uid", 5, Keep::Text);
const VERSION: Field = ("resourceVersion", 6, Keep::Text);
const CREATED: Field = ("creationTimestamp", 8, Keep::Time);
const DELETED: Field = ("deletionTimestamp", 9, Keep::Time);
const LABELS: Field = ("labels", 11, Keep::Texts);
const ANNOTATIONS: &str = "annotations";

const POD: Keep = Keep::Fields(&[
    KIND,
    CODE,
    MESSAGE,
    REASON,
    (
        "metadata",
        1,
        Keep::Fields(&[
            NAME,
            IN_NAMESPACE,
            UID,
            VERSION,
            CREATED,
            LABELS,
            (ANNOTATIONS, 12, Keep::TextsOf(&[INITIAL_EVENTS_END])),
        ]),
    ),
    (
        "spec",
        2,
        Keep::Fields(&[
            ("containers", 2, Keep::Items(&CONTAINER)),
            ("nodeName", 10, Keep::Text),
            ("hostNetwork", 11, Keep::Flag),
            ("initContainers", 20, Keep::Items(&CONTAINER)),
        ]),
    ),
    (
        "status",
        3,
        Keep::Fields(&[
            ("phase", 1, Keep::Text),
            ("podIP", 6, Keep::Text),
            ("podIPs", 12, Keep::Items(&Keep::Fields(&[("ip", 1, Keep::Text)]))),
        ]),
    ),
]);

const CONTAINER: Keep = Keep::Fields(&[
    (
        "ports",
        6,
        Keep::Items(&Keep::Fields(&[
            ("name", 1, Keep::Text),
            ("containerPort", 3, Keep::Number),
            ("protocol", 4, Keep::Text),
        ])),
    ),
    ("restartPolicy", 24, Keep::Text),
]);

const NAMESPACE: Keep = Keep::Fields(&[
    KIND,
    CODE,
    MESSAGE,
    REASON,
    (
        "metadata",
        1,
        Keep::Fields(&[
            NAME,
            UID,
            VERSION,
            DELETED,
            LABELS,
            (ANNOTATIONS, 12, Keep::TextsOf(&[INITIAL_EVENTS_END, MODE_ANNOTATION])),
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
        1,
        Keep::Fields(&[
            NAME,
            IN_NAMESPACE,
            UID,
            VERSION,
            CREATED,
            (ANNOTATIONS, 12, Keep::TextsOf(&[INITIAL_EVENTS_END, MODE_ANNOTATION])),
        ]),
    ),
    ("spec", 2, Keep::All),
]);

const NODE: Keep = Keep::Fields(&[
    KIND,
    CODE,
    MESSAGE,
    REASON,
    (
        "metadata",
        1,
        Keep::Fields(&[NAME, UID, VERSION, (ANNOTATIONS, 12, Keep::TextsOf(&[INITIAL_EVENTS_END, PAUSED_UNTIL]))]),
    ),
    ("spec", 2, Keep::Fields(&[("taints", 5, Keep::All), ("podCIDR", 1, Keep::All), ("podCIDRs", 7, Keep::All)])),
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
