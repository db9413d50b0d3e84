//! kube-proxy on the lab's nodes.
//!
//! In: a mode, a kubeconfig. Out: a running kube-proxy that has synced once. What always holds: it changes only its node's
//! namespace.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use super::parts::Process;
use super::{ClusterError, Families, objects};
use crate::netns::Netns;

const PATIENCE: Duration = Duration::from_secs(60);
const HEALTH: &str = "127.0.0.1:10256";

/// What kube-proxy programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyMode {
    /// iptables.
    Iptables,
    /// nftables.
    Nftables,
}

impl ProxyMode {
    pub(super) fn start(
        self,
        space: &Netns,
        node: u8,
        families: Families,
        kubeconfig: &Path,
        directory: &Path,
    ) -> Result<Process, ClusterError> {
        let mode = match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        };
        let ranges = if families.v4() { "10.244.0.0/16,fd00:10:244::/48" } else { "fd00:10:244::/48" };
        let arguments = [
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--proxy-mode={mode}"),
            format!("--hostname-override={}", objects::node_name(node)),
            format!("--cluster-cidr={ranges}"),
            format!("--healthz-bind-address={HEALTH}"),
            "--metrics-bind-address=127.0.0.1:10249".to_owned(),
            // Those limits are the machine's own, not the namespace's.
            "--conntrack-max-per-core=0".to_owned(),
            "--conntrack-tcp-timeout-established=0".to_owned(),
            "--conntrack-tcp-timeout-close-wait=0".to_owned(),
        ];
        let mut process = Process::start(space, "kube-proxy", &arguments, &[], &directory.join("kube-proxy.log"))?;
        process.wait("healthy", PATIENCE, || space.run(healthy).unwrap_or(false))?;
        Ok(process)
    }
}

/// Asks from inside the node's namespace.
fn healthy() -> bool {
    let Ok(mut stream) = TcpStream::connect(HEALTH) else { return false };
    let asked = stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n");
    let mut answer = String::new();
    asked.and_then(|()| stream.read_to_string(&mut answer)).is_ok() && answer.contains(" 200 OK")
}
