//! Which bits of ct mark a rule may change.
//!
//! In: the expressions of one rule, as the kernel dumps them. Out: a mask of the bits it may write. What always holds:
//! a bit is left out only if the rule was seen to carry it over from ct mark itself; what is not understood counts as
//! written.

use std::collections::BTreeMap;

use crate::netlink::{Attr, Attrs, Malformed, field};

const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_CT_DREG: u16 = 1;
const NFTA_CT_KEY: u16 = 2;
const NFTA_CT_SREG: u16 = 4;
const NFT_CT_MARK: u32 = 3;
const NFTA_BITWISE_SREG: u16 = 1;
const NFTA_BITWISE_DREG: u16 = 2;
const NFTA_BITWISE_MASK: u16 = 4;
const NFTA_BITWISE_XOR: u16 = 5;
const NFTA_BITWISE_OP: u16 = 6;
const NFT_BITWISE_BOOL: u32 = 0;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_TARGET_NAME: u16 = 1;
const NFTA_TARGET_INFO: u16 = 3;
const XT_CONNMARK_SET: u8 = 0;
const XT_CONNMARK_SAVE: u8 = 1;
const XT_CONNMARK_RESTORE: u8 = 2;

/// Registers, each with the bits of it that are still the flow's own ct mark, unchanged.
type Registers = BTreeMap<u32, u32>;

/// The bits of ct mark that a rule with these expressions may change.
pub fn written(expressions: Attrs<'_>) -> Result<u32, Malformed> {
    let mut registers = Registers::new();
    let mut written = 0;
    for expression in expressions {
        let parts = expression?.nested();
        let (Some(name), Some(data)) = (parts.find_kind(NFTA_EXPR_NAME)?, parts.find_kind(NFTA_EXPR_DATA)?) else {
            // Expressions without data (none known) write no register.
            continue;
        };
        match name.text()? {
            "ct" => written |= ct(data.nested(), &mut registers)?,
            "bitwise" => bitwise(data.nested(), &mut registers)?,
            "target" => written |= target(data.nested())?,
            // These write no register; everything else may.
            "cmp" | "counter" | "log" | "limit" | "quota" => {}
            _ => registers.clear(),
        }
    }
    Ok(written)
}

fn number(attrs: &Attrs<'_>, kind: u16) -> Result<Option<u32>, Malformed> {
    attrs.find_kind(kind)?.map(|attr| attr.u32_be()).transpose()
}

fn ct(attrs: Attrs<'_>, registers: &mut Registers) -> Result<u32, Malformed> {
    let mark = number(&attrs, NFTA_CT_KEY)? == Some(NFT_CT_MARK);
    if let Some(source) = number(&attrs, NFTA_CT_SREG)? {
        let kept = registers.get(&source).copied().unwrap_or(0);
        return Ok(if mark { !kept } else { 0 });
    }
    if let Some(destination) = number(&attrs, NFTA_CT_DREG)? {
        registers.insert(destination, if mark { u32::MAX } else { 0 });
    }
    Ok(0)
}

fn bitwise(attrs: Attrs<'_>, registers: &mut Registers) -> Result<(), Malformed> {
    let (source, destination) = (number(&attrs, NFTA_BITWISE_SREG)?, number(&attrs, NFTA_BITWISE_DREG)?);
    let (Some(source), Some(destination)) = (source, destination) else {
        registers.clear();
        return Ok(());
    };
    let plain = number(&attrs, NFTA_BITWISE_OP)?.unwrap_or(NFT_BITWISE_BOOL) == NFT_BITWISE_BOOL;
    let before = registers.get(&source).copied().unwrap_or(0);
    let mask = value(attrs.find_kind(NFTA_BITWISE_MASK)?)?;
    let xor = value(attrs.find_kind(NFTA_BITWISE_XOR)?)?;
    let kept = match (mask, xor) {
        (Some(mask), Some(xor)) if plain => before & mask & !xor,
        _ => 0,
    };
    registers.insert(destination, kept);
    Ok(())
}

/// A constant of 32 bits, which is how wide ct mark is; none for others.
fn value(data: Option<Attr<'_>>) -> Result<Option<u32>, Malformed> {
    let Some(data) = data else { return Ok(None) };
    let value = data.nested().find_kind(NFTA_DATA_VALUE)?;
    Ok(value.and_then(|value| value.u32_ne().ok()))
}

/// What iptables' CONNMARK target changes: struct xt_connmark_tginfo1 and its successor begin alike.
fn target(attrs: Attrs<'_>) -> Result<u32, Malformed> {
    let is_connmark = attrs.find_kind(NFTA_TARGET_NAME)?.is_some_and(|name| name.text() == Ok("CONNMARK"));
    let Some(info) = attrs.find_kind(NFTA_TARGET_INFO)?.filter(|_| is_connmark) else { return Ok(0) };
    let [mark, ct_mask, packet_mask] = [0, 4, 8].map(|at| field(info.payload, at).map(u32::from_ne_bytes));
    let [mode] = field(info.payload, 12)?;
    Ok(match mode {
        XT_CONNMARK_SET => mark? | ct_mask?,
        XT_CONNMARK_SAVE => ct_mask? | packet_mask?,
        XT_CONNMARK_RESTORE => 0,
        _ => u32::MAX,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{DUMP, Messages, Request};

    fn connmark(info: &[u8]) -> Vec<u8> {
        let request = Request::new(0, DUMP, &[]).nest(1, |expression| {
            expression
                .text(NFTA_EXPR_NAME, "target")
                .nest(NFTA_EXPR_DATA, |data| data.text(NFTA_TARGET_NAME, "CONNMARK").attr(NFTA_TARGET_INFO, info))
        });
        request.finish(0).expect("short")
    }

    fn bits(mark: u32, ct_mask: u32, packet_mask: u32, mode: u8) -> u32 {
        let mut info: Vec<u8> = [mark, ct_mask, packet_mask].into_iter().flat_map(u32::to_ne_bytes).collect();
        info.extend([mode, 0, 0, 0]);
        let bytes = connmark(&info);
        let message = Messages::new(&bytes).next().expect("one").expect("well formed");
        written(Attrs::new(message.payload)).expect("reads")
    }

    #[test]
    fn the_connmark_target_writes_what_its_mode_says() {
        assert_eq!(bits(0x80, 0x80, 0, XT_CONNMARK_SET), 0x80);
        assert_eq!(bits(1, u32::MAX, 0, XT_CONNMARK_SET), u32::MAX);
        assert_eq!(bits(0, 0xff, 0xff00, XT_CONNMARK_SAVE), 0xffff);
        assert_eq!(bits(0, u32::MAX, u32::MAX, XT_CONNMARK_RESTORE), 0);
        assert_eq!(bits(0, 0, 0, 9), u32::MAX);
    }

    #[test]
    fn a_target_cut_short_is_malformed() {
        let bytes = connmark(&[0; 8]);
        let message = Messages::new(&bytes).next().expect("one").expect("well formed");
        assert!(written(Attrs::new(message.payload)).is_err());
    }
}
