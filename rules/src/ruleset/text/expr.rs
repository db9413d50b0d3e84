//! Rules and their expressions as nft prints them.
//!
//! In: a [`Rule`] or an [`Expr`]. Out: its line. What always holds: see the module above.

use super::{hex, value, verdict};
use crate::ruleset::{CtDirection, Expr, Field, Rule, Value};
use ipnetwork::IpNetwork;

/// Packets a limit lets pass at once where nothing else was said.
const DEFAULT_BURST: u32 = 5;

/// A rule with its comment, without newline.
pub fn rule(rule: &Rule) -> String {
    let exprs = rule.exprs.iter().enumerate().filter(|(at, expr)| !is_implied(expr, &rule.exprs[at + 1..]));
    let mut words: Vec<String> = exprs.map(|(_, one)| expr(one)).collect();
    if !rule.comment.is_empty() {
        words.push(format!("comment \"{}\"", rule.comment));
    }
    words.join(" ")
}

/// Whether nft leaves a frame's type out, because a key behind it says it.
fn is_implied(expr: &Expr, behind: &[Expr]) -> bool {
    let Expr::Compare { field: Field::EtherType, value: Value::EtherType(kind), negated: false } = expr else {
        return false;
    };
    let addresses: &[Field] = match *kind {
        0x0800 => &[Field::IpSaddr, Field::IpDaddr],
        0x86dd => &[Field::Ip6Saddr, Field::Ip6Daddr],
        _ => return false,
    };
    behind
        .iter()
        .any(|expr| matches!(expr, Expr::Lookup { key, .. } if key.iter().any(|field| addresses.contains(field))))
}

/// A match or statement.
pub fn expr(expr: &Expr) -> String {
    match expr {
        Expr::CtMark { mask, value, negated } => ct_mark(*mask, *value, *negated),
        Expr::CtDirection(CtDirection::Original) => "ct direction original".to_string(),
        Expr::CtDirection(CtDirection::Reply) => "ct direction reply".to_string(),
        Expr::CtStateRelated => "ct state related".to_string(),
        Expr::Compare { field: Field::NdTarget, value: Value::V6(target), negated } => {
            format!("@th,64,128 {}{}", if *negated { "!= " } else { "" }, value::raw(&target.octets()))
        }
        Expr::Compare { field, value: wanted, negated } => {
            format!("{} {}{}", name(*field), if *negated { "!= " } else { "" }, value::value(wanted))
        }
        Expr::Range { field, first, last } => format!("{} {}", name(*field), value::range(first, last)),
        Expr::Prefix { field: Field::NdTarget, prefix: IpNetwork::V6(prefix) } => {
            let bytes = usize::from(prefix.prefix() / 8);
            format!("@th,64,{} {}", prefix.prefix(), value::raw(&prefix.network().octets()[..bytes]))
        }
        Expr::Prefix { field, prefix } => format!("{} {}", name(*field), network(prefix)),
        Expr::Lookup { key, set } => format!("{} @{set}", names(key)),
        Expr::Vmap { key, map } => format!("{} vmap @{map}", names(key)),
        Expr::Counter(counter) => format!("counter name \"{counter}\""),
        Expr::CountMark { mask: u32::MAX, set } => format!("ct mark @{set}"),
        Expr::CountMark { mask, set } => format!("ct mark & {} == @{set}", hex(*mask)),
        Expr::SetCtMark { keep, value } => format!("ct mark set {}", new_mark(*keep, *value)),
        Expr::Limit { rate, burst: DEFAULT_BURST } => format!("limit rate {rate}/second"),
        Expr::Limit { rate, burst } => format!("limit rate {rate}/second burst {burst} packets"),
        Expr::Log { prefix, group, snaplen } => log(prefix, *group, *snaplen),
        Expr::Verdict(decision) => verdict(decision),
        Expr::Foreign(text) => format!("<{text}>"),
    }
}

/// nft's words for a field.
fn name(field: Field) -> &'static str {
    match field {
        Field::IpSaddr => "ip saddr",
        Field::IpDaddr => "ip daddr",
        Field::Ip6Saddr => "ip6 saddr",
        Field::Ip6Daddr => "ip6 daddr",
        Field::Ip6HopLimit => "ip6 hoplimit",
        Field::L4Proto => "meta l4proto",
        Field::TcpDport => "tcp dport",
        Field::UdpDport => "udp dport",
        Field::SctpDport => "sctp dport",
        Field::ThDport => "th dport",
        Field::Icmpv6Type => "icmpv6 type",
        Field::Iifname => "iifname",
        Field::EtherType => "ether type",
        Field::EtherSaddr => "ether saddr",
        Field::ArpSaddrEther => "arp saddr ether",
        Field::ArpSaddrIp => "arp saddr ip",
        Field::Ip6NextHdr => "ip6 nexthdr",
        Field::Ip6Length => "ip6 length",
        Field::NdTarget => "@th,64,128",
        Field::NdOption => "@th,192,64",
        Field::FibDaddrIifType => "fib daddr . iif type",
    }
}

/// A concatenated key.
fn names(key: &[Field]) -> String {
    key.iter().map(|field| name(*field)).collect::<Vec<_>>().join(" . ")
}

/// A prefix; one of full length is an address.
fn network(prefix: &IpNetwork) -> String {
    let address = match prefix {
        IpNetwork::V4(v4) => value::value(&crate::ruleset::Value::V4(v4.network())),
        IpNetwork::V6(v6) => value::value(&crate::ruleset::Value::V6(v6.network())),
    };
    let full = if prefix.is_ipv4() { 32 } else { 128 };
    if prefix.prefix() == full { address } else { format!("{address}/{}", prefix.prefix()) }
}

/// A compared mark; nft folds a mask of leading ones into a prefix length.
fn ct_mark(mask: u32, value: u32, negated: bool) -> String {
    let not = if negated { "!= " } else { "" };
    let value = hex(value);
    match mask.leading_ones() {
        u32::BITS => format!("ct mark {not}{value}"),
        ones if ones == mask.count_ones() => format!("ct mark {not}{value}/{ones}"),
        _ => format!("ct mark & {} {} {value}", hex(mask), if negated { "!=" } else { "==" }),
    }
}

/// The right-hand side of `ct mark set`; nft shows the mask with the bits that are set behind it.
fn new_mark(keep: u32, value: u32) -> String {
    if keep == 0 {
        return hex(value);
    }
    let mask = match keep | value {
        u32::MAX => String::new(),
        mask => format!(" & {}", hex(mask)),
    };
    let set = if value == 0 { String::new() } else { format!(" | {}", hex(value)) };
    format!("ct mark{mask}{set}")
}

/// A log statement to an NFLOG group.
fn log(prefix: &str, group: u16, snaplen: u32) -> String {
    let prefix = if prefix.is_empty() { String::new() } else { format!(" prefix \"{prefix}\"") };
    let snaplen = if snaplen == 0 { String::new() } else { format!(" snaplen {snaplen}") };
    format!("log{prefix} group {group}{snaplen}")
}
