//! Rows of series as meanings and totals come and go.

use flatfell_rules::compile::Guard;
use flatfell_rules::effective::{EffectivePod, Isolation as OfPod, RuleIdentity};
use flatfell_rules::object::ObjectName;
use flatfell_rules::policy::Action;
use flatfell_rules::ruleset::Name;

use super::*;

fn identity(policy: &str, action: Action) -> RuleIdentity {
    RuleIdentity {
        policy: ObjectName::new("shop", policy),
        direction: Direction::Ingress,
        action,
        peers: "pods app in (\"x\")".to_owned(),
        ports: "tcp 80".to_owned(),
        occurrence: 0,
    }
}

fn rule(policy: &str, action: Action) -> CounterMeaning {
    CounterMeaning::Rule { identity: identity(policy, action).into(), index: 2, action }
}

fn connections(policy: &str) -> CounterMeaning {
    let action = Action::Accept;
    CounterMeaning::RuleConnections { identity: identity(policy, action).into(), index: 2, action }
}

fn dropped(pod: &str) -> CounterMeaning {
    CounterMeaning::Dropped { pod: ObjectName::new("shop", pod), direction: Direction::Egress }
}

fn meanings(all: impl IntoIterator<Item = CounterMeaning>) -> Meanings {
    (0..).zip(all).map(|(number, meaning)| (Name::from(format!("c{number:03}")), Arc::new(meaning))).collect()
}

fn value(packets: u64) -> Option<CounterValue> {
    Some(CounterValue { packets, bytes: packets * 100 })
}

fn text(series: &Series, max: usize) -> (String, Size) {
    let mut out = String::new();
    let size = series.write(&mut out, Format::Text, max);
    (out.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect(), size)
}

const ALL: usize = usize::MAX;

#[test]
fn a_rule_has_its_traffic_its_connections_and_what_it_says() {
    let mut series = Series::default();
    let all = meanings([rule("p", Action::Accept), connections("p"), rule("q", Action::Deny)]);
    series.update(&all, &[value(7), value(2), value(3)]);
    let (text, size) = text(&series, ALL);
    let label = |policy, action| identity(policy, action).label();
    let (p, q) = (label("p", Action::Accept), label("q", Action::Deny));
    let of_p = format!(r#"namespace="shop",policy="p",direction="ingress",rule="{p}""#);
    let of_q = format!(r#"namespace="shop",policy="q",direction="ingress",rule="{q}""#);
    let info = r#"index="2",peers="pods app in (\"x\")",ports="tcp 80""#;
    let expected = format!(
        "flatfell_rule_packets_total{{{of_p},action=\"accept\"}} 7\n\
         flatfell_rule_packets_total{{{of_q},action=\"deny\"}} 3\n\
         flatfell_rule_bytes_total{{{of_p},action=\"accept\"}} 700\n\
         flatfell_rule_bytes_total{{{of_q},action=\"deny\"}} 300\n\
         flatfell_rule_connections_total{{{of_p},action=\"accept\"}} 2\n\
         flatfell_rule_info{{{of_p},{info}}} 1\n\
         flatfell_rule_info{{{of_q},{info}}} 1\n"
    );
    assert_eq!(text, expected);
    assert_eq!(size, Size { exported: 7, left_out: 0 });
}

#[test]
fn counters_with_the_same_labels_are_one_series() {
    let mut series = Series::default();
    let all = meanings([
        CounterMeaning::Guard(Guard::Frame),
        CounterMeaning::Guard(Guard::Frame),
        CounterMeaning::Unattributed,
    ]);
    series.update(&all, &[value(4), value(5), value(1)]);
    let (text, size) = text(&series, 0);
    assert!(text.starts_with("flatfell_guard_packets_total{guard=\"frame\"} 9\n"), "{text}");
    assert!(text.contains("flatfell_unattributed_packets_total 1\n"), "{text}");
    assert_eq!(size, Size::default(), "what the code bounds is not counted");
    series.update(&all, &[value(6), value(5), None]);
    let (text, _) = super::tests::text(&series, 0);
    assert!(text.starts_with("flatfell_guard_packets_total{guard=\"frame\"} 11\n"), "not added up twice: {text}");
    assert!(!text.contains("unattributed"), "never read: {text}");
}

#[test]
fn a_series_goes_with_the_meaning_of_its_counter() {
    let mut series = Series::default();
    let (both, one) = (meanings([dropped("a"), dropped("b")]), meanings([dropped("a")]));
    for (meanings, totals, expected) in [
        (&both, vec![value(1), value(2)], Some(2)),
        (&one, vec![value(1)], None),
        (&both, vec![value(1), value(4)], Some(4)),
    ] {
        series.update(meanings, &totals);
        let (text, size) = text(&series, ALL);
        let line = |packets| {
            format!("flatfell_dropped_packets_total{{namespace=\"shop\",pod=\"b\",direction=\"egress\"}} {packets}\n")
        };
        assert!(expected.is_none_or(|packets| text.contains(&line(packets))), "{text}");
        assert_eq!(
            (text.matches("pod=\"b\"").count(), size.exported),
            if expected.is_some() { (2, 4) } else { (0, 2) }
        );
    }
}

#[test]
fn over_the_limit_the_same_rules_are_left_out_each_time() {
    let mut series = Series::default();
    let all = meanings([rule("b", Action::Accept), rule("a", Action::Accept), rule("c", Action::Accept), dropped("z")]);
    let totals = [value(1), value(2), value(3), value(4)];
    series.update(&all, &totals);
    // Two series of the pod and three of each rule.
    let (whole, size) = text(&series, 11);
    assert_eq!(size, Size { exported: 11, left_out: 0 });
    let (cut, size) = text(&series, 10);
    assert_eq!(size, Size { exported: 8, left_out: 3 });
    assert!(whole.contains("policy=\"c\"") && !cut.contains("policy=\"c\""), "{cut}");
    assert!(["policy=\"a\"", "policy=\"b\"", "pod=\"z\""].iter().all(|kept| cut.contains(kept)), "{cut}");
    let (none, size) = text(&series, 1);
    assert_eq!((none.as_str(), size), ("", Size { exported: 0, left_out: 11 }));
}

#[test]
fn only_policies_that_isolate_are_named() {
    let policies = vec![ObjectName::new("shop", "p"), ObjectName::new("shop", "q")];
    let of = |default| OfPod { default, policies: policies.clone(), rules: Vec::new() };
    let pod = EffectivePod {
        name: ObjectName::new("shop", "fe"),
        addresses: Vec::new(),
        ingress: of(Fallback::Deny),
        egress: of(Fallback::Audit),
    };
    let effective = Arc::new(Effective::from_iter([pod]));
    let mut series = Series::default();
    series.isolate(Some(&effective));
    let line = |policy| {
        format!(
            "flatfell_pod_isolated_by_info{{namespace=\"shop\",pod=\"fe\",direction=\"ingress\",policy=\"{policy}\"}} 1\n"
        )
    };
    assert_eq!(text(&series, ALL).0, line("p") + &line("q"));
    assert_eq!(text(&series, 1), (line("p"), Size { exported: 1, left_out: 1 }));
    series.isolate(None);
    assert_eq!(text(&series, ALL).0, "");
}
