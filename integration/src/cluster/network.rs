//! Flannel on the lab's nodes: flanneld, and the CNI plugins that wire pods as its delegate configuration says.
//!
//! In: which backend, which families. Out: a running flanneld for each node, pods at the addresses of the lab's plan. What
//! always holds: subnets come from the Node objects, and the plugins are given what Flannel's own plugin would make of
//! `subnet.env`; only the addresses and MACs of pods are asked for, so that a test can name them beforehand.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::parts::{self, Process};
use super::{ClusterError, Families, failed};
use crate::lab::Lab;
use crate::netns::Netns;
use crate::place::{Place, mac_text};

const PATIENCE: Duration = Duration::from_secs(60);
/// The versions of the configuration that Flannel's manifest asks for.
const CNI_VERSION: &str = "0.3.1";
/// The network's name in Flannel's manifest.
const NAME: &str = "cbr0";

/// How flanneld carries packets between nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// In tunnels.
    #[default]
    Vxlan,
    /// By routes of the underlay.
    HostGw,
}

/// What `net-conf.json` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flannel {
    /// The backend.
    pub backend: Backend,
    /// nftables instead of iptables for masquerading.
    pub nftables: bool,
}

impl Flannel {
    fn network(self, families: Families) -> Value {
        let backend = match self.backend {
            Backend::Vxlan => json!({"Type": "vxlan"}),
            Backend::HostGw => json!({"Type": "host-gw"}),
        };
        let mut network = json!({"EnableIPv4": families.v4(), "EnableIPv6": families.v6(),
            "EnableNFTables": self.nftables, "Backend": backend});
        if families.v4() {
            network["Network"] = json!("10.244.0.0/16");
        }
        if families.v6() {
            network["IPv6Network"] = json!("fd00:10:244::/48");
        }
        network
    }

    /// Starts flanneld on a node, and waits until it has written `subnet.env` for the plugins.
    pub(super) fn start(
        self,
        space: &Netns,
        node: u8,
        families: Families,
        kubeconfig: &Path,
        directory: &Path,
    ) -> Result<Process, ClusterError> {
        let network = directory.join("net-conf.json");
        fs::write(&network, self.network(families).to_string()).map_err(failed("net-conf.json"))?;
        let subnet = subnet_file(directory);
        let arguments = [
            "--kube-subnet-mgr".to_owned(),
            "--ip-masq".to_owned(),
            "--iface=eth0".to_owned(),
            format!("--kubeconfig-file={}", kubeconfig.display()),
            format!("--net-config-path={}", network.display()),
            format!("--subnet-file={}", subnet.display()),
        ];
        let environment = [("NODE_NAME", format!("node{node}"))];
        let mut process = Process::start(space, "flanneld", &arguments, &environment, &directory.join("flanneld.log"))?;
        process.wait("ready for pods", PATIENCE, || subnet.exists())?;
        Ok(process)
    }
}

fn subnet_file(directory: &Path) -> PathBuf {
    directory.join("subnet.env")
}

/// A port of the node that leads to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// The node's.
    pub host: u16,
    /// The pod's.
    pub pod: u16,
}

/// Wires a pod's namespace by the plugins, as a kubelet's container runtime would.
pub(super) fn attach(lab: &Lab, pod: Place, directory: &Path, ports: &[HostPort]) -> Result<(), ClusterError> {
    let chain = Chain::read(lab, pod, directory, ports)?;
    let bridge = chain.call("ADD", &chain.bridge)?;
    let mut portmap = chain.portmap.clone();
    portmap["prevResult"] = bridge;
    chain.call("ADD", &portmap)?;
    Ok(())
}

/// Takes a pod's link and addresses back.
pub(super) fn detach(lab: &Lab, pod: Place, directory: &Path) -> Result<(), ClusterError> {
    let chain = Chain::read(lab, pod, directory, &[])?;
    chain.call("DEL", &chain.portmap)?;
    chain.call("DEL", &chain.bridge)?;
    Ok(())
}

/// A node's list of chained plugins, as a container runtime reads it.
#[derive(Clone, Copy, Debug)]
pub struct Runtime<'a> {
    /// The conflist.
    pub conflist: &'a Path,
    /// Where plugins are that are none of the fixture's.
    pub plugins: &'a Path,
}

/// Runs the plugins of a conflist for a pod: in order for ADD, backwards for DEL. Flannel's own is played by what it delegates to.
pub(super) fn run(
    lab: &Lab,
    pod: Place,
    directory: &Path,
    runtime: Runtime<'_>,
    (command, arguments): (&str, &str),
) -> Result<(), ClusterError> {
    let mut chain = Chain::read(lab, pod, directory, &[])?;
    chain.arguments = arguments.to_owned();
    chain.plugins = Some(runtime.plugins);
    let text = fs::read_to_string(runtime.conflist).map_err(failed("a conflist"))?;
    let conflist: Value = serde_json::from_str(&text).map_err(|error| failed("a conflist")(error.into()))?;
    let mut plugins = conflist["plugins"].as_array().cloned().unwrap_or_default();
    if command == "DEL" {
        plugins.reverse();
    }
    let mut previous = Value::Null;
    for plugin in plugins {
        let mut configuration = match plugin["type"].as_str() {
            Some("flannel") => chain.bridge.clone(),
            Some("portmap") => chain.portmap.clone(),
            _ => plugin,
        };
        configuration["cniVersion"] = json!(CNI_VERSION);
        configuration["name"] = conflist["name"].clone();
        if !previous.is_null() {
            configuration["prevResult"] = previous.clone();
        }
        let result = chain.call(command, &configuration)?;
        previous = if command == "ADD" { result } else { Value::Null };
    }
    Ok(())
}

/// The plugins' configurations for one pod, and where they run.
struct Chain<'a> {
    node: &'a Netns,
    pod: &'a Netns,
    bridge: Value,
    portmap: Value,
    /// CNI_ARGS.
    arguments: String,
    plugins: Option<&'a Path>,
}

impl<'a> Chain<'a> {
    fn read(lab: &'a Lab, pod: Place, directory: &Path, ports: &[HostPort]) -> Result<Self, ClusterError> {
        let node = pod.node().map(Place::Node).ok_or(crate::LabError::NoSuchPlace(pod))?;
        let file = subnet_file(directory);
        let text = fs::read_to_string(&file).map_err(failed("subnet.env"))?;
        let subnet: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
        let mappings: Vec<Value> = ports
            .iter()
            .map(|port| json!({"hostPort": port.host, "containerPort": port.pod, "protocol": "tcp"}))
            .collect();
        let portmap = json!({"cniVersion": CNI_VERSION, "name": NAME, "type": "portmap",
            "capabilities": {"portMappings": true}, "runtimeConfig": {"portMappings": mappings}});
        Ok(Self {
            node: lab.netns(node)?,
            pod: lab.netns(pod)?,
            bridge: delegate(&subnet, pod, directory),
            portmap,
            arguments: String::new(),
            plugins: None,
        })
    }

    /// Calls a plugin inside the node's namespace; gives its result.
    fn call(&self, command: &str, configuration: &Value) -> Result<Value, ClusterError> {
        let plugin = configuration["type"].as_str().unwrap_or_default();
        let other = self.plugins.map(|directory| directory.join(plugin)).filter(|path| path.is_file());
        let mut process = Command::new(other.map_or_else(|| parts::path(plugin), Ok)?);
        process
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", self.pod.name())
            .env("CNI_NETNS", format!("/run/netns/{}", self.pod.name()))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", parts::directory())
            .env("CNI_ARGS", &self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let wrong = || failed(format!("the plugin {plugin}"));
        let mut child = self.node.run(|| process.spawn())?.map_err(wrong())?;
        if let Some(mut pipe) = child.stdin.take() {
            pipe.write_all(configuration.to_string().as_bytes()).map_err(wrong())?;
        }
        let output = child.wait_with_output().map_err(wrong())?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(serde_json::from_str(&said).unwrap_or_default());
        }
        let message = said + &String::from_utf8_lossy(&output.stderr);
        Err(ClusterError::Refused { what: format!("{plugin} {command} {configuration}"), message })
    }
}

/// The configuration that Flannel's plugin makes of `subnet.env` and hands to the bridge plugin.
fn delegate(subnet: &BTreeMap<&str, &str>, pod: Place, directory: &Path) -> Value {
    let own = [("FLANNEL_SUBNET", "FLANNEL_NETWORK"), ("FLANNEL_IPV6_SUBNET", "FLANNEL_IPV6_NETWORK")];
    let (mut ranges, mut routes, mut addresses) = (Vec::new(), Vec::new(), Vec::new());
    for ((range, network), address) in own.into_iter().zip(pod.addresses()) {
        let (Some(range), Some(network)) = (subnet.get(range), subnet.get(network)) else { continue };
        ranges.push(json!([{"subnet": of_network(range)}]));
        routes.push(json!({"dst": network}));
        addresses.push(length_of(address));
    }
    let masquerades = subnet.get("FLANNEL_IPMASQ") == Some(&"true");
    let mtu: u16 = subnet.get("FLANNEL_MTU").and_then(|mtu| mtu.parse().ok()).unwrap_or(1450);
    json!({"cniVersion": CNI_VERSION, "name": NAME, "type": "bridge", "hairpinMode": true, "isDefaultGateway": true,
        "isGateway": true, "ipMasq": !masquerades, "mtu": mtu,
        "ipam": {"type": "host-local", "dataDir": directory.join("cni"), "ranges": ranges, "routes": routes},
        "args": {"cni": {"ips": addresses}}, "capabilities": {"mac": true},
        "runtimeConfig": {"mac": mac_text(pod.mac())}})
}

/// `subnet.env` gives the node's own address in its range; a range ends in zeros.
fn of_network(range: &str) -> String {
    match range.split_once('/') {
        Some((address, length)) if address.contains(':') => format!("{}/{length}", address.trim_end_matches('1')),
        Some((address, length)) => {
            format!("{}0/{length}", address.trim_end_matches(|digit: char| digit.is_ascii_digit()))
        }
        None => range.to_owned(),
    }
}

fn length_of(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 24 } else { 64 })
}
