//! Which pods a policy isolates, in which direction, and how policies add up.

use flatfell_integration::Scene;
use flatfell_integration::scene::{no, ping, policy, tcp, udp, yes};

use crate::{B_FAR, B_WEB, DB, FAR, OTHER, WEB, cluster};

/// Row "isolation": a pod is isolated in a direction once any policy with that policyType selects it; otherwise
/// everything passes.
fn isolation(scene: &mut Scene) {
    scene.policies(&[]);
    scene.expect("no policy", &[yes(tcp(FAR, DB, 80)), yes(udp(DB, B_WEB, 53)), yes(ping(B_FAR, WEB))]);
    scene.policies(&[policy("a/p", "podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]")]);
    scene.expect(
        "ingress of db is isolated",
        &[
            no(tcp(FAR, DB, 80)),
            no(tcp(WEB, DB, 80)),
            no(udp(B_WEB, DB, 53)),
            yes(tcp(DB, WEB, 80)),
            yes(tcp(DB, FAR, 80)),
            yes(tcp(FAR, WEB, 80)),
        ],
    );
    scene.policies(&[policy("a/p", "podSelector: {matchLabels: {app: db}}, policyTypes: [Egress]")]);
    scene.expect(
        "egress of db is isolated",
        &[no(tcp(DB, WEB, 80)), no(tcp(DB, FAR, 80)), yes(tcp(FAR, DB, 80)), yes(tcp(WEB, FAR, 80))],
    );
}

/// Row "policyTypes unset": Ingress always; Egress only if the policy has egress rules.
fn policy_types_unset(scene: &mut Scene) {
    scene.policies(&[policy("a/p", "podSelector: {matchLabels: {app: db}}")]);
    scene.expect("no rules: ingress only", &[no(tcp(WEB, DB, 80)), yes(tcp(DB, WEB, 80))]);
    let to_web = "podSelector: {matchLabels: {app: db}}, egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]";
    scene.policies(&[policy("a/p", to_web)]);
    scene.expect("egress rules: both", &[no(tcp(WEB, DB, 80)), yes(tcp(DB, WEB, 80)), no(tcp(DB, OTHER, 80))]);
    scene.policies(&[policy("a/p", "podSelector: {matchLabels: {app: db}}, egress: []")]);
    scene.expect("an empty list holds no egress rules", &[no(tcp(WEB, DB, 80)), yes(tcp(DB, OTHER, 80))]);
}

/// Row "policyTypes set": rules of a direction that is not in it are ignored; an entry twice is legal.
fn policy_types_set(scene: &mut Scene) {
    let spec = "podSelector: {matchLabels: {app: db}}, ingress: [{}], egress: [{}], policyTypes: ";
    scene.policies(&[
        policy("a/p", &format!("{spec} [Ingress]")),
        policy("a/q", "podSelector: {}, policyTypes: [Egress]"),
    ]);
    scene.expect("its egress rule is ignored", &[no(tcp(DB, FAR, 80)), yes(tcp(FAR, DB, 80))]);
    scene.policies(&[policy("a/p", "podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress, Ingress]")]);
    scene.expect("an entry twice", &[no(tcp(FAR, DB, 80)), yes(tcp(DB, FAR, 80))]);
}

/// Row "union": policies only add; a connection needs the source's egress AND the destination's ingress.
fn union(scene: &mut Scene) {
    let deny = policy("a/deny", "podSelector: {}, policyTypes: [Ingress, Egress]");
    let from_web = policy(
        "a/from-web",
        "podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]",
    );
    let from_other = policy(
        "a/from-other",
        "podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: other}}}]}]",
    );
    let to_db = policy(
        "a/to-db",
        "podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: \
         {app: db}}}]}]",
    );
    scene.policies(&[deny.clone(), from_web.clone(), from_other.clone()]);
    scene.expect("ingress without egress", &[no(tcp(WEB, DB, 80)), no(tcp(OTHER, DB, 80))]);
    scene.policies(&[deny.clone(), to_db.clone()]);
    scene.expect("egress without ingress", &[no(tcp(WEB, DB, 80))]);
    scene.policies(&[deny, from_web, from_other, to_db]);
    scene.expect(
        "both",
        &[yes(tcp(WEB, DB, 80)), no(tcp(OTHER, DB, 80)), no(tcp(B_WEB, DB, 80)), no(tcp(WEB, FAR, 80))],
    );
}

/// Row "podSelector {}": every pod of the namespace.
fn every_pod_of_the_namespace(scene: &mut Scene) {
    scene.policies(&[policy("a/p", "podSelector: {}")]);
    scene.expect(
        "all of a, none of b",
        &[no(tcp(FAR, DB, 80)), no(tcp(B_WEB, WEB, 80)), no(tcp(WEB, OTHER, 80)), yes(tcp(WEB, B_WEB, 80))],
    );
    scene.policies(&[policy("b/p", "podSelector: {}")]);
    scene.expect("all of b, none of a", &[yes(tcp(B_WEB, WEB, 80)), no(tcp(WEB, B_WEB, 80))]);
}

#[test]
fn isolation_types_and_union() {
    let mut scene = Scene::new(5, &cluster());
    isolation(&mut scene);
    policy_types_unset(&mut scene);
    policy_types_set(&mut scene);
    union(&mut scene);
    every_pod_of_the_namespace(&mut scene);
}
