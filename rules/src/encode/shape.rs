//! Whether a received message is what libnftnl takes it for.
//!
//! In: a message, and which kind of object it is about. Out: yes or no. What always holds: libnftnl ends the process at an attribute of another
//! size than the kernel's, and reads or writes past an end at some others; what is not known to be well formed is never handed to it, and
//! reads as what it cannot read. Attributes with numbers that are new to libnftnl are passed over, as it does.

/// What an attribute holds.
#[derive(Clone, Copy)]
enum Shape {
    /// A number of this many bytes.
    Number(usize),
    /// NFT_OBJECT_COUNTER.
    CounterType,
    /// Text that ends in NUL.
    Text,
    /// Anything.
    Bytes,
    /// Attributes, each once at most.
    Nest(&'static [Part]),
    /// The same, of which no other is known to be harmless: libnftnl would write past the end of its table.
    Closed(&'static [Part]),
    /// Attributes of the number 1, of one shape, no more than this many.
    List(&'static Shape, usize),
    /// A value of a register.
    Value,
    /// A value or a verdict.
    Data,
    /// An expression.
    Expression,
}

/// The number of an attribute, and what it holds.
type Part = (u16, Shape);

use Shape::{Bytes, Closed, CounterType, Data, Expression, List, Nest, Number, Text, Value};

const U8: Shape = Number(1);
const U16: Shape = Number(2);
const U32: Shape = Number(4);
const U64: Shape = Number(8);

/// As many as a message has room for.
const ANY: usize = usize::MAX;

/// NFT_REG32_COUNT: libnftnl's array of the fields of a concatenation.
const FIELDS: usize = 16;

/// NFT_DATA_VALUE_MAXLEN.
const VALUE_BYTES: usize = 64;

/// A kind of object, by what libnftnl reads of it: its attributes of linux/netfilter/nf_tables.h.
#[derive(Clone, Copy)]
pub(super) struct Kind(&'static [Part]);

pub(super) const TABLE: Kind = Kind(&[(1, Text), (2, U32), (3, U32), (4, U64), (6, Bytes), (7, U32)]);

pub(super) const CHAIN: Kind = Kind(&[
    (1, Text),
    (2, U64),
    (3, Text),
    (4, Nest(&[(1, U32), (2, U32), (3, Text), (4, List(&Text, ANY))])),
    (5, U32),
    (6, U32),
    (7, Text),
    (8, Nest(COUNTED)),
    (10, U32),
    (11, U32),
    (12, Bytes),
]);

pub(super) const RULE: Kind = Kind(&[
    (1, Text),
    (2, Text),
    (3, U64),
    (4, List(&Expression, ANY)),
    (5, Nest(&[(1, U32), (2, U32)])),
    (6, U64),
    (7, Bytes),
    (9, U32),
    (10, U32),
    (11, U32),
]);

pub(super) const SET: Kind = Kind(&[
    (1, Text),
    (2, Text),
    (3, U32),
    (4, U32),
    (5, U32),
    (6, U32),
    (7, U32),
    (8, U32),
    (9, Nest(&[(1, U32), (2, List(&Nest(&[(1, U32)]), FIELDS))])),
    (10, U32),
    (11, U64),
    (12, U32),
    (13, Bytes),
    (15, U32),
    (16, U64),
    (17, Expression),
    (18, List(&Expression, ANY)),
]);

pub(super) const ELEMENTS: Kind = Kind(&[(1, Text), (2, Text), (3, List(&Closed(ELEMENT), ANY)), (4, U32)]);

/// Of a counter: what other objects hold depends on their type, and nothing here has one.
pub(super) const COUNTER: Kind =
    Kind(&[(1, Text), (2, Text), (3, CounterType), (4, Nest(COUNTED)), (5, U32), (6, U64), (8, Bytes)]);

const ELEMENT: &[Part] = &[
    (1, Value),
    (2, Data),
    (3, U32),
    (4, U64),
    (5, U64),
    (6, Bytes),
    (7, Expression),
    (8, Bytes),
    (9, Text),
    (10, Value),
    (11, List(&Expression, ANY)),
];

const COUNTED: &[Part] = &[(1, U64), (2, U64)];

const VERDICT: &[Part] = &[(1, U32), (2, Text), (3, U32)];

/// The expressions of rules that are made here; of others nothing but their presence matters.
const EXPRESSIONS: [(&[u8], &[Part]); 12] = [
    (b"bitwise\0", &[(1, U32), (2, U32), (3, U32), (4, Value), (5, Value), (6, U32), (7, Value)]),
    (b"cmp\0", &[(1, U32), (2, U32), (3, Value)]),
    (b"counter\0", COUNTED),
    (b"ct\0", &[(1, U32), (2, U32), (3, U8), (4, U32)]),
    (b"fib\0", &[(1, U32), (2, U32), (3, U32)]),
    (b"immediate\0", &[(1, U32), (2, Data)]),
    (b"limit\0", &[(1, U64), (2, U64), (3, U32), (4, U32), (5, U32)]),
    (b"log\0", &[(1, U16), (2, Text), (3, U32), (4, U16), (5, U32), (6, U32)]),
    (b"lookup\0", &[(1, Text), (2, U32), (3, U32), (4, U32), (5, U32)]),
    (b"meta\0", &[(1, U32), (2, U32), (3, U32)]),
    (b"objref\0", &[(1, U32), (2, Text), (3, U32), (4, Text), (5, U32)]),
    (b"payload\0", &[(1, U32), (2, U32), (3, U32), (4, U32), (5, U32), (6, U32), (7, U32), (8, U32)]),
];

impl Kind {
    /// Whether what stands behind the headers is well formed.
    pub(super) fn fits(self, attributes: &[u8]) -> bool {
        Nest(self.0).fits(attributes)
    }
}

impl Shape {
    fn fits(self, payload: &[u8]) -> bool {
        match self {
            Number(bytes) => payload.len() == bytes,
            CounterType => payload == [0, 0, 0, 1],
            Text => payload.contains(&0),
            Bytes => true,
            Nest(parts) => nest(payload, parts, true).is_some(),
            Closed(parts) => nest(payload, parts, false).is_some(),
            List(item, most) => list(payload, *item, most),
            Value => matches!(data(payload), Some((Some(_), None))),
            Data => matches!(data(payload), Some((Some(_), None) | (None, Some(_)))),
            Expression => expression(payload).is_some(),
        }
    }
}

/// The next attribute: its number and what it holds. `None` where lengths contradict each other.
fn next<'a>(rest: &mut &'a [u8]) -> Option<(u16, &'a [u8])> {
    const HEADER: usize = 4;
    const NUMBER: u16 = 0x3fff;
    let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
    let number = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?) & NUMBER;
    let payload = rest.get(HEADER..length)?;
    *rest = rest.get(length.next_multiple_of(HEADER)..).unwrap_or_default();
    Some((number, payload))
}

/// Walks a nest whose parts are well formed and not there twice.
fn nest(mut rest: &[u8], parts: &[Part], is_open: bool) -> Option<()> {
    let mut seen = 0_u32;
    while !rest.is_empty() {
        let (number, payload) = next(&mut rest)?;
        match parts.iter().position(|(known, _)| *known == number) {
            Some(place) => {
                let bit = 1 << place;
                if seen & bit != 0 || !parts[place].1.fits(payload) {
                    return None;
                }
                seen |= bit;
            }
            None if is_open => {}
            None => return None,
        }
    }
    Some(())
}

fn list(mut rest: &[u8], item: Shape, most: usize) -> bool {
    let mut count = 0;
    while !rest.is_empty() {
        count += 1;
        if count > most || !next(&mut rest).is_some_and(|(number, payload)| number == 1 && item.fits(payload)) {
            return false;
        }
    }
    true
}

/// The first attribute of this number in a nest that was walked.
fn find(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    while !rest.is_empty() {
        let (number, payload) = next(&mut rest)?;
        if number == wanted {
            return Some(payload);
        }
    }
    None
}

/// The value and the verdict of NFTA_DATA_*.
fn data(payload: &[u8]) -> Option<(Option<&[u8]>, Option<u32>)> {
    nest(payload, &[(1, Bytes), (2, Nest(VERDICT))], true)?;
    let value = find(payload, 1);
    if value.is_some_and(|value| value.is_empty() || value.len() > VALUE_BYTES) {
        return None;
    }
    let verdict = match find(payload, 2) {
        Some(nest) => Some(verdict(nest)?),
        None => None,
    };
    Some((value, verdict))
}

/// A verdict that libnftnl knows, with the chain that it needs.
fn verdict(nest: &[u8]) -> Option<u32> {
    const QUEUE: u32 = 3;
    const GOTO: u32 = 0xffff_fffc;
    const JUMP: u32 = 0xffff_fffd;
    let code = u32::from_be_bytes(*find(nest, 1)?.first_chunk()?);
    match code {
        GOTO | JUMP => find(nest, 2).map(|_| code),
        0 | 1 | QUEUE | 0xffff_fffb | 0xffff_fffe | 0xffff_ffff => Some(code),
        _ => None,
    }
}

fn expression(payload: &[u8]) -> Option<()> {
    const NAME: u16 = 1;
    const DATA: u16 = 2;
    nest(payload, &[(NAME, Text), (DATA, Bytes)], true)?;
    let name = find(payload, NAME)?;
    let (_, parts) = EXPRESSIONS.iter().find(|(known, _)| *known == name)?;
    find(payload, DATA).is_none_or(|data| Nest(parts).fits(data)).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attr(number: u16, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len() + 4).expect("short");
        let mut bytes = [length.to_ne_bytes(), number.to_ne_bytes()].concat();
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn rule(expression: &str, data: &[u8]) -> Vec<u8> {
        let name = format!("{expression}\0");
        attr(4, &attr(1, &[attr(1, name.as_bytes()), attr(2, data)].concat()))
    }

    #[test]
    fn what_the_kernel_sends_fits() {
        let counter = [attr(1, &7_u64.to_be_bytes()), attr(2, &1_u64.to_be_bytes())].concat();
        assert!(RULE.fits(&[attr(1, b"t\0"), attr(2, b"c\0"), rule("counter", &counter)].concat()));
        let jump = attr(2, &[attr(1, &[255, 255, 255, 253]), attr(2, b"chain\0")].concat());
        assert!(RULE.fits(&rule("immediate", &[attr(1, &[0; 4]), attr(2, &jump)].concat())));
        let element = [attr(1, &attr(1, &[10, 0, 0, 1])), attr(2, &jump), attr(3, &[0; 4])].concat();
        assert!(ELEMENTS.fits(&attr(3, &attr(1, &element))));
        assert!(TABLE.fits(&attr(0x3ffe, b"an attribute of the future")), "libnftnl passes it over");
    }

    /// Each of these ends the process within libnftnl, or has it read or write where nothing of its own is.
    #[test]
    fn what_libnftnl_cannot_stand_does_not_fit() {
        assert!(!TABLE.fits(&attr(2, &[0; 3])), "a number of another size");
        assert!(!TABLE.fits(&attr(1, b"text without an end")));
        assert!(!TABLE.fits(&[attr(1, b"a\0"), attr(1, b"b\0")].concat()), "twice");
        assert!(!TABLE.fits(&[9, 0, 1, 0, 0]), "longer than what is there");
        assert!(!TABLE.fits(&[3, 0, 1, 0]), "shorter than its header");
        let fields: Vec<u8> = (0..17).flat_map(|_| attr(1, &attr(1, &[0, 0, 0, 4]))).collect();
        assert!(!SET.fits(&attr(9, &attr(2, &fields))), "more fields than there is room for");
        assert!(SET.fits(&attr(9, &attr(2, &fields[..fields.len() / 17 * 16]))));
        assert!(!ELEMENTS.fits(&attr(3, &attr(1, &attr(18, &[])))), "past the end of the table of attributes");
        assert!(!ELEMENTS.fits(&attr(3, &attr(1, &attr(1, &[])))), "a key of nothing");
        assert!(!RULE.fits(&attr(4, &attr(1, &attr(2, &[])))), "an expression without a name");
        assert!(!RULE.fits(&rule("immediate", &attr(2, &attr(2, &[])))), "a verdict without its code");
        assert!(
            !RULE.fits(&rule("immediate", &attr(2, &attr(2, &attr(1, &[255, 255, 255, 253]))))),
            "a jump to nowhere"
        );
        let object = |kind: u8| [attr(3, &[0, 0, 0, kind]), attr(4, &attr(1, &[0; 8]))].concat();
        assert!(COUNTER.fits(&object(1)) && !COUNTER.fits(&object(6)), "read as what it is not");
        assert!(!RULE.fits(&rule("cmp", &attr(3, &attr(1, &[0; 65])))), "wider than a register");
    }
}
