//! Operations as one netlink batch, and netlink messages back to the model.
//!
//! In: operations. Out: the bytes of one transaction (begin, messages, end) and a table from sequence number to
//! operation, so that an error names its operation; [`decode`] is the way back. What always holds: only the last message
//! before the end asks for an answer; every message's attributes stay below 64 KiB; what cannot be encoded exactly is an
//! error, never something near it.

pub mod decode;
mod expr;
mod objects;
mod raw;
mod shape;
mod sys;
#[cfg(test)]
mod tests;
mod types;

use ipnetwork::IpNetwork;
pub use raw::RawElement;
pub use types::{family, family_of};

use crate::ruleset::{Element, Field, Op, OpKind, Value, Verdict, text};

/// Why operations cannot be encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// libnftnl has no memory.
    #[error("libnftnl has no memory")]
    Memory,
    /// A name with a NUL in it.
    #[error("{0:?} has a NUL in it")]
    Nul(String),
    /// A name that is empty or longer than the kernel takes.
    #[error("name {0:?} is empty or too long")]
    Name(String),
    /// A comment that the kernel does not take.
    #[error("comment {0:?} is too long")]
    Comment(String),
    /// An interface's name that is none.
    #[error("interface name {0:?} is not one")]
    Ifname(String),
    /// A message that is larger than netlink's attributes can be.
    #[error("message of {0} bytes is too large")]
    TooLarge(usize),
    /// A rule of more expressions than the kernel takes.
    #[error("rule of {0} expressions is too long")]
    TooManyExprs(usize),
    /// A value that is not of its field's type.
    #[error("{field:?} cannot be compared with {value:?}")]
    Value {
        /// The field.
        field: Field,
        /// The value.
        value: Value,
    },
    /// A prefix of a field that is no address of its family.
    #[error("{field:?} cannot be compared with {prefix}")]
    Prefix {
        /// The field.
        field: Field,
        /// The prefix.
        prefix: IpNetwork,
    },
    /// A range of a field that has no order.
    #[error("{0:?} has no ranges")]
    Range(Field),
    /// A key of no type, of too many or of too many bytes.
    #[error("key of no type or of too many")]
    Key,
    /// An element that is not of its set's type.
    #[error("element {0:?} is not of its set's type")]
    Element(Element),
    /// A datum that is not of its set's kind.
    #[error("element {0:?} leads to something else than its set's elements do")]
    Datum(Element),
    /// An expression that was read back and is nothing this crate makes.
    #[error("foreign expression {0}")]
    Foreign(String),
}

/// An operation that cannot be encoded.
#[derive(Debug, thiserror::Error)]
#[error("{op}: {source}")]
pub struct BatchError {
    /// Its place in the list.
    pub index: usize,
    /// Its description.
    pub op: String,
    /// Why.
    #[source]
    pub source: EncodeError,
}

/// One transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    bytes: Vec<u8>,
    /// For each sequence number from 1 on: the operation it belongs to.
    ops: Vec<usize>,
}

impl Batch {
    /// Sequence number of the message that opens the transaction; its errors are of no operation.
    pub const BEGIN: u32 = 0;

    /// All messages, in order.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The place in the list of the operation a message belongs to.
    pub fn op(&self, seq: u32) -> Option<usize> {
        self.ops.get(usize::try_from(seq).ok()?.checked_sub(1)?).copied()
    }

    /// Sequence number of the last operation's last message, the one that is answered.
    pub fn last(&self) -> u32 {
        u32::try_from(self.ops.len()).unwrap_or(u32::MAX)
    }

    /// Whether it does nothing.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
}

/// Who may change a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ownership {
    /// Whoever may change nftables.
    #[default]
    Shared,
    /// The socket that adds it, and nobody else as long as that is open; then the table stays and is anybody's. Adding one that
    /// is nobody's any more takes it over (`NFT_TABLE_F_OWNER`, `NFT_TABLE_F_PERSIST`, Linux 6.9).
    Owned,
}

/// Encodes operations as one transaction; tables are added with this ownership.
pub fn encode(ops: &[Op], ownership: Ownership) -> Result<Batch, BatchError> {
    let whole = |source| BatchError { index: ops.len(), op: "transaction".to_owned(), source };
    let mut encoder = objects::Encoder::new(ownership).map_err(whole)?;
    for (index, op) in ops.iter().enumerate() {
        encoder.op(index, op).map_err(|source| BatchError { index, op: describe(op), source })?;
    }
    encoder.finish().map_err(whole)
}

/// What an operation does, in a line: `add rule inet t c "comment"`.
pub fn describe(op: &Op) -> String {
    let table = &op.table;
    match &op.kind {
        OpKind::AddTable => format!("add table {table}"),
        OpKind::DeleteTable => format!("delete table {table}"),
        OpKind::AddChain { name, .. } => format!("add chain {table} {name}"),
        OpKind::DeleteChain(name) => format!("delete chain {table} {name}"),
        OpKind::FlushChain(name) => format!("flush chain {table} {name}"),
        OpKind::AddRule { chain, rule } => format!("add rule {table} {chain} {}", text::rule(rule)),
        OpKind::AddSet { name, .. } => format!("add set {table} {name}"),
        OpKind::DeleteSet(name) => format!("delete set {table} {name}"),
        OpKind::AddElements { set, elements, .. } => format!("add {} elements {table} {set}", elements.len()),
        OpKind::DeleteElements { set, elements } => format!("delete {} elements {table} {set}", elements.len()),
        OpKind::AddCounter { name, .. } => format!("add counter {table} {name}"),
        OpKind::DeleteCounter(name) => format!("delete counter {table} {name}"),
    }
}

const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
// NFT_JUMP, NFT_GOTO and NFT_RETURN are -3, -4 and -5.
const NFT_JUMP: u32 = u32::MAX - 2;
const NFT_GOTO: u32 = u32::MAX - 3;
const NFT_RETURN: u32 = u32::MAX - 4;

/// The kernel's number of a verdict, and the chain it leads to.
fn verdict_number(verdict: &Verdict) -> (u32, Option<&str>) {
    match verdict {
        Verdict::Accept => (NF_ACCEPT, None),
        Verdict::Drop => (NF_DROP, None),
        Verdict::Return => (NFT_RETURN, None),
        Verdict::Jump(chain) => (NFT_JUMP, Some(chain)),
        Verdict::Goto(chain) => (NFT_GOTO, Some(chain)),
    }
}

/// The verdict of a kernel's number.
fn verdict_of(number: u32, chain: Option<String>) -> Option<Verdict> {
    match (number, chain) {
        (NF_ACCEPT, None) => Some(Verdict::Accept),
        (NF_DROP, None) => Some(Verdict::Drop),
        (NFT_RETURN, None) => Some(Verdict::Return),
        (NFT_JUMP, Some(chain)) => Some(Verdict::Jump(chain.into())),
        (NFT_GOTO, Some(chain)) => Some(Verdict::Goto(chain.into())),
        _ => None,
    }
}
