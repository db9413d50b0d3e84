//! Flags about what pods may send.
//!
//! In: arguments and environment. Out: whether pods are held to sending as themselves, and which are not. What always holds: as [`super`];
//! only who configures the daemon can let a pod go.

use clap::{Args, ValueEnum};

use crate::engine::AntiSpoofing;

/// Frames that pods send as somebody else.
#[derive(Args, Clone, Debug)]
pub struct SpoofingArgs {
    /// Whether a pod on a bridge can send only from its own MAC, IPv4 and IPv6 addresses, ARP and neighbour advertisements included
    #[arg(long, env = "FLATFELL_ANTI_SPOOFING", value_enum, default_value_t = SpoofingMode::Strict)]
    pub anti_spoofing: SpoofingMode,
    /// A namespace whose pods may send from other addresses (they forward packets, or share an address); repeat the flag (or use commas)
    #[arg(long, value_name = "NAMESPACE", env = "FLATFELL_ANTI_SPOOFING_EXEMPT", value_delimiter = ',', value_parser = namespace)]
    pub anti_spoofing_exempt: Vec<String>,
}

/// What happens to frames that pods send as somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SpoofingMode {
    /// Each is dropped.
    Strict,
    /// They pass.
    Off,
}

impl SpoofingArgs {
    /// The engine's part.
    pub fn config(&self) -> AntiSpoofing {
        AntiSpoofing {
            is_on: self.anti_spoofing == SpoofingMode::Strict,
            exempt: self.anti_spoofing_exempt.iter().cloned().collect(),
        }
    }
}

/// Why a namespace's name is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a namespace's name has 1 to 63 lower-case letters, digits and '-', and begins and ends with a letter or digit"
)]
pub struct NamespaceError;

fn namespace(text: &str) -> Result<String, NamespaceError> {
    let is_inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let fits =
        (1..=63).contains(&text.len()) && text.chars().all(is_inside) && !text.starts_with('-') && !text.ends_with('-');
    if fits { Ok(text.to_owned()) } else { Err(NamespaceError) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_a_name_of_kubernetes() {
        assert_eq!(namespace("kube-system"), Ok("kube-system".to_owned()));
        for text in ["", "-a", "a-", "A", "a.b", "a b", &"a".repeat(64)] {
            assert_eq!(namespace(text), Err(NamespaceError), "{text}");
        }
    }
}
