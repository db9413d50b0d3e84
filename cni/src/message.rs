//! What plugin and daemon say to each other over the unix socket.
//!
//! In: nothing. Out: [`Request`] and [`Answer`], one line of JSON each. What always holds: a connection has one request; an answer is
//! never longer than [`LINE_BYTES`].

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Where the socket is unless told otherwise.
pub const DIRECTORY: &str = "/run/flatfell-cni";

/// The socket's name in its directory.
pub const SOCKET: &str = "cni.sock";

/// Bytes of a request or an answer at most: GC names every sandbox of a node.
pub const LINE_BYTES: u64 = 1024 * 1024;

/// What the daemon is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// A sandbox begins. The answer comes when the pod's policy is in the kernel, or this many milliseconds have passed.
    Add(Sandbox, u64),
    /// Whether a sandbox's pod is in the kernel.
    Check(Sandbox),
    /// A sandbox ends.
    Delete(Attachment),
    /// These sandboxes are all there are.
    Keep(Vec<Attachment>),
    /// Whether the daemon enforces.
    Status,
}

/// What it says to that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It is so.
    Done,
    /// It is not so, or not within the time; why.
    NotYet(String),
    /// It is not listened to; why.
    Refused(String),
}

/// An interface of a sandbox, as the runtime names both.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attachment {
    /// CNI_CONTAINERID.
    #[serde(rename = "containerID")]
    pub container: String,
    /// CNI_IFNAME.
    #[serde(rename = "ifname")]
    pub interface: String,
}

/// A sandbox and what the plugins before made of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Which.
    pub attachment: Attachment,
    /// CNI_NETNS.
    pub netns: String,
    /// K8S_POD_NAMESPACE.
    pub namespace: String,
    /// K8S_POD_NAME.
    pub name: String,
    /// K8S_POD_UID; empty where the runtime does not say.
    pub uid: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its link-layer address, where the result names one.
    #[serde(default)]
    pub mac: Option<String>,
    /// The interface of the node that leads to it, where the result names one.
    pub host_interface: Option<String>,
}
