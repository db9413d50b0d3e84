//! The one owner of what is known: takes in changes, evaluates, hands the result to the engine.
//!
//! In: changes from a [`Source`], addresses whose interface went, and questions whose an address is. Out: an [`Effective`] for each batch of changes that
//! policy can see, and a [`SourceState`] for readers. What always holds: nothing is handed on before the source was read
//! completely once, and what is handed on depends on current state only. Where an earlier run left rules, what cannot be
//! read does not take them away at once: it is waited for, though not for ever.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use flatfell_rules::effective::{Effective, Evaluator};
use flatfell_rules::index::{Change, Index};
use tokio::sync::{mpsc, watch};
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep_until};

use crate::batch::Batch;
use crate::flows::Question;
use crate::state::SourceState;

/// How long the rules of an earlier run stay in force while something cannot be read: long enough for a file that is being
/// written, short enough for the policies that can.
pub const HOLD: Duration = Duration::from_secs(10);

/// Where objects come from.
pub trait Source: Send {
    /// Waits until there may be something to take. Safe to be dropped and called again.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;

    /// What changed since it was asked last; may take a moment.
    fn take(&mut self) -> Vec<Change>;

    /// When what was taken last came in, and what of it was created. Of a source that does not know, nothing.
    fn arrived(&mut self) -> Batch {
        Batch::default()
    }

    /// How it stands after what was taken.
    fn state(&self) -> SourceState;
}

/// Where evaluated policy goes.
pub trait Enforce: Send + Sync {
    /// What shall hold from now on, and the changes that made it so.
    fn enforce(&self, effective: Arc<Effective>, batch: Batch);
}

impl Enforce for crate::engine::Engine {
    fn enforce(&self, effective: Arc<Effective>, batch: Batch) {
        self.submit_batch(effective, batch);
    }
}

/// The owner of what is known.
#[derive(Debug)]
pub struct Controller<S, E> {
    source: S,
    evaluator: Evaluator,
    engine: Arc<E>,
    published: watch::Sender<Arc<SourceState>>,
    /// Changes that were not handed on yet.
    batch: Batch,
    /// Whether what is not known yet is waited for.
    holding: bool,
    /// Until when, once the source was read.
    hold_end: Option<Instant>,
    /// Whether anything was handed on.
    is_begun: bool,
    /// Questions about what is known.
    questions: Option<mpsc::UnboundedReceiver<Question>>,
    /// What the network plugin says of pods.
    plugged: Option<mpsc::UnboundedReceiver<Change>>,
}

impl<S: Source, E: Enforce> Controller<S, E> {
    /// One that knows nothing yet.
    pub fn new(source: S, index: Index, engine: Arc<E>, published: watch::Sender<Arc<SourceState>>) -> Self {
        Self {
            source,
            evaluator: Evaluator::new(index),
            engine,
            published,
            batch: Batch::default(),
            holding: false,
            hold_end: None,
            is_begun: false,
            questions: None,
            plugged: None,
        }
    }

    /// Waits up to [`HOLD`] for what cannot be read before the first state is handed on: there are rules of an earlier run
    /// in the kernel, and a state without it may take some of them away.
    pub fn hold_for_unreadable(mut self, holding: bool) -> Self {
        self.holding = holding;
        self
    }

    /// Answers these questions, between two steps.
    pub fn answering(mut self, questions: mpsc::UnboundedReceiver<Question>) -> Self {
        self.questions = Some(questions);
        self
    }

    /// Takes in what the network plugin says of pods, too.
    pub fn hearing(mut self, plugged: mpsc::UnboundedReceiver<Change>) -> Self {
        self.plugged = Some(plugged);
        self
    }

    /// Follows the source until the caller drops this.
    pub async fn run(&mut self, gone: &mut mpsc::UnboundedReceiver<IpAddr>) {
        loop {
            let end = self.hold_end.filter(|_| self.holding);
            tokio::select! {
                () = self.source.changed() => block_in_place(|| self.step()),
                Some(question) = next(&mut self.questions) => question.answer(self.evaluator.index()),
                Some(change) = next(&mut self.plugged) => block_in_place(|| self.plugged(change)),
                Some(address) = gone.recv() => block_in_place(|| self.interface_gone(address)),
                () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => block_in_place(|| self.give_up()),
            }
        }
    }

    /// Takes in what changed, and hands on what policy sees of it; the first complete state also when that is nothing.
    pub fn step(&mut self) {
        let mut changes = 0;
        for change in self.source.take() {
            changes += usize::from(self.evaluator.apply(change));
        }
        let arrived = self.source.arrived();
        let changed = changes > 0;
        if changed {
            self.batch.add(Batch { changes, ..arrived });
        }
        let state = self.state();
        let (is_read, was_holding) = (state.read, self.holding);
        if is_read {
            self.hold(!state.unknown.is_empty());
        }
        self.published.send_replace(Arc::new(state.held(is_read && self.holding)));
        // What was waited for may be readable now without a difference that policy can see.
        if is_read && (changed || was_holding || !self.is_begun) {
            self.submit();
        }
    }

    /// What is known of the source and of what it said.
    fn state(&self) -> SourceState {
        let index = self.evaluator.index();
        SourceState { policies: index.policy_counts(), contested: index.contested(), ..self.source.state() }
    }

    fn hold(&mut self, is_incomplete: bool) {
        self.holding &= is_incomplete;
        if self.holding && self.hold_end.is_none() {
            self.hold_end = Some(Instant::now() + HOLD);
            let seconds = HOLD.as_secs();
            tracing::warn!("something cannot be read: the rules of an earlier run stay in force for up to {seconds} s");
        }
    }

    /// Goes on without what still cannot be read.
    pub fn give_up(&mut self) {
        tracing::error!("something still cannot be read: going on without it");
        self.holding = false;
        let state = self.state();
        self.published.send_replace(Arc::new(state));
        self.submit();
    }

    /// One change and whatever waits behind it.
    fn plugged(&mut self, change: Change) {
        let waiting = std::iter::from_fn(|| self.plugged.as_mut()?.try_recv().ok());
        let changes: Vec<Change> = std::iter::once(change).chain(waiting).collect();
        let changes = changes.into_iter().map(|change| self.evaluator.apply(change)).filter(|changed| *changed).count();
        if changes > 0 && self.is_begun {
            self.batch.add(Batch { changes, ..Batch::now() });
            self.submit();
        }
    }

    fn interface_gone(&mut self, address: IpAddr) {
        if self.evaluator.apply(Change::InterfaceGone(address)) && self.is_begun {
            self.batch.add(Batch::now());
            self.submit();
        }
    }

    fn submit(&mut self) {
        if self.holding {
            return;
        }
        let mut batch = std::mem::take(&mut self.batch);
        if !self.is_begun {
            // What stood at the start is no event.
            batch.oldest = None;
        }
        self.is_begun = true;
        let effective = self.evaluator.effective();
        tracing::debug!(pods = effective.pods().len(), "policy changed");
        self.engine.enforce(Arc::new(effective), batch);
    }
}

/// The next one, if anybody can send any.
async fn next<T>(sent: &mut Option<mpsc::UnboundedReceiver<T>>) -> Option<T> {
    sent.as_mut()?.recv().await
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use flatfell_rules::effective::Fallback;

    use super::*;
    use crate::manifests::Manifests;
    use crate::testing::Memory;

    impl Memory {
        /// Whether the last state isolates each pod's ingress.
        fn isolated(&self) -> Vec<bool> {
            let last = self.last().unwrap_or_default();
            last.pods().values().map(|pod| pod.ingress.default == Fallback::Deny).collect()
        }
    }

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: x, labels: {app: x}}\nspec: {nodeName: n}\nstatus: \
                       {podIP: 10.0.0.1}\n";
    const DENY: &str =
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}}\n";

    fn controller(root: &Path) -> (Controller<Manifests, Memory>, Arc<Memory>, watch::Receiver<Arc<SourceState>>) {
        let engine = Arc::new(Memory::default());
        let (sender, receiver) = watch::channel(Arc::default());
        let manifests = Manifests::follow(root).expect("watched");
        (Controller::new(manifests, Index::new("n"), Arc::clone(&engine), sender), engine, receiver)
    }

    #[test]
    fn nothing_is_handed_on_before_everything_was_read() {
        let dir = tempfile::tempdir().expect("directory");
        fs::write(dir.path().join("a.yaml"), POD).expect("file");
        fs::write(dir.path().join("b.yaml"), DENY).expect("file");
        let (mut controller, engine, source) = controller(dir.path());
        assert!(engine.count() == 0 && !source.borrow().read);
        controller.step();
        assert_eq!((engine.count(), engine.isolated()), (1, vec![true]), "pod and policy at once");
        assert!(source.borrow().read);
    }

    #[test]
    fn an_empty_directory_is_handed_on_too() {
        let dir = tempfile::tempdir().expect("directory");
        let (mut controller, engine, _source) = controller(dir.path());
        controller.step();
        assert_eq!(engine.count(), 1);
    }

    #[test]
    fn what_policy_cannot_see_is_not_handed_on() {
        let dir = tempfile::tempdir().expect("directory");
        fs::write(dir.path().join("a.yaml"), POD).expect("file");
        let (mut controller, engine, _source) = controller(dir.path());
        controller.step();
        fs::write(dir.path().join("a.yaml"), format!("# a comment\n{POD}")).expect("file");
        controller.step();
        assert_eq!(engine.count(), 1);
    }

    #[test]
    fn a_refused_policy_isolates_and_is_published() {
        let dir = tempfile::tempdir().expect("directory");
        fs::write(dir.path().join("a.yaml"), POD).expect("file");
        fs::write(dir.path().join("b.yaml"), DENY.replace("{}", "{}, ingress: 5")).expect("file");
        let (mut controller, engine, source) = controller(dir.path());
        controller.step();
        assert_eq!(engine.isolated(), [true]);
        let source = source.borrow();
        assert_eq!(source.refused, [flatfell_rules::object::ObjectName::new("default", "p")]);
        assert_eq!(source.problems.len(), 1);
    }

    #[test]
    fn rules_of_an_earlier_run_outlast_a_half_written_file() {
        let dir = tempfile::tempdir().expect("directory");
        fs::write(dir.path().join("a.yaml"), POD).expect("file");
        fs::write(dir.path().join("b.yaml"), "kind: [").expect("file");
        let (controller, engine, source) = controller(dir.path());
        let mut controller = controller.hold_for_unreadable(true);
        controller.step();
        controller.interface_gone(IpAddr::from([10, 0, 0, 9]));
        assert!(engine.count() == 0 && source.borrow().held && !source.borrow().unknown.is_empty());
        fs::write(dir.path().join("b.yaml"), DENY).expect("file");
        controller.step();
        assert_eq!((engine.count(), engine.isolated()), (1, vec![true]));
        assert!(!source.borrow().held);
        fs::write(dir.path().join("c.yaml"), "kind: [").expect("file");
        fs::remove_file(dir.path().join("b.yaml")).expect("file");
        controller.step();
        assert_eq!(engine.isolated(), [false], "only the first state is held back");
    }

    #[test]
    fn a_file_that_becomes_readable_without_a_difference_ends_the_wait() {
        let dir = tempfile::tempdir().expect("directory");
        fs::write(dir.path().join("b.yaml"), "kind: [").expect("file");
        let (controller, engine, _source) = controller(dir.path());
        let mut controller = controller.hold_for_unreadable(true);
        controller.step();
        assert_eq!(engine.count(), 0);
        fs::remove_file(dir.path().join("b.yaml")).expect("file");
        controller.step();
        assert_eq!(engine.count(), 1);
    }

    #[test]
    fn without_rules_of_an_earlier_run_nothing_is_waited_for() {
        let dir = tempfile::tempdir().expect("directory");
        fs::write(dir.path().join("b.yaml"), "kind: [").expect("file");
        let (mut controller, engine, source) = controller(dir.path());
        controller.step();
        assert!(engine.count() == 1 && !source.borrow().held);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_stays_unreadable_is_not_waited_for_for_ever() {
        let dir = tempfile::tempdir().expect("directory");
        fs::write(dir.path().join("a.yaml"), POD).expect("file");
        fs::write(dir.path().join("b.yaml"), "kind: [").expect("file");
        let (controller, engine, mut source) = controller(dir.path());
        let mut controller = controller.hold_for_unreadable(true);
        let (_gone, mut interfaces) = mpsc::unbounded_channel();
        let start = Instant::now();
        let follow = tokio::spawn(async move { controller.run(&mut interfaces).await });
        source.wait_for(|source| source.held).await.expect("held");
        source.wait_for(|source| !source.held).await.expect("given up");
        assert!(start.elapsed() >= HOLD, "{:?}", start.elapsed());
        let arrived = async {
            while engine.count() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(2), arrived).await.expect("handed on");
        assert_eq!(engine.isolated(), [false], "without the file");
        follow.abort();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_edit_is_handed_on_long_before_the_sweep() {
        let dir = tempfile::tempdir().expect("directory");
        fs::write(dir.path().join("a.yaml"), POD).expect("file");
        let (mut controller, engine, _source) = controller(dir.path());
        let (gone, mut interfaces) = mpsc::unbounded_channel();
        let follow = tokio::spawn(async move { controller.run(&mut interfaces).await });
        let soon = |expected: Vec<bool>| {
            let engine = Arc::clone(&engine);
            async move {
                let arrived = async {
                    while engine.isolated() != expected {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                };
                tokio::time::timeout(Duration::from_secs(2), arrived).await.expect("seen by inotify");
            }
        };
        soon(vec![false]).await;
        fs::write(dir.path().join("b.yaml"), DENY).expect("added");
        soon(vec![true]).await;
        fs::remove_file(dir.path().join("b.yaml")).expect("deleted");
        soon(vec![false]).await;
        fs::remove_file(dir.path().join("a.yaml")).expect("deleted");
        tokio::time::sleep(Duration::from_millis(50)).await;
        gone.send(IpAddr::from([10, 0, 0, 1])).expect("the controller listens");
        soon(Vec::new()).await;
        follow.abort();
    }
}
