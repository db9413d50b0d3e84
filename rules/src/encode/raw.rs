//! What is handed to libnftnl and taken from it, as plain bytes.
//!
//! In: fields of elements; received messages. Out: the same where [`super::sys`] can use it. What always holds: an
//! element's weight is never less than the bytes it takes in a message; a message is as long as its header says.

use nftnl::nftnl_sys::libc::nlmsghdr;

use super::shape::Kind;
use crate::ruleset::CounterValue;

/// More than one element's attributes of fixed size take, with their headers.
const FIXED_ELEMENT: usize = 96;

/// More than a counter takes.
const COUNTER: usize = 64;

/// One element as libnftnl holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawElement {
    /// The key.
    pub key: Vec<u8>,
    /// NFT_SET_ELEM_*.
    pub flags: u32,
    /// NF_* or NFT_* of linux/netfilter/nf_tables.h, for an element with a verdict.
    pub verdict: Option<u32>,
    /// The chain a verdict leads to.
    pub chain: Option<String>,
    /// The object an element leads to: nothing here has one, tables of an earlier layout have.
    pub object: Option<String>,
    /// What an element's own counter counted.
    pub counter: Option<CounterValue>,
    /// User data; empty for none.
    pub user_data: Vec<u8>,
    /// It carries what the model has no word for: other expressions, data that is no verdict, a second key, a timeout.
    pub more: bool,
}

impl RawElement {
    /// At least the bytes it takes in a message.
    pub(super) fn weight(&self) -> usize {
        let names = self.chain.as_deref().map_or(0, str::len) + self.object.as_deref().map_or(0, str::len);
        let counter = if self.counter.is_some() { COUNTER } else { 0 };
        FIXED_ELEMENT + self.key.len() + names + counter + self.user_data.len()
    }
}

/// A received message at an address that libnftnl can read it from.
pub(super) struct Aligned(Vec<u32>);

impl Aligned {
    /// `None` unless the message is as long as its header says, and well formed behind netfilter's header.
    pub(super) fn new(message: &[u8], kind: Kind) -> Option<Self> {
        let said = u32::from_ne_bytes(message.get(..4)?.try_into().ok()?);
        if usize::try_from(said).ok()? != message.len() || !kind.fits(message.get(20..)?) {
            return None;
        }
        let words = message.chunks(4).map(|chunk| {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            u32::from_ne_bytes(word)
        });
        Some(Self(words.collect()))
    }

    pub(super) fn header(&self) -> *const nlmsghdr {
        self.0.as_ptr().cast()
    }
}
