//! The tables of others: flowtables, what policy engines left behind, rules that write our bits of ct mark.
//!
//! In: a socket to nfnetlink. Out: findings. What always holds: dumps are read as they come, and what is kept is one
//! entry for each table and thing found, however many chains and rules there are.

use std::collections::BTreeMap;

use super::{Bypass, BypassError, Kind, OWN, mark};
use crate::netlink::{
    ACKED, Attrs, DUMP, Malformed, Message, NETFILTER_HEADER, NetlinkError, Request, Socket, field, netfilter,
};

const NFT_MSG_GETTABLE: u16 = 10 << 8 | 1;
const NFT_MSG_GETCHAIN: u16 = 10 << 8 | 4;
const NFT_MSG_GETRULE: u16 = 10 << 8 | 7;
const NFT_MSG_GETGEN: u16 = 10 << 8 | 16;
const NFT_MSG_GETFLOWTABLE: u16 = 10 << 8 | 23;
const NFTA_GEN_ID: u16 = 1;
/// The table's name is the first attribute of tables, chains, rules and flowtables alike.
const NFTA_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_FLOWTABLE_NAME: u16 = 2;
const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_IPV6: u8 = 10;
/// Tries at a dump that commits keep interrupting.
const TRIES: usize = 3;
/// The tables of iptables-nft, which are edited with iptables and not with nft.
const IPTABLES: [&str; 5] = ["filter", "mangle", "nat", "raw", "security"];

/// A policy engine and how its remains are known.
struct Engine {
    name: &'static str,
    /// Its name as a metric's label.
    label: &'static str,
    chains: &'static [&'static str],
    tables: &'static [&'static str],
    /// What finds its lines in the output of iptables-save.
    pattern: &'static str,
}

const ENGINES: [Engine; 4] = [
    Engine {
        name: "kube-router",
        label: "kube-router",
        chains: &["KUBE-ROUTER-", "KUBE-POD-FW-", "KUBE-NWPLCY-"],
        tables: &["kube-router-filter-ipv4", "kube-router-filter-ipv6"],
        pattern: "KUBE-(ROUTER|POD-FW|NWPLCY)",
    },
    Engine { name: "Calico", label: "calico", chains: &["cali-"], tables: &["calico"], pattern: "cali[-:]" },
    Engine { name: "Weave Net", label: "weave-net", chains: &["WEAVE-NPC"], tables: &[], pattern: "WEAVE-NPC" },
    Engine {
        name: "kube-network-policies",
        label: "kube-network-policies",
        chains: &[],
        tables: &["kube-network-policies", "kindnet-network-policies"],
        pattern: "kube-network-policies",
    },
];

/// What finds the lines of every engine in the output of iptables-save.
pub fn patterns() -> String {
    ENGINES.each_ref().map(|engine| engine.pattern).join("|")
}

/// A table of somebody else: family and name.
type Table = (u8, String);

fn family_name(family: u8) -> &'static str {
    match family {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        NFPROTO_IPV6 => "ip6",
        _ => "unknown",
    }
}

/// The number of the ruleset's last change.
pub fn generation(socket: &mut Socket) -> Result<u32, BypassError> {
    let mut generation = None;
    socket.ask::<BypassError>(Request::new(NFT_MSG_GETGEN, ACKED, &netfilter(NFPROTO_UNSPEC)), |message| {
        generation = message.attrs(NETFILTER_HEADER)?.find_kind(NFTA_GEN_ID)?.map(|id| id.u32_be()).transpose()?;
        Ok(())
    })?;
    generation.ok_or(BypassError::Ruleset(Malformed("no generation in the answer").into()))
}

/// Everything found in the tables of others, and whether they stood still meanwhile.
pub fn scan(socket: &mut Socket, mark_mask: u32) -> Result<(Vec<Bypass>, bool), BypassError> {
    let (tables, mut whole) = collect(socket, NFT_MSG_GETTABLE, None, |all: &mut Vec<Table>, table, _| {
        all.push(table);
        Ok(())
    })?;
    let (flowtables, still) = collect(socket, NFT_MSG_GETFLOWTABLE, None, flowtable)?;
    whole &= still;
    let (leftovers, still) = collect(socket, NFT_MSG_GETCHAIN, None, leftover_chain)?;
    whole &= still;
    let mut found: Vec<Bypass> = flowtables;
    found.extend(tables.iter().filter_map(leftover_table));
    found.extend(leftovers.iter().map(|((table, engine), chains)| chains_left(table, &ENGINES[*engine], chains)));
    for table in &tables {
        let (writes, still) =
            collect(socket, NFT_MSG_GETRULE, Some(table), |all: &mut Writes, _, attrs| all.take_in(&attrs, mark_mask))?;
        whole &= still;
        found.extend(writes.found(table, mark_mask));
    }
    Ok((found, whole))
}

fn request(kind: u16, table: Option<&Table>) -> Request {
    match table {
        Some((family, name)) => Request::new(kind, DUMP, &netfilter(*family)).text(NFTA_TABLE, name),
        None => Request::new(kind, DUMP, &netfilter(NFPROTO_UNSPEC)),
    }
}

/// The table of a dumped object; `None` for our own.
fn foreign_table(message: &Message<'_>, attrs: &Attrs<'_>) -> Result<Option<Table>, Malformed> {
    let [family] = field(message.payload, 0)?;
    let name = attrs.find_kind(NFTA_TABLE)?.ok_or(Malformed("an object without its table"))?.text()?;
    Ok((!name.starts_with(OWN)).then(|| (family, name.to_owned())))
}

/// Dumps and collects what is in others' tables. A dump that stays interrupted counts as far as it got: the second
/// value says so, and there will be another look.
fn collect<T: Default>(
    socket: &mut Socket,
    kind: u16,
    table: Option<&Table>,
    mut each: impl FnMut(&mut T, Table, Attrs<'_>) -> Result<(), Malformed>,
) -> Result<(T, bool), BypassError> {
    let mut all = T::default();
    for _ in 0..TRIES {
        all = T::default();
        let dumped = socket.dump::<BypassError>(request(kind, table), |message| {
            let attrs = message.attrs(NETFILTER_HEADER)?;
            match foreign_table(&message, &attrs)? {
                Some(table) => Ok(each(&mut all, table, attrs)?),
                None => Ok(()),
            }
        });
        match dumped {
            Ok(()) => return Ok((all, true)),
            Err(BypassError::Ruleset(NetlinkError::Interrupted)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok((all, false))
}

fn flowtable(all: &mut Vec<Bypass>, table: Table, attrs: Attrs<'_>) -> Result<(), Malformed> {
    let flowtable = attrs.find_kind(NFTA_FLOWTABLE_NAME)?.ok_or(Malformed("a flowtable without a name"))?.text()?;
    let (family, name) = (family_name(table.0), table.1);
    let message = format!(
        "flowtable {flowtable} of table {family} {name}: flows it takes up skip the forward hook, so they are not cut \
         when policy tightens and not counted. If nothing needs it: nft delete flowtable {family} {name} {flowtable}"
    );
    all.push(Bypass::warning(Kind::Flowtable, format!("{family} {name} {flowtable}"), message));
    Ok(())
}

fn leftover_table((family, name): &Table) -> Option<Bypass> {
    let Engine { name: engine, label, .. } = engine_of_table(name)?;
    let family = family_name(*family);
    let message = format!(
        "table {family} {name} is of {engine}: its rules keep deciding beside ours. If {engine} no longer runs here: \
         nft delete table {family} {name}"
    );
    Some(Bypass::warning(Kind::Leftover, format!("{family} {name}"), message).of(label))
}

fn engine_of_table(name: &str) -> Option<&'static Engine> {
    ENGINES.iter().find(|engine| engine.tables.contains(&name))
}

/// Chains that an engine left in one table: how many, and one of them.
struct Chains {
    count: usize,
    one: String,
}

fn leftover_chain(all: &mut BTreeMap<(Table, usize), Chains>, table: Table, attrs: Attrs<'_>) -> Result<(), Malformed> {
    let name = attrs.find_kind(NFTA_CHAIN_NAME)?.ok_or(Malformed("a chain without a name"))?.text()?;
    // A whole table of an engine is said as such.
    if engine_of_table(&table.1).is_some() {
        return Ok(());
    }
    let of = |engine: &Engine| engine.chains.iter().any(|prefix| name.starts_with(prefix));
    let Some(engine) = ENGINES.iter().position(of) else { return Ok(()) };
    let chains = all.entry((table, engine)).or_insert_with(|| Chains { count: 0, one: name.to_owned() });
    chains.count += 1;
    Ok(())
}

fn chains_left((family, table): &Table, engine: &Engine, chains: &Chains) -> Bypass {
    let (name, pattern, Chains { count, one }) = (engine.name, engine.pattern, chains);
    let command = match *family {
        family if !IPTABLES.contains(&table.as_str()) => format!("nft delete table {} {table}", family_name(family)),
        NFPROTO_IPV6 => format!("ip6tables-save | grep -v -E '{pattern}' | ip6tables-restore"),
        _ => format!("iptables-save | grep -v -E '{pattern}' | iptables-restore"),
    };
    let message = format!(
        "{count} chains of {name} in table {} {table} (one is {one}): their rules keep deciding beside ours. If {name} \
         no longer runs here: {command}",
        family_name(*family)
    );
    Bypass::warning(Kind::Leftover, format!("{} {table}", family_name(*family)), message).of(engine.label)
}

/// Rules of one table that write bits of ct mark which are ours.
#[derive(Default)]
struct Writes {
    rules: usize,
    bits: u32,
    chain: String,
}

impl Writes {
    fn take_in(&mut self, attrs: &Attrs<'_>, mark_mask: u32) -> Result<(), Malformed> {
        let Some(expressions) = attrs.find_kind(NFTA_RULE_EXPRESSIONS)? else { return Ok(()) };
        let bits = mark::written(expressions.nested())? & mark_mask;
        if bits != 0 {
            self.rules += 1;
            self.bits |= bits;
            if let Some(chain) = attrs.find_kind(NFTA_RULE_CHAIN)?.filter(|_| self.chain.is_empty()) {
                chain.text()?.clone_into(&mut self.chain);
            }
        }
        Ok(())
    }

    fn found(&self, (family, table): &Table, mark_mask: u32) -> Option<Bypass> {
        let Self { rules, bits, chain } = self;
        let family = family_name(*family);
        let message = format!(
            "{rules} rules of table {family} {table} (one is in chain {chain}) write bits {bits:#010x} of ct mark, of \
             which {mark_mask:#010x} are ours: a foreign write that equals the current generation is a bypass, any \
             other makes flows be judged again. See: nft list chain {family} {table} {chain}"
        );
        (*rules > 0).then(|| Bypass::warning(Kind::CtMark, format!("{family} {table}"), message))
    }
}

/// What every reader makes of one message of a dump, for the fuzzers.
pub(crate) fn read_all(message: &Message<'_>, mark_mask: u32) -> Result<Vec<Bypass>, Malformed> {
    let attrs = message.attrs(NETFILTER_HEADER)?;
    let Some(table) = foreign_table(message, &attrs)? else { return Ok(Vec::new()) };
    let (mut found, mut left, mut writes) = (Vec::new(), BTreeMap::new(), Writes::default());
    found.extend(leftover_table(&table));
    // Each reads what the others do not: what is malformed for one is none of another's concern.
    let _ = flowtable(&mut found, table.clone(), attrs.clone());
    let _ = leftover_chain(&mut left, table.clone(), attrs.clone());
    writes.take_in(&attrs, mark_mask)?;
    found.extend(left.iter().map(|((table, engine), chains)| chains_left(table, &ENGINES[*engine], chains)));
    found.extend(writes.found(&table, mark_mask));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Messages;

    /// What a dump says of a flowtable in table `inet` of this name; few test kernels have flowtables.
    fn dumped(table: &str) -> Vec<Bypass> {
        let request = Request::new(NFT_MSG_GETFLOWTABLE, DUMP, &netfilter(1)).text(NFTA_TABLE, table);
        let request = request.text(NFTA_FLOWTABLE_NAME, "ft");
        let bytes = request.finish(1).expect("short");
        let message = Messages::new(&bytes).next().expect("one").expect("well formed");
        let attrs = message.attrs(NETFILTER_HEADER).expect("a header");
        let mut all = Vec::new();
        if let Some(table) = foreign_table(&message, &attrs).expect("reads") {
            flowtable(&mut all, table, attrs).expect("reads");
        }
        all
    }

    #[test]
    fn a_flowtable_is_named_unless_it_is_ours() {
        let [bypass] = <[Bypass; 1]>::try_from(dumped("fast")).expect("one");
        assert!(bypass.kind == Kind::Flowtable && !bypass.blocks_readiness, "{bypass:?}");
        assert!(bypass.message.ends_with(": nft delete flowtable inet fast ft"), "{bypass:?}");
        assert_eq!(dumped("flatfell-3a"), []);
    }
}
