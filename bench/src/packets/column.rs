//! What is compared with the baseline.
//!
//! In: nothing. Out: columns, and why one is missing. What always holds: a column that cannot be measured is in the report, with the reason.

use serde::Serialize;

/// A column of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Column {
    /// Neither conntrack nor NAT nor policy.
    NoRules,
    /// The baseline itself: what the ratios of equal things look like here.
    Again,
    /// What the daemon loads.
    Flatfell,
    /// The same with `--rule-ids 0`.
    FlatfellUncounted,
    /// The same with `--anti-spoofing off`.
    FlatfellForgeable,
    /// A chain a pod, a jump to each from FORWARD, a set a peer.
    IptablesIpset,
    /// kube-router's network policy controller on iptables.
    KubeRouterIptables,
    /// The same on nftables.
    KubeRouterNftables,
    /// Calico's Felix on nftables.
    Felix,
}

impl Column {
    /// All of them, as the report has them.
    pub const ALL: [Self; 9] = [
        Self::NoRules,
        Self::Again,
        Self::Flatfell,
        Self::FlatfellUncounted,
        Self::FlatfellForgeable,
        Self::IptablesIpset,
        Self::KubeRouterIptables,
        Self::KubeRouterNftables,
        Self::Felix,
    ];

    /// Its head.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoRules => "no rules",
            Self::Again => "baseline again",
            Self::Flatfell => "Flatfell",
            Self::FlatfellUncounted => "Flatfell, not counting",
            Self::FlatfellForgeable => "Flatfell, no anti-spoofing",
            Self::IptablesIpset => "iptables + ipset",
            Self::KubeRouterIptables => "kube-router, iptables",
            Self::KubeRouterNftables => "kube-router, nftables",
            Self::Felix => "Felix, nftables",
        }
    }

    /// Whether it denies what no rule allows.
    pub const fn has_policy(self) -> bool {
        !matches!(self, Self::NoRules | Self::Again)
    }

    /// The environment's name for the binary of a peer.
    pub const fn binary(self) -> Option<&'static str> {
        match self {
            Self::KubeRouterIptables | Self::KubeRouterNftables => Some("KUBE_ROUTER_BIN"),
            Self::Felix => Some("FELIX_BIN"),
            _ => None,
        }
    }

    /// Why it cannot be measured.
    pub fn missing(self) -> Option<String> {
        let name = self.binary()?;
        Some(match std::env::var_os(name) {
            None => format!("{name} is not given"),
            Some(_) => format!("{name} is given, but this program cannot drive it yet"),
        })
    }
}
