//! Who an address belongs to.
//!
//! In: addresses. Out: pods and nodes. What always holds: the controller alone owns what is known of the cluster and is asked
//! for it, so that no pod is held twice; the node's own addresses come from its interfaces; what is not known, or not
//! answered in time, is an address.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use flatfell_rules::index::Index;
use flatfell_rules::object::Pod;
use nix::ifaddrs::getifaddrs;
use tokio::sync::mpsc::UnboundedSender;

use super::record::Peer;

/// The longest step of the controller in a large cluster, on a busy machine, and more.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the node's own addresses are believed.
const OWN_ADDRESSES_FOR: Duration = Duration::from_secs(10);

/// Whose an address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A pod's.
    Pod(Arc<Pod>),
    /// A node's.
    Node(String),
}

/// Addresses that the controller is asked for.
#[derive(Debug)]
pub struct Question {
    addresses: BTreeSet<IpAddr>,
    answer: SyncSender<HashMap<IpAddr, Owner>>,
}

impl Question {
    /// Answers from what is known.
    pub fn answer(self, index: &Index) {
        let owner = |address: &IpAddr| {
            let pod = index.shared_owner(*address).map(|pod| Owner::Pod(Arc::clone(pod)));
            let owner = pod.or_else(|| index.node_at(*address).map(|node| Owner::Node(node.to_owned())))?;
            Some((*address, owner))
        };
        // Whoever asked may have given up.
        let _ = self.answer.send(self.addresses.iter().filter_map(owner).collect());
    }
}

/// Asks for names.
#[derive(Debug)]
pub struct Names {
    node: String,
    questions: UnboundedSender<Question>,
    own: BTreeSet<IpAddr>,
    own_read: Option<Instant>,
}

impl Names {
    /// Asks this controller, for the node of this name.
    pub fn new(node: &str, questions: UnboundedSender<Question>) -> Self {
        Self { node: node.to_owned(), questions, own: BTreeSet::new(), own_read: None }
    }

    /// The owners of addresses, as far as they are known.
    pub fn owners(&mut self, addresses: BTreeSet<IpAddr>) -> HashMap<IpAddr, Owner> {
        let (answer, answered) = sync_channel(1);
        let asked = self.questions.send(Question { addresses: addresses.clone(), answer });
        let mut owners = match asked {
            Ok(()) => answered.recv_timeout(PATIENCE).unwrap_or_default(),
            // The daemon stops.
            Err(_) => HashMap::new(),
        };
        for address in addresses {
            if !owners.contains_key(&address) && self.is_own(address) {
                owners.insert(address, Owner::Node(self.node.clone()));
            }
        }
        owners
    }

    fn is_own(&mut self, address: IpAddr) -> bool {
        if self.own_read.is_none_or(|at| at.elapsed() >= OWN_ADDRESSES_FOR) {
            self.own_read = Some(Instant::now());
            if let Ok(interfaces) = getifaddrs() {
                self.own = interfaces.filter_map(|interface| ip_of(interface.address.as_ref()?)).collect();
            }
        }
        self.own.contains(&address)
    }
}

fn ip_of(address: &nix::sys::socket::SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

/// The other end of a packet.
pub fn peer(ip: IpAddr, owner: Option<&Owner>) -> Peer {
    match owner {
        Some(Owner::Pod(pod)) => {
            Peer::Pod { namespace: pod.name.namespace.to_string(), name: pod.name.name.to_string(), ip }
        }
        Some(Owner::Node(name)) => Peer::Node { name: name.clone(), ip },
        None => Peer::Address { ip },
    }
}
