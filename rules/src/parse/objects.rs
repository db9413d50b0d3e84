//! Pods and namespaces, and the metadata every object has.
//!
//! In: a whole object. Out: the slim values of [`crate::object`]. What always holds: an address or a port that is wrong
//! refuses the whole object.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::Value;

use super::address::sloppy_address;
use super::selector::{is_dns_label, is_subdomain};
use super::walk::{Fields, Node, Report};
use super::{MODE_ANNOTATION, Parsed, Refusal};
use crate::object::{Labels, Lifetime, Mode, NamedPort, Namespace, ObjectName, Pod, Protocol};

/// Where an object without a namespace lives.
pub(super) const DEFAULT_NAMESPACE: &str = "default";

/// The label that names a namespace to selectors.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

pub(super) fn pod(object: &Value) -> Result<Parsed<Pod>, Refusal> {
    let mut report = Report::default();
    let pod = read_pod(&Node::root(object), &mut report);
    finish(pod, report)
}

pub(super) fn namespace(object: &Value) -> Result<Parsed<Namespace>, Refusal> {
    let mut report = Report::default();
    let namespace = read_namespace(&Node::root(object), &mut report);
    finish(namespace, report)
}

/// A value that was read without a fault.
pub(super) fn finish<T>(value: Option<T>, mut report: Report) -> Result<Parsed<T>, Refusal> {
    match (report.refusal(), value) {
        (None, Some(value)) => Ok(Parsed { value, warnings: report.warnings }),
        (refusal, _) => Err(refusal.unwrap_or(Refusal { faults: Vec::new() })),
    }
}

/// The metadata of an object; a fault when there is none.
pub(super) fn metadata<'a>(root: &Node<'a>, report: &mut Report) -> Option<(Fields<'a>, Fields<'a>)> {
    let fields = root.object(report)?;
    let Some(metadata) = fields.get("metadata") else {
        report.fault(root, "metadata is missing");
        return None;
    };
    let metadata = metadata.object(report)?;
    Some((fields, metadata))
}

/// Namespace and name of a namespaced object.
pub(super) fn object_name(metadata: &Fields<'_>, root: &Node<'_>, report: &mut Report) -> Option<ObjectName> {
    let name = own_name(metadata, root, is_subdomain, report);
    let namespace = metadata.text_or("namespace", DEFAULT_NAMESPACE, report)?;
    if let Some(node) = metadata.get("namespace").filter(|_| !is_dns_label(namespace)) {
        report.fault(&node, format!("{namespace:?} is no name of a namespace"));
        return None;
    }
    Some(ObjectName::new(namespace, name?))
}

fn own_name<'a>(
    metadata: &Fields<'a>,
    root: &Node<'_>,
    valid: fn(&str) -> bool,
    report: &mut Report,
) -> Option<&'a str> {
    let Some(node) = metadata.get("name") else {
        report.fault(root, "metadata.name is missing");
        return None;
    };
    let name = node.text(report)?;
    if !valid(name) {
        report.fault(&node, format!("{name:?} is no legal name"));
        return None;
    }
    Some(name)
}

/// The mode an annotation asks for; one that is not known enforces.
pub(super) fn mode(metadata: &Fields<'_>, report: &mut Report) -> Mode {
    let Some(annotations) = metadata.get("annotations") else { return Mode::Enforce };
    let Some(value) = annotations.value().get(MODE_ANNOTATION).filter(|value| !value.is_null()) else {
        return Mode::Enforce;
    };
    match value.as_str() {
        Some("enforce") => {}
        Some("audit") => return Mode::Audit,
        _ => report.warn(&annotations, format!("{MODE_ANNOTATION} must be audit or enforce: this enforces")),
    }
    Mode::Enforce
}

fn labels(metadata: &Fields<'_>, report: &mut Report) -> Labels {
    read_labels(metadata, report).into_iter().collect()
}

fn read_labels<'a>(metadata: &Fields<'a>, report: &mut Report) -> BTreeMap<&'a str, &'a str> {
    let Some(fields) = metadata.get("labels").and_then(|node| node.object(report)) else { return BTreeMap::new() };
    fields.all().filter_map(|(key, node)| Some((key, node.text(report)?))).collect()
}

fn read_namespace(root: &Node<'_>, report: &mut Report) -> Option<Namespace> {
    let (_, metadata) = metadata(root, report)?;
    let name = own_name(&metadata, root, is_dns_label, report);
    let mut labels = read_labels(&metadata, report);
    let (mode, name) = (mode(&metadata, report), name?);
    labels.insert(NAME_LABEL, name);
    let (name, labels) = (name.to_owned(), labels.into_iter().collect());
    Some(Namespace { name, labels, mode, terminating: metadata.get("deletionTimestamp").is_some() })
}

fn read_pod(root: &Node<'_>, report: &mut Report) -> Option<Pod> {
    let (fields, metadata) = metadata(root, report)?;
    let name = object_name(&metadata, root, report);
    let spec = fields.get("spec").and_then(|node| node.object(report));
    let status = fields.get("status").and_then(|node| node.object(report));
    let uid = metadata.text_or("uid", "", report);
    let labels = labels(&metadata, report);
    let created = created(&metadata, report);
    let node = spec.as_ref().and_then(|spec| spec.get("nodeName")).and_then(|node| node.text(report));
    let host_network = spec.as_ref().and_then(|spec| spec.get("hostNetwork")).map(|node| node.boolean(report));
    let ports = spec.as_ref().map(|spec| named_ports(spec, report)).unwrap_or_default();
    let addresses = status.as_ref().map(|status| addresses(status, report)).unwrap_or_default();
    let lifetime = status.as_ref().map_or(Some(Lifetime::Live), |status| lifetime(status, report));
    Some(Pod {
        name: name?,
        uid: uid?.into(),
        labels,
        node: node.filter(|node| !node.is_empty()).map(Arc::from),
        host_network: host_network.unwrap_or(Some(false))?,
        addresses: addresses.as_slice().into(),
        lifetime: lifetime?,
        created: created?.into(),
        ports: ports.into(),
    })
}

/// The creation time as the API server writes it, which compares as text; empty where a manifest has none.
fn created<'a>(metadata: &Fields<'a>, report: &mut Report) -> Option<&'a str> {
    let Some(node) = metadata.get("creationTimestamp") else { return Some("") };
    let text = node.text(report)?;
    let shape = |(c, wanted): (char, char)| if wanted == '0' { c.is_ascii_digit() } else { c == wanted };
    let wanted = "0000-00-00T00:00:00Z";
    if text.len() != wanted.len() || !text.chars().zip(wanted.chars()).all(shape) {
        report.fault(&node, format!("{text:?} is no time in UTC such as 2006-01-02T15:04:05Z"));
        return None;
    }
    Some(text)
}

fn lifetime(status: &Fields<'_>, report: &mut Report) -> Option<Lifetime> {
    match status.text_or("phase", "", report)? {
        "Succeeded" | "Failed" => Some(Lifetime::Terminal),
        _ => Some(Lifetime::Live),
    }
}

/// status.podIPs, else status.podIP.
fn addresses(status: &Fields<'_>, report: &mut Report) -> Vec<IpAddr> {
    let mut nodes = Vec::new();
    for item in status.items("podIPs", report) {
        let Some(fields) = item.object(report) else { continue };
        match fields.get("ip") {
            Some(node) => nodes.push(node),
            None => report.fault(&item, "ip is missing"),
        }
    }
    if nodes.is_empty() {
        nodes.extend(status.get("podIP").filter(|node| node.value().as_str() != Some("")));
    }
    let mut addresses: Vec<IpAddr> = nodes.iter().filter_map(|node| address(node, report)).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn address(node: &Node<'_>, report: &mut Report) -> Option<IpAddr> {
    let text = node.text(report)?;
    let Some(sloppy) = sloppy_address(text) else {
        report.fault(node, format!("{text:?} is no IP address"));
        return None;
    };
    for warning in sloppy.warnings {
        report.warn(node, format!("{text:?} {warning}"));
    }
    Some(sloppy.value)
}

/// The named ports of what runs beside each other: containers, and init containers that are restarted.
fn named_ports(spec: &Fields<'_>, report: &mut Report) -> Vec<NamedPort> {
    let mut ports = Vec::new();
    for container in spec.items("containers", report) {
        if let Some(fields) = container.object(report) {
            container_ports(&fields, &mut ports, report);
        }
    }
    for container in spec.items("initContainers", report) {
        let Some(fields) = container.object(report) else { continue };
        if fields.text_or("restartPolicy", "", report) == Some("Always") {
            container_ports(&fields, &mut ports, report);
        }
    }
    ports.sort();
    ports.dedup();
    ports
}

fn container_ports(container: &Fields<'_>, ports: &mut Vec<NamedPort>, report: &mut Report) {
    for port in container.items("ports", report) {
        let Some(fields) = port.object(report) else { continue };
        // Only names are asked for: a port without one allows nothing and forbids nothing.
        let Some(name) = fields.get("name").and_then(|node| node.text(report)) else { continue };
        let protocol = protocol(&fields, report);
        let Some(number) = fields.get("containerPort") else {
            report.fault(&port, "containerPort is missing");
            continue;
        };
        if let (Some(number), Some(protocol)) = (number.port(report), protocol) {
            ports.push(NamedPort { name: name.to_owned(), protocol, number });
        }
    }
}

/// The field `protocol`, TCP where it is missing.
pub(super) fn protocol(fields: &Fields<'_>, report: &mut Report) -> Option<Protocol> {
    let Some(node) = fields.get("protocol") else { return Some(Protocol::Tcp) };
    match node.text(report)? {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        other => {
            report.fault(&node, format!("must be TCP, UDP or SCTP, not {other:?}"));
            None
        }
    }
}
