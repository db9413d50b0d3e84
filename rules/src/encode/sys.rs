//! Safe types over libnftnl's tables, chains, rules, sets, objects, elements and expressions, beside those of `nftnl`.
//!
//! In: attributes by their libnftnl number. Out: netlink messages, and the same attributes of messages that were
//! received. What always holds: this is the only file of the crate that calls libnftnl; an object's `weight` is never
//! less than the bytes its message takes, so that no message is written past the end of the scratch buffer; what was
//! given to an object that owns it is not freed twice.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::ptr::NonNull;

use nftnl::nftnl_sys::libc::{c_char, c_void, nlmsghdr};
use nftnl::nftnl_sys::*;
use nftnl::{MsgType, NlMsg, ProtoFamily, nft_nlmsg_maxsize};

use super::EncodeError;
use super::raw::{Aligned, RawElement};
use super::shape;
use crate::ruleset::CounterValue;

/// The heaviest object that is written: a nested attribute's length has 16 bits.
pub(super) const MAX_WEIGHT: usize = 60 * 1024;

/// More than all attributes of fixed size of any object or expression here take, with their headers.
const FIXED: usize = 256;

/// libnftnl's setters take 16 bits where its constants have 32; all constants fit.
fn attr(number: u32) -> u16 {
    let [low, high, ..] = number.to_le_bytes();
    u16::from_le_bytes([low, high])
}

fn text(value: &str) -> Result<CString, EncodeError> {
    CString::new(value).map_err(|_| EncodeError::Nul(value.to_owned()))
}

fn length(data: &[u8]) -> Result<u32, EncodeError> {
    u32::try_from(data.len()).map_err(|_| EncodeError::TooLarge(data.len()))
}

/// Some setters of libnftnl answer -1 when memory is short, others answer nothing.
trait Answer {
    fn check(self) -> Result<(), EncodeError>;
}

impl Answer for i32 {
    fn check(self) -> Result<(), EncodeError> {
        if self < 0 { Err(EncodeError::Memory) } else { Ok(()) }
    }
}

impl Answer for () {
    fn check(self) -> Result<(), EncodeError> {
        Ok(())
    }
}

/// What a message can carry.
pub(super) trait Payload {
    /// At least the bytes the message takes.
    fn weight(&self) -> usize;
    /// Writes the attributes behind `header`.
    ///
    /// # Safety
    /// `header` is a message header with nfgenmsg, with `weight()` bytes of room behind it.
    unsafe fn write(&self, header: *mut nlmsghdr);
}

macro_rules! object {
    ($(#[$doc:meta])* $name:ident: $kind:expr, $raw:ident, $alloc:ident, $free:ident, $write:ident, $parse:ident,
     $set_u32:ident, $set_u64:ident, $set_str:ident, $set_data:ident,
     $get_u32:ident, $get_u64:ident, $get_str:ident, $get_data:ident, $is_set:ident) => {
        $(#[$doc])*
        pub(super) struct $name {
            raw: NonNull<$raw>,
            weight: usize,
        }

        #[allow(dead_code, reason = "one interface for all objects; not each of them needs all of it")]
        impl $name {
            pub(super) fn new() -> Result<Self, EncodeError> {
                // SAFETY: takes no argument; null means no memory.
                let raw = NonNull::new(unsafe { $alloc() }).ok_or(EncodeError::Memory)?;
                Ok(Self { raw, weight: FIXED })
            }

            pub(super) fn u32(&mut self, number: u32, value: u32) -> &mut Self {
                // SAFETY: `raw` is a live object of this type that nothing else points to.
                unsafe { $set_u32(self.raw.as_ptr(), attr(number), value) };
                self
            }

            pub(super) fn u64(&mut self, number: u32, value: u64) -> &mut Self {
                // SAFETY: as in `u32`.
                unsafe { $set_u64(self.raw.as_ptr(), attr(number), value) };
                self
            }

            pub(super) fn str(&mut self, number: u32, value: &str) -> Result<&mut Self, EncodeError> {
                let value_z = text(value)?;
                self.weight += value.len() + 8;
                // SAFETY: as in `u32`; the string ends in NUL and is copied.
                unsafe { $set_str(self.raw.as_ptr(), attr(number), value_z.as_ptr()) }.check()?;
                Ok(self)
            }

            pub(super) fn data(&mut self, number: u32, data: &[u8]) -> Result<&mut Self, EncodeError> {
                let len = length(data)?;
                self.weight += data.len() + 8;
                // SAFETY: as in `u32`; `len` bytes are readable and are copied.
                unsafe { $set_data(self.raw.as_ptr(), attr(number), data.as_ptr().cast(), len) }.check()?;
                Ok(self)
            }

            pub(super) fn has(&self, number: u32) -> bool {
                // SAFETY: as in `u32`; only read.
                unsafe { $is_set(self.raw.as_ptr(), attr(number)) }
            }

            pub(super) fn get_u32(&self, number: u32) -> Option<u32> {
                // SAFETY: as in `u32`; the attribute is there and a number of 32 bits.
                self.has(number).then(|| unsafe { $get_u32(self.raw.as_ptr(), attr(number)) })
            }

            pub(super) fn get_u64(&self, number: u32) -> Option<u64> {
                // SAFETY: as in `get_u32`, of 64 bits.
                self.has(number).then(|| unsafe { $get_u64(self.raw.as_ptr(), attr(number)) })
            }

            pub(super) fn get_str(&self, number: u32) -> Option<String> {
                // SAFETY: as in `u32`; a string attribute is null or a string that ends in NUL and lives as long as
                // the object; it is copied before that ends.
                unsafe { owned_str($get_str(self.raw.as_ptr(), attr(number))) }
            }

            pub(super) fn get_data(&self, number: u32) -> Option<Vec<u8>> {
                let mut len = 0;
                // SAFETY: as in `u32`; the pointer is null or has `len` bytes, which are copied.
                unsafe { owned_data($get_data(self.raw.as_ptr(), attr(number), &raw mut len), len) }
            }

            pub(super) fn parse(message: &[u8]) -> Option<Self> {
                let message = Aligned::new(message, $kind)?;
                let object = Self::new().ok()?;
                // SAFETY: `message` is aligned, as long as its header says and well formed; libnftnl copies what it keeps.
                let answer = unsafe { $parse(message.header(), object.raw.as_ptr()) };
                (answer >= 0).then_some(object)
            }
        }

        impl Payload for $name {
            fn weight(&self) -> usize {
                self.weight
            }

            unsafe fn write(&self, header: *mut nlmsghdr) {
                // SAFETY: the caller gives a header with room for `weight` bytes, which bounds what is written.
                unsafe { $write(header, self.raw.as_ptr()) }
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: `raw` came from the matching alloc and is freed here only, with all it owns.
                unsafe { $free(self.raw.as_ptr()) }
            }
        }
    };
}

/// A table to be written, of `nftnl`'s own type.
pub(super) fn table(family: ProtoFamily, name: &str) -> Result<nftnl::Table, EncodeError> {
    Ok(nftnl::Table::new(text(name)?, family))
}

object!(
    /// A table that is read.
    Table: shape::TABLE, nftnl_table, nftnl_table_alloc, nftnl_table_free, nftnl_table_nlmsg_build_payload, nftnl_table_nlmsg_parse,
    nftnl_table_set_u32, nftnl_table_set_u64, nftnl_table_set_str, nftnl_table_set_data,
    nftnl_table_get_u32, nftnl_table_get_u64, nftnl_table_get_str, nftnl_table_get_data, nftnl_table_is_set
);
object!(
    /// A chain.
    Chain: shape::CHAIN, nftnl_chain, nftnl_chain_alloc, nftnl_chain_free, nftnl_chain_nlmsg_build_payload, nftnl_chain_nlmsg_parse,
    nftnl_chain_set_u32, nftnl_chain_set_u64, nftnl_chain_set_str, nftnl_chain_set_data,
    nftnl_chain_get_u32, nftnl_chain_get_u64, nftnl_chain_get_str, nftnl_chain_get_data, nftnl_chain_is_set
);
object!(
    /// A rule; owns its expressions.
    Rule: shape::RULE, nftnl_rule, nftnl_rule_alloc, nftnl_rule_free, nftnl_rule_nlmsg_build_payload, nftnl_rule_nlmsg_parse,
    nftnl_rule_set_u32, nftnl_rule_set_u64, nftnl_rule_set_str, nftnl_rule_set_data,
    nftnl_rule_get_u32, nftnl_rule_get_u64, nftnl_rule_get_str, nftnl_rule_get_data, nftnl_rule_is_set
);
object!(
    /// A set without elements.
    Set: shape::SET, nftnl_set, nftnl_set_alloc, nftnl_set_free, nftnl_set_nlmsg_build_payload, nftnl_set_nlmsg_parse,
    nftnl_set_set_u32, nftnl_set_set_u64, nftnl_set_set_str, nftnl_set_set_data,
    nftnl_set_get_u32, nftnl_set_get_u64, nftnl_set_get_str, nftnl_set_get_data, nftnl_set_is_set
);
object!(
    /// A list of elements of one set; owns them.
    Elements: shape::ELEMENTS, nftnl_set, nftnl_set_alloc, nftnl_set_free, nftnl_set_elems_nlmsg_build_payload, nftnl_set_elems_nlmsg_parse,
    nftnl_set_set_u32, nftnl_set_set_u64, nftnl_set_set_str, nftnl_set_set_data,
    nftnl_set_get_u32, nftnl_set_get_u64, nftnl_set_get_str, nftnl_set_get_data, nftnl_set_is_set
);
object!(
    /// A named object, such as a counter.
    Object: shape::COUNTER, nftnl_obj, nftnl_obj_alloc, nftnl_obj_free, nftnl_obj_nlmsg_build_payload, nftnl_obj_nlmsg_parse,
    nftnl_obj_set_u32, nftnl_obj_set_u64, nftnl_obj_set_str, nftnl_obj_set_data,
    nftnl_obj_get_u32, nftnl_obj_get_u64, nftnl_obj_get_str, nftnl_obj_get_data, nftnl_obj_is_set
);

/// An expression that no rule owns yet.
pub(super) struct Expr {
    raw: NonNull<nftnl_expr>,
    weight: usize,
}

impl Expr {
    pub(super) fn new(kind: &CStr) -> Result<Self, EncodeError> {
        // SAFETY: the name ends in NUL; null means no memory or an unknown name.
        let raw = NonNull::new(unsafe { nftnl_expr_alloc(kind.as_ptr()) }).ok_or(EncodeError::Memory)?;
        Ok(Self { raw, weight: FIXED })
    }

    pub(super) fn u16(self, number: u32, value: u16) -> Self {
        // SAFETY: `raw` is a live expression that nothing else points to.
        unsafe { nftnl_expr_set_u16(self.raw.as_ptr(), attr(number), value) };
        self
    }

    pub(super) fn u32(self, number: u32, value: u32) -> Self {
        // SAFETY: as in `u16`.
        unsafe { nftnl_expr_set_u32(self.raw.as_ptr(), attr(number), value) };
        self
    }

    pub(super) fn u64(self, number: u32, value: u64) -> Self {
        // SAFETY: as in `u16`.
        unsafe { nftnl_expr_set_u64(self.raw.as_ptr(), attr(number), value) };
        self
    }

    pub(super) fn str(mut self, number: u32, value: &str) -> Result<Self, EncodeError> {
        let value_z = text(value)?;
        self.weight += value.len() + 8;
        // SAFETY: as in `u16`; the string ends in NUL and is copied.
        unsafe { nftnl_expr_set_str(self.raw.as_ptr(), attr(number), value_z.as_ptr()) }.check()?;
        Ok(self)
    }

    pub(super) fn data(mut self, number: u32, data: &[u8]) -> Result<Self, EncodeError> {
        let len = length(data)?;
        self.weight += data.len() + 8;
        // SAFETY: as in `u16`; `len` bytes are readable and are copied.
        unsafe { nftnl_expr_set(self.raw.as_ptr(), attr(number), data.as_ptr().cast(), len) }.check()?;
        Ok(self)
    }
}

/// A counter that starts here.
pub(super) fn new_counter(start: CounterValue) -> Result<Expr, EncodeError> {
    let counter = Expr::new(c"counter")?.u64(NFTNL_EXPR_CTR_PACKETS, start.packets);
    Ok(counter.u64(NFTNL_EXPR_CTR_BYTES, start.bytes))
}

/// What a counter counted; `None` for another expression.
///
/// # Safety
/// `expr` is null or a live expression.
unsafe fn counted(expr: *const c_void) -> Option<CounterValue> {
    let expr = NonNull::new(expr.cast_mut().cast::<nftnl_expr>())?.as_ptr();
    // SAFETY: the caller's; a name is a string that ends in NUL, and the numbers are of expressions of that name.
    unsafe {
        let name = owned_str(nftnl_expr_get_str(expr, attr(NFTNL_EXPR_NAME)))?;
        (name == "counter").then(|| CounterValue {
            packets: nftnl_expr_get_u64(expr, attr(NFTNL_EXPR_CTR_PACKETS)),
            bytes: nftnl_expr_get_u64(expr, attr(NFTNL_EXPR_CTR_BYTES)),
        })
    }
}

impl Set {
    /// Has each element count.
    pub(super) fn count(&mut self, counter: Expr) {
        self.weight += counter.weight;
        // SAFETY: both are live; the set owns the expression from here on.
        unsafe { nftnl_set_add_expr(self.raw.as_ptr(), counter.raw.as_ptr()) };
        std::mem::forget(counter);
    }

    /// Whether each element counts; `None` where it does something else or more.
    pub(super) fn counts(&self) -> Option<bool> {
        if self.has(NFTNL_SET_EXPRESSIONS) {
            return None;
        }
        if !self.has(NFTNL_SET_EXPR) {
            return Some(false);
        }
        // SAFETY: the set is live and owns the expression, of which there is one.
        unsafe { counted(nftnl_set_get(self.raw.as_ptr(), attr(NFTNL_SET_EXPR))) }.map(|_| true)
    }
}

impl Drop for Expr {
    fn drop(&mut self) {
        // SAFETY: `raw` came from nftnl_expr_alloc; `Rule::add` forgets the expressions it hands over.
        unsafe { nftnl_expr_free(self.raw.as_ptr()) }
    }
}

impl Rule {
    /// Adds an expression at the end.
    pub(super) fn add(&mut self, expr: Expr) {
        self.weight += expr.weight;
        // SAFETY: both are live; the rule owns the expression from here on.
        unsafe { nftnl_rule_add_expr(self.raw.as_ptr(), expr.raw.as_ptr()) };
        std::mem::forget(expr);
    }

    /// libnftnl's text of each expression, with the size of what is compared, which that text does not show.
    pub(super) fn print(&self) -> Result<Vec<String>, EncodeError> {
        // SAFETY: the rule lives longer than the iterator, which is destroyed below.
        let iter = NonNull::new(unsafe { nftnl_expr_iter_create(self.raw.as_ptr()) }).ok_or(EncodeError::Memory)?;
        let mut lines = Vec::new();
        // SAFETY: the iterator is live; null ends it.
        while let Some(expr) = NonNull::new(unsafe { nftnl_expr_iter_next(iter.as_ptr()) }) {
            // SAFETY: `expr` is owned by the rule and live.
            lines.push(unsafe { print(expr.as_ptr()) });
        }
        // SAFETY: made above, used no more.
        unsafe { nftnl_expr_iter_destroy(iter.as_ptr()) };
        Ok(lines)
    }
}

/// # Safety
/// `expr` is a live expression.
unsafe fn print(expr: *mut nftnl_expr) -> String {
    let mut buffer = [0_u8; 2048];
    // SAFETY: the caller's; the buffer has the length that is given, and its last byte stays NUL.
    let (name, compared) = unsafe {
        nftnl_expr_snprintf(buffer.as_mut_ptr().cast::<c_char>(), buffer.len() - 1, expr, NFTNL_OUTPUT_DEFAULT, 0);
        let name = owned_str(nftnl_expr_get_str(expr, attr(NFTNL_EXPR_NAME))).unwrap_or_default();
        let mut compared = 0;
        if name == "cmp" {
            nftnl_expr_get(expr, attr(NFTNL_EXPR_CMP_DATA), &raw mut compared);
        }
        (name, compared)
    };
    let line = CStr::from_bytes_until_nul(&buffer).unwrap_or_default().to_string_lossy();
    if name == "cmp" { format!("[ {name} {line} {compared}b ]") } else { format!("[ {name} {line}]") }
}

impl Elements {
    /// Adds an element.
    pub(super) fn add(&mut self, element: &RawElement) -> Result<(), EncodeError> {
        // SAFETY: takes no argument; null means no memory.
        let raw = NonNull::new(unsafe { nftnl_set_elem_alloc() }).ok_or(EncodeError::Memory)?;
        // SAFETY: `raw` is live; the list owns it from here on and frees it, also when a setter below fails.
        unsafe { nftnl_set_elem_add(self.raw.as_ptr(), raw.as_ptr()) };
        self.weight += element.weight();
        let put = |number: u32, data: &[u8]| {
            let len = length(data)?;
            // SAFETY: `raw` is live as the list is; `len` bytes are readable and are copied.
            unsafe { nftnl_set_elem_set(raw.as_ptr(), attr(number), data.as_ptr().cast(), len) }.check()
        };
        put(NFTNL_SET_ELEM_KEY, &element.key)?;
        if element.flags != 0 {
            put(NFTNL_SET_ELEM_FLAGS, &element.flags.to_ne_bytes())?;
        }
        if let Some(verdict) = element.verdict {
            put(NFTNL_SET_ELEM_VERDICT, &verdict.to_ne_bytes())?;
        }
        for (number, name) in [(NFTNL_SET_ELEM_CHAIN, &element.chain), (NFTNL_SET_ELEM_OBJREF, &element.object)] {
            if let Some(name) = name {
                put(number, text(name)?.as_bytes_with_nul())?;
            }
        }
        if let Some(start) = element.counter {
            let counter = new_counter(start)?;
            // SAFETY: both are live; the element owns the expression from here on.
            unsafe { nftnl_set_elem_add_expr(raw.as_ptr(), counter.raw.as_ptr()) };
            std::mem::forget(counter);
        }
        if element.user_data.is_empty() { Ok(()) } else { put(NFTNL_SET_ELEM_USERDATA, &element.user_data) }
    }

    /// All elements.
    pub(super) fn all(&self) -> Result<Vec<RawElement>, EncodeError> {
        // SAFETY: the list lives longer than the iterator, which is destroyed below.
        let iter =
            NonNull::new(unsafe { nftnl_set_elems_iter_create(self.raw.as_ptr()) }).ok_or(EncodeError::Memory)?;
        let mut all = Vec::new();
        // SAFETY: the iterator is live; null ends it.
        while let Some(raw) = NonNull::new(unsafe { nftnl_set_elems_iter_next(iter.as_ptr()) }) {
            all.push(read_element(raw));
        }
        // SAFETY: made above, used no more.
        unsafe { nftnl_set_elems_iter_destroy(iter.as_ptr()) };
        Ok(all)
    }
}

/// Attributes of elements that no element made here has.
const MORE: [u32; 4] =
    [NFTNL_SET_ELEM_DATA, NFTNL_SET_ELEM_TIMEOUT, NFTNL_SET_ELEM_EXPRESSIONS, NFTNL_SET_ELEM_KEY_END];

fn read_element(raw: NonNull<nftnl_set_elem>) -> RawElement {
    let data = |number: u32| {
        let mut len = 0;
        // SAFETY: the caller's list owns the element; the pointer is null or has `len` bytes, which are copied.
        unsafe { owned_data(nftnl_set_elem_get(raw.as_ptr(), attr(number), &raw mut len), len) }
    };
    let number = |number: u32| data(number).and_then(|bytes| Some(u32::from_ne_bytes(bytes.try_into().ok()?)));
    let name = |number: u32| {
        // SAFETY: as above; a string attribute is null or ends in NUL.
        unsafe { owned_str(nftnl_set_elem_get_str(raw.as_ptr(), attr(number))) }
    };
    let has = |number: u32| {
        // SAFETY: as above.
        unsafe { nftnl_set_elem_is_set(raw.as_ptr(), attr(number)) }
    };
    let counter = || {
        let mut len = 0;
        // SAFETY: as above; the expression is the element's.
        unsafe { counted(nftnl_set_elem_get(raw.as_ptr(), attr(NFTNL_SET_ELEM_EXPR), &raw mut len)) }
    };
    let counter = if has(NFTNL_SET_ELEM_EXPR) { counter() } else { None };
    RawElement {
        key: data(NFTNL_SET_ELEM_KEY).unwrap_or_default(),
        flags: number(NFTNL_SET_ELEM_FLAGS).unwrap_or(0),
        verdict: number(NFTNL_SET_ELEM_VERDICT),
        chain: name(NFTNL_SET_ELEM_CHAIN),
        object: name(NFTNL_SET_ELEM_OBJREF),
        user_data: data(NFTNL_SET_ELEM_USERDATA).unwrap_or_default(),
        counter,
        more: MORE.iter().any(|number| has(*number)) || (has(NFTNL_SET_ELEM_EXPR) && counter.is_none()),
    }
}

/// # Safety
/// `value` is null or a string that ends in NUL.
unsafe fn owned_str(value: *const c_char) -> Option<String> {
    // SAFETY: the caller's.
    (!value.is_null()).then(|| unsafe { CStr::from_ptr(value) }.to_string_lossy().into_owned())
}

/// # Safety
/// `value` is null or has `len` readable bytes.
unsafe fn owned_data(value: *const c_void, len: u32) -> Option<Vec<u8>> {
    let len = usize::try_from(len).ok()?;
    // SAFETY: the caller's.
    (!value.is_null()).then(|| unsafe { std::slice::from_raw_parts(value.cast::<u8>(), len) }.to_vec())
}

/// Writes messages one behind the other.
pub(super) struct Writer {
    /// One message: twice what the largest takes.
    scratch: Vec<u64>,
    /// All messages so far.
    pub(super) out: Vec<u8>,
}

/// Type, family, flags and sequence number of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) kind: u16,
    pub(super) family: u16,
    pub(super) flags: u16,
    pub(super) seq: u32,
}

impl Writer {
    pub(super) fn new() -> Result<Self, EncodeError> {
        let largest = usize::try_from(nft_nlmsg_maxsize()).map_err(|_| EncodeError::Memory)?;
        Ok(Self { scratch: vec![0; largest.div_ceil(4)], out: Vec::new() })
    }

    /// Writes a message of an object that brings its own header, with these flags in place of the header's.
    pub(super) fn whole(
        &mut self,
        object: &impl NlMsg,
        kind: MsgType,
        flags: u16,
        seq: u32,
    ) -> Result<(), EncodeError> {
        const NLM_F_REQUEST: u16 = 1;
        let header = self.scratch.as_mut_ptr().cast::<nlmsghdr>();
        // SAFETY: the scratch buffer is aligned and holds twice nft_nlmsg_maxsize bytes; a header stands there when the
        // object is written.
        let written = unsafe {
            object.write(header.cast(), seq, kind);
            (*header).nlmsg_flags = NLM_F_REQUEST | flags;
            (*header).nlmsg_len
        };
        self.take(written)
    }

    /// Writes a message with the object's attributes.
    pub(super) fn message(&mut self, header: Header, payload: &impl Payload) -> Result<(), EncodeError> {
        if payload.weight() > MAX_WEIGHT {
            return Err(EncodeError::TooLarge(payload.weight()));
        }
        let buffer = self.scratch.as_mut_ptr().cast::<c_char>();
        // SAFETY: the scratch buffer is aligned and holds the headers and twice MAX_WEIGHT.
        let written = unsafe {
            let raw = nftnl_nlmsg_build_hdr(buffer, header.kind, header.family, header.flags, header.seq);
            payload.write(raw);
            (*raw).nlmsg_len
        };
        self.take(written)
    }

    /// Opens the transaction.
    pub(super) fn begin(&mut self, seq: u32) -> Result<(), EncodeError> {
        // SAFETY: the scratch buffer is aligned and far larger than the message.
        let written = unsafe { (*nftnl_batch_begin(self.scratch.as_mut_ptr().cast(), seq)).nlmsg_len };
        self.take(written)
    }

    /// Closes the transaction.
    pub(super) fn end(&mut self, seq: u32) -> Result<(), EncodeError> {
        // SAFETY: as in `begin`.
        let written = unsafe { (*nftnl_batch_end(self.scratch.as_mut_ptr().cast(), seq)).nlmsg_len };
        self.take(written)
    }

    /// Appends the message in the scratch buffer, padded to 4 bytes as netlink wants it.
    fn take(&mut self, written: u32) -> Result<(), EncodeError> {
        let len = usize::try_from(written).map_err(|_| EncodeError::Memory)?;
        // SAFETY: a number is as many bytes, each of them valid.
        let (_, bytes, _) = unsafe { self.scratch.align_to::<u8>() };
        self.out.extend_from_slice(bytes.get(..len).ok_or(EncodeError::TooLarge(len))?);
        self.out.resize(self.out.len().next_multiple_of(4), 0);
        Ok(())
    }
}
