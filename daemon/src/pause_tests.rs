//! The pause against an engine that only remembers.

use std::net::IpAddr;

use flatfell_rules::effective::Fallback;
use flatfell_rules::object::ObjectName;
use flatfell_rules::policy::{Namespaces, PodPeer, Selector};

use super::*;
use crate::testing::Memory;

impl Memory {
    /// How often it was told something, and whether the last word isolates somebody.
    fn told(&self) -> (usize, bool) {
        let isolates =
            |pod: &EffectivePod| pod.ingress.default == Fallback::Deny || pod.egress.default != Fallback::Open;
        (self.count(), self.last().is_some_and(|effective| effective.pods().values().any(|pod| isolates(pod))))
    }

    fn isolates(&self) -> bool {
        self.told().1
    }

    fn newest(&self) -> Arc<Effective> {
        self.last().expect("something")
    }
}

fn policy() -> Arc<Effective> {
    let isolated = |default| Isolation { default, policies: vec![ObjectName::new("a", "p")], rules: Vec::new() };
    let pod = EffectivePod {
        name: ObjectName::new("a", "x"),
        addresses: vec![IpAddr::from([10, 0, 0, 1])],
        ingress: isolated(Fallback::Deny),
        egress: isolated(Fallback::Audit),
    };
    Arc::new(Effective::from_iter([pod]))
}

fn paused() -> (Arc<Memory>, Pause<Memory>) {
    let engine = Arc::new(Memory::default());
    let pause = Pause::new(Arc::clone(&engine));
    (engine, pause)
}

/// A time from now, as an annotation says it.
fn ahead(seconds: i64) -> String {
    Timestamp::from_second(Timestamp::now().as_second() + seconds).expect("a time").to_string()
}

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_pause_isolates_nobody_and_its_end_brings_the_newest_policy() {
    let (engine, pause) = paused();
    pause.enforce(policy(), Batch::default());
    assert!(engine.isolates());
    pause.pause(MINUTE);
    assert_eq!(engine.told(), (2, false));
    assert_eq!(engine.newest().local(), policy().local(), "still known as local pods");
    let newest = policy();
    pause.enforce(Arc::clone(&newest), Batch::default());
    assert!(!engine.isolates(), "policy that changes meanwhile");
    assert_eq!(pause.resume(), Resumed::Enforcing);
    assert!(Arc::ptr_eq(&engine.newest(), &newest));
    assert_eq!((pause.resume(), engine.told().0), (Resumed::WasNotPaused, 4));
}

#[test]
fn a_pause_before_the_first_policy_holds_for_it() {
    let (engine, pause) = paused();
    pause.annotation(Some(&ahead(60)));
    assert_eq!(engine.told().0, 0, "nothing is made up");
    pause.enforce(policy(), Batch::default());
    assert!(!engine.isolates());
    pause.annotation(None);
    assert!(engine.isolates());
}

#[test]
fn either_pauses_and_both_must_end() {
    let (engine, pause) = paused();
    pause.enforce(policy(), Batch::default());
    let (long, short) = (ahead(120), MINUTE);
    pause.annotation(Some(&long));
    pause.pause(short);
    assert_eq!(pause.shown().borrow().until.map(|until| until.to_string()), Some(long.clone()), "the later end");
    assert!(matches!(pause.resume(), Resumed::StillAnnotated(until) if until.to_string() == long));
    assert!(!engine.isolates());
    pause.annotation(None);
    assert!(engine.isolates());
    pause.annotation(Some(&ahead(-5)));
    assert!(engine.isolates() && pause.shown().borrow().problem.is_none(), "a time that has come is no fault");
}

#[test]
fn an_annotation_that_cannot_be_read_does_not_pause_and_is_named() {
    let (engine, pause) = paused();
    pause.enforce(policy(), Batch::default());
    for value in ["tomorrow", "", "10m", "2026-13-01T00:00:00Z", "2026-01-31 12:00", &ahead(2 * 86_400)] {
        pause.annotation(Some(value));
        let shown = pause.shown().borrow().clone();
        assert!(engine.isolates() && shown.until.is_none(), "{value}");
        let problem = shown.problem.expect(value);
        assert!(problem.contains(ANNOTATION) && problem.contains(&format!("{value:?}")), "{problem}");
        assert_eq!(pause.shown().borrow().notes(), [problem]);
    }
    pause.annotation(Some(&ahead(60)));
    assert!(!engine.isolates() && pause.shown().borrow().problem.is_none());
    pause.annotation(Some("nonsense"));
    assert!(engine.isolates(), "what was a pause is none any more");
    pause.annotation(None);
    assert_eq!(*pause.shown().borrow(), Paused::default());
}

#[test]
fn a_time_refused_as_too_far_ahead_does_not_begin_to_pause_later() {
    let now = Now::read();
    let value = ahead(86_400 + 60);
    let mut inner = Inner::default();
    inner.annotate(Some(&value), now);
    let later = Now { wall: now.wall.checked_add(Duration::from_secs(3600)).expect("a time"), ..now };
    inner.annotate(Some(&value), later);
    assert!(inner.until(later).is_none() && inner.problem.is_some());
}

#[test]
fn a_daemon_that_stops_leaves_no_pause_behind() {
    let (engine, pause) = paused();
    let wanted = policy();
    pause.enforce(Arc::clone(&wanted), Batch::default());
    assert!(pause.close().is_none(), "nothing to bring");
    let (engine_paused, pause) = {
        drop((engine, pause));
        paused()
    };
    pause.enforce(Arc::clone(&wanted), Batch::default());
    pause.pause(MINUTE);
    assert!(Arc::ptr_eq(&pause.close().expect("to be enforced"), &wanted));
    assert!(Arc::ptr_eq(&engine_paused.newest(), &wanted));
    pause.pause(MINUTE);
    assert!(engine_paused.isolates(), "closed for good");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pauses_end_by_themselves() {
    let (engine, pause) = paused();
    let pause = Arc::new(pause);
    pause.enforce(policy(), Batch::default());
    let follower = Arc::clone(&pause);
    let follow = tokio::spawn(async move { follower.follow().await });
    for annotated in [false, true] {
        let start = Instant::now();
        if annotated {
            pause.annotation(Some(&ahead(2)));
        } else {
            pause.pause(Duration::from_secs(2));
        }
        assert!(!engine.isolates());
        while !engine.isolates() {
            assert!(start.elapsed() < Duration::from_secs(4), "annotated: {annotated}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let took = start.elapsed();
        assert!(took > Duration::from_millis(900), "{took:?}");
        assert!(pause.shown().borrow().until.is_none());
    }
    follow.abort();
}

#[test]
fn no_rule_and_no_peer_outlives_the_pause_of_its_pod() {
    let mut effective = Effective::clone(&policy());
    let peer = PodPeer { namespaces: Namespaces::Named("a".to_owned()), pods: Selector::default() };
    effective.peers.insert(Arc::new(peer), [IpAddr::from([10, 0, 0, 2])].into_iter().collect());
    let open = opened(&effective);
    assert!(open.peers.is_empty() && open.endpoints.is_empty());
    assert!(open.pods().values().all(|pod| pod.ingress == Isolation::default() && pod.egress == Isolation::default()));
}

#[test]
fn lengths() {
    for (text, seconds) in [("90s", 90), ("10m", 600), ("1h30m", 5400), ("24h", 86_400), ("1h0m1s", 3601)] {
        assert_eq!(length(text), Ok(Duration::from_secs(seconds)), "{text}");
    }
    for text in ["", "10", "m", "10d", "1.5h", "-5m", "5m1h", "1h1h", "10 m", "10M", "99999999999999999999h", "ten"] {
        assert_eq!(length(text), Err(LengthError::Shape), "{text}");
    }
    for text in ["0s", "0h0m", "25h", "24h1s", "9999999999999999h"] {
        assert_eq!(length(text), Err(LengthError::Bounds), "{text}");
    }
}

#[test]
fn a_wall_clock_that_is_set_makes_no_pause_longer() {
    let now = Now::read();
    let at = |minutes: u64, hours: i64| Now {
        steady: now.steady + Duration::from_secs(minutes * 60),
        wall: now.wall
            + SignedDuration::from_mins(i64::try_from(minutes).expect("few"))
            + SignedDuration::from_hours(hours),
    };
    let annotated = |value: i64| {
        let mut inner = Inner::default();
        inner.annotate(Some(&(now.wall + SignedDuration::from_mins(value)).to_string()), now);
        inner
    };
    assert!(annotated(10).until(at(9, 0)).is_some());
    assert!(annotated(10).until(at(9, -6)).is_some(), "not before its time");
    assert!(annotated(10).until(at(10, -6)).is_none(), "set back by six hours");
    assert!(annotated(10).until(at(1, 6)).is_none(), "set forward: its named time has come");
    let mut by_command = Inner { command: Some((now.steady + MINUTE, now.wall)), ..Inner::default() };
    assert!(by_command.until(Now { steady: now.steady, ..at(0, 6) }).is_some(), "commands count time");
    assert!(by_command.until(Now { steady: now.steady + MINUTE, ..at(0, -6) }).is_none());
}
