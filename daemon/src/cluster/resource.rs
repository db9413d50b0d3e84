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
    ("spec", Keep::Fields(&[("taints", Keep::All)])),
]);
