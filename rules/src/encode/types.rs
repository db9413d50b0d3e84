//! Values, keys and user data as the bytes nft gives the kernel, and back.
//!
//! In: values and types of the model. Out: bytes in the order and width of nft's data types. What always holds: a value
//! goes only where its type belongs; what was encoded decodes to the same value.

use std::net::{Ipv4Addr, Ipv6Addr};

use nftnl::ProtoFamily;

use super::EncodeError;
use crate::names::COMMENT_MAX;
use crate::ruleset::{Element, Family, Field, KeyType, Set, Value};

/// IFNAMSIZ, the bytes of an interface's name.
pub(super) const IFNAME: usize = 16;

/// NFT_SET_ELEM_INTERVAL_END.
pub(super) const INTERVAL_END: u32 = 1;

/// User data of an element whose interval has no end element: NFTNL_SET_ELEM_F_INTERVAL_OPEN.
pub(super) const OPEN_INTERVAL: [u8; 6] = [1, 4, 1, 0, 0, 0];

/// nft's numbers of data types take 6 bits in the number of a concatenation.
const TYPE_BITS: u32 = 6;

/// The kernel's family of a family.
pub(super) fn proto_family(family: Family) -> ProtoFamily {
    match family {
        Family::Inet => ProtoFamily::Inet,
        Family::Bridge => ProtoFamily::Bridge,
    }
}

/// The kernel's number of a family.
#[expect(clippy::as_conversions, reason = "the one way to an enum's number; all of them fit")]
pub fn family(family: Family) -> u8 {
    proto_family(family) as u8
}

/// The family of a kernel's number, of those in use here.
pub fn family_of(number: u32) -> Option<Family> {
    [Family::Inet, Family::Bridge].into_iter().find(|&known| u32::from(family(known)) == number)
}

/// All types of keys.
const KEY_TYPES: [KeyType; 8] = [
    KeyType::Ipv4Addr,
    KeyType::Ipv6Addr,
    KeyType::InetProto,
    KeyType::InetService,
    KeyType::Ifname,
    KeyType::Mark,
    KeyType::Icmpv6Type,
    KeyType::EtherAddr,
];

/// nft's number of a data type.
fn type_number(key: KeyType) -> u32 {
    match key {
        KeyType::Ipv4Addr => 7,
        KeyType::Ipv6Addr => 8,
        KeyType::EtherAddr => 9,
        KeyType::InetProto => 12,
        KeyType::InetService => 13,
        KeyType::Mark => 19,
        KeyType::Icmpv6Type => 29,
        KeyType::Ifname => 41,
    }
}

/// Bytes of a value of a type.
pub(super) fn width(key: KeyType) -> usize {
    match key {
        KeyType::InetProto | KeyType::Icmpv6Type => 1,
        KeyType::InetService => 2,
        KeyType::Ipv4Addr | KeyType::Mark => 4,
        KeyType::EtherAddr => 6,
        KeyType::Ipv6Addr | KeyType::Ifname => 16,
    }
}

/// Type number and length of a key.
pub(super) fn key_type(key: &[KeyType]) -> Result<(u32, u32), EncodeError> {
    let length: usize = match key {
        [one] => width(*one),
        [] => return Err(EncodeError::Key),
        many => many.iter().map(|key| width(*key).next_multiple_of(4)).sum(),
    };
    if key.len() > 5 {
        return Err(EncodeError::Key);
    }
    let number = key.iter().fold(0, |number, key| number << TYPE_BITS | type_number(*key));
    Ok((number, u32::try_from(length).map_err(|_| EncodeError::Key)?))
}

/// The types of a key of this number; `None` when there is one that is not in use here.
pub(super) fn key_types(mut number: u32) -> Option<Vec<KeyType>> {
    let mut types = Vec::new();
    while number != 0 {
        let one = number & ((1 << TYPE_BITS) - 1);
        types.insert(0, KEY_TYPES.into_iter().find(|key| type_number(*key) == one)?);
        number >>= TYPE_BITS;
    }
    (!types.is_empty()).then_some(types)
}

/// nft's byte order of a key: 1 as on this machine, 2 as on the wire, 0 for a concatenation.
fn byte_order(key: &[KeyType]) -> u8 {
    match key {
        [KeyType::Mark | KeyType::Ifname] => 1,
        [_] => 2,
        _ => 0,
    }
}

/// The type a value has.
fn type_of(value: &Value) -> Option<KeyType> {
    Some(match value {
        Value::V4(_) => KeyType::Ipv4Addr,
        Value::V6(_) => KeyType::Ipv6Addr,
        Value::Proto(_) => KeyType::InetProto,
        Value::Port(_) => KeyType::InetService,
        Value::Ifname(_) => KeyType::Ifname,
        Value::Mark(_) => KeyType::Mark,
        Value::Icmpv6Type(_) => KeyType::Icmpv6Type,
        Value::Ether(_) => KeyType::EtherAddr,
        Value::HopLimit(_) | Value::EtherType(_) | Value::AddrType(_) | Value::Length(_) | Value::NdOption(_) => {
            return None;
        }
    })
}

/// The bytes of a value.
pub(super) fn bytes(value: &Value) -> Result<Vec<u8>, EncodeError> {
    Ok(match value {
        Value::V4(address) => address.octets().to_vec(),
        Value::V6(address) => address.octets().to_vec(),
        Value::Proto(number) | Value::Icmpv6Type(number) | Value::HopLimit(number) => vec![*number],
        Value::Port(number) | Value::EtherType(number) | Value::Length(number) => number.to_be_bytes().to_vec(),
        Value::Ether(address) => address.to_vec(),
        Value::NdOption(bytes) => bytes.to_vec(),
        Value::Mark(number) | Value::AddrType(number) => number.to_ne_bytes().to_vec(),
        Value::Ifname(name) => ifname(name)?,
    })
}

fn ifname(name: &str) -> Result<Vec<u8>, EncodeError> {
    if name.is_empty() || name.len() >= IFNAME || name.contains('\0') || name.ends_with('*') {
        return Err(EncodeError::Ifname(name.to_owned()));
    }
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(IFNAME, 0);
    Ok(bytes)
}

/// The value of `bytes`, which are as many as `key` is wide.
fn value(key: KeyType, bytes: &[u8]) -> Option<Value> {
    Some(match key {
        KeyType::Ipv4Addr => Value::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        KeyType::Ipv6Addr => Value::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        KeyType::InetProto => Value::Proto(*bytes.first()?),
        KeyType::Icmpv6Type => Value::Icmpv6Type(*bytes.first()?),
        KeyType::InetService => Value::Port(u16::from_be_bytes(bytes.try_into().ok()?)),
        KeyType::EtherAddr => Value::Ether(bytes.try_into().ok()?),
        KeyType::Mark => Value::Mark(u32::from_ne_bytes(bytes.try_into().ok()?)),
        KeyType::Ifname => {
            let end = bytes.iter().position(|byte| *byte == 0)?;
            Value::Ifname(str::from_utf8(&bytes[..end]).ok()?.to_owned())
        }
    })
}

/// The value a field is compared with, in the width it is loaded with.
pub(super) fn field_value(field: Field, value: &Value) -> Result<Vec<u8>, EncodeError> {
    let fits = matches!(
        (field, value),
        (Field::IpSaddr | Field::IpDaddr | Field::ArpSaddrIp, Value::V4(_))
            | (Field::Ip6Saddr | Field::Ip6Daddr | Field::NdTarget, Value::V6(_))
            | (Field::Ip6HopLimit, Value::HopLimit(_))
            | (Field::L4Proto | Field::Ip6NextHdr, Value::Proto(_))
            | (Field::EtherSaddr | Field::ArpSaddrEther, Value::Ether(_))
            | (Field::Ip6Length, Value::Length(_))
            | (Field::NdOption, Value::NdOption(_))
            | (Field::TcpDport | Field::UdpDport | Field::SctpDport | Field::ThDport, Value::Port(_))
            | (Field::Icmpv6Type, Value::Icmpv6Type(_))
            | (Field::Iifname, Value::Ifname(_))
            | (Field::EtherType, Value::EtherType(_))
            | (Field::FibDaddrIifType, Value::AddrType(_))
    );
    if fits { bytes(value) } else { Err(EncodeError::Value { field, value: value.clone() }) }
}

/// The key of an element that is no range: concatenated values each fill whole registers.
pub(super) fn key_bytes(values: &[Value]) -> Result<Vec<u8>, EncodeError> {
    if values.is_empty() || values.iter().any(|value| type_of(value).is_none()) {
        return Err(EncodeError::Element(Element::key(values.to_vec())));
    }
    if let [one] = values {
        return bytes(one);
    }
    let mut all = Vec::new();
    for value in values {
        all.extend(bytes(value)?);
        all.resize(all.len().next_multiple_of(4), 0);
    }
    Ok(all)
}

/// The values of a key; `None` when the bytes are not of these types.
pub(super) fn key_values(key: &[KeyType], mut bytes: &[u8]) -> Option<Vec<Value>> {
    if let [one] = key {
        return (bytes.len() == width(*one)).then(|| value(*one, bytes))?.map(|value| vec![value]);
    }
    let mut values = Vec::new();
    for one in key {
        let (field, rest) = bytes.split_at_checked(width(*one).next_multiple_of(4))?;
        values.push(value(*one, &field[..width(*one)])?);
        bytes = rest;
    }
    bytes.is_empty().then_some(values)
}

/// First key and the key behind the last one, `None` where the range ends at the largest value.
pub(super) fn range_bytes(first: &Value, last: &Value) -> Result<(Vec<u8>, Option<Vec<u8>>), EncodeError> {
    let ordered = !matches!(type_of(first), None | Some(KeyType::Mark | KeyType::Ifname));
    if !ordered || type_of(first) != type_of(last) || first > last {
        return Err(EncodeError::Element(Element::Range(first.clone(), last.clone())));
    }
    Ok((bytes(first)?, step(bytes(last)?, u8::overflowing_add)))
}

/// The value before the key of an end element.
pub(super) fn last_of_range(key: KeyType, end: &[u8]) -> Option<Value> {
    value(key, &step(end.to_vec(), u8::overflowing_sub)?)
}

/// The largest value of a type.
pub(super) fn largest(key: KeyType) -> Option<Value> {
    value(key, &vec![0xff; width(key)])
}

/// One up or down from a number of many bytes; `None` where that leaves its range.
fn step(mut bytes: Vec<u8>, one: fn(u8, u8) -> (u8, bool)) -> Option<Vec<u8>> {
    for byte in bytes.iter_mut().rev() {
        let (next, carry) = one(*byte, 1);
        *byte = next;
        if !carry {
            return Some(bytes);
        }
    }
    None
}

/// One item of nft's user data: type, length, value.
fn item(kind: u8, value: &[u8]) -> Vec<u8> {
    // Callers give comments that were checked and numbers.
    let length = u8::try_from(value.len()).unwrap_or(u8::MAX);
    let mut bytes = vec![kind, length];
    bytes.extend(value.iter().take(usize::from(length)));
    bytes
}

/// A comment as user data of this type; nothing for an empty one.
pub(super) fn comment(kind: u8, text: &str) -> Result<Vec<u8>, EncodeError> {
    if text.len() > COMMENT_MAX || text.contains('\0') {
        return Err(EncodeError::Comment(text.to_owned()));
    }
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let mut value = text.as_bytes().to_vec();
    value.push(0);
    Ok(item(kind, &value))
}

/// NFTNL_UDATA_SET_COMMENT; tables, chains, rules and objects have theirs at 0.
pub(super) const SET_COMMENT: u8 = 7;

/// The user data nft gives a set: byte orders, so that a listing shows the values right, and the comment.
pub(super) fn set_user_data(set: &Set) -> Result<Vec<u8>, EncodeError> {
    const KEY_BYTE_ORDER: u8 = 0;
    let mut bytes = item(KEY_BYTE_ORDER, &u32::from(byte_order(&set.key)).to_ne_bytes());
    bytes.extend(comment(SET_COMMENT, &set.comment)?);
    Ok(bytes)
}

/// The comment in user data; empty for none, `None` when the user data is no list of items.
pub(super) fn comment_of(kind: u8, mut bytes: &[u8]) -> Option<String> {
    let mut found = String::new();
    while let [this, length, rest @ ..] = bytes {
        let (value, rest) = rest.split_at_checked(usize::from(*length))?;
        if *this == kind {
            found = str::from_utf8(value.strip_suffix(&[0])?).ok()?.to_owned();
        }
        bytes = rest;
    }
    bytes.is_empty().then_some(found)
}
