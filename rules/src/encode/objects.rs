//! Tables, chains, sets, counters and elements as netlink messages.
//!
//! In: operations, one by one. Out: a batch. What always holds: each message has the next sequence number and is noted
//! with its operation; the last one is marked to be answered.

use std::collections::BTreeMap;

use nftnl::MsgType;
use nftnl::nftnl_sys::*;

use super::expr::bare_rule;
use super::raw::RawElement;
use super::sys::{Chain, Elements, Header, MAX_WEIGHT, Object, Payload, Rule, Set, Table, Writer, new_counter, table};
use super::types::{
    INTERVAL_END, OPEN_INTERVAL, comment, family, key_bytes, key_type, proto_family, range_bytes, set_user_data,
};
use super::{Batch, EncodeError, Ownership, verdict_number};
use crate::ruleset::{self, BaseHook, CounterValue, Datum, Element, Hook, Name, Op, OpKind, SetKind};

// NFT_MSG_* of linux/netfilter/nf_tables.h.
const NEWTABLE: u16 = 0;
const NEWCHAIN: u16 = 3;
const DELCHAIN: u16 = 5;
const NEWRULE: u16 = 6;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const DELSET: u16 = 11;
const NEWSETELEM: u16 = 12;
const DELSETELEM: u16 = 14;
const NEWOBJ: u16 = 18;
const DELOBJ: u16 = 20;

// linux/netlink.h. Additions carry no NLM_F_EXCL: what exists already changes nothing.
const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;

// NFT_TABLE_F_*.
const TABLE_OWNER: u32 = 2;
const TABLE_PERSIST: u32 = 4;

const OBJECT_COUNTER: u32 = 1;
const POLICY_ACCEPT: u32 = 1;
const SET_INTERVAL: u32 = 4;
const SET_MAP: u32 = 8;
const VERDICT_TYPE: u32 = 0xffff_ff00;

/// NFT_NAME_MAXLEN with its NUL is 256.
const NAME_MAX: usize = 255;

/// User data type of the comment of a table, chain, rule or object.
const COMMENT: u8 = 0;

fn name(name: &str) -> Result<&str, EncodeError> {
    if name.is_empty() || name.len() > NAME_MAX { Err(EncodeError::Name(name.to_owned())) } else { Ok(name) }
}

fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
    }
}

/// The hook of a kernel's number.
pub(super) fn hook_of(number: u32) -> Option<Hook> {
    [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output].into_iter().find(|hook| hook_number(*hook) == number)
}

/// What makes the kind and flags of a set.
pub(super) fn set_flags(kind: SetKind, interval: bool) -> u32 {
    let kind = match kind {
        SetKind::Set | SetKind::Counters => 0,
        SetKind::VerdictMap => SET_MAP,
    };
    kind | if interval { SET_INTERVAL } else { 0 }
}

/// Writes operations as messages.
pub(super) struct Encoder {
    writer: Writer,
    batch: Batch,
    /// Where the last operation's last message begins.
    last: Option<usize>,
    /// The operation whose messages are written, and where.
    index: usize,
    family: u16,
    ownership: Ownership,
}

impl Encoder {
    /// Opens the batch.
    pub(super) fn new(ownership: Ownership) -> Result<Self, EncodeError> {
        let mut writer = Writer::new()?;
        writer.begin(Batch::BEGIN)?;
        Ok(Self { writer, batch: Batch::default(), last: None, index: 0, family: 0, ownership })
    }

    /// Closes the batch.
    pub(super) fn finish(mut self) -> Result<Batch, EncodeError> {
        // The flags stand behind length and type.
        if let Some(flags) = self.last.and_then(|last| self.writer.out.get_mut(last + 6..last + 8)) {
            flags.copy_from_slice(&with_ack([flags[0], flags[1]]));
        }
        self.writer.end(self.batch.last() + 1)?;
        self.batch.bytes = self.writer.out;
        Ok(self.batch)
    }

    /// Writes one operation.
    pub(super) fn op(&mut self, index: usize, op: &Op) -> Result<(), EncodeError> {
        self.index = index;
        self.family = family(op.table.family).into();
        let table = name(&op.table.name)?;
        match &op.kind {
            OpKind::AddTable if self.ownership == Ownership::Owned => self.owned_table(table),
            OpKind::AddTable => self.table(MsgType::Add, op.table.family, table),
            OpKind::DeleteTable => self.table(MsgType::Del, op.table.family, table),
            OpKind::AddChain { name, hook, comment } => self.add_chain(table, name, *hook, comment),
            OpKind::DeleteChain(name) => self.delete_chain(table, name),
            OpKind::FlushChain(chain) => self.flush_chain(table, chain),
            OpKind::AddRule { chain, rule } => self.add_rule(op.table.family, table, chain, rule),
            OpKind::AddSet { name, set } => self.add_set(table, name, set),
            OpKind::DeleteSet(name) => self.delete_set(table, name),
            OpKind::AddElements { set, elements, starts } => {
                let raw = |element: &Element, datum: &Datum| raw_elements(element, datum, starts);
                self.elements(NEWSETELEM, table, set, elements, raw)
            }
            OpKind::DeleteElements { set, elements } => self.elements(DELSETELEM, table, set, elements, deleted),
            OpKind::AddCounter { name, comment, start } => self.add_counter(table, name, comment, *start),
            OpKind::DeleteCounter(name) => self.delete_counter(table, name),
        }
    }

    fn message(&mut self, kind: u16, flags: u16, payload: &impl Payload) -> Result<(), EncodeError> {
        // libnftnl's header function adds the subsystem and NLM_F_REQUEST.
        let header = Header { kind, family: self.family, flags, seq: self.next() };
        self.writer.message(header, payload)
    }

    /// Sequence number of the message that is written next, noted with its operation.
    fn next(&mut self) -> u32 {
        self.last = Some(self.writer.out.len());
        self.batch.ops.push(self.index);
        self.batch.last()
    }

    fn table(&mut self, kind: MsgType, family: ruleset::Family, name: &str) -> Result<(), EncodeError> {
        let object = table(proto_family(family), name)?;
        let flags = if kind == MsgType::Add { NLM_F_CREATE } else { 0 };
        let seq = self.next();
        self.writer.whole(&object, kind, flags, seq)
    }

    fn owned_table(&mut self, name: &str) -> Result<(), EncodeError> {
        let mut object = Table::new()?;
        object.str(NFTNL_TABLE_NAME, name)?.u32(NFTNL_TABLE_FLAGS, TABLE_OWNER | TABLE_PERSIST);
        self.message(NEWTABLE, NLM_F_CREATE, &object)
    }

    fn chain(&self, table: &str, chain: &str) -> Result<Chain, EncodeError> {
        let mut object = Chain::new()?;
        object.str(NFTNL_CHAIN_TABLE, table)?.str(NFTNL_CHAIN_NAME, name(chain)?)?;
        Ok(object)
    }

    fn add_chain(&mut self, table: &str, chain: &str, hook: Option<BaseHook>, text: &str) -> Result<(), EncodeError> {
        let mut object = self.chain(table, chain)?;
        if let Some(base) = hook {
            object.u32(NFTNL_CHAIN_HOOKNUM, hook_number(base.hook));
            object.u32(NFTNL_CHAIN_PRIO, u32::from_ne_bytes(base.priority.to_ne_bytes()));
            object.u32(NFTNL_CHAIN_POLICY, POLICY_ACCEPT);
            object.str(NFTNL_CHAIN_TYPE, "filter")?;
        }
        let user_data = comment(COMMENT, text)?;
        if !user_data.is_empty() {
            object.data(NFTNL_CHAIN_USERDATA, &user_data)?;
        }
        self.message(NEWCHAIN, NLM_F_CREATE, &object)
    }

    fn delete_chain(&mut self, table: &str, chain: &str) -> Result<(), EncodeError> {
        let object = self.chain(table, chain)?;
        self.message(DELCHAIN, 0, &object)
    }

    /// A deletion of rules that names no rule is of all rules of the chain.
    fn flush_chain(&mut self, table: &str, chain: &str) -> Result<(), EncodeError> {
        let mut object = Rule::new()?;
        object.str(NFTNL_RULE_TABLE, table)?.str(NFTNL_RULE_CHAIN, name(chain)?)?;
        self.message(DELRULE, 0, &object)
    }

    fn add_rule(
        &mut self,
        family: ruleset::Family,
        table: &str,
        chain: &str,
        rule: &ruleset::Rule,
    ) -> Result<(), EncodeError> {
        let mut object = bare_rule(family, rule)?;
        object.str(NFTNL_RULE_TABLE, table)?.str(NFTNL_RULE_CHAIN, name(chain)?)?;
        let user_data = comment(COMMENT, &rule.comment)?;
        if !user_data.is_empty() {
            object.data(NFTNL_RULE_USERDATA, &user_data)?;
        }
        self.message(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, &object)
    }

    fn add_set(&mut self, table: &str, set_name: &str, set: &ruleset::Set) -> Result<(), EncodeError> {
        let (key, key_len) = key_type(&set.key)?;
        if set.interval && set.key.len() != 1 {
            return Err(EncodeError::Key);
        }
        let id = self.batch.last() + 1;
        let mut object = Set::new()?;
        object.str(NFTNL_SET_TABLE, table)?.str(NFTNL_SET_NAME, name(set_name)?)?;
        object.u32(NFTNL_SET_FLAGS, set_flags(set.kind, set.interval)).u32(NFTNL_SET_ID, id);
        object.u32(NFTNL_SET_KEY_TYPE, key).u32(NFTNL_SET_KEY_LEN, key_len);
        if let Some(size) = set.size {
            object.u32(NFTNL_SET_DESC_SIZE, size);
        }
        match set.kind {
            SetKind::Set => {}
            SetKind::VerdictMap => {
                object.u32(NFTNL_SET_DATA_TYPE, VERDICT_TYPE).u32(NFTNL_SET_DATA_LEN, 0);
            }
            SetKind::Counters => object.count(new_counter(CounterValue::default())?),
        }
        object.data(NFTNL_SET_USERDATA, &set_user_data(set)?)?;
        self.message(NEWSET, NLM_F_CREATE, &object)
    }

    fn delete_set(&mut self, table: &str, set: &str) -> Result<(), EncodeError> {
        let mut object = Set::new()?;
        object.str(NFTNL_SET_TABLE, table)?.str(NFTNL_SET_NAME, name(set)?)?;
        self.message(DELSET, 0, &object)
    }

    /// Elements, in as many messages as they need.
    fn elements(
        &mut self,
        kind: u16,
        table: &str,
        set: &str,
        elements: &BTreeMap<Element, Datum>,
        raw: impl Fn(&Element, &Datum) -> Result<Vec<RawElement>, EncodeError>,
    ) -> Result<(), EncodeError> {
        let flags = if kind == NEWSETELEM { NLM_F_CREATE } else { 0 };
        let mut list = element_list(table, set)?;
        for (element, datum) in elements {
            let raw = raw(element, datum)?;
            let weight: usize = raw.iter().map(RawElement::weight).sum();
            if list.weight() + weight > MAX_WEIGHT {
                self.message(kind, flags, &list)?;
                list = element_list(table, set)?;
            }
            raw.iter().try_for_each(|one| list.add(one))?;
        }
        if elements.is_empty() { Ok(()) } else { self.message(kind, flags, &list) }
    }

    fn counter(&self, table: &str, counter: &str) -> Result<Object, EncodeError> {
        let mut object = Object::new()?;
        object.str(NFTNL_OBJ_TABLE, table)?.str(NFTNL_OBJ_NAME, name(counter)?)?;
        object.u32(NFTNL_OBJ_TYPE, OBJECT_COUNTER);
        Ok(object)
    }

    fn add_counter(&mut self, table: &str, counter: &str, text: &str, start: CounterValue) -> Result<(), EncodeError> {
        let mut object = self.counter(table, counter)?;
        object.u64(NFTNL_OBJ_CTR_PKTS, start.packets).u64(NFTNL_OBJ_CTR_BYTES, start.bytes);
        let user_data = comment(COMMENT, text)?;
        if !user_data.is_empty() {
            object.data(NFTNL_OBJ_USERDATA, &user_data)?;
        }
        self.message(NEWOBJ, NLM_F_CREATE, &object)
    }

    fn delete_counter(&mut self, table: &str, counter: &str) -> Result<(), EncodeError> {
        let object = self.counter(table, counter)?;
        self.message(DELOBJ, 0, &object)
    }
}

fn with_ack(flags: [u8; 2]) -> [u8; 2] {
    (u16::from_ne_bytes(flags) | NLM_F_ACK).to_ne_bytes()
}

fn element_list(table: &str, set: &str) -> Result<Elements, EncodeError> {
    let mut list = Elements::new()?;
    list.str(NFTNL_SET_TABLE, table)?.str(NFTNL_SET_NAME, name(set)?)?;
    Ok(list)
}

/// An element that goes is found by its key: what its counter counted is not said.
fn deleted(element: &Element, datum: &Datum) -> Result<Vec<RawElement>, EncodeError> {
    let datum = if matches!(datum, Datum::Counter(_)) { &Datum::None } else { datum };
    raw_elements(element, datum, &BTreeMap::new())
}

/// One element for a key, two for a range (where it begins, and where it has ended) unless it ends with the type.
fn raw_elements(
    element: &Element,
    datum: &Datum,
    starts: &BTreeMap<Name, CounterValue>,
) -> Result<Vec<RawElement>, EncodeError> {
    let mut start = RawElement::default();
    match datum {
        Datum::None => {}
        Datum::Verdict(verdict) => {
            let (number, chain) = verdict_number(verdict);
            start.verdict = Some(number);
            start.chain = chain.map(str::to_owned);
        }
        Datum::Counter(counter) => {
            start.counter = Some(starts.get(counter).copied().unwrap_or_default());
            start.user_data = comment(COMMENT, name(counter)?)?;
        }
    }
    match element {
        Element::Key(values) => {
            start.key = key_bytes(values)?;
            Ok(vec![start])
        }
        Element::Range(first, last) => {
            let (key, behind) = range_bytes(first, last)?;
            start.key = key;
            match behind {
                Some(key) => Ok(vec![start, RawElement { key, flags: INTERVAL_END, ..RawElement::default() }]),
                None => Ok(vec![RawElement { user_data: OPEN_INTERVAL.to_vec(), ..start }]),
            }
        }
    }
}
