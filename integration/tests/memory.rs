//! Trap 15: what the kernel keeps for the rules is charged to the daemon's memory cgroup, so a limit can end in a
//! refused transaction or in the daemon's death. Either way the rules in force stay, and what does not fit is enforced
//! once there is room.
#![allow(clippy::expect_used)]

mod world;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use flatfell_integration::node::FlatfellNode;
use flatfell_integration::{Flow, Lab, LabConfig, Report, Traffic};
use serde_json::{Value, json};
use world::{app, namespace, peer, policy, streams};

/// Blocks of the policy that does not fit: more than 10 MB in the kernel.
const BLOCKS: u32 = 50_000;
/// What their elements take at least (linux/net/netfilter/nft_set_rbtree.c: a node for each end of an interval).
const KERNEL_BYTES: u64 = 5 << 20;
/// What the daemon may use beyond what it uses already: less than the elements take.
const ROOM: u64 = 2 << 20;
const PAUSE: Duration = Duration::from_millis(1);

/// A memory cgroup of the test's own (version 1, or version 2 where the memory controller is there).
struct Cgroup {
    path: PathBuf,
    usage: &'static str,
    limit: &'static str,
    none: &'static str,
}

impl Cgroup {
    fn new() -> Self {
        let root = Path::new("/sys/fs/cgroup");
        let first = root.join("memory/memory.limit_in_bytes").exists();
        let (parent, usage, limit, none) = if first {
            (root.join("memory"), "memory.usage_in_bytes", "memory.limit_in_bytes", "-1")
        } else {
            fs::write(root.join("cgroup.subtree_control"), "+memory").expect("a memory controller");
            (root.to_owned(), "memory.current", "memory.max", "max")
        };
        let path = parent.join(format!("flatfell-lab-{}", std::process::id()));
        fs::create_dir(&path).expect("a memory cgroup of the test's own");
        Self { path, usage, limit, none }
    }

    fn hold(&self, node: &FlatfellNode) {
        let process = node.process_id().expect("a process").to_string();
        fs::write(self.path.join("cgroup.procs"), process).expect("moved");
    }

    /// Bytes that the kernel itself keeps for the processes.
    fn kernel(&self) -> u64 {
        let number = |text: &str| text.trim().parse().expect("a number");
        if let Ok(text) = fs::read_to_string(self.path.join("memory.kmem.usage_in_bytes")) {
            return number(&text);
        }
        let stat = fs::read_to_string(self.path.join("memory.stat")).expect("its statistics");
        stat.lines().find_map(|line| line.strip_prefix("kernel ")).map(number).expect("kernel memory")
    }

    fn leave_room(&self, bytes: u64) {
        let used = fs::read_to_string(self.path.join(self.usage)).expect("its usage");
        let used: u64 = used.trim().parse().expect("a number");
        fs::write(self.path.join(self.limit), (used + bytes).to_string()).expect("a limit");
    }

    fn lift(&self) {
        fs::write(self.path.join(self.limit), self.none).expect("no limit");
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let end = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.path).is_err() && Instant::now() < end {
            thread::sleep(PAUSE);
        }
    }
}

fn from_b() -> Value {
    policy("a", "a", "ingress", json!([{"from": [peer("b")]}]))
}

/// Lets `c` in too, beside very many blocks.
fn large() -> String {
    let block = |n: u32| json!({"ipBlock": {"cidr": format!("{}/32", std::net::Ipv4Addr::from(0x0b00_0000 + 2 * n))}});
    let from: Vec<Value> = (0..BLOCKS).map(block).chain([peer("c")]).collect();
    policy("large", "a", "ingress", json!([{ "from": from }])).to_string()
}

fn received(reports: &[Report]) -> usize {
    reports.iter().map(Report::received).sum()
}

/// Starts it again where the limit ended in its death.
fn alive(node: &mut FlatfellNode) {
    if node.status().is_err() {
        node.kill9().expect("gone");
        node.restart().expect("restarted");
    }
}

#[test]
fn trap_15_rules_that_do_not_fit_leave_those_in_force() {
    let lab = Lab::new(LabConfig { nodes: 1, pods: 3, ..LabConfig::default() }).expect("a lab");
    let cluster = [namespace(), app("a", 0, "a"), app("b", 1, "b"), app("c", 2, "c"), from_b()];
    let cluster = json!({"apiVersion": "v1", "kind": "List", "items": cluster}).to_string();
    let mut node = FlatfellNode::start(&lab, 1, &[("cluster.yaml", &cluster)]).expect("a daemon");
    let cgroup = Cgroup::new();
    cgroup.hold(&node);

    // With room: the elements are charged to the daemon, and no longer when they are gone.
    let before = cgroup.kernel();
    node.apply("large.yaml", &large()).expect("room for the large policy");
    let charged = cgroup.kernel().saturating_sub(before);
    assert!(charged > KERNEL_BYTES, "{charged} bytes were charged for {BLOCKS} blocks");
    node.remove("large.yaml").expect("removed");
    node.settle().expect("without the large policy");

    // Without: whatever becomes of the daemon, `c` does not come in and `b` does.
    cgroup.leave_room(ROOM);
    let all = [streams(1, 0, 80, Flow::Turns(8)), streams(2, 0, 80, Flow::Fresh)].concat();
    let traffic = Traffic::start(&lab, &all, PAUSE).expect("traffic");
    node.write("large.yaml", &large()).expect("written");
    let refused = |node: &FlatfellNode| node.status().map_or(true, |report| !report.ready);
    let end = Instant::now() + Duration::from_secs(30);
    while !refused(&node) {
        assert!(Instant::now() < end, "{ROOM} bytes are enough: {:?}", node.status());
        thread::sleep(PAUSE);
    }
    println!("at the limit: {:?}", node.status().map(|report| report.not_ready));
    thread::sleep(Duration::from_millis(500));
    let reports = traffic.stop(Duration::from_millis(200)).expect("traffic");
    let (allowed, forbidden) = reports.split_at(2);
    let lost: usize = allowed.iter().map(Report::lost).sum();
    assert_eq!((received(forbidden), lost), (0, 0), "{reports:?}");

    // With room again.
    cgroup.lift();
    alive(&mut node);
    node.settle().expect("enforced with room");
    let traffic = Traffic::start(&lab, &streams(2, 0, 80, Flow::Fresh), PAUSE).expect("traffic");
    thread::sleep(Duration::from_millis(100));
    let reports = traffic.stop(Duration::from_millis(200)).expect("traffic");
    assert!(received(&reports) > 0, "{reports:?}");
}
