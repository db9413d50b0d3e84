//! Whether a rule of a NetworkPolicy matches: its peers and its ports.
//!
//! In: a rule as raw JSON and the connection. Out: yes or no. What always holds: a function for each sentence.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

use super::address::Block;
use super::world::{Pod, items};
use super::{Connection, Direction, Reading, Row};

impl<'a> Reading<'a> {
    /// "This rule matches traffic only if the traffic matches both `ports` and `from`" (`to`).
    pub(super) fn rule_matches(&self, rule: &Value, namespace: &str, connection: &Connection<'_>) -> bool {
        self.ports_match(&rule["ports"], connection) && self.peers_match(rule, namespace, connection)
    }

    /// "If this field is empty or missing, this rule matches all sources (destinations)." "Items in this list are combined
    /// using a logical OR operation."
    fn peers_match(&self, rule: &Value, namespace: &str, connection: &Connection<'_>) -> bool {
        let peers = items(&rule[connection.direction.peers()]);
        if peers.is_empty() {
            return !self.mistaken(Row::PeersEmpty);
        }
        let mut matches = peers.iter().map(|peer| self.peer_matches(peer, namespace, connection));
        if peers.len() > 1 && self.mistaken(Row::PeerOr) { matches.all(|it| it) } else { matches.any(|it| it) }
    }

    /// "A peer with no known field matches nothing."
    fn peer_matches(&self, peer: &Value, namespace: &str, connection: &Connection<'_>) -> bool {
        if !peer["ipBlock"].is_null() {
            return self.block_matches(&peer["ipBlock"], connection.other);
        }
        if peer["podSelector"].is_null() && peer["namespaceSelector"].is_null() {
            if peer.get("podSelector").is_some() || peer.get("namespaceSelector").is_some() {
                return self.mistaken(Row::NullSelector);
            }
            return self.mistaken(Row::UnknownPeer);
        }
        let matches = self.peer_pod(connection.other).is_some_and(|pod| self.pod_peer(peer, namespace, pod));
        matches || (self.mistaken(Row::MatchesNothing) && self.selects_nothing(peer, namespace))
    }

    /// Whether a peer matches no pod of the cluster at all: "allows nothing (and is not "everything")".
    fn selects_nothing(&self, peer: &Value, namespace: &str) -> bool {
        !self.world.pods.iter().any(|pod| self.pod_peer(peer, namespace, pod))
    }

    /// "podSelector: ... If namespaceSelector is also set, then the NetworkPolicyPeer as a whole selects the pods matching
    /// podSelector in the namespaces selected by namespaceSelector. Otherwise it selects the pods matching podSelector in the
    /// policy's own namespace."
    fn pod_peer(&self, peer: &Value, namespace: &str, pod: &Pod<'_>) -> bool {
        let (pods, namespaces) = (&peer["podSelector"], &peer["namespaceSelector"]);
        let pod_fits = || pods.is_null() || self.selects(pods, &pod.labels);
        if namespaces.is_null() {
            let null_is_empty = namespaces_null(peer) && self.mistaken(Row::NullSelector);
            return (self.own_namespace(namespace, pod) || null_is_empty) && pod_fits();
        }
        let namespace_fits = self.namespace_selected(namespaces, pod.namespace);
        if !pods.is_null() && self.mistaken(Row::PeerAnd) {
            return namespace_fits || (pod.namespace == namespace && pod_fits());
        }
        namespace_fits && pod_fits()
    }

    /// "Policies of their own namespace still apply by name", whether it is known or not.
    fn own_namespace(&self, namespace: &str, pod: &Pod<'_>) -> bool {
        pod.namespace == namespace
            && (self.world.namespaces.contains_key(namespace) || !self.mistaken(Row::UnknownByName))
    }

    /// "A namespace that is not known: its pods match no namespaceSelector, not even {} (NotIn would match a missing label)."
    fn namespace_selected(&self, selector: &Value, namespace: &str) -> bool {
        match self.world.namespaces.get(namespace) {
            Some((labels, _)) => self.selects(selector, labels),
            None => self.mistaken(Row::UnknownNamespace) && self.selects(selector, &BTreeMap::new()),
        }
    }

    /// metav1.LabelSelector: "The result of matchLabels and matchExpressions are ANDed. An empty label selector matches all
    /// objects."
    pub(super) fn selects(&self, selector: &Value, labels: &BTreeMap<&str, &str>) -> bool {
        let expressions = items(&selector["matchExpressions"]);
        let wanted = selector["matchLabels"].as_object();
        if expressions.is_empty() && wanted.is_none_or(serde_json::Map::is_empty) {
            return !self.mistaken(Row::EmptySelector);
        }
        wanted.into_iter().flatten().all(|(key, value)| labels.get(key.as_str()).copied() == value.as_str())
            && (expressions.iter().all(|it| self.requirement_holds(it, labels)) || self.mistaken(Row::MatchExpressions))
    }

    /// LabelSelectorRequirement: "Valid operators are In, NotIn, Exists and DoesNotExist"; a missing key satisfies NotIn and
    /// DoesNotExist.
    fn requirement_holds(&self, requirement: &Value, labels: &BTreeMap<&str, &str>) -> bool {
        let value = requirement["key"].as_str().and_then(|key| labels.get(key));
        let among = |value: &&str| items(&requirement["values"]).iter().any(|it| it == *value);
        match (requirement["operator"].as_str(), value) {
            (Some("In"), Some(value)) => among(value),
            (Some("NotIn"), Some(value)) => !among(value),
            (Some("Exists"), value) => value.is_some(),
            (Some("DoesNotExist"), Some(_)) => false,
            (Some("NotIn" | "DoesNotExist"), None) => !self.mistaken(Row::MissingKey),
            _ => false,
        }
    }

    /// "ipBlock: cidr minus except, IPv4 and IPv6; matches addresses of anything, pods too."
    fn block_matches(&self, block: &Value, address: IpAddr) -> bool {
        let inside = self.cidr_contains(&block["cidr"], address);
        if !inside {
            return self.mistaken(Row::IpBlock);
        }
        !self.excepted(block, address)
            && (self.world.pods.iter().all(|pod| !self.has_address(pod, address)) || !self.mistaken(Row::IpBlockPods))
    }

    /// Whether an `except` of the block takes the address out.
    fn excepted(&self, block: &Value, address: IpAddr) -> bool {
        items(&block["except"]).iter().any(|except| self.cidr_contains(except, address) && !self.mistaken(Row::Except))
    }

    /// "As the API server reads it", not as a strict reader would.
    fn cidr_contains(&self, cidr: &Value, address: IpAddr) -> bool {
        let text = cidr.as_str().unwrap_or_default();
        let block = Block::read(text);
        if block != Block::read_strictly(text) && self.mistaken(Row::IpBlockText) {
            return false;
        }
        block.is_some_and(|block| block.contains(address))
    }

    /// Whether a block of the rule lost this connection to an `except`: what must not touch other peers and rules.
    pub(super) fn lost_to_except(&self, rule: &Value, connection: &Connection<'_>) -> bool {
        let lost = |peer: &Value| {
            let block = &peer["ipBlock"];
            self.cidr_contains(&block["cidr"], connection.other) && self.excepted(block, connection.other)
        };
        items(&rule[connection.direction.peers()]).iter().any(lost) && self.ports_match(&rule["ports"], connection)
    }

    /// "If this field is empty or missing, this rule matches all traffic (traffic not restricted by port)." ICMP and other
    /// protocols: "allowed by a rule without ports".
    fn ports_match(&self, ports: &Value, connection: &Connection<'_>) -> bool {
        let ports = items(ports);
        let Some(protocol) = connection.packet.protocol() else {
            return ports.is_empty() != self.mistaken(Row::OtherProtocols);
        };
        if ports.is_empty() {
            return !self.mistaken(Row::PortsMissing);
        }
        ports.iter().any(|entry| self.port_matches(entry, protocol, connection))
    }

    /// "`ports: [{}]`: all TCP ports"; "a ports entry with an unknown field matches nothing".
    fn port_matches(&self, entry: &Value, protocol: &str, connection: &Connection<'_>) -> bool {
        let known = |field: &String| matches!(field.as_str(), "port" | "protocol" | "endPort");
        let fields = entry.as_object();
        if !fields.into_iter().flatten().all(|(field, _)| known(field)) {
            return self.mistaken(Row::UnknownPort);
        }
        if fields.is_none_or(serde_json::Map::is_empty) && self.mistaken(Row::EmptyPort) {
            return true;
        }
        self.protocol_matches(entry, protocol) && self.number_matches(entry, protocol, connection)
    }

    /// "protocol ... TCP, UDP, or SCTP ... If not specified, this field defaults to TCP."
    fn protocol_matches(&self, entry: &Value, protocol: &str) -> bool {
        match entry["protocol"].as_str() {
            Some(wanted) => wanted == protocol || self.mistaken(Row::Protocol),
            None => (protocol == "TCP") != self.mistaken(Row::ProtocolDefault),
        }
    }

    /// "port ... If this field is not provided, this matches all port names and numbers." "endPort ... indicates that the
    /// range of ports from port to endPort if set, inclusive, should be allowed by the policy."
    fn number_matches(&self, entry: &Value, protocol: &str, connection: &Connection<'_>) -> bool {
        let port = u64::from(connection.port);
        match (&entry["port"], entry["endPort"].as_u64()) {
            (Value::Null, _) => true,
            (Value::String(name), _) => self.named_port_matches(name, protocol, connection),
            (first, Some(last)) => match first.as_u64() {
                Some(first) if first == port => true,
                Some(first) => (first..=last).contains(&port) && !self.mistaken(Row::EndPort),
                None => false,
            },
            (number, None) => number.as_u64() == Some(port),
        }
    }

    /// "Resolved on the destination pod, per pod, name and protocol equal"; "a destination that is no pod never matches".
    fn named_port_matches(&self, name: &str, protocol: &str, connection: &Connection<'_>) -> bool {
        let pod = match connection.direction {
            Direction::Ingress => Some(connection.subject),
            Direction::Egress => self.peer_pod(connection.other),
        };
        match pod {
            Some(pod) => self.pod_declares(pod, name, protocol, connection.port) && !self.mistaken(Row::NamedPort),
            None => {
                self.mistaken(Row::NamedPortNoPod)
                    && self.world.pods.iter().any(|pod| self.pod_declares(pod, name, protocol, connection.port))
            }
        }
    }

    /// "In its containers and its init containers with restartPolicy Always (not plain init containers)"; "one pod to several
    /// numbers: all of them"; "ephemeral containers change nothing".
    fn pod_declares(&self, pod: &Pod<'_>, name: &str, protocol: &str, number: u16) -> bool {
        let spec = &pod.raw["spec"];
        let restarted =
            |container: &&Value| (container["restartPolicy"] == "Always") != self.mistaken(Row::NamedPortInit);
        let ephemeral: &[Value] =
            if self.mistaken(Row::PodAddresses) { items(&spec["ephemeralContainers"]) } else { &[] };
        let containers =
            items(&spec["containers"]).iter().chain(items(&spec["initContainers"]).iter().filter(restarted));
        let mut numbers = containers
            .chain(ephemeral)
            .flat_map(|container| items(&container["ports"]))
            .filter(|port| port["name"] == name && port["protocol"].as_str().unwrap_or("TCP") == protocol)
            .filter_map(|port| port["containerPort"].as_u64());
        let first = numbers.next();
        first == Some(u64::from(number))
            || (numbers.any(|it| it == u64::from(number)) && !self.mistaken(Row::NamedPortSeveral))
    }
}

/// Whether a peer spells its namespaceSelector out as null.
fn namespaces_null(peer: &Value) -> bool {
    peer.get("namespaceSelector").is_some()
}
