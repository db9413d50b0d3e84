//! The test bed: a lab with kube-proxy's part in it, and tables beside that sleep and wake.
//!
//! In: a [`Size`], a [`Column`]. Out: a lab in which either the baseline alone or the column on top of it is in force. What always holds: both
//! sides of a round use the same namespaces, sockets and flows; a table that sleeps is `dormant`: loaded, and out of every hook.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::bail;
use flatfell_integration::{FlatfellNode, Lab, LabConfig, Place, Service};

use super::column::Column;
use super::linear;
use super::rounds::Side;
use super::row::{Family, PORT};
use super::size::Size;

/// The nodes of a lab.
const NODES: [u8; 2] = [1, 2];
/// What a node of a small cluster has.
const SERVICES: u8 = 20;
/// How long the daemon may take for the largest clusters, on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(60);

/// A lab and the tables on top of the baseline.
pub struct Bed {
    lab: Lab,
    /// Family and name; empty while only the baseline is there.
    tables: Vec<(&'static str, &'static str)>,
    /// Where they are.
    nodes: Vec<u8>,
}

impl Bed {
    /// Two nodes with conntrack and NAT.
    pub fn new() -> anyhow::Result<Self> {
        let bed = Self::with(LabConfig { masquerade: true, ..LabConfig::default() })?;
        bed.lab.set_services(&(0..SERVICES).map(service).collect::<Vec<_>>())?;
        Ok(bed)
    }

    /// Two nodes without a rule.
    pub fn bare() -> anyhow::Result<Self> {
        Self::with(LabConfig::default())
    }

    fn with(config: LabConfig) -> anyhow::Result<Self> {
        let lab = Lab::new(LabConfig { pods: 4, bridge_nf_call: true, ..config })?;
        lab.stop_listening();
        Ok(Self { lab, tables: Vec::new(), nodes: Vec::new() })
    }

    /// The lab.
    pub const fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Loads a column on these nodes.
    pub fn load(&mut self, column: Column, size: &Size, nodes: &[u8]) -> anyhow::Result<()> {
        self.nodes = nodes.to_vec();
        match column {
            Column::NoRules | Column::Again => Ok(()),
            Column::Flatfell => self.load_flatfell(size, &[]),
            Column::FlatfellUncounted => self.load_flatfell(size, &["--rule-ids", "0"]),
            Column::FlatfellForgeable => self.load_flatfell(size, &["--anti-spoofing", "off"]),
            Column::IptablesIpset => self.load_linear(size),
            Column::KubeRouterIptables | Column::KubeRouterNftables | Column::Felix => {
                bail!("{} runs nowhere", column.name())
            }
        }
    }

    /// What the daemon makes of a cluster. It stops then and leaves its tables: it would wake them itself.
    fn load_flatfell(&mut self, size: &Size, flags: &[&str]) -> anyhow::Result<()> {
        let manifests = size.manifests();
        self.tables = vec![("inet", "flatfell-3a"), ("bridge", "flatfell-3a")];
        // Sides are switched by a table's flags, which nft cannot give back to one that outlives its owner.
        let flags = [&["--tables", "shared"], flags].concat();
        for node in &self.nodes {
            let mut daemon = self.start(*node, &manifests, &flags)?;
            daemon.stop()?;
        }
        Ok(())
    }

    fn load_linear(&mut self, size: &Size) -> anyhow::Result<()> {
        self.tables = vec![("ip", "filter"), ("ip6", "filter")];
        for node in &self.nodes {
            let space = self.lab.netns(Place::Node(*node))?;
            for (family, restore) in [(Family::V4, "iptables-nft-restore"), (Family::V6, "ip6tables-nft-restore")] {
                space.feed("ipset", &["restore"], &linear::sets(size, family))?;
                space.feed(restore, &[], &linear::filter(size, family, *node))?;
            }
        }
        Ok(())
    }

    /// Loads it on the first node and leaves the daemon running: a side of a round it is then no more.
    pub fn run_flatfell(&self, size: &Size) -> anyhow::Result<FlatfellNode> {
        self.start(1, &size.manifests(), &[])
    }

    fn start(&self, node: u8, manifests: &str, flags: &[&str]) -> anyhow::Result<FlatfellNode> {
        Ok(FlatfellNode::start_within(&self.lab, node, &[("cluster.json", manifests)], flags, PATIENCE)?)
    }

    /// Takes away what was loaded, or half loaded.
    pub fn unload(&mut self) -> anyhow::Result<()> {
        let has_sets = self.tables.iter().any(|(family, _)| *family == "ip");
        let lines: String = self
            .tables
            .drain(..)
            .map(|(family, name)| format!("add table {family} {name}\ndelete table {family} {name}\n"))
            .collect();
        self.everywhere(&lines)?;
        for node in self.nodes.iter().filter(|_| has_sets) {
            self.lab.netns(Place::Node(*node))?.feed("ipset", &["destroy"], "")?;
        }
        self.forget_flows()
    }

    /// Puts the column in force, or the baseline alone.
    pub fn switch(&self, side: Side) -> anyhow::Result<()> {
        let flags = if side == Side::Baseline { "{ flags dormant; }" } else { "" };
        let lines: String =
            self.tables.iter().map(|(family, name)| format!("add table {family} {name} {flags}\n")).collect();
        self.everywhere(&lines)
    }

    /// Forgets every flow.
    pub fn forget_flows(&self) -> anyhow::Result<()> {
        Ok(NODES.into_iter().try_for_each(|node| self.lab.flush_conntrack(node))?)
    }

    fn everywhere(&self, lines: &str) -> anyhow::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        Ok(self.nodes.iter().try_for_each(|node| self.lab.nft(Place::Node(*node), lines))?)
    }
}

/// A Service with a backend on each node; no traffic of the bench goes to one.
fn service(number: u8) -> Service {
    let v4 = IpAddr::from(Ipv4Addr::new(10, 96, 0, number));
    let v6 = IpAddr::from(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, u16::from(number)));
    let backends = NODES.into_iter().flat_map(|node| Place::pod(node, 1).addresses());
    Service {
        addresses: vec![v4, v6],
        port: 80,
        protocol: "tcp",
        node_port: None,
        backends: backends.map(|address| SocketAddr::from((address, PORT))).collect(),
    }
}
