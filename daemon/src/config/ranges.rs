//! Flags about addresses of the node's pod ranges.
//!
//! In: arguments and environment. Out: where pods are, and what becomes of what is there and no known pod's. What always holds: as
//! [`super`].

use std::net::IpAddr;

use clap::{Args, ValueEnum};
use ipnetwork::IpNetwork;

/// Addresses that are no known pod's.
#[derive(Args, Clone, Debug)]
pub struct RangeArgs {
    /// What happens to addresses of this node's pod ranges that are no known pod's
    #[arg(long, env = "FLATFELL_UNKNOWN_PODS", value_enum, default_value_t = UnknownPods::Drop)]
    pub unknown_pods: UnknownPods,
    /// A range that this node's pods have their addresses in, in place of the Node's and the bridges'; repeat the flag (or use commas)
    #[arg(long = "pod-cidr", value_name = "PREFIX", env = "FLATFELL_POD_CIDRS", value_delimiter = ',', value_parser = pod_cidr)]
    pub pod_cidrs: Vec<IpNetwork>,
}

/// Local addresses that are no known pod's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UnknownPods {
    /// Closed until their pod is known.
    Drop,
    /// Open.
    Allow,
}

/// Why a prefix is none of pods.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a prefix that leaves room for pods, as 10.244.1.0/24 or fd00:10:244:1::/64: {text:?} {why}")]
pub struct RangeError {
    text: String,
    why: &'static str,
}

fn pod_cidr(text: &str) -> Result<IpNetwork, RangeError> {
    let wrong = |why: &'static str| RangeError { text: text.to_owned(), why };
    let (network, length) = text.split_once('/').ok_or_else(|| wrong("has no length"))?;
    let network: IpAddr = network.parse().map_err(|_| wrong("has no address"))?;
    let length = length.parse().map_err(|_| wrong("has no length"))?;
    match IpNetwork::new(network, length) {
        Ok(prefix) if length == 0 => Err(wrong(if prefix.is_ipv4() { "is all of IPv4" } else { "is all of IPv6" })),
        Ok(prefix) if prefix.network() != network => Err(wrong("has bits behind its length")),
        prefix => prefix.map_err(|_| wrong("is too long")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_pods_is_a_prefix_and_not_the_world() {
        for text in ["10.244.1.0/24", "fd00:10:244:1::/64", "10.244.1.7/32"] {
            assert!(pod_cidr(text).is_ok(), "{text}");
        }
        for text in ["10.244.1.0", "10.244.1.1/24", "0.0.0.0/0", "::/0", "10.244.1.0/33", "pods/24", "10.244.1.0/-1"] {
            assert!(pod_cidr(text).is_err(), "{text}");
        }
    }
}
