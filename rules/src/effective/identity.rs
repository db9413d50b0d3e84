//! What a rule is known by, and how people read it.
//!
//! In: the canonical content of a rule. Out: one text for names and hashes; a short label. What always holds: both come from
//! what the rule says, never from its place, so that another rule's edit or another order leaves them alone.

use crate::names;
use crate::object::ObjectName;
use crate::policy::{Action, Direction};

/// Longest readable part of a label, in characters.
const LABEL_MAX: usize = 40;
/// Digits of the hash at a label's end.
const LABEL_HASH: usize = 6;

/// A rule is known by what it says, not by its place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleIdentity {
    /// The policy it belongs to.
    pub policy: ObjectName,
    /// The direction it speaks of.
    pub direction: Direction,
    /// What it does.
    pub action: Action,
    /// The canonical text of its peers, sorted: `any`, or `pods app in (web) in namespace shop; blocks 10.0.0.0/8`.
    pub peers: String,
    /// The canonical text of its ports, sorted: `any`, or `tcp 80 443 http; udp all`.
    pub ports: String,
    /// 0 for the first rule of the policy and direction with this content, 1 for the next.
    pub occurrence: usize,
}

impl RuleIdentity {
    /// What it says: `accept peers any ports tcp 80`.
    pub fn content(&self) -> String {
        let words = [self.action.word(), "peers", &self.peers, "ports", &self.ports];
        words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
    }

    /// All of it as one text, for names and hashes.
    pub fn text(&self) -> String {
        format!("{} {} {} #{}", self.policy, self.direction, self.content(), self.occurrence)
    }

    /// A short name that says most of it: `tcp-8080-from-app-frontend-1a2b3c`. The last digits are the first ones of
    /// its counters' names in nft; they tell rules apart whose readable parts are alike.
    pub fn label(&self) -> String {
        let preposition = match self.direction {
            Direction::Ingress => "from",
            Direction::Egress => "to",
        };
        let own = format!(" in namespace {}", self.policy.namespace);
        let peers = self.peers.replace(&format!("{own};"), ";");
        let peers = peers.strip_suffix(&own).unwrap_or(&peers);
        let readable = slug(&format!("{} {preposition} {peers}", self.ports));
        let digits: String = names::hash(&self.text()).chars().take(LABEL_HASH).collect();
        format!("{readable}-{digits}")
    }
}

/// Letters and digits of the words that tell something, joined by `-`, cut to [`LABEL_MAX`].
fn slug(text: &str) -> String {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !matches!(*word, "" | "pods" | "in"));
    let mut slug = words.collect::<Vec<_>>().join("-").to_ascii_lowercase();
    slug.truncate(LABEL_MAX);
    slug.truncate(slug.trim_end_matches('-').len());
    slug
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(direction: Direction, peers: &str, ports: &str) -> RuleIdentity {
        let policy = ObjectName::new("shop", "p");
        let (peers, ports) = (peers.to_owned(), ports.to_owned());
        RuleIdentity { policy, direction, action: Action::Accept, peers, ports, occurrence: 0 }
    }

    fn readable(direction: Direction, peers: &str, ports: &str) -> String {
        let label = identity(direction, peers, ports).label();
        let (readable, digits) = label.rsplit_once('-').expect("digits");
        assert!(digits.len() == LABEL_HASH && digits.bytes().all(|digit| digit.is_ascii_hexdigit()), "{label}");
        readable.to_owned()
    }

    #[test]
    fn a_label_says_ports_and_peers() {
        use Direction::{Egress, Ingress};
        for (direction, peers, ports, expected) in [
            (Ingress, "pods app in (frontend) in namespace shop", "tcp 8080", "tcp-8080-from-app-frontend"),
            (Egress, "pods app in (db) in namespace other", "tcp postgres", "tcp-postgres-to-app-db-namespace-other"),
            (Egress, "any", "any", "any-to-any"),
            (Ingress, "blocks 10.0.0.0/8 fd00::/8", "udp all", "udp-all-from-blocks-10-0-0-0-8-fd00-8"),
            (
                Ingress,
                "pods a in (b) in namespace shop; pods all in namespaces all",
                "tcp 1",
                "tcp-1-from-a-b-all-namespaces-all",
            ),
        ] {
            assert_eq!(readable(direction, peers, ports), expected);
        }
    }

    #[test]
    fn a_long_label_is_cut_and_stays_apart() {
        let [one, other] = ["x", "y"]
            .map(|end| identity(Direction::Egress, &format!("blocks {}{end}", "1.2.3.4/32 ".repeat(9)), "any").label());
        assert!(one.len() <= LABEL_MAX + 1 + LABEL_HASH, "{one}");
        assert_ne!(one, other);
        assert!(!one.contains("--"), "{one}");
    }

    #[test]
    fn the_digits_are_those_of_the_names_in_nft() {
        let identity = identity(Direction::Ingress, "any", "tcp 80");
        let name = names::name("rule", &identity.text(), "shop/p");
        let (_, digits) = identity.label().rsplit_once('-').map(|(a, b)| (a.to_owned(), b.to_owned())).expect("digits");
        assert!(name.starts_with(&format!("rule-{digits}")), "{name} {digits}");
    }
}
