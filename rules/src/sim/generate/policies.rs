//! Random NetworkPolicies, with every corner the semantics name.
//!
//! In: random numbers. Out: whole objects as JSON. What always holds: what an API server would refuse is rare, and wrong in
//! one place only.

use serde_json::{Value, json};

use super::Random;
use super::objects::{NAMES, NUMBERS, PROTOCOLS};

/// Blocks, each with parts of it to take out again; the sloppy ones are written as stored objects may be.
const BLOCKS: &[(&str, &[&str])] = &[
    ("10.244.1.0/24", &["10.244.1.8/30", "10.244.1.12/32", "10.244.1.13/32"]),
    ("10.244.0.0/16", &["10.244.1.0/24", "10.244.2.0/24", "10.244.1.11/32"]),
    ("10.244.2.8/29", &["10.244.2.10/32"]),
    ("10.244.1.10/32", &[]),
    ("0.0.0.0/0", &["10.244.1.0/24", "10.0.0.0/8", "192.168.50.0/24", "128.0.0.0/1"]),
    ("192.168.50.0/24", &["192.168.50.1/32", "192.168.50.2/32"]),
    ("203.0.113.0/24", &["203.0.113.10/32", "203.0.113.128/25"]),
    ("203.0.113.8/29", &[]),
    ("::/0", &["fd00:10:244:1::/64", "fd00::/8", "2001:db8::/32"]),
    ("fd00:10:244::/48", &["fd00:10:244:1::/64", "fd00:10:244:1::11/128", "fd00:10:244:2::/64"]),
    ("fd00:10:244:1::/64", &["fd00:10:244:1::10/127", "fd00:10:244:1::12/128"]),
    ("fd00:10:244:2::10/128", &[]),
    ("fd00:192:168:50::/64", &["fd00:192:168:50::1/128", "fd00:192:168:50::2/128"]),
    ("2001:db8:203::/48", &["2001:db8:203::10/128"]),
];

/// The same, sloppily.
const SLOPPY: &[(&str, &[&str])] = &[
    ("010.244.001.000/24", &["10.244.1.012/32"]),
    ("10.244.1.77/24", &["10.244.1.9/30"]),
    ("10.244.3.7/016", &["10.244.2.1/24"]),
    ("::ffff:10.244.1.0/120", &["::ffff:10.244.1.10/128"]),
    ("::ffff:10.244.0.0/112", &["::ffff:10.244.2.0/120"]),
    ("fd00:10:244:1::5/64", &["fd00:10:244:1::1f/124"]),
    ("fd00:10:244:ffff::/48", &[]),
    ("000.00.0.0/0", &["192.168.50.9/24"]),
];

/// A namespace for a policy: mostly one with pods on the node under test.
pub(super) fn home(random: &mut Random, namespaces: &[String], pods: &[Value]) -> String {
    let local: Vec<&str> = pods
        .iter()
        .filter(|pod| pod["spec"]["nodeName"] == "node-1")
        .filter_map(|pod| pod["metadata"]["namespace"].as_str())
        .collect();
    if local.is_empty() || random.percent(15) {
        return random.pick(namespaces).clone();
    }
    (*random.pick(&local)).to_owned()
}

pub(super) fn policy(random: &mut Random, index: usize, namespace: &str) -> Value {
    let mut metadata = json!({"name": name(random, index), "namespace": namespace, "uid": format!("policy-{index}")});
    if random.percent(10) {
        let mode = *random.weighted(&[(85, "audit"), (15, "enforce")]);
        metadata["annotations"] = json!({"flatfell.io/mode": mode});
    }
    if namespace == "default" && random.percent(20) {
        metadata.as_object_mut().map(|fields| fields.remove("namespace"));
    }
    let mut spec = json!({});
    match random.below(20) {
        0 => {}
        1 => spec["podSelector"] = Value::Null,
        2..=9 => spec["podSelector"] = json!({}),
        _ => spec["podSelector"] = pod_selector(random),
    }
    types(random, &mut spec);
    for direction in ["ingress", "egress"] {
        rules(random, &mut spec, direction);
    }
    if random.percent(10) {
        break_it(random, &mut spec);
    }
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec})
}

/// A name that no other policy of the cluster has.
fn name(random: &mut Random, index: usize) -> String {
    match random.below(10) {
        0 => format!("{index}.allow.some"),
        1 => {
            let head = format!("{index}{}.", "a".repeat(61));
            let tail = 253 - head.len();
            let rest: String = (0..tail).map(|place| if place % 60 == 59 { '.' } else { 'b' }).collect();
            format!("{head}{rest}")
        }
        _ => format!("policy-{index}"),
    }
}

fn types(random: &mut Random, spec: &mut Value) {
    let choices = [
        (30, None),
        (4, Some(json!([]))),
        (4, Some(Value::Null)),
        (20, Some(json!(["Ingress"]))),
        (18, Some(json!(["Egress"]))),
        (20, Some(json!(["Ingress", "Egress"]))),
        (4, Some(json!(["Egress", "Egress"]))),
    ];
    if let Some(types) = random.weighted(&choices) {
        spec["policyTypes"] = types.clone();
    }
}

/// So many rules that a pod's chain is split by port.
const MANY: usize = 12;

/// The rules of a direction: missing, null, empty, one to three, or many.
fn rules(random: &mut Random, spec: &mut Value, direction: &str) {
    let peers = if direction == "ingress" { "from" } else { "to" };
    match random.below(20) {
        0..=3 => {}
        4 => spec[direction] = Value::Null,
        5 => spec[direction] = json!([]),
        _ => {
            let count = *random.weighted(&[(52, 1), (27, 2), (13, 3), (8, MANY)]);
            let one = |random: &mut Random| {
                if count == MANY && random.percent(70) { listed_rule(random, peers) } else { rule(random, peers) }
            };
            spec[direction] = (0..count).map(|_| one(random)).collect();
        }
    }
}

/// A rule as long lists have them: one peer, one port.
fn listed_rule(random: &mut Random, peers: &str) -> Value {
    let port = json!({"protocol": random.weighted(&PROTOCOLS), "port": random.pick(&NUMBERS)});
    json!({peers: [peer(random)], "ports": [port]})
}

fn rule(random: &mut Random, peers: &str) -> Value {
    if random.percent(40) {
        return pointed_rule(random, peers);
    }
    let mut rule = json!({});
    match random.below(20) {
        0 | 1 => {}
        2 => rule[peers] = Value::Null,
        3 => rule[peers] = json!([]),
        _ => {
            let count = *random.weighted(&[(50, 1), (35, 2), (15, 3)]);
            rule[peers] = (0..count).map(|_| peer(random)).collect();
        }
    }
    match random.below(20) {
        0..=2 => {}
        5 => rule["ports"] = Value::Null,
        6 => rule["ports"] = json!([]),
        7 => rule["ports"] = json!([{}]),
        _ => {
            let count = *random.weighted(&[(50, 1), (35, 2), (15, 3)]);
            rule["ports"] = (0..count).map(|_| port(random)).collect();
        }
    }
    rule
}

/// A rule that restricts one thing only, so that this one thing decides.
fn pointed_rule(random: &mut Random, peers: &str) -> Value {
    match random.below(14) {
        0..=4 => json!({"ports": [named_port(random)]}),
        5 | 6 => json!({"ports": [range(random)]}),
        7 | 8 => {
            let blocks = [block_of(random, &BLOCKS[4], 90), block_of(random, &BLOCKS[8], 90)];
            let beside = if random.percent(40) { json!({"namespaceSelector": {}}) } else { json!({"podSelector": {}}) };
            json!({peers: [{"ipBlock": blocks[0]}, {"ipBlock": blocks[1]}, beside]})
        }
        9 => {
            let blocks = [block_of(random, &BLOCKS[1], 90), block_of(random, &BLOCKS[9], 90)];
            json!({peers: [{"ipBlock": blocks[0]}, {"ipBlock": blocks[1]}]})
        }
        10 => json!({peers: [{"ipBlock": {"cidr": "203.0.113.0/24"}}, {"ipBlock": {"cidr": "2001:db8:203::/48"}}]}),
        11 => json!({peers: [{"podSelector": pod_selector(random), "namespaceSelector": namespace_selector(random)}]}),
        12 => json!({peers: [{"namespaceSelector": {}}]}),
        _ => json!({peers: [{"podSelector": {}, "namespaceSelector": null}]}),
    }
}

/// A port by name, of the protocol most such ports have.
fn named_port(random: &mut Random) -> Value {
    let mut entry = json!({"port": random.pick(&NAMES)});
    if random.percent(30) {
        entry["protocol"] = json!(random.weighted(&PROTOCOLS));
    }
    entry
}

/// Ports from one number to the next or far beyond.
fn range(random: &mut Random) -> Value {
    let number = *random.pick(&NUMBERS);
    let ahead = *random.weighted(&[(10, 0_u16), (40, 1), (30, 2), (20, 363)]);
    json!({"port": number, "endPort": number + ahead})
}

fn peer(random: &mut Random) -> Value {
    match random.below(100) {
        0..=24 => json!({"podSelector": pod_selector(random)}),
        25..=44 => json!({"namespaceSelector": namespace_selector(random)}),
        45..=62 => {
            json!({"podSelector": pod_selector(random), "namespaceSelector": namespace_selector(random)})
        }
        63..=65 => json!({"podSelector": null, "namespaceSelector": namespace_selector(random), "ipBlock": null}),
        66..=69 => json!({"podSelector": pod_selector(random), "namespaceSelector": null}),
        70 => json!({"podSelector": null}),
        71 => json!({}),
        72 => json!({"serviceSelector": {}}),
        _ => json!({"ipBlock": block(random)}),
    }
}

/// A block, one in four sloppily written, one in two with parts taken out.
fn block(random: &mut Random) -> Value {
    let pool = if random.percent(30) { SLOPPY } else { BLOCKS };
    let choice = *random.pick(pool);
    block_of(random, &choice, 55)
}

/// A block of the pool; so many in a hundred have parts taken out.
fn block_of(random: &mut Random, (cidr, parts): &(&str, &[&str]), with_except: usize) -> Value {
    let mut block = json!({"cidr": cidr});
    if random.percent(with_except) {
        block["except"] = parts.iter().filter(|_| random.percent(60)).copied().collect();
    } else if random.percent(10) {
        block["except"] = Value::Null;
    }
    block
}

/// One entry of ports.
fn port(random: &mut Random) -> Value {
    let mut entry = json!({});
    if random.percent(60) {
        entry["protocol"] = json!(random.weighted(&PROTOCOLS));
    }
    let number = *random.pick(&NUMBERS);
    match random.below(20) {
        0 | 1 => {}
        2..=8 => entry["port"] = json!(random.pick(&NAMES)),
        9..=13 => {
            let range = range(random);
            entry["port"] = range["port"].clone();
            entry["endPort"] = range["endPort"].clone();
        }
        14 if random.percent(60) => entry = json!({"portRange": "80-90"}),
        14 => entry = json!({"port": number, "appProtocol": "http"}),
        _ => entry["port"] = json!(number),
    }
    entry
}

fn pod_selector(random: &mut Random) -> Value {
    let keys = [("app", ["web", "db"]), ("tier", ["front", "back"]), ("example.com/role", ["a", "b"])];
    selector(random, &keys)
}

fn namespace_selector(random: &mut Random) -> Value {
    if random.percent(10) {
        let name = random.pick(&["default", "shop", "7-seas"]);
        return json!({"matchLabels": {"kubernetes.io/metadata.name": name}});
    }
    selector(random, &[("env", ["prod", "dev"]), ("team", ["red", "blue"])])
}

fn selector(random: &mut Random, keys: &[(&str, [&str; 2])]) -> Value {
    let (key, values) = *random.pick(keys);
    let value = random.pick(&values);
    match random.below(20) {
        0..=3 => json!({}),
        4..=8 => json!({"matchLabels": {key: value}}),
        9 => json!({"matchLabels": {key: "nobody"}}),
        10 => json!({"matchLabels": null, "matchExpressions": []}),
        11 => json!({"matchLabels": {key: value}, "matchExpressions": [expression(random, keys)]}),
        12 => json!({"matchExpressions": [expression(random, keys), expression(random, keys)]}),
        _ => json!({"matchExpressions": [expression(random, keys)]}),
    }
}

fn expression(random: &mut Random, keys: &[(&str, [&str; 2])]) -> Value {
    let (key, values) = *random.pick(keys);
    let some = if random.percent(60) { json!([random.pick(&values)]) } else { json!(values) };
    match random.below(4) {
        0 => json!({"key": key, "operator": "In", "values": some}),
        1 => json!({"key": key, "operator": "NotIn", "values": some}),
        2 => json!({"key": key, "operator": "Exists"}),
        _ => json!({"key": key, "operator": "DoesNotExist", "values": []}),
    }
}

/// Makes one thing of a policy such that it has to be refused.
fn break_it(random: &mut Random, spec: &mut Value) {
    let direction = *random.pick(&["ingress", "egress"]);
    let peers = if direction == "ingress" { "from" } else { "to" };
    let bad_block = json!({"cidr": random.pick(&["10.0.0.0", "10.0.0.0/33", "300.1.1.1/8", "fd00::/129", "x/8"])});
    let outside = json!({"cidr": "10.244.1.0/24", "except": [random.pick(&["10.244.2.0/25", "10.244.1.0/24", "10.0.0.0/8", "fd00::/64"])]});
    let rule = match random.below(12) {
        0 => {
            return spec["podSelector"] =
                json!({"matchExpressions": [{"key": "app", "operator": "Like", "values": ["w"]}]});
        }
        1 => {
            return spec["podSelector"] = json!({"matchExpressions": [{"key": "app", "operator": "In", "values": []}]});
        }
        2 => return spec["policyTypes"] = json!(["Ingress", "Sideways"]),
        3 => return spec["policyTypes"] = json!("Ingress"),
        4 => json!({peers: [{"ipBlock": bad_block}]}),
        5 => json!({peers: [{"ipBlock": outside}]}),
        6 | 7 => json!({peers: [{"ipBlock": {"cidr": "0.0.0.0/0"}, "podSelector": {}}, {"ipBlock": {"cidr": "::/0"}}]}),
        8 => json!({"ports": [{"port": 443, "endPort": 80}]}),
        9 => json!({"ports": [random.pick(&[json!({"port": "http", "endPort": 90}), json!({"endPort": 90})])]}),
        10 => {
            json!({"ports": [random.pick(&[json!({"port": 70000}), json!({"port": 0}), json!({"protocol": "ICMP"})])]})
        }
        _ => {
            json!({peers: [{"podSelector": {"matchExpressions": [{"key": "app", "operator": "Exists", "values": ["web"]}]}}]})
        }
    };
    match &mut spec[direction] {
        Value::Array(rules) => rules.push(rule),
        other => *other = json!([rule]),
    }
}
