//! The sentences of the specification that can decide a verdict.
//!
//! In: nothing. Out: [`Row`]. What always holds: each row of the semantics has at least one variant; a row that says two
//! things has one for each.

macro_rules! rows {
    ($($(#[$text:meta])* $row:ident = $name:literal,)*) => {
        /// A sentence of the specification.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Row { $($(#[$text])* $row,)* }

        impl Row {
            /// All of them, in the order of the semantics.
            pub const ALL: &'static [Self] = &[$(Self::$row,)*];

            /// The row's words.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$row => $name,)* }
            }
        }
    };
}

rows! {
    /// A pod is isolated in a direction once any policy with that policyType selects it ...
    Isolation = "isolation",
    /// ... otherwise everything passes.
    Open = "no isolation",
    /// policyTypes unset: Ingress always; Egress only if the policy has egress rules.
    TypesUnset = "policyTypes unset",
    /// policyTypes set: rules of a direction that is not in it are ignored.
    TypesSet = "policyTypes set",
    /// Policies only add.
    Union = "union of policies",
    /// A connection needs the source's egress and the destination's ingress.
    BothEnds = "egress and ingress",
    /// podSelector {}: every pod of the namespace.
    EmptySelector = "podSelector {}",
    /// A null peer selector is not an empty one.
    NullSelector = "null peer selector",
    /// One peer with podSelector and namespaceSelector: AND.
    PeerAnd = "both selectors in a peer",
    /// Two list items: OR.
    PeerOr = "two peers",
    /// from / to empty or missing: every source / destination.
    PeersEmpty = "from / to empty",
    /// `ingress: []` or missing: nothing.
    RulesEmpty = "no rules",
    /// A selector that matches nothing allows nothing.
    MatchesNothing = "selector matches nothing",
    /// In, NotIn, Exists, DoesNotExist.
    MatchExpressions = "matchExpressions",
    /// A missing key satisfies NotIn and DoesNotExist.
    MissingKey = "missing label key",
    /// A namespace that is not known matches no namespaceSelector, not even {}.
    UnknownNamespace = "unknown namespace",
    /// Policies of an unknown namespace apply by name.
    UnknownByName = "unknown namespace by name",
    /// ports missing or empty: all ports and protocols.
    PortsMissing = "ports missing",
    /// `ports: [{}]`: all TCP ports.
    EmptyPort = "ports: [{}]",
    /// TCP by default.
    ProtocolDefault = "protocol default",
    /// The protocol of a ports entry.
    Protocol = "protocol",
    /// endPort: the range port..endPort.
    EndPort = "endPort",
    /// A named port is resolved on the destination pod.
    NamedPort = "named port",
    /// In init containers with restartPolicy Always, not in plain ones.
    NamedPortInit = "named port of init containers",
    /// One pod may resolve a name to several numbers: all of them.
    NamedPortSeveral = "named port, several numbers",
    /// A destination that is no pod never matches a named port.
    NamedPortNoPod = "named port without a pod",
    /// ipBlock: cidr ...
    IpBlock = "ipBlock",
    /// ... minus except.
    Except = "ipBlock except",
    /// ipBlock matches pods too.
    IpBlockPods = "ipBlock matches pods",
    /// An except takes nothing away from another peer or rule.
    ExceptScope = "except in OR-ed peers",
    /// ipBlock as the API server reads its text.
    IpBlockText = "ipBlock text",
    /// Replies are allowed implicitly.
    Replies = "replies",
    /// A node always reaches its own pods.
    NodeToPod = "node to its own pod",
    /// A pod's own node is a destination like any other.
    PodToNode = "pod to its own node",
    /// A pod always reaches itself.
    ItSelf = "self",
    /// hostNetwork pods are never subjects nor matched by selectors.
    HostNetwork = "hostNetwork pods",
    /// The source that is seen decides.
    SourceSeen = "NodePort, masquerade",
    /// Pending, Unknown, not ready, deleted: counts fully. Succeeded or Failed: no peer.
    Lifetime = "pod lifetime",
    /// A terminal pod's own isolation stays on its node.
    TerminalSubject = "terminal pod stays isolated",
    /// One address, two pods.
    SharedAddress = "one address, two pods",
    /// status.podIPs, else podIP; mirror pods count.
    PodAddresses = "pod addresses",
    /// Policies keep their effect while their namespace terminates.
    Terminating = "a namespace that is going",
    /// A new pod is isolated before it starts.
    NewPod = "new pod",
    /// Until a pod is known nothing passes from or to its address, but to and from its node.
    UnknownPod = "pod that is not known",
    /// Label, namespace-label and policy changes take effect (counted over two clusters, see coverage).
    Changes = "changes",
    /// Policy applies to the pod behind a Service.
    ServiceAddress = "Service address",
    /// Every address of a pod, both families.
    DualStack = "dual stack",
    /// ICMP is allowed by a rule without ports only.
    OtherProtocols = "ICMP, other protocols",
    /// An audited policy isolates nothing and allows nothing.
    Audit = "audit mode",
    /// A peer with no known field matches nothing.
    UnknownPeer = "peer with no known field",
    /// ipBlock beside another peer field refuses the policy.
    BlockBesidePeer = "ipBlock beside a selector",
    /// A ports entry with an unknown field matches nothing.
    UnknownPort = "ports entry, unknown field",
    /// A refused policy isolates what its podSelector selects.
    Refused = "refused policy",
    /// A refused policy isolates the whole namespace if its podSelector cannot be read.
    RefusedSelector = "refused podSelector",
    /// A refused policy isolates both directions if its policyTypes cannot be read.
    RefusedTypes = "refused policyTypes",
    /// Router advertisements and redirects from pods are dropped.
    RouterAdvertisement = "router advertisement",
    /// Neighbour discovery passes on its link, MLD to groups.
    NeighbourDiscovery = "neighbour discovery",
    /// Link-local packets of pods are dropped while a pod of the node is isolated.
    LinkLocal = "link-local",
    /// Multicast and broadcast packets between pods likewise.
    Multicast = "multicast, broadcast",
}
