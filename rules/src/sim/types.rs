//! Which values, fields and keys are of one type.
//!
//! In: any of them. Out: [`Kind`]. What always holds: two things can be compared in a rule exactly if their kinds are equal.

use crate::ruleset::{Field, KeyType, Value};

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ipv4_addr.
    Ipv4,
    /// ipv6_addr.
    Ipv6,
    /// inet_proto.
    Proto,
    /// inet_service.
    Port,
    /// ifname.
    Ifname,
    /// mark.
    Mark,
    /// icmpv6_type.
    Icmpv6Type,
    /// integer of a byte.
    HopLimit,
    /// ether_type.
    EtherType,
    /// fib_addrtype.
    AddrType,
    /// ether_addr.
    Ether,
    /// integer of two bytes.
    Length,
    /// integer of eight bytes.
    NdOption,
}

impl Kind {
    /// Of a value.
    pub fn of_value(value: &Value) -> Self {
        match value {
            Value::V4(_) => Self::Ipv4,
            Value::V6(_) => Self::Ipv6,
            Value::Proto(_) => Self::Proto,
            Value::Port(_) => Self::Port,
            Value::Ifname(_) => Self::Ifname,
            Value::Mark(_) => Self::Mark,
            Value::Icmpv6Type(_) => Self::Icmpv6Type,
            Value::HopLimit(_) => Self::HopLimit,
            Value::EtherType(_) => Self::EtherType,
            Value::AddrType(_) => Self::AddrType,
            Value::Ether(_) => Self::Ether,
            Value::Length(_) => Self::Length,
            Value::NdOption(_) => Self::NdOption,
        }
    }

    /// Of what a field holds.
    pub fn of_field(field: Field) -> Self {
        match field {
            Field::IpSaddr | Field::IpDaddr | Field::ArpSaddrIp => Self::Ipv4,
            Field::Ip6Saddr | Field::Ip6Daddr | Field::NdTarget => Self::Ipv6,
            Field::L4Proto | Field::Ip6NextHdr => Self::Proto,
            Field::TcpDport | Field::UdpDport | Field::SctpDport | Field::ThDport => Self::Port,
            Field::Icmpv6Type => Self::Icmpv6Type,
            Field::Ip6HopLimit => Self::HopLimit,
            Field::Iifname => Self::Ifname,
            Field::EtherType => Self::EtherType,
            Field::FibDaddrIifType => Self::AddrType,
            Field::EtherSaddr | Field::ArpSaddrEther => Self::Ether,
            Field::Ip6Length => Self::Length,
            Field::NdOption => Self::NdOption,
        }
    }

    /// Of a part of a set's key.
    pub fn of_key(key: KeyType) -> Self {
        match key {
            KeyType::Ipv4Addr => Self::Ipv4,
            KeyType::Ipv6Addr => Self::Ipv6,
            KeyType::InetProto => Self::Proto,
            KeyType::InetService => Self::Port,
            KeyType::Ifname => Self::Ifname,
            KeyType::Mark => Self::Mark,
            KeyType::Icmpv6Type => Self::Icmpv6Type,
            KeyType::EtherAddr => Self::Ether,
        }
    }
}

/// Of all parts of a set's key.
pub fn kinds(key: &[KeyType]) -> Vec<Kind> {
    key.iter().map(|part| Kind::of_key(*part)).collect()
}
