//! What lets packets pass by the policy, or decides beside it.
//!
//! In: facts about the interfaces, /proc, and the foreign part of the nftables ruleset. Out: a [`Bypass`] for each thing
//! found, with what to do about it. What always holds: nothing is changed; tables whose name begins with
//! [`OWN`] are passed over; foreign rules are read as a stream and only when the ruleset changed, at most once in
//! [`EVERY`]; what cannot be read is an error, not an all-clear.

mod foreign;
mod mark;
#[cfg(test)]
mod tests;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub(crate) use foreign::read_all;

use crate::{
    links::PodBridge,
    netlink::{Malformed, NetlinkError, Socket},
};

/// What the names of Flatfell's own tables begin with.
pub const OWN: &str = "flatfell-";

/// Shortest time between two reads of the foreign ruleset.
pub const EVERY: Duration = Duration::from_secs(10);

/// Where br_netfilter shows itself.
pub const BRIDGE_SYSCTL: &str = "/proc/sys/net/bridge";

/// Where the kernel names the tables of legacy iptables, for the calling thread's network namespace.
pub const PROC_NET: &str = "/proc/thread-self/net";

/// The interface that kube-proxy makes in IPVS mode.
pub const IPVS_INTERFACE: &str = "kube-ipvs0";

/// What IPVS is called as a metric's label; the engines have theirs in [`foreign`].
const IPVS: &str = "ipvs";

/// What kind of bypass was found; a closed set, fit for a metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// br_netfilter is not loaded: bridged traffic passes no hook.
    BridgeNetfilter,
    /// A pod bridge's nf-call flag is off.
    NfCall,
    /// kube-proxy in IPVS mode: Service traffic does not pass forward.
    Ipvs,
    /// A foreign flowtable: established flows skip forward.
    Flowtable,
    /// Rules that another policy engine left behind.
    Leftover,
    /// Tables of legacy iptables, which cannot be looked into.
    LegacyTables,
    /// Foreign rules that write our bits of ct mark.
    CtMark,
}

impl Kind {
    /// Its name as a metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Self::BridgeNetfilter => "br_netfilter",
            Self::NfCall => "nf_call",
            Self::Ipvs => "ipvs",
            Self::Flowtable => "flowtable",
            Self::Leftover => "leftover",
            Self::LegacyTables => "legacy_tables",
            Self::CtMark => "ct_mark",
        }
    }
}

/// One thing that bypasses the policy or may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bypass {
    /// What kind of thing.
    pub kind: Kind,
    /// Whether the daemon must not call itself ready while it is there.
    pub blocks_readiness: bool,
    /// Whose it is, as a metric's label: another policy engine, or IPVS.
    pub engine: Option<&'static str>,
    /// Where it is; with kind and engine this tells one thing from another, however its details change.
    pub place: String,
    /// What it is, what follows from it and what to do.
    pub message: String,
}

impl Bypass {
    fn blocking(kind: Kind, place: &str, message: String) -> Self {
        Self { kind, blocks_readiness: true, engine: None, place: place.to_owned(), message }
    }

    fn warning(kind: Kind, place: String, message: String) -> Self {
        Self { kind, blocks_readiness: false, engine: None, place, message }
    }

    fn of(self, engine: &'static str) -> Self {
        Self { engine: Some(engine), ..self }
    }
}

/// Why it is not known whether anything bypasses the policy.
#[derive(Debug, thiserror::Error)]
pub enum BypassError {
    /// The foreign ruleset was not read.
    #[error("cannot read the nftables ruleset of others: {0}")]
    Ruleset(#[from] NetlinkError),
    /// A file was not read.
    #[error("cannot read {path}: {source}")]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl From<Malformed> for BypassError {
    fn from(malformed: Malformed) -> Self {
        Self::Ruleset(malformed.into())
    }
}

/// What is known from elsewhere.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// [`BRIDGE_SYSCTL`], or a test's.
    pub bridge_sysctl: &'a Path,
    /// [`PROC_NET`], or a test's.
    pub proc_net: &'a Path,
    /// The bridges that carry pods.
    pub pod_bridges: &'a [PodBridge],
    /// Whether there is an [`IPVS_INTERFACE`].
    pub ipvs: bool,
    /// Whether pods speak IPv4.
    pub v4: bool,
    /// Whether pods speak IPv6.
    pub v6: bool,
    /// The bits of ct mark that are ours.
    pub mark_mask: u32,
}

/// Looks for what bypasses the policy.
///
/// A look that reads the foreign ruleset takes half a second beside 20,000 chains of kube-proxy: it belongs in a thread of
/// its own, not in the one that commits.
#[derive(Debug)]
pub struct Lookout {
    socket: Socket,
    seen: Option<Seen>,
}

/// What the last read of the foreign ruleset found.
#[derive(Debug)]
struct Seen {
    /// The ruleset's generation then; none if the ruleset changed meanwhile.
    generation: Option<u32>,
    at: Instant,
    found: Vec<Bypass>,
}

impl Lookout {
    /// A lookout over the calling thread's network namespace.
    pub fn open() -> Result<Self, BypassError> {
        Ok(Self { socket: Socket::open(mnl::Bus::Netfilter, 0)?, seen: None })
    }

    /// Everything that is found now. After an error the lookout is to be opened anew.
    pub fn look(&mut self, facts: &Facts<'_>) -> Result<Vec<Bypass>, BypassError> {
        let mut found = bridges(facts)?;
        found.extend(ipvs(facts)?);
        found.extend(legacy_tables(facts.proc_net)?);
        found.extend_from_slice(self.foreign(facts.mark_mask)?);
        Ok(found)
    }

    fn foreign(&mut self, mark_mask: u32) -> Result<&[Bypass], BypassError> {
        let now = Instant::now();
        let seen = match self.seen.take() {
            Some(seen) if now.duration_since(seen.at) < EVERY => seen,
            Some(seen) if seen.generation == Some(foreign::generation(&mut self.socket)?) => Seen { at: now, ..seen },
            _ => {
                // Read before the dumps: what changes meanwhile leads to another look.
                let generation = foreign::generation(&mut self.socket)?;
                let (found, whole) = foreign::scan(&mut self.socket, mark_mask)?;
                Seen { generation: whole.then_some(generation), at: now, found }
            }
        };
        Ok(&self.seen.insert(seen).found)
    }
}

fn bridges(facts: &Facts<'_>) -> Result<Vec<Bypass>, BypassError> {
    let path = facts.bridge_sysctl;
    let loaded = path.try_exists().map_err(|source| BypassError::File { path: path.into(), source })?;
    if !loaded {
        let message = "br_netfilter is not loaded: traffic between pods of one bridge passes no policy. Load it: \
                       modprobe br_netfilter";
        return Ok(vec![Bypass::blocking(Kind::BridgeNetfilter, "", message.into())]);
    }
    let mut found = Vec::new();
    for bridge in facts.pod_bridges {
        if facts.v4 && !bridge.nf_call_iptables {
            found.push(flag_off(&bridge.name, "IPv4", "nf_call_iptables"));
        }
        if facts.v6 && !bridge.nf_call_ip6tables {
            found.push(flag_off(&bridge.name, "IPv6", "nf_call_ip6tables"));
        }
    }
    Ok(found)
}

fn flag_off(bridge: &str, family: &str, flag: &str) -> Bypass {
    let message = format!(
        "bridge {bridge}: {flag} is off: {family} between its pods passes no policy. Switch it on: ip link set \
         {bridge} type bridge {flag} 1"
    );
    Bypass::blocking(Kind::NfCall, bridge, message)
}

/// kube-proxy's interface, or virtual services of whomever: kube-proxy leaves the interface when it is killed, and others
/// use another one.
fn ipvs(facts: &Facts<'_>) -> Result<Option<Bypass>, BypassError> {
    let path = facts.proc_net.join("ip_vs");
    let services = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        read => virtual_services(&read.map_err(|source| BypassError::File { path, source })?),
    };
    let shown = match (facts.ipvs, services) {
        (false, 0) => return Ok(None),
        (true, _) => format!("kube-proxy runs in IPVS mode ({IPVS_INTERFACE} exists)"),
        (false, count) => format!("IPVS has {count} virtual services (/proc/net/ip_vs)"),
    };
    let message = format!(
        "{shown}: Service traffic does not pass the forward hook and so no policy. Use kube-proxy's nftables or iptables \
         mode, then: kube-proxy --cleanup, or: ipvsadm --clear; ip link del {IPVS_INTERFACE}"
    );
    Ok(Some(Bypass::blocking(Kind::Ipvs, "", message).of(IPVS)))
}

/// The virtual services in /proc/net/ip_vs; the lines of their servers begin with an arrow, and the first three are a head.
fn virtual_services(text: &str) -> usize {
    text.lines().filter(|line| ["TCP ", "UDP ", "SCTP ", "FWM "].iter().any(|kind| line.starts_with(kind))).count()
}

fn legacy_tables(proc_net: &Path) -> Result<Vec<Bypass>, BypassError> {
    let mut found = Vec::new();
    for (file, command) in [("ip_tables_names", "iptables"), ("ip6_tables_names", "ip6tables")] {
        let path = proc_net.join(file);
        let names = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            read => read.map_err(|source| BypassError::File { path, source })?,
        };
        let names: Vec<_> = names.split_whitespace().collect();
        if !names.is_empty() {
            let (names, pattern) = (names.join(", "), foreign::patterns());
            let message = format!(
                "tables of legacy {command} exist ({names}) and cannot be looked into: what another policy engine \
                 left there keeps deciding. See: {command}-legacy-save | grep -E '{pattern}'"
            );
            found.push(Bypass::warning(Kind::LegacyTables, command.to_owned(), message));
        }
    }
    Ok(found)
}
