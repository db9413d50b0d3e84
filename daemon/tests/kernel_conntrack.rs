//! Flows are found by their marks and marked, as the conntrack program and nft rules see it too.

mod kernel_common;

use std::net::{IpAddr, UdpSocket};

use flatfell::kernel::conntrack::{Conntrack, FlowEntry, FlowKey, Marked, Transport, Tuple};
use flatfell::kernel::netfilter_socket;
use flatfell::netlink::{ACKED, REQUEST, Request, netfilter};
use kernel_common::*;

/// Makes conntrack work; a Service in the way of port 5000; flows to port 6000 in a zone.
const RULES: &str = "
    table ip n { chain o { type nat hook output priority -100; udp dport 5000 dnat to 127.0.0.1:5001; }; }
    table inet t {
        chain raw { type filter hook output priority -300; udp dport 6000 ct zone set 9; }
        chain seen { type filter hook output priority 0;
            ct mark 0 ct mark set 0x00123456
            ct mark & 0xff000000 == 0x7f000000 counter
        }
    }";

fn with_conntrack(test: impl FnOnce() + Send) {
    in_namespace(|| {
        run("ip", &["link", "set", "lo", "up"]);
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), RULES).expect("write");
        run("nft", &["-f", file.path().to_str().expect("path")]);
        test();
    });
}

fn send(from: &str, to: &str) -> UdpSocket {
    let socket = UdpSocket::bind(from).expect("bind");
    socket.send_to(b"x", to).expect("send");
    socket
}

fn one(flows: &[FlowEntry], is: impl Fn(&FlowEntry) -> bool) -> FlowEntry {
    let found: Vec<_> = flows.iter().filter(|flow| is(flow)).collect();
    assert_eq!(found.len(), 1, "{flows:?}");
    *found[0]
}

fn dst_port(tuple: &Tuple) -> u16 {
    match tuple.transport {
        Transport::Ports { dst, .. } => dst,
        _ => 0,
    }
}

#[test]
fn flows_are_read_with_both_directions() {
    with_conntrack(|| {
        let _server = UdpSocket::bind("127.0.0.1:5001").expect("bind");
        let _sockets = [send("127.0.0.1:4000", "127.0.0.1:5000"), send("[::1]:4001", "[::1]:7000")];
        let _zoned = send("127.0.0.1:4002", "127.0.0.1:6000");
        run("ping", &["-c1", "-W1", "127.0.0.1"]);
        run("ping", &["-c1", "-W1", "::1"]);
        let flows = Conntrack::open().expect("open").flows(0, 0).expect("flows");
        let dnat = one(&flows, |flow| dst_port(&flow.orig) == 5000);
        assert_eq!(dnat.reply.transport, Transport::Ports { src: 5001, dst: 4000 });
        assert_eq!((dnat.orig.proto, dnat.mark, dnat.zone), (17, 0x0012_3456, 0));
        let v6 = one(&flows, |flow| dst_port(&flow.orig) == 7000);
        assert_eq!(v6.orig.src, "::1".parse::<IpAddr>().expect("address"));
        assert_eq!(one(&flows, |flow| dst_port(&flow.orig) == 6000).zone, 9);
        let echo = |flow: &FlowEntry, proto, request| {
            flow.orig.proto == proto && matches!(flow.orig.transport, Transport::Icmp { kind, .. } if kind == request)
        };
        let echo4 = one(&flows, |flow| echo(flow, 1, 8));
        assert!(matches!(echo4.reply.transport, Transport::Icmp { kind: 0, code: 0, .. }));
        one(&flows, |flow| echo(flow, 58, 128));
    });
}

#[test]
fn a_mark_set_here_is_seen_by_others_and_its_other_bits_stay() {
    with_conntrack(|| {
        let _server = UdpSocket::bind("127.0.0.1:5001").expect("bind");
        let sockets = [send("127.0.0.1:4000", "127.0.0.1:5000"), send("[::1]:4001", "[::1]:7000")];
        let _zoned = send("127.0.0.1:4002", "127.0.0.1:6000");
        run("ping", &["-c1", "-W1", "127.0.0.1"]);
        run("ping", &["-c1", "-W1", "::1"]);
        let mut conntrack = Conntrack::open().expect("open");
        let keys: Vec<_> = conntrack.flows(0, 0).expect("flows").iter().map(FlowEntry::key).collect();
        let marked = conntrack.set_mark(&keys, 0x7f00_0000, 0xff00_0000).expect("set");
        assert_eq!(marked, Marked { set: keys.len(), gone: 0 });
        let flows = conntrack.flows(0x7f00_0000, 0xff00_0000).expect("flows");
        assert_eq!(flows.len(), keys.len());
        assert!(flows.iter().filter(|flow| flow.orig.proto == 17).all(|flow| flow.mark == 0x7f12_3456), "{flows:?}");
        assert_eq!(conntrack.flows(0, 0xff00_0000).expect("flows"), vec![]);
        let listed = run("conntrack", &["-L", "-p", "udp", "-m", "0x7f123456"]);
        assert!(listed.contains("dport=5000") && listed.contains("dport=6000"), "{listed}");
        sockets[0].send_to(b"x", "127.0.0.1:5000").expect("send");
        let rules = run("nft", &["list", "chain", "inet", "t", "seen"]);
        assert!(rules.contains("counter packets 1 "), "{rules}");
    });
}

#[test]
fn a_flow_that_is_gone_is_no_error_and_is_not_made() {
    with_conntrack(|| {
        let _socket = send("127.0.0.1:4000", "127.0.0.1:5000");
        let mut conntrack = Conntrack::open().expect("open");
        let there = conntrack.flows(0, 0).expect("flows")[0].key();
        let gone = FlowKey { orig: Tuple { dst: "127.9.9.9".parse().expect("address"), ..there.orig }, zone: 0 };
        let elsewhere = FlowKey { zone: 77, ..there };
        let marked = conntrack.set_mark(&[gone, there, elsewhere], 1, 1).expect("set");
        assert_eq!(marked, Marked { set: 1, gone: 2 });
        assert_eq!(conntrack.flows(1, 1).expect("flows").len(), 1);
        assert_eq!(conntrack.set_mark(&[], 1, 1).expect("none"), Marked::default());
    });
}

/// A UDP flow that is made by hand, as the kernel would have it.
fn made(number: u32, seq: u32) -> Vec<u8> {
    let [a, b, c, d] = (0x0a00_0000 + number).to_be_bytes();
    let direction = |src: [u8; 4], dst: [u8; 4]| {
        move |nest: Request| {
            nest.nest(1, |ip| ip.attr(1, &src).attr(2, &dst))
                .nest(2, |proto| proto.attr(1, &[17]).attr(2, &[0x10, 0]).attr(3, &[0x10, 0]))
        }
    };
    const NLM_F_CREATE: u16 = 0x0400;
    let flags = if seq.is_multiple_of(500) { ACKED } else { REQUEST };
    Request::new(0x0100, NLM_F_CREATE | flags, &netfilter(2))
        .nest(1, direction([a, b, c, d], [9, 9, 9, 9]))
        .nest(2, direction([9, 9, 9, 9], [a, b, c, d]))
        .attr(7, &600_u32.to_be_bytes())
        .attr(8, &number.to_be_bytes())
        .finish(seq)
        .expect("short")
}

#[test]
fn many_flows_are_read_and_marked() {
    const FLOWS: u32 = 100_000;
    with_conntrack(|| {
        let mut socket = netfilter_socket().expect("open");
        for first in (0..FLOWS).step_by(500) {
            let bytes: Vec<u8> = (first..first + 500).flat_map(|number| made(number, number + 1)).collect();
            socket.send(&bytes).expect("send");
            let answers = socket.receive().expect("receive").map(|message| message.expect("well formed").answer());
            let answered = answers.filter(|answer| answer.as_ref().is_ok_and(Option::is_some));
            assert_eq!(answered.count(), 1, "only the last one is answered");
        }
        let mut conntrack = Conntrack::open().expect("open");
        let start = std::time::Instant::now();
        let flows = conntrack.flows(0, 0).expect("flows");
        println!("{} flows in {:?}", flows.len(), start.elapsed());
        assert_eq!(flows.len(), usize::try_from(FLOWS).expect("size"));
        let start = std::time::Instant::now();
        assert_eq!(conntrack.flows(7, u32::MAX).expect("one").len(), 1);
        println!("one of them in {:?}", start.elapsed());
        let start = std::time::Instant::now();
        let keys: Vec<_> = flows.iter().map(FlowEntry::key).collect();
        assert_eq!(conntrack.set_mark(&keys, 0xff00_0000, 0xff00_0000).expect("set").set, keys.len());
        println!("all marked in {:?}", start.elapsed());
        assert_eq!(conntrack.flows(0xff00_0000, 0xff00_0000).expect("all").len(), keys.len());
    });
}
