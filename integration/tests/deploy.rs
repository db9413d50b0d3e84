//! The objects that users apply: chart and kustomize render the same ones, and they ask for no more than they need.
#![allow(clippy::expect_used)]

mod deployment;

use std::collections::BTreeSet;

use clap::Parser;
use deployment::{NAMESPACE, Objects, VARIANTS, chart, container, helm, kustomize, objects, root, template, text};
use flatfell::config::Cli;
use serde_json::{Value, json};

/// Every value at its path, to say in which field two objects differ.
fn fields(prefix: &str, value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            map.iter().for_each(|(key, value)| fields(&format!("{prefix}.{key}"), value, into));
        }
        Value::Array(items) if !items.is_empty() => {
            items.iter().enumerate().for_each(|(at, value)| fields(&format!("{prefix}[{at}]"), value, into));
        }
        scalar => {
            into.insert(format!("{prefix} = {scalar}"));
        }
    }
}

fn all_fields(objects: &Objects) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    objects.iter().for_each(|(name, object)| fields(name, object, &mut all));
    all
}

fn environment<'a>(objects: &'a Objects, name: &str) -> Option<&'a str> {
    let variables = container(objects)["env"].as_array().expect("env");
    variables.iter().find(|variable| variable["name"] == name).map(|variable| text(variable, "/value"))
}

#[test]
fn the_chart_and_kustomize_render_the_same_objects() {
    for variant in VARIANTS {
        let (ours, theirs) = (all_fields(&kustomize(variant)), all_fields(&chart(variant)));
        let only_kustomize: Vec<&String> = ours.difference(&theirs).collect();
        let only_chart: Vec<&String> = theirs.difference(&ours).collect();
        assert!(
            only_kustomize.is_empty() && only_chart.is_empty(),
            "{variant}:\nonly kustomize: {only_kustomize:#?}\nonly the chart: {only_chart:#?}"
        );
    }
}

#[test]
fn every_overlay_and_values_file_is_compared() {
    let listed = |directory: &str| -> BTreeSet<String> {
        let entries = std::fs::read_dir(root().join(directory)).expect("a directory");
        entries
            .map(|entry| entry.expect("an entry").path().file_stem().expect("a name").to_string_lossy().into_owned())
            .collect()
    };
    let compared: BTreeSet<String> = VARIANTS[1..].iter().map(|&variant| variant.to_owned()).collect();
    assert_eq!(listed("deploy/kustomize/overlays"), compared);
    assert_eq!(listed("deploy/helm/flatfell/values"), compared);
}

#[test]
fn the_container_has_cap_net_admin_and_nothing_else() {
    let expected = json!({
        "privileged": false,
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "runAsUser": 0,
        "runAsGroup": 0,
        "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    for variant in VARIANTS {
        let objects = kustomize(variant);
        assert_eq!(container(&objects)["securityContext"], expected, "{variant}");
        let spec = &template(&objects)["spec"];
        assert!(spec.get("hostPID").is_none() && spec.get("hostIPC").is_none(), "{variant}");
        let volumes = spec["volumes"].as_array().expect("volumes");
        let of_node: Vec<&str> =
            volumes.iter().filter_map(|volume| volume.pointer("/hostPath/path")?.as_str()).collect();
        let expected: &[&str] = match variant {
            "cni" => &["/etc/cni/net.d", "/opt/cni/bin", "/run/flatfell-cni"],
            _ => &[],
        };
        assert_eq!(of_node, expected, "{variant}");
        assert!(container(&objects)["resources"].get("limits").is_none(), "{variant}");
    }
}

#[test]
fn it_may_list_and_watch_what_it_watches() {
    let watched = json!([
        {"apiGroups": [""], "resources": ["pods", "namespaces", "nodes"], "verbs": ["list", "watch"]},
        {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": ["list", "watch"]},
    ]);
    for variant in VARIANTS {
        let objects = kustomize(variant);
        let rules = objects["ClusterRole flatfell"]["rules"].as_array().expect("rules");
        assert_eq!(json!(rules[..2]), watched, "{variant}");
        let more = &rules[2..];
        let patch = json!({"apiGroups": [""], "resources": ["nodes"], "verbs": ["patch"]});
        let create = json!({"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]});
        let expected: &[Value] = match variant {
            "startup-taint" => &[patch],
            "events" => &[create],
            _ => &[],
        };
        assert_eq!(more, expected, "{variant}");
        assert_eq!(objects["ServiceAccount flatfell"]["automountServiceAccountToken"], false, "{variant}");
        let mounted = variant != "uninstall";
        assert_eq!(template(&objects)["spec"]["automountServiceAccountToken"], mounted, "{variant}");
    }
}

#[test]
fn the_image_has_the_version_of_the_binary() {
    let image = format!("ghcr.io/flatfell/flatfell:{}", env!("CARGO_PKG_VERSION"));
    for variant in VARIANTS {
        assert_eq!(text(container(&kustomize(variant)), "/image"), image, "{variant}");
    }
}

/// The command line of every variant is one that the program takes.
#[test]
fn the_program_takes_the_arguments() {
    for variant in VARIANTS {
        let objects = kustomize(variant);
        let arguments = container(&objects)["args"].as_array().expect("args").iter();
        let arguments: Vec<&str> = arguments.map(|argument| argument.as_str().expect("text")).collect();
        let node = (arguments[0] == "run").then_some("--node=worker-1");
        let settings = [
            ("FLATFELL_LISTEN", "--listen"),
            ("FLATFELL_API_SERVER", "--api-server"),
            ("FLATFELL_POD_BRIDGES", "--pod-bridge"),
            ("FLATFELL_STARTUP_TAINT", "--startup-taint"),
            ("FLATFELL_FLOW_LOG", "--flow-log"),
            ("FLATFELL_CNI_CONFLIST", "--cni-conflist"),
        ];
        let settings = settings.iter().filter_map(|(variable, flag)| Some((flag, environment(&objects, variable)?)));
        let settings: Vec<String> = settings.map(|(flag, value)| format!("{flag}={value}")).collect();
        let all = ["flatfell"].into_iter().chain(arguments).chain(node).chain(settings.iter().map(String::as_str));
        let all: Vec<&str> = all.collect();
        assert!(Cli::try_parse_from(&all).is_ok(), "{variant}: {all:?}: {:?}", Cli::try_parse_from(&all).err());
    }
}

/// Settings of the chart that have no overlay.
#[test]
fn metrics_are_served_and_probed_where_the_values_say() {
    for (address, listen, probed) in [
        ("127.0.0.1", "127.0.0.1:9000", "127.0.0.1"),
        ("0.0.0.0", "0.0.0.0:9000", "127.0.0.1"),
        ("::", "[::]:9000", "::1"),
        ("fd00::7", "[fd00::7]:9000", "fd00::7"),
    ] {
        let values = format!("metrics.address={address},metrics.port=9000");
        let objects = objects(&helm(&["--set", &values]).expect("helm"));
        assert_eq!(environment(&objects, "FLATFELL_LISTEN"), Some(listen));
        assert_eq!(container(&objects)["ports"][0]["containerPort"], 9000);
        for probe in ["livenessProbe", "readinessProbe"] {
            assert_eq!(text(container(&objects), &format!("/{probe}/httpGet/host")), probed);
            assert_eq!(text(container(&objects), &format!("/{probe}/httpGet/port")), "metrics");
        }
    }
}

#[test]
fn the_chart_follows_the_release_and_its_settings() {
    let plain = objects(&helm(&[]).expect("helm"));
    assert!(!plain.contains_key("Namespace flatfell-system"), "helm has made it");
    for (name, object) in plain.iter().filter(|(name, _)| !name.starts_with("Cluster")) {
        assert_eq!(text(object, "/metadata/namespace"), NAMESPACE, "{name}");
    }
    let digest = format!("sha256:{}", "0".repeat(64));
    let values = format!("image.digest={digest},terminating=forget,log.level=debug,podBridges={{cni0,br1}}");
    let set = objects(&helm(&["--set", &values]).expect("helm"));
    assert_eq!(text(container(&set), "/image"), format!("ghcr.io/flatfell/flatfell@{digest}"));
    assert_eq!(environment(&set, "FLATFELL_TERMINATING"), Some("forget"));
    assert_eq!(environment(&set, "FLATFELL_LOG_LEVEL"), Some("debug"));
    assert_eq!(environment(&set, "FLATFELL_POD_BRIDGES"), Some("cni0,br1"));
    let logged = objects(&helm(&["--set", "flowLog.output=stdout,flowLog.rate=0,flowLog.podRate=7"]).expect("helm"));
    assert_eq!(environment(&logged, "FLATFELL_FLOW_LOG"), Some("stdout"));
    assert_eq!(environment(&logged, "FLATFELL_FLOW_LOG_RATE"), Some("0"));
    assert_eq!(environment(&logged, "FLATFELL_FLOW_LOG_POD_RATE"), Some("7"));
    assert_eq!(environment(&plain, "FLATFELL_FLOW_LOG_RATE"), None);
    let cni = "cni.enabled=true,cni.conflist=/a/b.conflist,cni.binDir=/c,cni.onUnavailable=fail,cni.timeout=9s,unknownPods=allow";
    let plugged = objects(&helm(&["--set", cni]).expect("helm"));
    for (name, value) in [
        ("FLATFELL_CNI_CONFLIST", "/a/b.conflist"),
        ("FLATFELL_CNI_BIN_DIR", "/c"),
        ("FLATFELL_CNI_ON_UNAVAILABLE", "fail"),
        ("FLATFELL_CNI_TIMEOUT", "9s"),
        ("FLATFELL_UNKNOWN_PODS", "allow"),
    ] {
        assert_eq!(environment(&plugged, name), Some(value));
    }
    let held = objects(&helm(&["--set", "antiSpoofing.mode=off,antiSpoofing.exempt={vpn,lab-1}"]).expect("helm"));
    assert_eq!(environment(&held, "FLATFELL_ANTI_SPOOFING"), Some("off"));
    assert_eq!(environment(&held, "FLATFELL_ANTI_SPOOFING_EXEMPT"), Some("vpn,lab-1"));
    let mounts = container(&plugged)["volumeMounts"].as_array().expect("mounts").iter();
    let mounts: Vec<&str> = mounts.map(|mount| text(mount, "/mountPath")).collect();
    assert_eq!(mounts, ["/run", "/a", "/c", "/run/flatfell-cni"]);
}

#[test]
fn wrong_values_are_refused_before_anything_is_applied() {
    for (values, field) in [
        ("mode=off", "mode"),
        ("metrics.port=0", "port"),
        ("metrics.address=localhost", "address"),
        ("established=drop", "established"),
        ("apiServer=10.0.0.1:6443", "apiServer"),
        ("podBridges={a/b}", "podBridges"),
        ("flowLog.output=stdot", "output"),
        ("flowLog.podRate=0", "podRate"),
        ("cni.onUnavailable=open", "onUnavailable"),
        ("cni.conflist=flannel", "conflist"),
        ("podCidrs={10.244.1.0}", "podCidrs"),
        ("antiSpoofing.mode=cheap", "mode"),
        ("antiSpoofing.exempt={A}", "exempt"),
        ("apiserver=https://10.0.0.1", "apiserver"),
        ("image.digest=latest", "digest"),
    ] {
        let refusal = helm(&["--set", values]).expect_err(values);
        assert!(refusal.contains(field), "{values}: {refusal}");
    }
}
