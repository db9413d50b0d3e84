//! Rules as the bytecode nft 1.0.6 makes of the equal text.
//!
//! In: expressions of the model. Out: libnftnl expressions. What always holds: a field is loaded only behind the matches
//! that make it mean what it says (the network protocol for addresses, the transport protocol for ports); such a match
//! is not made twice in one rule. Unlike nft's, a rule that asks the mark of a flow more than once fetches it once.

use ipnetwork::IpNetwork;
use nftnl::nftnl_sys::*;

use super::sys::{self, Expr as Code};
use super::types::{bytes, field_value};
use super::{EncodeError, verdict_number};
use crate::ruleset::{CtDirection, Expr, Family, Field, Rule, Value, Verdict};

/// NFT_RULE_MAXEXPRS: the kernel refuses a rule of more.
const MAX_EXPRS: usize = 128;

// Numbers of linux/netfilter/nf_tables.h.
const META_PROTOCOL: u32 = 1;
const META_IIFNAME: u32 = 6;
const META_IIFTYPE: u32 = 8;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const CT_STATE: u32 = 0;
const CT_DIRECTION: u32 = 1;
const CT_MARK: u32 = 3;
const CT_STATE_RELATED: u32 = 4;
const LINK: u32 = 0;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
const EQ: u32 = 0;
const NEQ: u32 = 1;
const LTE: u32 = 3;
const GTE: u32 = 5;
const FIB_DADDR_IIF: u32 = 2 | 8;
const FIB_ADDRTYPE: u32 = 3;
const OBJECT_COUNTER: u32 = 1;
const VERDICT_REGISTER: u32 = 0;

const ARPHRD_ETHER: u16 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_ARP: u16 = 0x0806;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

/// Network protocols.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Net {
    V4,
    V6,
    Arp,
}

/// The bytecode of one rule, and what is already known about the packet where it stands.
struct Program {
    family: Family,
    code: Vec<Code>,
    net: Option<Net>,
    transport: Option<u8>,
    ethernet: bool,
    /// Whether a register of its own holds the mark of the packet's flow, and whether one should.
    has_mark: bool,
    keeps_mark: bool,
}

/// Whether the mark of the packet's flow is asked for again before it is another.
fn asks_again(behind: &[Expr]) -> bool {
    let asks = |expr: &Expr| match expr {
        Expr::CtMark { .. } | Expr::CountMark { .. } => Some(true),
        Expr::SetCtMark { keep, .. } => Some(*keep != 0),
        _ => None,
    };
    behind.iter().find_map(asks).unwrap_or(false)
}

/// The rule's expressions as libnftnl's.
pub(super) fn program(family: Family, rule: &Rule) -> Result<Vec<Code>, EncodeError> {
    let mut program = Program {
        family,
        code: Vec::new(),
        net: None,
        transport: None,
        ethernet: false,
        has_mark: false,
        keeps_mark: false,
    };
    for (at, expr) in rule.exprs.iter().enumerate() {
        program.keeps_mark = asks_again(&rule.exprs[at + 1..]);
        program.expr(expr)?;
    }
    if program.code.len() > MAX_EXPRS { Err(EncodeError::TooManyExprs(program.code.len())) } else { Ok(program.code) }
}

/// The register of a slot of 4 bytes: every fourth one has a name of its own.
fn register(slot: u32) -> u32 {
    if slot.is_multiple_of(4) { NFT_REG_1 + slot / 4 } else { NFT_REG32_00 + slot }
}

const NFT_REG_1: u32 = 1;
const NFT_REG32_00: u32 = 8;

/// The last register, and the slots before it: for a mark that is asked for again.
const KEPT_MARK: u32 = 4;
const FREE_SLOTS: u32 = 12;

/// Bytes a field is loaded with.
fn width(field: Field) -> u32 {
    match field {
        Field::Ip6HopLimit | Field::L4Proto | Field::Icmpv6Type | Field::Ip6NextHdr => 1,
        Field::TcpDport | Field::UdpDport | Field::SctpDport | Field::ThDport | Field::EtherType | Field::Ip6Length => {
            2
        }
        Field::IpSaddr | Field::IpDaddr | Field::FibDaddrIifType | Field::ArpSaddrIp => 4,
        Field::EtherSaddr | Field::ArpSaddrEther => 6,
        Field::NdOption => 8,
        Field::Ip6Saddr | Field::Ip6Daddr | Field::Iifname | Field::NdTarget => 16,
    }
}

impl Program {
    fn expr(&mut self, expr: &Expr) -> Result<(), EncodeError> {
        match expr {
            Expr::CtMark { mask, value, negated } => self.ct_mark(*mask, *value, *negated),
            Expr::CtDirection(direction) => self.ct_direction(*direction),
            Expr::CtStateRelated => self.ct_state_related(),
            Expr::Compare { field, value, negated } => self.compare(*field, value, *negated),
            Expr::Range { field, first, last } => self.range(*field, first, last),
            Expr::Prefix { field, prefix } => self.prefix(*field, prefix),
            Expr::Lookup { key, set } => self.lookup(key, set, false),
            Expr::Vmap { key, map } => self.lookup(key, map, true),
            Expr::Counter(name) => self.counter(name),
            Expr::CountMark { mask, set } => self.count_mark(*mask, set),
            Expr::SetCtMark { keep, value } => self.set_ct_mark(*keep, *value),
            Expr::Limit { rate, burst } => self.limit(*rate, *burst),
            Expr::Log { prefix, group, snaplen } => self.log(prefix, *group, *snaplen),
            Expr::Verdict(verdict) => self.verdict(verdict),
            Expr::Foreign(text) => Err(EncodeError::Foreign(text.clone())),
        }
    }

    fn push(&mut self, code: Code) {
        self.code.push(code);
    }

    fn meta(&mut self, key: u32, register: u32) -> Result<(), EncodeError> {
        self.push(Code::new(c"meta")?.u32(NFTNL_EXPR_META_KEY, key).u32(NFTNL_EXPR_META_DREG, register));
        Ok(())
    }

    fn payload(&mut self, base: u32, offset: u32, len: u32, register: u32) -> Result<(), EncodeError> {
        let code = Code::new(c"payload")?
            .u32(NFTNL_EXPR_PAYLOAD_DREG, register)
            .u32(NFTNL_EXPR_PAYLOAD_BASE, base)
            .u32(NFTNL_EXPR_PAYLOAD_OFFSET, offset)
            .u32(NFTNL_EXPR_PAYLOAD_LEN, len);
        self.push(code);
        Ok(())
    }

    fn ct(&mut self, key: u32, register: u32) -> Result<(), EncodeError> {
        self.push(Code::new(c"ct")?.u32(NFTNL_EXPR_CT_KEY, key).u32(NFTNL_EXPR_CT_DREG, register));
        Ok(())
    }

    fn cmp(&mut self, op: u32, data: &[u8]) -> Result<(), EncodeError> {
        self.cmp_register(NFT_REG_1, op, data)
    }

    fn cmp_register(&mut self, register: u32, op: u32, data: &[u8]) -> Result<(), EncodeError> {
        let code = Code::new(c"cmp")?.u32(NFTNL_EXPR_CMP_SREG, register).u32(NFTNL_EXPR_CMP_OP, op);
        self.push(code.data(NFTNL_EXPR_CMP_DATA, data)?);
        Ok(())
    }

    fn bitwise(&mut self, mask: &[u8], xor: &[u8]) -> Result<(), EncodeError> {
        self.bitwise_registers(NFT_REG_1, NFT_REG_1, mask, xor)
    }

    fn bitwise_registers(&mut self, from: u32, to: u32, mask: &[u8], xor: &[u8]) -> Result<(), EncodeError> {
        let len = u32::try_from(mask.len()).map_err(|_| EncodeError::TooLarge(mask.len()))?;
        let code = Code::new(c"bitwise")?
            .u32(NFTNL_EXPR_BITWISE_SREG, from)
            .u32(NFTNL_EXPR_BITWISE_DREG, to)
            .u32(NFTNL_EXPR_BITWISE_OP, 0)
            .u32(NFTNL_EXPR_BITWISE_LEN, len)
            .data(NFTNL_EXPR_BITWISE_MASK, mask)?
            .data(NFTNL_EXPR_BITWISE_XOR, xor)?;
        self.push(code);
        Ok(())
    }

    /// Makes sure the packet is of this network protocol.
    fn need_net(&mut self, net: Net) -> Result<(), EncodeError> {
        if self.net == Some(net) {
            return Ok(());
        }
        if net == Net::Arp {
            // A routed packet is no ARP: where a frame is seen, nft asks its own header.
            return self.need_ether_type(ETHERTYPE_ARP, Net::Arp);
        }
        match self.family {
            Family::Inet => {
                self.meta(META_NFPROTO, NFT_REG_1)?;
                self.cmp(EQ, &[if net == Net::V4 { NFPROTO_IPV4 } else { NFPROTO_IPV6 }])?;
            }
            Family::Bridge => {
                self.meta(META_PROTOCOL, NFT_REG_1)?;
                let ether_type = if net == Net::V4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
                self.cmp(EQ, &ether_type.to_be_bytes())?;
            }
        }
        self.net = Some(net);
        Ok(())
    }

    /// Makes sure the packet is of this transport protocol.
    fn need_transport(&mut self, protocol: u8) -> Result<(), EncodeError> {
        if self.transport == Some(protocol) {
            return Ok(());
        }
        self.meta(META_L4PROTO, NFT_REG_1)?;
        self.cmp(EQ, &[protocol])?;
        self.transport = Some(protocol);
        Ok(())
    }

    /// ICMPv6 is of IPv6 only; in a bridge nft asks the frame's own header for that.
    fn need_icmpv6(&mut self) -> Result<(), EncodeError> {
        if self.family == Family::Bridge && self.net != Some(Net::V6) {
            self.need_ether_type(ETHERTYPE_IPV6, Net::V6)?;
        }
        self.need_net(Net::V6)?;
        self.need_transport(ICMPV6)
    }

    /// Makes sure the frame's own header says so.
    fn need_ether_type(&mut self, ether_type: u16, net: Net) -> Result<(), EncodeError> {
        self.payload(LINK, 12, 2, NFT_REG_1)?;
        self.cmp(EQ, &ether_type.to_be_bytes())?;
        self.net = Some(net);
        Ok(())
    }

    /// The frame's header can be read only where the device has one.
    fn need_ethernet(&mut self) -> Result<(), EncodeError> {
        if self.family == Family::Inet && !self.ethernet {
            self.meta(META_IIFTYPE, NFT_REG_1)?;
            self.cmp(EQ, &ARPHRD_ETHER.to_ne_bytes())?;
            self.ethernet = true;
        }
        Ok(())
    }

    /// The matches that must stand before a field is loaded.
    fn need(&mut self, field: Field) -> Result<(), EncodeError> {
        match field {
            Field::IpSaddr | Field::IpDaddr => self.need_net(Net::V4),
            Field::Ip6Saddr | Field::Ip6Daddr | Field::Ip6HopLimit | Field::Ip6NextHdr | Field::Ip6Length => {
                self.need_net(Net::V6)
            }
            Field::ArpSaddrEther | Field::ArpSaddrIp => self.need_net(Net::Arp),
            Field::TcpDport => self.need_transport(TCP),
            Field::UdpDport => self.need_transport(UDP),
            Field::SctpDport => self.need_transport(SCTP),
            Field::Icmpv6Type => self.need_icmpv6(),
            Field::EtherType | Field::EtherSaddr => self.need_ethernet(),
            Field::L4Proto
            | Field::ThDport
            | Field::Iifname
            | Field::FibDaddrIifType
            | Field::NdTarget
            | Field::NdOption => Ok(()),
        }
    }

    /// Loads a field, or its first `len` bytes.
    fn load(&mut self, field: Field, len: u32, register: u32) -> Result<(), EncodeError> {
        match field {
            Field::IpSaddr => self.payload(NETWORK, 12, len, register),
            Field::IpDaddr => self.payload(NETWORK, 16, len, register),
            Field::Ip6Saddr => self.payload(NETWORK, 8, len, register),
            Field::Ip6Daddr => self.payload(NETWORK, 24, len, register),
            Field::Ip6HopLimit => self.payload(NETWORK, 7, len, register),
            Field::TcpDport | Field::UdpDport | Field::SctpDport | Field::ThDport => {
                self.payload(TRANSPORT, 2, len, register)
            }
            Field::Icmpv6Type => self.payload(TRANSPORT, 0, len, register),
            Field::EtherSaddr => self.payload(LINK, 6, len, register),
            Field::ArpSaddrEther => self.payload(NETWORK, 8, len, register),
            Field::ArpSaddrIp => self.payload(NETWORK, 14, len, register),
            Field::Ip6NextHdr => self.payload(NETWORK, 6, len, register),
            Field::Ip6Length => self.payload(NETWORK, 4, len, register),
            Field::NdTarget => self.payload(TRANSPORT, 8, len, register),
            Field::NdOption => self.payload(TRANSPORT, 24, len, register),
            Field::EtherType => self.payload(LINK, 12, len, register),
            Field::L4Proto => self.meta(META_L4PROTO, register),
            Field::Iifname => self.meta(META_IIFNAME, register),
            Field::FibDaddrIifType => {
                let code = Code::new(c"fib")?
                    .u32(NFTNL_EXPR_FIB_DREG, register)
                    .u32(NFTNL_EXPR_FIB_RESULT, FIB_ADDRTYPE)
                    .u32(NFTNL_EXPR_FIB_FLAGS, FIB_DADDR_IIF);
                self.push(code);
                Ok(())
            }
        }
    }

    fn compare(&mut self, field: Field, value: &Value, negated: bool) -> Result<(), EncodeError> {
        let data = field_value(field, value)?;
        self.need(field)?;
        self.load(field, width(field), NFT_REG_1)?;
        self.cmp(if negated { NEQ } else { EQ }, &data)?;
        if !negated {
            self.learn(value);
        }
        Ok(())
    }

    /// What a match that passed says about the packet.
    fn learn(&mut self, value: &Value) {
        match value {
            Value::Proto(protocol) => self.transport = Some(*protocol),
            Value::EtherType(ETHERTYPE_IPV4) => self.net = Some(Net::V4),
            Value::EtherType(ETHERTYPE_IPV6) => self.net = Some(Net::V6),
            _ => {}
        }
    }

    fn range(&mut self, field: Field, first: &Value, last: &Value) -> Result<(), EncodeError> {
        if matches!(field, Field::Iifname | Field::FibDaddrIifType) {
            return Err(EncodeError::Range(field));
        }
        let (low, high) = (field_value(field, first)?, field_value(field, last)?);
        self.need(field)?;
        self.load(field, width(field), NFT_REG_1)?;
        self.cmp(GTE, &low)?;
        self.cmp(LTE, &high)
    }

    fn prefix(&mut self, field: Field, prefix: &IpNetwork) -> Result<(), EncodeError> {
        let (address, mask) = match (field, prefix) {
            (Field::IpSaddr | Field::IpDaddr, IpNetwork::V4(v4)) => (Value::V4(v4.network()), Value::V4(v4.mask())),
            (Field::Ip6Saddr | Field::Ip6Daddr | Field::NdTarget, IpNetwork::V6(v6)) => {
                (Value::V6(v6.network()), Value::V6(v6.mask()))
            }
            _ => return Err(EncodeError::Prefix { field, prefix: *prefix }),
        };
        let (address, mask) = (bytes(&address)?, bytes(&mask)?);
        let length = prefix.prefix();
        self.need(field)?;
        // Whole bytes are compared as such, as nft does it: one expression less for each packet.
        if length != 0 && length.is_multiple_of(8) {
            let whole = length / 8;
            self.load(field, u32::from(whole), NFT_REG_1)?;
            return self.cmp(EQ, &address[..usize::from(whole)]);
        }
        self.load(field, width(field), NFT_REG_1)?;
        self.bitwise(&mask, &vec![0; mask.len()])?;
        self.cmp(EQ, &address)
    }

    /// Loads a concatenated key: each field begins in a register of its own.
    fn load_key(&mut self, key: &[Field]) -> Result<(), EncodeError> {
        for field in key {
            self.need(*field)?;
        }
        let mut slot = 0;
        for field in key {
            self.load(*field, width(*field), register(slot))?;
            slot += width(*field).div_ceil(4);
        }
        let free = if self.has_mark { FREE_SLOTS } else { 16 };
        if slot == 0 || slot > free { Err(EncodeError::Key) } else { Ok(()) }
    }

    fn lookup(&mut self, key: &[Field], set: &str, verdict: bool) -> Result<(), EncodeError> {
        self.load_key(key)?;
        self.look_up(set, verdict)
    }

    /// Asks a set or verdict map for what is in the registers from the first.
    fn look_up(&mut self, set: &str, verdict: bool) -> Result<(), EncodeError> {
        self.look_up_register(NFT_REG_1, set, verdict)
    }

    fn look_up_register(&mut self, register: u32, set: &str, verdict: bool) -> Result<(), EncodeError> {
        let code = Code::new(c"lookup")?
            .u32(NFTNL_EXPR_LOOKUP_SREG, register)
            .u32(NFTNL_EXPR_LOOKUP_FLAGS, 0)
            .str(NFTNL_EXPR_LOOKUP_SET, set)?;
        self.push(if verdict { code.u32(NFTNL_EXPR_LOOKUP_DREG, VERDICT_REGISTER) } else { code });
        Ok(())
    }

    fn ct_mark(&mut self, mask: u32, value: u32, negated: bool) -> Result<(), EncodeError> {
        let register = self.masked_mark(mask)?;
        self.cmp_register(register, if negated { NEQ } else { EQ }, &value.to_ne_bytes())
    }

    /// The register with the mark.
    fn mark(&mut self) -> Result<u32, EncodeError> {
        if !self.has_mark {
            let register = if self.keeps_mark { KEPT_MARK } else { NFT_REG_1 };
            self.ct(CT_MARK, register)?;
            self.has_mark = self.keeps_mark;
            return Ok(register);
        }
        Ok(KEPT_MARK)
    }

    /// The register with these bits of it.
    fn masked_mark(&mut self, mask: u32) -> Result<u32, EncodeError> {
        let register = self.mark()?;
        if mask == u32::MAX {
            return Ok(register);
        }
        self.bitwise_registers(register, NFT_REG_1, &mask.to_ne_bytes(), &[0; 4])?;
        Ok(NFT_REG_1)
    }

    fn ct_direction(&mut self, direction: CtDirection) -> Result<(), EncodeError> {
        self.ct(CT_DIRECTION, NFT_REG_1)?;
        self.cmp(EQ, &[if direction == CtDirection::Original { 0 } else { 1 }])
    }

    fn ct_state_related(&mut self) -> Result<(), EncodeError> {
        self.ct(CT_STATE, NFT_REG_1)?;
        self.bitwise(&CT_STATE_RELATED.to_ne_bytes(), &[0; 4])?;
        self.cmp(NEQ, &[0; 4])
    }

    fn set_ct_mark(&mut self, keep: u32, value: u32) -> Result<(), EncodeError> {
        // What is held of it is old from here on.
        self.keeps_mark = false;
        if keep == 0 {
            let code = Code::new(c"immediate")?.u32(NFTNL_EXPR_IMM_DREG, NFT_REG_1);
            self.push(code.data(NFTNL_EXPR_IMM_DATA, &value.to_ne_bytes())?);
        } else {
            let register = self.mark()?;
            self.bitwise_registers(register, NFT_REG_1, &(keep & !value).to_ne_bytes(), &value.to_ne_bytes())?;
        }
        self.has_mark = false;
        self.push(Code::new(c"ct")?.u32(NFTNL_EXPR_CT_KEY, CT_MARK).u32(NFTNL_EXPR_CT_SREG, NFT_REG_1));
        Ok(())
    }

    fn counter(&mut self, name: &str) -> Result<(), EncodeError> {
        let code = Code::new(c"objref")?.u32(NFTNL_EXPR_OBJREF_IMM_TYPE, OBJECT_COUNTER);
        self.push(code.str(NFTNL_EXPR_OBJREF_IMM_NAME, name)?);
        Ok(())
    }

    fn count_mark(&mut self, mask: u32, set: &str) -> Result<(), EncodeError> {
        let register = self.masked_mark(mask)?;
        self.look_up_register(register, set, false)
    }

    fn limit(&mut self, rate: u64, burst: u32) -> Result<(), EncodeError> {
        let code = Code::new(c"limit")?
            .u64(NFTNL_EXPR_LIMIT_RATE, rate)
            .u64(NFTNL_EXPR_LIMIT_UNIT, 1)
            .u32(NFTNL_EXPR_LIMIT_BURST, burst)
            .u32(NFTNL_EXPR_LIMIT_TYPE, 0)
            .u32(NFTNL_EXPR_LIMIT_FLAGS, 0);
        self.push(code);
        Ok(())
    }

    fn log(&mut self, prefix: &str, group: u16, snaplen: u32) -> Result<(), EncodeError> {
        // NF_LOG_PREFIXLEN, its NUL included.
        if prefix.len() > 127 {
            return Err(EncodeError::Comment(prefix.to_owned()));
        }
        let mut code = Code::new(c"log")?.u16(NFTNL_EXPR_LOG_GROUP, group);
        if snaplen != 0 {
            code = code.u32(NFTNL_EXPR_LOG_SNAPLEN, snaplen);
        }
        self.push(if prefix.is_empty() { code } else { code.str(NFTNL_EXPR_LOG_PREFIX, prefix)? });
        Ok(())
    }

    fn verdict(&mut self, verdict: &Verdict) -> Result<(), EncodeError> {
        let (number, chain) = verdict_number(verdict);
        let code = Code::new(c"immediate")?.u32(NFTNL_EXPR_IMM_DREG, VERDICT_REGISTER);
        let code = code.u32(NFTNL_EXPR_IMM_VERDICT, number);
        self.push(if let Some(chain) = chain { code.str(NFTNL_EXPR_IMM_CHAIN, chain)? } else { code });
        Ok(())
    }
}

/// A rule with its expressions, without a place.
pub(super) fn bare_rule(family: Family, rule: &Rule) -> Result<sys::Rule, EncodeError> {
    let mut object = sys::Rule::new()?;
    for code in program(family, rule)? {
        object.add(code);
    }
    Ok(object)
}
