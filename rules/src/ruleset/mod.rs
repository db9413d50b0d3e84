//! A ruleset as plain data: tables, chains, rules of typed expressions, sets, maps, named counters and sets that count.
//!
//! In: what [`crate::compile`] builds or what the kernel side reads back. Out: text (`text`), differences
//! (`crate::diff`), netlink messages (`crate::encode`). What always holds: maps are ordered, so that equal rulesets are equal values
//! and give equal text. Terms are those of nft(8).

mod elements;
pub mod json;
pub mod text;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use imbl::OrdMap;
use smallvec::SmallVec;

pub use elements::{Elements, ElementsDiff};

/// The name of a chain, a set, a map or a counter: one text, however often it is named.
pub type Name = Arc<str>;

/// The address family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4 and IPv6 packets.
    Inet,
    /// Frames on bridge ports.
    Bridge,
}

/// What names a table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: String,
}

/// As nft writes it: `inet flatfell-1a`.
impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", text::family(self.family), self.name)
    }
}

/// All the tables of the daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// By family and name.
    pub tables: BTreeMap<TableId, Table>,
}

impl Ruleset {
    /// Whether it is the very same, without a look at what is in it: a no may be of equal ones.
    pub fn is_same(&self, other: &Self) -> bool {
        let same = |(one, other): (&Table, &Table)| {
            one.chains.ptr_eq(&other.chains) && one.sets.ptr_eq(&other.sets) && one.counters.ptr_eq(&other.counters)
        };
        self.tables.keys().eq(other.tables.keys()) && self.tables.values().zip(other.tables.values()).all(same)
    }
}

/// One table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Chains by name.
    pub chains: OrdMap<Name, Arc<Chain>>,
    /// Sets and maps by name (one name space in the kernel).
    pub sets: OrdMap<Name, Arc<Set>>,
    /// Named counters, with their comments.
    pub counters: OrdMap<Name, Counter>,
}

/// A named counter object; its values are the kernel's and no part of a ruleset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Which rule or drop it counts; create-time only.
    pub comment: Name,
}

/// A chain; base chains have a hook.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Where packets enter; `None` for a chain that only verdicts lead to. Policy accept.
    pub hook: Option<BaseHook>,
    /// What it is for; empty for none; create-time only.
    pub comment: String,
    /// In order.
    pub rules: Vec<Rule>,
}

/// Hook and priority of a base chain of type filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BaseHook {
    /// The hook.
    pub hook: Hook,
    /// The priority, smaller first (inet: `filter` is 0; bridge: `filter` is -200).
    pub priority: i32,
}

/// Netfilter hooks in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// Before the routing or forwarding decision.
    Prerouting,
    /// To this node.
    Input,
    /// Through this node.
    Forward,
    /// From this node.
    Output,
}

/// A rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Matches and statements, in order.
    pub exprs: Vec<Expr>,
    /// Whom it serves; empty for none. May change with the rule.
    pub comment: String,
}

/// A match or a statement of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// `ct mark & mask == value` (`!=` when negated).
    CtMark {
        /// Bits looked at.
        mask: u32,
        /// What they must be.
        value: u32,
        /// `!=` instead of `==`.
        negated: bool,
    },
    /// `ct direction original` or `reply`.
    CtDirection(CtDirection),
    /// `ct state related`.
    CtStateRelated,
    /// `field == value` (`!=` when negated): `meta l4proto tcp`, `ether type != ip`, `tcp dport 80`.
    Compare {
        /// What is compared.
        field: Field,
        /// With what.
        value: Value,
        /// `!=` instead of `==`.
        negated: bool,
    },
    /// `field first-last`, both included: `tcp dport 8000-9000`.
    Range {
        /// What is compared.
        field: Field,
        /// Smallest value.
        first: Value,
        /// Largest value.
        last: Value,
    },
    /// `field prefix/len`: `ip6 saddr fe80::/10`.
    Prefix {
        /// An address field.
        field: Field,
        /// The prefix.
        prefix: ipnetwork::IpNetwork,
    },
    /// `key . key @set`.
    Lookup {
        /// The concatenated key.
        key: Vec<Field>,
        /// A set of the same table.
        set: Name,
    },
    /// `key vmap @map`: the verdict of the element; nothing when there is none.
    Vmap {
        /// The concatenated key.
        key: Vec<Field>,
        /// A verdict map of the same table.
        map: Name,
    },
    /// `counter name "..."`.
    Counter(Name),
    /// `ct mark & mask @set`: counts at the mark's element; ends the rule when there is none.
    CountMark {
        /// Bits of the mark that are the key.
        mask: u32,
        /// A set of marks that counts, of the same table.
        set: Name,
    },
    /// `ct mark set ct mark & keep | value`; `value` has no bit of `keep`.
    SetCtMark {
        /// Bits that stay.
        keep: u32,
        /// Bits that are set.
        value: u32,
    },
    /// `limit rate N/second burst M packets`.
    Limit {
        /// Packets a second.
        rate: u64,
        /// Packets above the rate that pass at once.
        burst: u32,
    },
    /// `log prefix "..." group N snaplen M`.
    Log {
        /// Prefix, empty for none.
        prefix: String,
        /// NFLOG group.
        group: u16,
        /// Bytes of the packet that are copied; 0 for none given.
        snaplen: u32,
    },
    /// `accept`, `drop`, `return`, `jump x`, `goto x`.
    Verdict(Verdict),
    /// What was read back and is nothing this crate makes: libnftnl's own text of it.
    Foreign(String),
}

/// Directions of conntrack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CtDirection {
    /// As the first packet went.
    Original,
    /// The way back.
    Reply,
}

/// What a packet is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// `ip saddr`; in inet tables a packet of the other family does not match.
    IpSaddr,
    /// `ip daddr`.
    IpDaddr,
    /// `ip6 saddr`.
    Ip6Saddr,
    /// `ip6 daddr`.
    Ip6Daddr,
    /// `ip6 hoplimit`.
    Ip6HopLimit,
    /// `meta l4proto`.
    L4Proto,
    /// `tcp dport`: the protocol is part of the match.
    TcpDport,
    /// `udp dport`.
    UdpDport,
    /// `sctp dport`.
    SctpDport,
    /// `th dport`: the two bytes at the transport header's offset 2, behind a protocol that has ports there.
    ThDport,
    /// `icmpv6 type`: the protocol is part of the match.
    Icmpv6Type,
    /// `iifname`; in the bridge family the port a frame came in by.
    Iifname,
    /// `ether type` of the frame's header, not of what is inside a tag.
    EtherType,
    /// `ether saddr` of the frame.
    EtherSaddr,
    /// `arp saddr ether`: who says it sends, of an ARP packet for Ethernet and IPv4.
    ArpSaddrEther,
    /// `arp saddr ip` of the same.
    ArpSaddrIp,
    /// `ip6 nexthdr`: what follows the fixed header.
    Ip6NextHdr,
    /// `ip6 length`: bytes behind the fixed header.
    Ip6Length,
    /// The target of a neighbour advertisement. nft 1.0.6 has no word for it: `@th,64,128`.
    NdTarget,
    /// The first 8 bytes behind that target: `@th,192,64`.
    NdOption,
    /// `fib daddr . iif type`: what kind of address the destination is on the interface the packet came in by.
    FibDaddrIifType,
}

/// A value of a field or of an element's key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// An IPv4 address (`ipv4_addr`).
    V4(Ipv4Addr),
    /// An IPv6 address (`ipv6_addr`).
    V6(Ipv6Addr),
    /// An IP protocol number (`inet_proto`).
    Proto(u8),
    /// A port (`inet_service`).
    Port(u16),
    /// An interface's name (`ifname`).
    Ifname(String),
    /// A packet mark (`mark`).
    Mark(u32),
    /// An ICMPv6 type (`icmpv6_type`).
    Icmpv6Type(u8),
    /// A hop limit (`integer`).
    HopLimit(u8),
    /// An Ethernet protocol (`ether_type`).
    EtherType(u16),
    /// A link-layer address (`ether_addr`).
    Ether([u8; 6]),
    /// A length in bytes (`integer`).
    Length(u16),
    /// The first 8 bytes of an option of neighbour discovery.
    NdOption([u8; 8]),
    /// A routing type (`fib_addrtype`), RTN_* of linux/rtnetlink.h.
    AddrType(u32),
}

/// The types a set's key can be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyType {
    /// `ipv4_addr`.
    Ipv4Addr,
    /// `ipv6_addr`.
    Ipv6Addr,
    /// `inet_proto`.
    InetProto,
    /// `inet_service`.
    InetService,
    /// `ifname`.
    Ifname,
    /// `mark`.
    Mark,
    /// `icmpv6_type`.
    Icmpv6Type,
    /// `ether_addr`.
    EtherAddr,
}

/// What a set is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetKind {
    /// A set.
    Set,
    /// A map to verdicts.
    VerdictMap,
    /// A set whose elements count each look-up that finds them.
    Counters,
}

/// A set or a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Set, verdict map or set that counts; create-time only.
    pub kind: SetKind,
    /// The types of the (concatenated) key; create-time only.
    pub key: Vec<KeyType>,
    /// Elements are intervals (`flags interval`), of a key of one type; create-time only.
    pub interval: bool,
    /// Elements it takes at most, where that is known; create-time only.
    pub size: Option<u32>,
    /// What it holds; empty for none; create-time only.
    pub comment: String,
    /// Its elements. Those of an interval set do not overlap and do not touch.
    pub elements: Elements,
}

impl Set {
    /// A set of this kind and key: no intervals, no size, no comment, no elements.
    pub fn of(kind: SetKind, key: Vec<KeyType>) -> Self {
        Self { kind, key, interval: false, size: None, comment: String::new(), elements: Elements::new() }
    }

    /// The same without elements.
    pub fn emptied(&self) -> Self {
        let Self { kind, ref key, interval, size, ref comment, .. } = *self;
        Self { kind, key: key.clone(), interval, size, comment: comment.clone(), elements: Elements::new() }
    }
}

/// The key of an element.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Element {
    /// One value for each type of the key. Most keys are of one type, and there are as many as a cluster has addresses: those
    /// stand where the element stands.
    Key(SmallVec<[Value; 1]>),
    /// From the first to the last, both included (interval sets only; one value is a range of itself).
    Range(Value, Value),
}

impl Element {
    /// The element with this key.
    pub fn key(values: impl IntoIterator<Item = Value>) -> Self {
        Self::Key(values.into_iter().collect())
    }
}

/// What an element leads to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Datum {
    /// Nothing: the element of a set.
    None,
    /// A verdict.
    Verdict(Verdict),
    /// Its own counter, of this name: the element's comment.
    Counter(Name),
}

impl Datum {
    /// The name of its counter.
    pub fn counter(&self) -> Option<&Name> {
        match self {
            Self::Counter(name) => Some(name),
            Self::None | Self::Verdict(_) => None,
        }
    }
}

/// What a rule or an element decides.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Ends this base chain; later base chains still see the packet.
    Accept,
    /// Ends the packet.
    Drop,
    /// Back to behind the last jump.
    Return,
    /// Into a chain, and back.
    Jump(Name),
    /// Into a chain, and back to where this chain would return.
    Goto(Name),
}

/// One operation on the kernel's tables; a transaction is a list of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// The table it works on.
    pub table: TableId,
    /// What it does there.
    pub kind: OpKind,
}

/// What an operation does. Additions of tables, chains, sets and counters that exist with the same properties change
/// nothing; deletions of what does not exist are refused, as in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// `add table`.
    AddTable,
    /// `delete table` with everything in it.
    DeleteTable,
    /// `add chain`, without rules.
    AddChain {
        /// Its name.
        name: Name,
        /// Its hook, for a base chain.
        hook: Option<BaseHook>,
        /// Its comment.
        comment: String,
    },
    /// `delete chain`; its rules go with it when a [`OpKind::FlushChain`] came before.
    DeleteChain(Name),
    /// `flush chain`.
    FlushChain(Name),
    /// `add rule` at the end of a chain.
    AddRule {
        /// The chain.
        chain: Name,
        /// The rule.
        rule: Rule,
    },
    /// `add set` or `add map`; the elements in `set` are ignored.
    AddSet {
        /// Its name.
        name: Name,
        /// Its properties.
        set: Set,
    },
    /// `delete set`.
    DeleteSet(Name),
    /// `add element`; an element that exists with the same datum changes nothing, with another it is refused.
    AddElements {
        /// The set.
        set: Name,
        /// What is added.
        elements: BTreeMap<Element, Datum>,
        /// What elements' own counters start with, by name; the others start with nothing.
        starts: BTreeMap<Name, CounterValue>,
    },
    /// `delete element`.
    DeleteElements {
        /// The set.
        set: Name,
        /// What is deleted (keys and data as they stand).
        elements: BTreeMap<Element, Datum>,
    },
    /// `add counter`, starting at these values.
    AddCounter {
        /// Its name.
        name: Name,
        /// Its comment.
        comment: Name,
        /// Packets and bytes it starts with.
        start: CounterValue,
    },
    /// `delete counter`.
    DeleteCounter(Name),
}

/// The values of a counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CounterValue {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}
