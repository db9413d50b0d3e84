//! The objects of a cluster as a kubelet, a controller or a user would write them.
//!
//! In: places of the lab, names, labels. Out: JSON for [`super::Api::put`]. What always holds: an object is complete
//! enough for the API server's own checks.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::Families;
use crate::place::Place;

/// The name of a node's object.
pub fn node_name(node: u8) -> String {
    format!("node{node}")
}

/// A node with its share of the pod network.
pub fn node(node: u8, families: Families) -> Value {
    let of = |like: &IpAddr| match like {
        IpAddr::V4(_) => format!("10.244.{node}.0/24"),
        IpAddr::V6(_) => format!("{}/64", crate::place::tunnel_address_like(node, *like)),
    };
    let ranges: Vec<String> = families.of(Place::Node(node)).iter().map(of).collect();
    let addresses: Vec<Value> = Place::Node(node)
        .addresses()
        .iter()
        .map(|address| json!({"type": "InternalIP", "address": address.to_string()}))
        .collect();
    // flanneld expects the annotations of a node to be there, as a kubelet writes some.
    let annotations = json!({"volumes.kubernetes.io/controller-managed-attach-detach": "true"});
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node_name(node), "annotations": annotations},
        "spec": {"podCIDR": ranges[0], "podCIDRs": ranges}, "status": {"addresses": addresses}})
}

/// A namespace with its name's label only (the server adds it).
pub fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

/// A running pod at these addresses.
pub fn pod(namespace: &str, name: &str, labels: Value, node: u8, addresses: &[IpAddr]) -> Value {
    let ips: Vec<Value> = addresses.iter().map(|address| json!({"ip": address.to_string()})).collect();
    let mut status = json!({"phase": "Running", "podIPs": ips});
    if let Some(first) = addresses.first() {
        status["podIP"] = json!(first.to_string());
    }
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"nodeName": node_name(node), "containers": [{"name": "main", "image": "lab"}]},
        "status": status})
}

/// A policy; its spec as it is written.
pub fn policy(namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

/// How a Service is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceSpec<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Port 80 of its addresses leads to this port of its pods, by TCP and by UDP.
    pub target: u16,
    /// A port of every node (for TCP; the next one for UDP), and whether its traffic policy is Local.
    pub node_port: Option<(u16, bool)>,
}

/// A Service at these ClusterIPs.
pub fn service(spec: ServiceSpec<'_>, addresses: &[IpAddr]) -> Value {
    let families: Vec<&str> = addresses.iter().map(family).collect();
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let mut ports = json!([
        {"name": "tcp", "protocol": "TCP", "port": 80, "targetPort": spec.target},
        {"name": "udp", "protocol": "UDP", "port": 80, "targetPort": spec.target}]);
    let policy = if families.len() > 1 { "RequireDualStack" } else { "SingleStack" };
    let mut body = json!({"type": "ClusterIP", "ipFamilyPolicy": policy, "ipFamilies": families,
        "clusterIP": texts[0], "clusterIPs": texts});
    if let Some((port, local)) = spec.node_port {
        body["type"] = json!("NodePort");
        body["externalTrafficPolicy"] = json!(if local { "Local" } else { "Cluster" });
        ports[0]["nodePort"] = json!(port);
        ports[1]["nodePort"] = json!(port + 1);
    }
    body["ports"] = ports;
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": spec.name, "namespace": spec.namespace},
        "spec": body})
}

/// The slice of a Service's endpoints of one family: these pods.
pub fn slice(spec: ServiceSpec<'_>, v4: bool, pods: &[Place]) -> Value {
    let (kind, like) = if v4 { ("IPv4", 0) } else { ("IPv6", 1) };
    let endpoints: Vec<Value> = pods
        .iter()
        .map(|pod| {
            json!({"addresses": [pod.addresses()[like].to_string()], "nodeName": pod.node().map(node_name),
                "conditions": {"ready": true, "serving": true, "terminating": false}})
        })
        .collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": kind,
        "metadata": {"name": format!("{}-{}", spec.name, kind.to_lowercase()), "namespace": spec.namespace,
            "labels": {"kubernetes.io/service-name": spec.name}},
        "endpoints": endpoints,
        "ports": [{"name": "tcp", "protocol": "TCP", "port": spec.target},
            {"name": "udp", "protocol": "UDP", "port": spec.target}]})
}

fn family(address: &IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// What the daemon may do, and that a user may do it.
pub fn permissions(user: &str) -> [Value; 2] {
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": user},
        "rules": [
            {"apiGroups": [""], "resources": ["pods", "namespaces", "nodes"], "verbs": ["list", "watch"]},
            {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": ["list", "watch"]}]});
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": user},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": user},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]});
    [role, binding]
}

/// A pod and a policy that are there to be seen: once a daemon enforces the policy on the pod, it has seen all that was
/// written to pods and policies before.
pub fn marks(node: u8, turn: u8) -> [Value; 2] {
    let name = format!("settle-{}", node_name(node));
    let labels = json!({"turn": format!("{node}-{turn}")});
    let spec = json!({"podSelector": {"matchLabels": labels}, "policyTypes": ["Ingress"]});
    [pod("default", &name, labels, node, &[mark_address(node, turn)]), policy("default", &name, spec)]
}

/// In address ranges for documentation, one for each node.
pub fn mark_address(node: u8, turn: u8) -> IpAddr {
    IpAddr::from(match node {
        1 => [192, 0, 2, turn],
        2 => [198, 51, 100, turn],
        _ => [203, 0, 113, turn],
    })
}
