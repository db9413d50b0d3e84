//! The engine against a real kernel: restarts, refusals, take-overs, clean-up, and what it never touches.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use flatfell::engine::{Cleanup, EngineConfig, EngineError};
use flatfell::kernel::Kernel;
use flatfell_integration::inprocess::{InProcess, defaults, deny_all, pod, policy};
use flatfell_integration::{Lab, LabConfig, Netns, Place, Probe};
use flatfell_rules::compile::{Layout, Slot, compile};
use flatfell_rules::diff::plan;
use flatfell_rules::effective::{Effective, evaluate};
use flatfell_rules::ids::Ids;
use flatfell_rules::index::{Change, Index};
use flatfell_rules::mark::Generation;
use flatfell_rules::names;
use flatfell_rules::object::ObjectName;
use flatfell_rules::parse;
use flatfell_rules::ruleset::{Ruleset, TableId, text};
use flatfell_rules::sim::cluster::Cluster;
use flatfell_rules::sim::generate::{Random, change, cluster};
use flatfell_rules::sim::kernel::FakeKernel;
use serde_json::{Value, json};

const A: Place = Place::pod(1, 0);
const B: Place = Place::pod(1, 1);
const NODE: Place = Place::Node(1);

fn lab() -> Lab {
    Lab::new(LabConfig { nodes: 1, pods: 3, ..LabConfig::default() }).unwrap()
}

/// One whose tables anybody may change.
fn shared() -> EngineConfig {
    EngineConfig { lock_tables: false, ..defaults() }
}

fn start(lab: &Lab, config: EngineConfig, policies: &[Value]) -> InProcess {
    InProcess::start(lab, 1, config, &[&[pod(A), pod(B)], policies].concat()).unwrap()
}

fn nft(lab: &Lab, words: &str) -> String {
    lab.netns(NODE).unwrap().feed("nft", &words.split(' ').collect::<Vec<_>>(), "").unwrap()
}

fn passes(lab: &Lab, from: Place, to: Place) -> Vec<bool> {
    let probes = to.addresses().map(|ip| Probe::tcp(from, ip, 80));
    lab.probes(&probes).unwrap().iter().map(|outcome| outcome.delivered).collect()
}

fn from_a(name: &str, app: &str) -> Value {
    let from = json!([{"podSelector": {"matchLabels": {"app": "p0"}}}]);
    policy(name, app, json!({"policyTypes": ["Ingress"], "ingress": [{"from": from}]}))
}

/// `flatfell cleanup`, once the lock is free: a process that another test is just starting still shares its socket.
fn clean_up(lab: &Lab) -> Vec<String> {
    for _ in 0..100 {
        match lab.netns(NODE).unwrap().run(|| Cleanup::begin().and_then(|cleanup| cleanup.run())).unwrap() {
            Err(EngineError::Lock(_)) => std::thread::sleep(Duration::from_millis(5)),
            done => return done.unwrap().tables,
        }
    }
    panic!("the lock stays taken")
}

/// What a table of somebody else looks like: things of ours by name, things that our packets pass.
const FOREIGN: &str = "table inet lab-foreign {
  comment \"of somebody else\"
  counter pods4 { packets 7 bytes 9 }
  set pods { type ipv4_addr; elements = { 10.244.1.10 } }
  map egress4 { type ipv4_addr : verdict; elements = { 10.1.2.3 : drop } }
  chain forward { type filter hook forward priority 5; policy accept; ip saddr @pods accept; }
}
table ip flatfell-3a { chain c { ip saddr 10.1.1.1 accept; }; }
table inet flatfell-09a { chain c { accept; }; }
";

/// Trap 13: tables of others stay as they are, to the byte, through start, changes, restart and clean-up,
/// which removes ours and says which; it is refused while a daemon runs.
#[test]
fn tables_of_others_are_never_touched() {
    let lab = lab();
    lab.nft(NODE, FOREIGN).unwrap();
    let before = nft(&lab, "-a list ruleset");
    let foreign = || {
        ["inet lab-foreign", "ip flatfell-3a", "inet flatfell-09a"]
            .map(|table| nft(&lab, &format!("-a list table {table}")))
    };
    let listed = foreign();
    let mut daemon = start(&lab, defaults(), &[deny_all("p1")]);
    daemon.enforce(&[from_a("in", "p1"), deny_all("p0")]).unwrap();
    assert_eq!(foreign(), listed);
    let refused = lab.netns(NODE).unwrap().run(Cleanup::begin).unwrap();
    assert!(matches!(refused, Err(EngineError::Lock(_))), "{refused:?}");
    drop(daemon);
    assert!(nft(&lab, "list tables").contains("table inet flatfell-3a"), "stopping leaves the rules");
    let daemon = start(&lab, defaults(), &[]);
    drop(daemon);
    let mut removed = clean_up(&lab);
    removed.sort();
    assert_eq!(removed, ["bridge flatfell-3a", "inet flatfell-3a"]);
    assert_eq!(nft(&lab, "-a list ruleset"), before);
    assert!(clean_up(&lab).is_empty());
}

/// A restart with unchanged policy commits nothing: the same handles, counters that went on, the same generation.
#[test]
fn a_restart_changes_nothing() {
    let lab = lab();
    let policies = [deny_all("p1"), from_a("in", "p1")];
    let daemon = start(&lab, defaults(), &policies);
    daemon.until("without work", |status| status.synced).unwrap();
    assert_eq!((passes(&lab, A, B), passes(&lab, B, A)), (vec![true; 2], vec![false; 2]));
    let (generation, counters) = (daemon.engine.status().generation, daemon.packets().unwrap());
    let before = nft(&lab, "-a list ruleset");
    drop(daemon);
    let daemon = start(&lab, defaults(), &policies);
    let status = daemon.engine.status();
    assert_eq!((status.transactions.committed, status.transactions.failed, status.generation), (0, 0, generation));
    assert_eq!(nft(&lab, "-a list ruleset"), before);
    assert_eq!(daemon.packets().unwrap(), counters);
    drop(daemon);
}

/// What a version before the ids in ct mark left: its stamps are the whole top byte.
fn earlier_layout(counter: &str) -> String {
    format!(
        "table inet flatfell-1a {{
          counter {counter} {{ packets 41 bytes 4100; }}
          set generation {{ type mark; elements = {{ 0x02000000 }}; }}
          chain forward {{
            type filter hook forward priority -10; policy accept;
            ct mark & 0xff000000 == 0x02000000 accept
            ct mark set ct mark & 0x00ffffff | 0x02000000
          }}
        }}
        table bridge flatfell-1a {{ }}"
    )
}

/// Tables of the layout before are taken over: their counters go on, and what they allowed is judged anew.
#[test]
fn tables_of_an_earlier_layout_are_taken_over() {
    let lab = lab();
    let counter = names::name("drop-ingress", "default/p1", "default/p1");
    lab.nft(NODE, &earlier_layout(&counter)).unwrap();
    lab.call_from_bridge(1, true).unwrap();
    let mut flows = B.addresses().map(|ip| connect(&lab, ip));
    let daemon = start(&lab, defaults(), &[deny_all("p1")]);
    daemon.until("ready", |status| status.synced && status.not_ready.is_empty()).unwrap();
    assert_eq!(nft(&lab, "list tables"), "table inet flatfell-3a\ntable bridge flatfell-3a\n");
    assert!(daemon.packets().unwrap()[counter.as_ref()] >= 41, "{:?}", daemon.packets());
    // The old stamp reads as generation 1, with the bit of two ids off.
    assert_eq!(daemon.engine.status().generation, 3);
    let heard = flows.each_mut().map(|(client, server)| {
        client.write_all(b"x").unwrap();
        server.read(&mut [0; 8]).is_ok_and(|length| length > 0)
    });
    assert_eq!((heard, passes(&lab, A, B)), ([false; 2], vec![false; 2]));
    drop(daemon);
}

/// What a version before the sets that count left: ids of named counters. They keep their ids, for flows carry them.
#[test]
fn ids_of_named_counters_are_taken_over() {
    let lab = lab();
    let counter = names::name("default-ingress", "default/p1", "default/p1");
    let earlier = format!(
        "table inet flatfell-2a {{
          counter {counter} {{ packets 41 bytes 4100; }}
          map counters {{ type mark : counter; elements = {{ 0x00000fa1 : \"{counter}\" }}; }}
          set generation {{ type mark; elements = {{ 0x02000000 }}; }}
        }}"
    );
    lab.nft(NODE, &earlier).unwrap();
    let daemon = start(&lab, defaults(), &[]);
    daemon.until("ready", |status| status.synced && status.not_ready.is_empty()).unwrap();
    assert_eq!(nft(&lab, "list tables"), "table inet flatfell-3a\ntable bridge flatfell-3a\n");
    let listed = nft(&lab, "list set inet flatfell-3a traffic");
    let element = format!("0x00000fa1 counter packets 41 bytes 4100 comment \"{counter}\"");
    assert!(listed.contains(&element), "{listed}");
    assert!(daemon.packets().unwrap()[counter.as_ref()] >= 41, "{:?}", daemon.packets());
    drop(daemon);
}

/// Three refusals in a row: the other tables take over and the old ones go; meanwhile and afterwards policy holds, and no
/// counter falls.
#[test]
fn after_three_refusals_other_tables_take_over() {
    let lab = lab();
    let mut daemon = start(&lab, shared(), &[deny_all("p1"), from_a("in", "p1")]);
    assert_eq!((passes(&lab, A, B), passes(&lab, B, A)), (vec![true; 2], vec![false; 2]));
    let before = daemon.packets().unwrap();
    // A limit of somebody's making on our set: no address fits any more, and the model knows no limits.
    lab.nft(NODE, "add set inet flatfell-3a pods4 { type ipv4_addr; size 2; }").unwrap();
    daemon.enforce(&[pod(Place::pod(1, 2)), deny_all("p2")]).unwrap();
    let status = daemon.engine.status();
    assert_eq!((status.transactions.failed, status.transactions.takeovers, status.slot), (3, 1, "flatfell-3b"));
    daemon.until("ready", |status| status.not_ready.is_empty()).unwrap();
    let tables = nft(&lab, "list tables");
    assert_eq!(tables, "table inet flatfell-3b\ntable bridge flatfell-3b\n");
    let after = daemon.packets().unwrap();
    let fallen: Vec<_> = before.iter().filter(|(name, count)| after.get(*name).is_none_or(|now| now < count)).collect();
    assert!(fallen.is_empty(), "{fallen:?} of {after:?}");
    assert!(before.values().any(|count| *count > 0), "{before:?}");
    assert_eq!(
        (passes(&lab, A, B), passes(&lab, B, A), passes(&lab, A, Place::pod(1, 2))),
        (vec![true; 2], vec![false; 2], vec![false; 2])
    );
    drop(daemon);
    let daemon = start(&lab, shared(), &[deny_all("p1"), from_a("in", "p1")]);
    assert_eq!(daemon.engine.status().slot, "flatfell-3b", "a restart goes on with the tables there are");
    drop(daemon);
}

/// While a change is refused the rules before it hold, the node is not ready, and it says what was refused.
#[test]
fn a_refused_change_leaves_the_old_rules_and_says_so() {
    let lab = lab();
    let mut daemon = start(&lab, shared(), &[deny_all("p1")]);
    lab.nft(NODE, "add set inet flatfell-3a pods4 { type ipv4_addr; size 2; }").unwrap();
    let old = nft(&lab, "-s list table inet flatfell-3a");
    daemon.put(&pod(Place::pod(1, 2))).unwrap();
    daemon.put(&deny_all("p0")).unwrap();
    daemon.submit();
    daemon.until("refused", |status| status.transactions.failed > 0).unwrap();
    let said = daemon.engine.status().not_ready.join("\n");
    assert!(said.contains("pods4") && said.contains("flatfell-3a"), "{said}");
    // Chains and counters that nothing leads to are there already; what packets meet is as before.
    assert!(blocks(&old).is_subset(&blocks(&nft(&lab, "-s list table inet flatfell-3a"))));
    assert_eq!((passes(&lab, A, B), passes(&lab, B, A)), (vec![false; 2], vec![false; 2]));
    drop(daemon);
}

/// Somebody's edit of our tables while no daemon runs: found and put right by its start.
#[test]
fn edits_of_others_are_put_right() {
    let lab = lab();
    let policies = [deny_all("p1")];
    let daemon = start(&lab, defaults(), &policies);
    assert_eq!(daemon.engine.status().generation, 1);
    let listed = nft(&lab, "-s list ruleset");
    drop(daemon);
    lab.nft(NODE, "insert rule inet flatfell-3a forward accept; add chain inet flatfell-3a mine; add rule inet flatfell-3a mine drop; flush set bridge flatfell-3a ports").unwrap();
    assert_eq!(passes(&lab, A, B), [true; 2]);
    let daemon = start(&lab, defaults(), &policies);
    assert_eq!(passes(&lab, A, B), [false; 2]);
    let (healed, wanted) = (nft(&lab, "-s list ruleset"), in_generation(&listed, daemon.engine.status().generation));
    let differ: Vec<_> = blocks(&healed).symmetric_difference(&wanted).cloned().collect();
    assert!(differ.is_empty(), "{}", differ.join("\n"));
    drop(daemon);
}

/// The blocks of a listing of generation 1, as they would be in this one; nft shows its bits in the mask as well.
fn in_generation(listing: &str, generation: u8) -> BTreeSet<String> {
    // The bit beside the generation says that both halves have an id.
    let top = |generation: u8, bit: u8| format!("0x{:02x}", generation << 1 | bit);
    let marks = ["000000", "ffffff"].into_iter().flat_map(|rest| [(0, rest), (1, rest)]);
    let swap = |text: String, (bit, rest): (u8, &str)| {
        text.replace(&format!("{}{rest}", top(1, bit)), &format!("{}{rest}", top(generation, bit)))
    };
    blocks(&marks.fold(listing.to_owned(), swap))
}

/// One daemon a network namespace, and one in each.
#[test]
fn a_second_engine_of_a_namespace_is_refused() {
    let (lab, other) = (lab(), lab());
    let daemon = start(&lab, defaults(), &[]);
    let second = InProcess::start(&lab, 1, defaults(), &[]).err().expect("refused").to_string();
    assert!(second.contains("another flatfell already runs"), "{second}");
    drop(start(&other, defaults(), &[]));
    drop(daemon);
    drop(start(&lab, defaults(), &[]));
}

/// `--own-node-egress`: a pod's connections to its own node are judged by its egress rules, or not at all.
#[test]
fn own_node_egress_is_judged_unless_switched_off() {
    let lab = lab();
    for (judged, arrives) in [(true, false), (false, true)] {
        let daemon = start(&lab, EngineConfig { own_node_egress: judged, ..defaults() }, &[deny_all("p0")]);
        assert_eq!(passes(&lab, A, NODE), [arrives; 2], "judged: {judged}");
        assert_eq!((passes(&lab, B, NODE), passes(&lab, NODE, A)), (vec![true; 2], vec![true; 2]));
        assert_eq!(passes(&lab, A, B), [false; 2]);
        drop(daemon);
    }
}

/// A connection from A to B with both ends.
fn connect(lab: &Lab, ip: IpAddr) -> (TcpStream, TcpStream) {
    let listener = lab.netns(B).unwrap().run(|| TcpListener::bind((ip, 0)).unwrap()).unwrap();
    let to = listener.local_addr().unwrap();
    let client = lab.netns(A).unwrap().run(|| TcpStream::connect(to).unwrap()).unwrap();
    let server = listener.accept().unwrap().0;
    server.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
    (client, server)
}

/// `--established`: a change of policy cuts the connections it forbids, or leaves them alone; new ones are refused either
/// way.
#[test]
fn running_connections_are_cut_unless_kept() {
    let lab = lab();
    for (cut, lives) in [(true, false), (false, true)] {
        let mut daemon = start(&lab, EngineConfig { cut_established: cut, ..defaults() }, &[]);
        let mut flows = B.addresses().map(|ip| connect(&lab, ip));
        let mut heard = || {
            flows.each_mut().map(|(client, server)| {
                client.write_all(b"x").unwrap();
                server.read(&mut [0; 8]).is_ok_and(|length| length > 0)
            })
        };
        assert_eq!(heard(), [true; 2]);
        daemon.enforce(&[deny_all("p1")]).unwrap();
        assert_eq!(heard(), [lives; 2], "cut: {cut}");
        drop(daemon);
        let mut daemon = start(&lab, EngineConfig { cut_established: cut, ..defaults() }, &[deny_all("p1")]);
        assert_eq!(heard(), [lives; 2], "after a restart, cut: {cut}");
        assert_eq!(passes(&lab, A, B), [false; 2]);
        daemon.change(Change::DeletePolicy(ObjectName::new("default", "deny-p1")));
        daemon.sync().unwrap();
        assert_eq!(passes(&lab, A, B), [true; 2]);
        drop(daemon);
        clean_up(&lab);
    }
}

fn understood(object: &Value) -> Option<Change> {
    match object["kind"].as_str()? {
        "Pod" => parse::pod(object).ok().map(|pod| Change::UpsertPod(pod.value)),
        "Namespace" => parse::namespace(object).ok().map(|namespace| Change::UpsertNamespace(namespace.value)),
        _ => parse::policy(object).ok().map(|policy| Change::UpsertPolicy(policy.value)),
    }
}

fn effective(cluster: &Cluster) -> Effective {
    let mut index = Index::new(cluster.node.clone());
    for change in cluster.objects.iter().filter_map(understood) {
        index.apply(change);
    }
    evaluate(&index)
}

/// The blocks of a listing, each with its table's head: the order of blocks says nothing.
fn blocks(listing: &str) -> BTreeSet<String> {
    let mut table = "";
    let mut found = BTreeSet::new();
    let mut block = String::new();
    for line in listing.lines() {
        match line {
            head if head.starts_with("table ") => table = head,
            "" | "}" => {}
            line => {
                block.push_str(line);
                block.push('\n');
                if line == "\t}" {
                    found.insert(format!("{table}\n{}", std::mem::take(&mut block)));
                }
            }
        }
    }
    assert!(block.is_empty(), "{block}");
    found
}

fn run_nft(arguments: &[&str], input: &str) -> String {
    let mut nft = Command::new("nft");
    nft.args(arguments).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = nft.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", input);
    String::from_utf8(output.stdout).unwrap()
}

/// From any cluster to any other, or to the same after a change: the kernel takes each step, ends where the plan says and
/// lists what the text form says; nft accepts the text.
#[test]
fn the_kernel_lists_what_was_compiled() {
    let space = Netns::create(&[format!("ff{}-listing", std::process::id())]).unwrap();
    space[0].run(random_walk).unwrap();
}

fn random_walk() {
    let seed = std::env::var("FLATFELL_SEED").map_or(1, |text| text.parse().unwrap());
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let (mut kernel, mut fake) = (Kernel::open().unwrap(), FakeKernel::default());
    let (mut now, mut layout) = (Cluster::empty(), Layout::default());
    for step in 0..40_u8 {
        now = if step % 2 == 0 { cluster(&mut random) } else { change(&mut random, &now) };
        layout.bridges = BTreeSet::from(["cni0".to_owned()]);
        layout.ports = (0..random.below(12)).map(|port| format!("veth{port}")).collect();
        layout.own_node_egress = random.percent(50);
        if random.percent(20) {
            layout.slot = layout.slot.other();
        }
        let effective = effective(&now);
        layout.ids = Ids::fresh(&effective);
        let want = compile(&effective, &layout).ruleset;
        let next = Layout { generation: layout.generation.next(), ..layout.clone() };
        let change = plan(&fake.ruleset.clone().into(), want.clone(), || compile(&effective, &next).ruleset);
        for ops in change.steps() {
            kernel.commit(ops).unwrap_or_else(|error| panic!("step {step}: {error}"));
            fake.commit(ops).unwrap();
            assert_listed(&fake.ruleset, step);
        }
        let result = change.result.ruleset();
        assert_eq!(fake.ruleset, *result, "step {step}");
        assert_eq!(kernel.read(&tables(), result).unwrap(), *result, "step {step}");
        run_nft(&["-c", "-f", "-"], &text::ruleset(result));
        if change.tightens {
            layout.generation = next.generation;
        }
    }
    assert_ne!(layout.generation, Generation::FIRST);
}

fn tables() -> Vec<TableId> {
    Slot::BOTH.into_iter().flat_map(|slot| [slot.inet(), slot.bridge()]).collect()
}

fn assert_listed(wanted: &Ruleset, step: u8) {
    let (listed, wanted) = (blocks(&run_nft(&["-s", "list", "ruleset"], "")), blocks(&text::ruleset(wanted)));
    let differ: Vec<_> = listed.symmetric_difference(&wanted).collect();
    assert!(differ.is_empty(), "step {step}: only in one of them: {differ:#?}");
}

/// `flatfell render` prints what `nft -c -f` accepts, and what a node's kernel lists once that is loaded.
#[test]
fn nft_accepts_what_render_prints() {
    let binary = std::env::current_exe().unwrap().parent().unwrap().with_file_name("flatfell");
    assert!(binary.exists(), "{} is missing: cargo build --workspace --bins", binary.display());
    let space = Netns::create(&[format!("ff{}-render", std::process::id())]).unwrap();
    let mut random = Random::new(3);
    for _ in 0..6 {
        let cluster = cluster(&mut random);
        let dir = tempfile::tempdir().unwrap();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": typed(cluster.objects)});
        std::fs::write(dir.path().join("cluster.json"), list.to_string()).unwrap();
        let rendered = Command::new(&binary)
            .args(["render", "--node", &cluster.node, "--pod-bridge", "cni0"])
            .arg(dir.path())
            .output()
            .unwrap();
        let printed = String::from_utf8(rendered.stdout).unwrap();
        space[0].feed("nft", &["flush", "ruleset"], "").unwrap();
        space[0].feed("nft", &["-c", "-f", "-"], &printed).unwrap();
        space[0].feed("nft", &["-f", "-"], &printed).unwrap();
        assert_eq!(blocks(&space[0].feed("nft", &["-s", "list", "ruleset"], "").unwrap()), blocks(&printed));
    }
}

/// Objects as `kubectl get -o json` prints them.
fn typed(objects: Vec<Value>) -> Vec<Value> {
    let versions = BTreeMap::from([("Pod", "v1"), ("Namespace", "v1"), ("NetworkPolicy", "networking.k8s.io/v1")]);
    let version = |object: &Value| object["kind"].as_str().and_then(|kind| versions.get(kind).copied());
    objects
        .into_iter()
        .map(|mut object| {
            object["apiVersion"] = json!(version(&object));
            object
        })
        .collect()
}
