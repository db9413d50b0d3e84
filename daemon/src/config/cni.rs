//! Flags about the CNI plugin.
//!
//! In: arguments and environment. Out: where the plugin is kept, and what its entry says. What always holds: as [`super`].

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

/// The CNI plugin's places; without any of them there is no plugin.
#[derive(Args, Clone, Debug)]
pub struct CniArgs {
    /// A conflist to keep the CNI plugin in, as /etc/cni/net.d/10-flannel.conflist
    #[arg(long, value_name = "FILE", env = "FLATFELL_CNI_CONFLIST")]
    pub cni_conflist: Option<PathBuf>,
    /// Where the runtime's CNI plugins are; ours is installed there
    #[arg(long, value_name = "DIR", env = "FLATFELL_CNI_BIN_DIR", default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,
    /// The plugin's socket is there; the same path for daemon and node
    #[arg(long, value_name = "DIR", env = "FLATFELL_CNI_RUN_DIR", default_value = flatfell_cni::message::DIRECTORY)]
    pub cni_run_dir: PathBuf,
}

/// What only a running daemon is told.
#[derive(Args, Clone, Debug)]
pub struct CniRunArgs {
    /// Where.
    #[command(flatten)]
    pub places: CniArgs,
    /// Serve the CNI plugin's socket also where somebody else keeps the conflist
    #[arg(long, env = "FLATFELL_CNI_SOCKET")]
    pub cni_socket: bool,
    /// What becomes of a pod whose policy is not in the kernel in time
    #[arg(long, env = "FLATFELL_CNI_ON_UNAVAILABLE", value_enum, default_value_t = CniUnavailable::Closed)]
    pub cni_on_unavailable: CniUnavailable,
    /// How long a pod's start may wait for its policy, as 5s, up to 2m
    #[arg(long, value_name = "LENGTH", env = "FLATFELL_CNI_TIMEOUT", default_value = "5s", value_parser = timeout)]
    pub cni_timeout: Duration,
}

impl CniRunArgs {
    /// Whether the plugin's socket is served.
    pub fn is_served(&self) -> bool {
        self.cni_socket || self.places.cni_conflist.is_some()
    }
}

/// A pod whose policy is not in the kernel in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CniUnavailable {
    /// Starts closed.
    Closed,
    /// Does not start, and is tried again by the runtime.
    Fail,
}

impl CniUnavailable {
    /// The word in the plugin's configuration.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Fail => "fail",
        }
    }
}

fn timeout(text: &str) -> Result<Duration, String> {
    let length = crate::pause::length(text).map_err(|_| "expected a length as 5s or 1m".to_owned())?;
    if length <= Duration::from_secs(120) { Ok(length) } else { Err("no runtime waits longer than 2m".to_owned()) }
}
