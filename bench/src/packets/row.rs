//! What is measured: a kind of traffic, a family, a path.
//!
//! In: nothing. Out: names and places. What always holds: each pair of pods speaks one protocol, so that as many rules of policy
//! stand before it as the case says.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use flatfell_integration::Place;
use serde::Serialize;

/// The port that the last rule of policy allows.
pub const PORT: u16 = 5001;

/// A kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Request and response of 64 bytes over one TCP connection: each way a packet of an established flow.
    Exchange,
    /// Connect, accept, reset.
    Connect,
    /// A datagram of a flow that conntrack does not know yet.
    NewFlow,
    /// A datagram of a flow that it knows, one way.
    Datagram,
    /// A TCP stream as fast as it goes, a mebibyte at a time.
    Stream,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Exchange, Self::Connect, Self::NewFlow, Self::Datagram, Self::Stream];

    /// As the report calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exchange => "request/response",
            Self::Connect => "TCP connect",
            Self::NewFlow => "UDP, new flow",
            Self::Datagram => "UDP, established",
            Self::Stream => "TCP stream",
        }
    }

    /// The slots of client and server: a pair for each protocol.
    const fn slots(self) -> [u8; 2] {
        match self {
            Self::Exchange | Self::Connect | Self::Stream => [0, 1],
            Self::NewFlow | Self::Datagram => [2, 3],
        }
    }
}

/// The address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Family {
    /// IPv4.
    #[serde(rename = "IPv4")]
    V4,
    /// IPv6.
    #[serde(rename = "IPv6")]
    V6,
}

/// Where the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// On the client's node.
    OneNode,
    /// On the other node, over VXLAN.
    Vxlan,
}

/// One row of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Row {
    /// The traffic.
    pub kind: Kind,
    /// The family.
    pub family: Family,
    /// The path.
    pub path: Path,
}

impl Row {
    /// IPv4 on one node.
    pub const fn near(kind: Kind) -> Self {
        Self { kind, family: Family::V4, path: Path::OneNode }
    }

    /// Every row there is.
    pub fn all() -> Vec<Self> {
        let mut rows = Vec::new();
        for path in [Path::OneNode, Path::Vxlan] {
            for family in [Family::V4, Family::V6] {
                rows.extend(Kind::ALL.map(|kind| Self { kind, family, path }));
            }
        }
        rows
    }

    /// The pod that begins.
    pub const fn client(self) -> Place {
        Place::pod(1, self.kind.slots()[0])
    }

    /// The pod that answers.
    pub const fn server(self) -> Place {
        let node = match self.path {
            Path::OneNode => 1,
            Path::Vxlan => 2,
        };
        Place::pod(node, self.kind.slots()[1])
    }

    /// A pod's address of this family.
    pub fn address(self, place: Place) -> IpAddr {
        match self.family {
            Family::V4 => place.v4().into(),
            Family::V6 => place.v6().into(),
        }
    }

    /// Where the server listens.
    pub fn target(self) -> SocketAddr {
        (self.address(self.server()), PORT).into()
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        let path = match self.path {
            Path::OneNode => "one node",
            Path::Vxlan => "VXLAN",
        };
        write!(f, "{}, {family}, {path}", self.kind.name())
    }
}
