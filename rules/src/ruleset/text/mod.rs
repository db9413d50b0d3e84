//! A ruleset as the text nft(8) has for it.
//!
//! In: a [`Ruleset`] or parts of it. Out: what `nft -s list table` (nft 1.0.6) prints once it is loaded, byte for byte
//! with objects in the order of their names; the text of operations for `nft -f`. What always holds: nft takes the text back and
//! lists it unchanged, if the rule keeps to what nft itself would write:
//! - no name is a word of nft's grammar (those of [`crate::names::name`] never are);
//! - a rule names its protocol once: beside `meta l4proto == x` there is no port field or ICMPv6 type, and there is
//!   one kind of port field only (nft leaves out the match that the other implies);
//! - beside `ether type` there are no addresses, and a rule has addresses of one family only;
//! - a compared mark has no bit outside its mask; ranges go upwards; a limit's rate and burst are at least 1.
//!
//! [`Expr::Foreign`] is shown between `<` and `>`, which nft refuses.

mod expr;
mod value;

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{
    BaseHook, Chain, CounterValue, Datum, Element, Elements, Family, Hook, KeyType, Name, Op, OpKind, Ruleset, Set,
    SetKind, Table, TableId, Verdict,
};

pub use expr::{expr, rule};
pub use value::value;

/// What nft puts between lines of elements.
const ELEMENT_BREAK: &str = ",\n\t\t\t     ";

/// All tables.
pub fn ruleset(ruleset: &Ruleset) -> String {
    ruleset.tables.iter().map(|(id, content)| table(id, content)).collect()
}

/// One table, with a newline at its end.
pub fn table(id: &TableId, table: &Table) -> String {
    let blocks: Vec<String> = table
        .counters
        .iter()
        .map(|(name, counter)| format!("\tcounter {name} {{\n{}\t}}\n", comment_line(&counter.comment)))
        .chain(table.sets.iter().map(|(name, set)| set_block(name, set)))
        .chain(table.chains.iter().map(|(name, chain)| chain_block(id.family, name, chain)))
        .collect();
    format!("table {} {{\n{}}}\n", id, blocks.join("\n"))
}

/// `inet name`.
/// nft's word for a family.
pub fn family(family: Family) -> &'static str {
    match family {
        Family::Inet => "inet",
        Family::Bridge => "bridge",
    }
}

/// nft's word for a hook.
pub fn hook(hook: Hook) -> &'static str {
    match hook {
        Hook::Prerouting => "prerouting",
        Hook::Input => "input",
        Hook::Forward => "forward",
        Hook::Output => "output",
    }
}

/// The comment of an object inside its block.
fn comment_line(comment: &str) -> String {
    if comment.is_empty() { String::new() } else { format!("\t\tcomment \"{comment}\"\n") }
}

/// A chain with its rules.
fn chain_block(family: Family, name: &str, chain: &Chain) -> String {
    let mut text = format!("\tchain {name} {{\n{}", comment_line(&chain.comment));
    if let Some(base) = chain.hook {
        let place = priority(family, base);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\t\ttype filter hook {} priority {place}; policy accept;", hook(base.hook));
    }
    for rule_of_chain in &chain.rules {
        let _ = writeln!(text, "\t\t{}", rule(rule_of_chain));
    }
    text.push_str("\t}\n");
    text
}

/// A priority as nft names it: by the nearest of the well-known ones, if that is at most 10 away.
fn priority(family: Family, base: BaseHook) -> String {
    let known: &[(&str, i32, Option<Hook>)] = match family {
        Family::Inet => &[
            ("raw", -300, None),
            ("mangle", -150, None),
            ("dstnat", -100, Some(Hook::Prerouting)),
            ("filter", 0, None),
            ("security", 50, None),
        ],
        Family::Bridge => {
            &[("dstnat", -300, Some(Hook::Prerouting)), ("filter", -200, None), ("out", 100, Some(Hook::Output))]
        }
    };
    known
        .iter()
        .filter(|(_, _, only)| only.is_none_or(|hook| hook == base.hook))
        .find(|(_, priority, _)| base.priority.abs_diff(*priority) <= 10)
        .map_or_else(
            || base.priority.to_string(),
            |(name, priority, _)| match base.priority.abs_diff(*priority) {
                0 => (*name).to_string(),
                away if base.priority > *priority => format!("{name} + {away}"),
                away => format!("{name} - {away}"),
            },
        )
}

/// nft's word for the type of a key.
pub fn key_type(key: KeyType) -> &'static str {
    match key {
        KeyType::Ipv4Addr => "ipv4_addr",
        KeyType::Ipv6Addr => "ipv6_addr",
        KeyType::InetProto => "inet_proto",
        KeyType::InetService => "inet_service",
        KeyType::Ifname => "ifname",
        KeyType::Mark => "mark",
        KeyType::Icmpv6Type => "icmpv6_type",
        KeyType::EtherAddr => "ether_addr",
    }
}

/// `set` or `map`.
fn set_word(kind: SetKind) -> &'static str {
    match kind {
        SetKind::Set | SetKind::Counters => "set",
        SetKind::VerdictMap => "map",
    }
}

/// `ipv4_addr . inet_service : verdict`.
fn set_type(set: &Set) -> String {
    let key = set.key.iter().map(|part| key_type(*part)).collect::<Vec<_>>().join(" . ");
    match set.kind {
        SetKind::Set | SetKind::Counters => key,
        SetKind::VerdictMap => format!("{key} : verdict"),
    }
}

/// A set or map with its elements.
fn set_block(name: &str, set: &Set) -> String {
    let mut text = format!("\t{} {name} {{\n\t\ttype {}\n", set_word(set.kind), set_type(set));
    if let Some(size) = set.size {
        let _ = writeln!(text, "\t\tsize {size}");
    }
    if set.interval {
        text.push_str("\t\tflags interval\n");
    }
    if set.kind == SetKind::Counters {
        text.push_str("\t\tcounter\n");
    }
    text.push_str(&comment_line(&set.comment));
    if !set.elements.is_empty() {
        let _ = writeln!(text, "\t\telements = {{ {} }}", listed(&set.key, &set.elements));
    }
    text.push_str("\t}\n");
    text
}

/// Elements in nft's order, in lines of as many as nft puts into one.
fn listed(key: &[KeyType], elements: &Elements) -> String {
    let a_line = match key {
        [KeyType::Ipv4Addr] => 2,
        [KeyType::InetProto | KeyType::InetService | KeyType::Mark] => 5,
        _ => 1,
    };
    let all: Vec<_> = elements.iter().collect();
    let mut sorted: Vec<_> = all.iter().collect();
    sorted.sort_by_cached_key(|(element, _)| value::listing_order(element));
    let words: Vec<String> = sorted.into_iter().map(|(key, datum)| element(key, datum)).collect();
    words.chunks(a_line).map(|line| line.join(", ")).collect::<Vec<_>>().join(ELEMENT_BREAK)
}

/// An element and what it leads to.
pub fn element(element: &Element, datum: &Datum) -> String {
    let key = match element {
        Element::Key(values) => values.iter().map(value).collect::<Vec<_>>().join(" . "),
        Element::Range(first, last) => value::interval(first, last),
    };
    match datum {
        Datum::None => key,
        Datum::Verdict(decision) => format!("{key} : {}", verdict(decision)),
        Datum::Counter(name) => format!("{key} counter comment \"{name}\""),
    }
}

/// A verdict.
pub fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".to_string(),
        Verdict::Drop => "drop".to_string(),
        Verdict::Return => "return".to_string(),
        Verdict::Jump(chain) => format!("jump {chain}"),
        Verdict::Goto(chain) => format!("goto {chain}"),
    }
}

/// A number of 32 bits as nft prints marks.
fn hex(number: u32) -> String {
    format!("0x{number:08x}")
}

/// A transaction for `nft -f`.
pub fn script(ops: &[Op]) -> String {
    ops.iter().map(|op_of_script| op(op_of_script) + "\n").collect()
}

/// One operation for `nft -f`.
pub fn op(op: &Op) -> String {
    let table = &op.table;
    match &op.kind {
        OpKind::AddTable => format!("add table {table}"),
        OpKind::DeleteTable => format!("delete table {table}"),
        OpKind::AddChain { name, hook, comment } => {
            format!("add chain {table} {name} {{ {}{}}}", hook_clause(*hook), comment_clause(comment))
        }
        OpKind::DeleteChain(name) => format!("delete chain {table} {name}"),
        OpKind::FlushChain(name) => format!("flush chain {table} {name}"),
        OpKind::AddRule { chain, rule: added } => format!("add rule {table} {chain} {}", rule(added)),
        OpKind::AddSet { name, set } => {
            let size = set.size.map(|size| format!("size {size}; ")).unwrap_or_default();
            let flags = if set.interval { "flags interval; " } else { "" };
            let counter = if set.kind == SetKind::Counters { "counter; " } else { "" };
            let comment = comment_clause(&set.comment);
            format!(
                "add {} {table} {name} {{ type {}; {size}{flags}{counter}{comment}}}",
                set_word(set.kind),
                set_type(set)
            )
        }
        OpKind::DeleteSet(name) => format!("delete set {table} {name}"),
        OpKind::AddElements { set, elements, starts } => {
            let words = elements.iter().map(|(key, datum)| added_element(key, datum, starts));
            format!("add element {table} {set} {{ {} }}", words.collect::<Vec<_>>().join(", "))
        }
        OpKind::DeleteElements { set, elements } => {
            let words = elements.iter().map(|(key, datum)| deleted_element(key, datum));
            format!("delete element {table} {set} {{ {} }}", words.collect::<Vec<_>>().join(", "))
        }
        OpKind::AddCounter { name, comment, start } => {
            let comment = comment_clause(comment);
            format!("add counter {table} {name} {{ packets {} bytes {}; {comment}}}", start.packets, start.bytes)
        }
        OpKind::DeleteCounter(name) => format!("delete counter {table} {name}"),
    }
}

/// The hook of a chain inside braces; the priority as a number.
fn hook_clause(base: Option<BaseHook>) -> String {
    base.map_or_else(String::new, |base| {
        format!("type filter hook {} priority {}; policy accept; ", hook(base.hook), base.priority)
    })
}

/// The comment of an object inside braces.
fn comment_clause(comment: &str) -> String {
    if comment.is_empty() { String::new() } else { format!("comment \"{comment}\"; ") }
}

/// An element that comes, with what its counter starts with.
fn added_element(key: &Element, datum: &Datum, starts: &BTreeMap<Name, CounterValue>) -> String {
    match datum {
        Datum::Counter(name) => {
            let CounterValue { packets, bytes } = starts.get(name).copied().unwrap_or_default();
            let key = element(key, &Datum::None);
            format!("{key} counter packets {packets} bytes {bytes} comment \"{name}\"")
        }
        Datum::None | Datum::Verdict(_) => element(key, datum),
    }
}

/// An element that goes; whatever its counter counted goes too.
fn deleted_element(key: &Element, datum: &Datum) -> String {
    element(key, if matches!(datum, Datum::Counter(_)) { &Datum::None } else { datum })
}
