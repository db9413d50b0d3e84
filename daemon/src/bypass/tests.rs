//! The lookout against the kernel, each test in a network namespace of its own.

use super::*;
use crate::{
    links::Links,
    testing::{in_namespace, ip, nft},
};

const MARK_MASK: u32 = 0xff00_0000;

fn facts<'a>(bridge_sysctl: &'a Path, proc_net: &'a Path) -> Facts<'a> {
    Facts { bridge_sysctl, proc_net, pod_bridges: &[], ipvs: false, v4: true, v6: true, mark_mask: MARK_MASK }
}

fn look() -> Vec<Bypass> {
    let facts = facts(Path::new(BRIDGE_SYSCTL), Path::new(PROC_NET));
    Lookout::open().expect("socket").look(&facts).expect("looked")
}

fn only(found: Vec<Bypass>) -> Bypass {
    let [one] = <[Bypass; 1]>::try_from(found).expect("one finding");
    one
}

#[test]
fn an_empty_namespace_and_our_own_tables_are_quiet() {
    in_namespace(|| {
        assert_eq!(look(), []);
        nft("table inet flatfell-3a {
            chain KUBE-ROUTER-FORWARD { ct mark set 0x01000000; };
        }");
        assert_eq!(look(), []);
    });
}

#[test]
fn a_missing_br_netfilter_and_flags_that_are_off_block() {
    in_namespace(|| {
        ip("link add cni0 type bridge nf_call_iptables 0 nf_call_ip6tables 1");
        let links = Links::open().expect("dumped");
        let bridges = links.pod_bridges(&["cni0".to_owned()], &Default::default(), &[]);
        let mut lookout = Lookout::open().expect("socket");
        let nowhere = Path::new("/proc/sys/net/no-such-directory");
        let missing = facts(nowhere, nowhere);
        let bypass = only(lookout.look(&missing).expect("looked"));
        assert!(bypass.blocks_readiness && bypass.message.contains("modprobe br_netfilter"), "{bypass:?}");
        let off = Facts { bridge_sysctl: Path::new(BRIDGE_SYSCTL), pod_bridges: &bridges, ..missing };
        let bypass = only(lookout.look(&off).expect("looked"));
        assert!(bypass.kind == Kind::NfCall && bypass.blocks_readiness, "{bypass:?}");
        assert!(bypass.message.contains("ip link set cni0 type bridge nf_call_iptables 1"), "{bypass:?}");
        assert_eq!(lookout.look(&Facts { v4: false, ..off }).expect("looked"), []);
    });
}

#[test]
fn ipvs_blocks() {
    in_namespace(|| {
        let mut lookout = Lookout::open().expect("socket");
        // Not every test kernel has dummy links; the name is what counts.
        ip("link add kube-ipvs0 type bridge");
        let ipvs = Links::open().expect("dumped").exists(IPVS_INTERFACE);
        let facts = Facts { ipvs, ..facts(Path::new(BRIDGE_SYSCTL), Path::new(PROC_NET)) };
        let bypass = only(lookout.look(&facts).expect("looked"));
        assert!(bypass.kind == Kind::Ipvs && bypass.blocks_readiness, "{bypass:?}");
    });
}

#[test]
fn remains_of_other_engines_come_with_the_command_that_removes_them() {
    in_namespace(|| {
        nft("table ip filter {
            chain KUBE-ROUTER-FORWARD { counter; };
            chain KUBE-POD-FW-ABC { counter; };
            chain KUBE-SERVICES { counter; };
        }
        table ip6 filter { chain cali-FORWARD { counter; }; }
        table ip calico { chain filter-FORWARD { counter; }; }
        table inet kube-network-policies { chain prerouting { counter; }; }
        table inet other { chain forward { counter; }; }");
        let found = look();
        assert!(found.iter().all(|b| b.kind == Kind::Leftover && !b.blocks_readiness), "{found:#?}");
        let says =
            |text: &str| assert_eq!(found.iter().filter(|b| b.message.contains(text)).count(), 1, "{text} {found:#?}");
        says("2 chains of kube-router in table ip filter (one is KUBE-");
        says(": iptables-save | grep -v -E 'KUBE-(ROUTER|POD-FW|NWPLCY)' | iptables-restore");
        says("ip6tables-save | grep -v -E 'cali[-:]' | ip6tables-restore");
        says("nft delete table ip calico");
        says("nft delete table inet kube-network-policies");
        assert_eq!(found.len(), 4, "{found:#?}");
    });
}

#[test]
fn the_commands_that_nft_can_run_remove_what_they_name() {
    in_namespace(|| {
        nft("table ip calico { chain filter-FORWARD { counter; }; }
        table inet kube-network-policies { chain prerouting { counter; }; }");
        for bypass in look() {
            let (_, command) = bypass.message.rsplit_once(": nft ").expect("an nft command");
            nft(command);
        }
        assert_eq!(look(), []);
    });
}

#[test]
fn rules_that_write_our_bits_of_ct_mark_are_seen_and_no_others() {
    let writers = [
        "ct mark set 0x01000000",
        "ct mark set 0x1",
        "ct mark set meta mark",
        "ct mark 0x1 ct mark set 0x5",
        "ct mark set ct mark or 0x80000000",
        "ct mark set ct mark and 0x0fffffff",
        "ct mark set ct mark xor 0x01000000",
        "ct mark set ip saddr map { 10.0.0.1 : 0x1 }",
        "meta mark 7 counter ct mark set meta mark and 0xff",
    ];
    let others = [
        "ct mark set ct mark or 0x1",
        "ct mark set ct mark and 0xff0000ff",
        "ct mark set ct mark and 0xffff0000 xor 0x0000ffff",
        "ct mark 0x01000000 accept",
        "meta mark set ct mark",
        "meta mark set 0x01000000",
        "ct label set 1",
    ];
    for (rule, expected) in writers.iter().map(|rule| (rule, 1)).chain(others.iter().map(|rule| (rule, 0))) {
        in_namespace(|| {
            nft(&format!("table ip mine {{ chain prerouting {{ {rule}; }}; }}"));
            let found = look();
            assert_eq!(found.len(), expected, "{rule}: {found:#?}");
            let named = |bypass: &Bypass| bypass.kind == Kind::CtMark && bypass.message.contains("table ip mine");
            assert!(found.iter().all(named), "{rule}: {found:#?}");
        });
    }
}

#[test]
fn legacy_tables_are_said_to_exist() {
    in_namespace(|| {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("ip_tables_names"), "filter\nnat\n").expect("written");
        fs::write(directory.path().join("ip6_tables_names"), "").expect("written");
        let facts = facts(Path::new(BRIDGE_SYSCTL), directory.path());
        let bypass = only(Lookout::open().expect("socket").look(&facts).expect("looked"));
        assert!(bypass.kind == Kind::LegacyTables && !bypass.blocks_readiness, "{bypass:?}");
        assert!(bypass.message.contains("(filter, nat)"), "{bypass:?}");
    });
}

#[test]
fn the_ruleset_is_read_again_only_when_it_changed_and_time_has_passed() {
    in_namespace(|| {
        let facts = facts(Path::new(BRIDGE_SYSCTL), Path::new(PROC_NET));
        let mut lookout = Lookout::open().expect("socket");
        assert_eq!(lookout.look(&facts).expect("looked"), []);
        nft("table ip calico { chain filter-FORWARD { counter; }; }");
        assert_eq!(lookout.look(&facts).expect("looked"), [], "too soon");
        let past = |seen: Option<Seen>| seen.map(|seen| Seen { at: seen.at - EVERY, ..seen });
        lookout.seen = past(lookout.seen.take());
        assert_eq!(lookout.look(&facts).expect("looked").len(), 1);
        lookout.seen = past(lookout.seen.take());
        let marker = Bypass::warning(Kind::Leftover, String::new(), "kept".into());
        lookout.seen.as_mut().expect("looked").found.push(marker.clone());
        assert!(lookout.look(&facts).expect("looked").contains(&marker), "unchanged: not read again");
    });
}

/// What k3s's embedded kube-router leaves after `--disable-network-policy`, and Calico's Felix, beside Flannel's rules.
const LEFT: &str = r#"*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:FLANNEL-FWD - [0:0]
:KUBE-ROUTER-INPUT - [0:0]
:KUBE-ROUTER-FORWARD - [0:0]
:KUBE-ROUTER-OUTPUT - [0:0]
:KUBE-NWPLCY-DEFAULT - [0:0]
:KUBE-NWPLCY-VQEYPWTQGQJZTCNE - [0:0]
:KUBE-POD-FW-YDUSHWXFDQF3BFGN - [0:0]
:cali-FORWARD - [0:0]
:cali-fw-cali0123456789a - [0:0]
-A INPUT -m comment --comment "kube-router netpol - 4IA2OSFRMVNDXBVV" -j KUBE-ROUTER-INPUT
-A FORWARD -m comment --comment "kube-router netpol - TEMCG2JMHZYE7H7T" -j KUBE-ROUTER-FORWARD
-A FORWARD -m comment --comment "cali:wUHhoiAYhphO9Mso" -j cali-FORWARD
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.42.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A OUTPUT -m comment --comment "kube-router netpol - VEAAIY32XVBHCSCY" -j KUBE-ROUTER-OUTPUT
-A KUBE-ROUTER-FORWARD -d 10.42.0.5/32 -m comment --comment "rule to jump traffic destined to POD name:a to chain KUBE-POD-FW-YDUSHWXFDQF3BFGN" -j KUBE-POD-FW-YDUSHWXFDQF3BFGN
-A KUBE-POD-FW-YDUSHWXFDQF3BFGN -j KUBE-NWPLCY-VQEYPWTQGQJZTCNE
-A KUBE-POD-FW-YDUSHWXFDQF3BFGN -j DROP
-A cali-FORWARD -i cali+ -m comment --comment "cali:X3vB2lGcBrfkYquC" -j cali-fw-cali0123456789a
COMMIT
"#;

/// Runs a shell's line with this input in the calling thread's network namespace; what it wrote.
fn shell(line: &str, input: &str) -> String {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };
    let mut command = Command::new("sh");
    let mut child = command.args(["-c", line]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a shell");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{line}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn chains_that_engines_left_in_the_tables_of_iptables_go_by_the_command_that_is_told() {
    if std::process::Command::new("iptables-nft").arg("--version").output().is_err() {
        println!("not run: Debian's iptables is not installed");
        return;
    }
    in_namespace(|| {
        for (restore, family) in [("iptables-nft-restore", "ip"), ("ip6tables-nft-restore", "ip6")] {
            let text = if family == "ip" {
                LEFT.to_owned()
            } else {
                LEFT.replace("10.42.0.5/32", "fd00::5/128").replace("10.42.0.0/16", "fd00::/64")
            };
            shell(restore, &text);
        }
        let found = look();
        let engines: Vec<_> = found.iter().map(|bypass| (bypass.engine, bypass.place.as_str())).collect();
        for expected in ["ip filter", "ip6 filter"].map(|place| [("calico", place), ("kube-router", place)]).concat() {
            assert!(engines.contains(&(Some(expected.0), expected.1)), "{engines:?}");
        }
        assert_eq!(found.len(), 4, "{found:#?}");
        for bypass in &found {
            // Debian's names of iptables lead to whichever kind is the default; these are of the nft kind.
            let (_, command) = bypass.message.rsplit_once(" no longer runs here: ").expect("a command");
            shell(&command.replace("tables-", "tables-nft-"), "");
        }
        assert_eq!(look(), []);
        for save in ["iptables-nft-save", "ip6tables-nft-save"] {
            let left = shell(save, "");
            assert!(left.contains("-A FLANNEL-FWD") && left.contains("-j FLANNEL-FWD"), "{left}");
            assert!(!left.contains("KUBE-") && !left.contains("cali"), "{left}");
        }
    });
}

#[test]
fn engines_with_tables_of_their_own_are_told_by_table() {
    in_namespace(|| {
        nft(
            "table ip kube-router-filter-ipv4 {
            chain KUBE-POD-FW-A { drop; };
            chain KUBE-ROUTER-FORWARD { type filter hook forward priority 0; jump KUBE-POD-FW-A; };
        }
        table inet kube-network-policies { chain postrouting { type filter hook postrouting priority 95; counter; }; }",
        );
        let found = look();
        let engines: Vec<_> = found.iter().map(|bypass| (bypass.engine, bypass.place.as_str())).collect();
        let wanted = [
            (Some("kube-network-policies"), "inet kube-network-policies"),
            (Some("kube-router"), "ip kube-router-filter-ipv4"),
        ];
        assert!(found.len() == 2 && wanted.iter().all(|wanted| engines.contains(wanted)), "{found:#?}");
    });
}

#[test]
fn virtual_services_are_ipvs_without_the_interface_too() {
    let head = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port \
                Forward Weight ActiveConn InActConn\n";
    let directory = tempfile::tempdir().expect("a directory");
    let facts = facts(Path::new(BRIDGE_SYSCTL), directory.path());
    let write = |text: &str| fs::write(directory.path().join("ip_vs"), text).expect("written");
    write(head);
    assert_eq!(ipvs(&facts).expect("read"), None, "the module alone does nothing");
    write(&format!(
        "{head}TCP  0A60000A:0035 rr\n  -> 0AF40002:0035      Masq    1      0          0\nUDP  0A60000A:0035 rr\n"
    ));
    let bypass = ipvs(&facts).expect("read").expect("found");
    assert!(bypass.blocks_readiness && bypass.engine == Some("ipvs"), "{bypass:?}");
    assert!(bypass.message.contains("2 virtual services") && bypass.message.contains("ipvsadm --clear"), "{bypass:?}");
}
