//! The one owner of what is known: takes in changes, evaluates, hands the result to the engine.
//!
//! In: the directory's changes and addresses whose interface went. Out: an [`Effective`] for each change that policy can
//! see, and a [`SourceState`] for readers. What always holds: nothing is handed on before the directory was read once,
//! and what is handed on depends on current state only. Where an earlier run left rules, files that cannot be read do not
//! take them away at once: they are waited for, though not for ever.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use flatfell_rules::effective::{Effective, evaluate};
use flatfell_rules::index::{Change, Index};
use tokio::sync::{mpsc, watch};
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep_until};

use crate::manifests::{Directory, Key, Kind, Object, Problem, Refresh, Scope, Severity, Update, Watch};
use crate::state::SourceState;

/// Problems that are logged one by one at a time; the rest is counted.
const LOGGED_MAX: usize = 50;

/// How long the rules of an earlier run stay in force while files cannot be read: long enough for a file that is being
/// written, short enough for the policies in the others.
pub const HOLD: Duration = Duration::from_secs(10);

/// Where evaluated policy goes.
pub trait Enforce: Send + Sync {
    /// What shall hold from now on.
    fn enforce(&self, effective: Arc<Effective>);
}

impl Enforce for crate::engine::Engine {
    fn enforce(&self, effective: Arc<Effective>) {
        self.submit(effective);
    }
}

/// The owner of what is known.
#[derive(Debug)]
pub struct Controller<E> {
    directory: Directory,
    index: Index,
    engine: Arc<E>,
    source: watch::Sender<Arc<SourceState>>,
    /// Whether what is not known yet is waited for.
    holding: bool,
}

impl<E: Enforce> Controller<E> {
    /// One that knows nothing yet.
    pub fn new(directory: Directory, index: Index, engine: Arc<E>, source: watch::Sender<Arc<SourceState>>) -> Self {
        Self { directory, index, engine, source, holding: false }
    }

    /// Waits up to [`HOLD`] for files that cannot be read before the first state is handed on: there are rules of an
    /// earlier run in the kernel, and a state without those files may take some of them away.
    pub fn hold_for_unreadable(mut self, holding: bool) -> Self {
        self.holding = holding;
        self
    }

    /// Reads the directory, then follows its changes until the caller drops this.
    pub async fn run(&mut self, watch: &mut Watch, gone: &mut mpsc::UnboundedReceiver<IpAddr>) {
        let end = Instant::now() + HOLD;
        block_in_place(|| self.start());
        loop {
            tokio::select! {
                scope = watch.changed() => block_in_place(|| self.refresh(&scope)),
                Some(address) = gone.recv() => block_in_place(|| self.interface_gone(address)),
                () = sleep_until(end), if self.holding => block_in_place(|| self.give_up()),
            }
        }
    }

    /// The first full read: hands on what it gives, also when that is nothing.
    pub fn start(&mut self) {
        let refresh = self.directory.refresh(&Scope::everything());
        self.take_in(refresh);
        tracing::info!(
            files = self.directory.file_count(),
            objects = self.directory.objects().count(),
            "the manifests are read"
        );
        self.submit();
        if self.holding {
            tracing::warn!(
                "some files cannot be read: the rules of an earlier run stay in force for up to {} s",
                HOLD.as_secs()
            );
        }
    }

    /// Looks at the directory again and hands on what changed.
    pub fn refresh(&mut self, scope: &Scope) {
        let refresh = self.directory.refresh(scope);
        // What was waited for may be readable now without a difference that policy can see.
        let was_holding = self.holding;
        if self.take_in(refresh) || was_holding {
            self.submit();
        }
    }

    /// Goes on without the files that still cannot be read.
    pub fn give_up(&mut self) {
        tracing::error!("some files still cannot be read: going on without them");
        self.holding = false;
        self.publish();
        self.submit();
    }

    fn interface_gone(&mut self, address: IpAddr) {
        if self.index.apply(Change::InterfaceGone(address)) {
            self.submit();
        }
    }

    /// Whether policy can see a difference.
    fn take_in(&mut self, refresh: Refresh) -> bool {
        log_problems(&refresh);
        let mut changed = false;
        for update in refresh.updates {
            changed |= self.index.apply(change(update));
        }
        self.holding &= !self.directory.unknown().is_empty();
        self.publish();
        changed
    }

    fn publish(&self) {
        self.source.send_replace(Arc::new(SourceState::of(&self.directory).held(self.holding)));
    }

    fn submit(&self) {
        if self.holding {
            return;
        }
        let effective = evaluate(&self.index);
        tracing::debug!(pods = effective.pods.len(), "policy changed");
        self.engine.enforce(Arc::new(effective));
    }
}

/// The index's word for what changed in the directory.
pub fn change(update: Update) -> Change {
    match update {
        Update::Put(object) => match Arc::unwrap_or_clone(object) {
            Object::Namespace(namespace) => Change::UpsertNamespace(namespace),
            Object::Pod(pod) => Change::UpsertPod(pod),
            Object::Policy(policy) => Change::UpsertPolicy(policy),
        },
        Update::Remove(Key { kind, namespace, name }) => {
            let named = flatfell_rules::object::ObjectName { namespace, name };
            match kind {
                Kind::Namespace => Change::DeleteNamespace(named.name),
                Kind::Pod => Change::DeletePod(named),
                Kind::NetworkPolicy => Change::DeletePolicy(named),
            }
        }
    }
}

/// Each problem is logged when it appears and when it is gone, not while it stands.
fn log_problems(refresh: &Refresh) {
    let notes = |problem: &&Problem| problem.severity == Severity::Note;
    let mut logged = 0;
    for problem in refresh.appeared.iter().filter(|problem| !notes(problem)).take(LOGGED_MAX) {
        match problem.severity {
            Severity::Error => tracing::error!("{problem}"),
            Severity::Warning | Severity::Note => tracing::warn!("{problem}"),
        }
        logged += 1;
    }
    let passed_over = refresh.appeared.iter().filter(notes).count();
    if passed_over > 0 {
        tracing::info!(objects = passed_over, "objects passed over that policy has no use for");
    }
    let left = refresh.appeared.len().saturating_sub(passed_over).saturating_sub(logged);
    if left > 0 {
        tracing::error!(problems = left, "more problems; `flatfell status` lists them");
    }
    for problem in refresh.solved.iter().filter(|problem| !notes(problem)).take(LOGGED_MAX) {
        tracing::info!("solved: {problem}");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::Mutex;

    use flatfell_rules::effective::Fallback;

    use super::*;

    /// Remembers what it shall enforce.
    #[derive(Debug, Default)]
    struct Memory(Mutex<Vec<Arc<Effective>>>);

    impl Enforce for Memory {
        fn enforce(&self, effective: Arc<Effective>) {
            self.0.lock().expect("memory").push(effective);
        }
    }

    impl Memory {
        fn count(&self) -> usize {
            self.0.lock().expect("memory").len()
        }

        /// Whether the last state isolates each pod's ingress.
        fn isolated(&self) -> Vec<bool> {
            let states = self.0.lock().expect("memory");
            let pods = states.last().map(|state| state.pods.as_slice()).unwrap_or_default();
            pods.iter().map(|pod| pod.ingress.default == Fallback::Deny).collect()
        }
    }

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: x, labels: {app: x}}\nspec: {nodeName: n}\nstatus: \
                       {podIP: 10.0.0.1}\n";
    const DENY: &str =
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}}\n";

    fn controller(root: &Path) -> (Controller<Memory>, Arc<Memory>, watch::Receiver<Arc<SourceState>>) {
        let engine = Arc::new(Memory::default());
        let (sender, receiver) = watch::channel(Arc::default());
        (Controller::new(Directory::new(root), Index::new("n"), Arc::clone(&engine), sender), engine, receiver)
    }

    #[test]
    fn nothing_is_handed_on_before_everything_was_read() {
        let dir = tempfile::tempdir().expect("directory");
        fs::write(dir.path().join("a.yaml"), POD).expect("file");
        fs::write(dir.path().join("b.yaml"), DENY).expect("file");
        let (mut controller, engine, source) = controller(dir.path());
        assert!(engine.count() == 0 && !source.borrow().read);
        controller.start();
        assert_eq!((engine.count(), engine.isolated()), (1, vec![true]), "pod and policy at once");
        assert!(source.borrow().read);
    }

    #[test]
    fn an_empty_directory_is_handed_on_too() {
        let dir = tempfile::tempdir().expect("directory");
        let (mut controller, engine, _source) = controller(dir.path());
        controller.start();
        assert_eq!(engine.count(), 1);
    }

    #[test]
    fn what_policy_cannot_see_is_not_handed_on() {
        let dir = tempfile::tempdir().expect("directory");
        fs::write(dir.path().join("a.yaml"), POD).expect("file");
        let (mut controller, engine, _source) = controller(dir.path());
        controller.start();
        fs::write(dir.path().join("a.yaml"), format!("# a comment\n{POD}")).expect("file");
        controller.refresh(&Scope::everything());
        assert_eq!(engine.count(), 1);
    }

    #[test]
    fn a_refused_policy_isolates_and_is_published() {
        let dir = tempfile::tempdir().expect("directory");
        fs::write(dir.path().join("a.yaml"), POD).expect("file");
        fs::write(dir.path().join("b.yaml"), DENY.replace("{}", "{}, ingress: 5")).expect("file");
        let (mut controller, engine, source) = controller(dir.path());
        controller.start();
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
        controller.start();
        controller.interface_gone(IpAddr::from([10, 0, 0, 9]));
        assert!(engine.count() == 0 && source.borrow().held && !source.borrow().unknown.is_empty());
        fs::write(dir.path().join("b.yaml"), DENY).expect("file");
        controller.refresh(&Scope::everything());
        assert_eq!((engine.count(), engine.isolated()), (1, vec![true]));
        assert!(!source.borrow().held);
        fs::write(dir.path().join("c.yaml"), "kind: [").expect("file");
        fs::remove_file(dir.path().join("b.yaml")).expect("file");
        controller.refresh(&Scope::everything());
        assert_eq!(engine.isolated(), [false], "only the first state is held back");
    }

    #[test]
    fn a_file_that_becomes_readable_without_a_difference_ends_the_wait() {
        let dir = tempfile::tempdir().expect("directory");
        fs::write(dir.path().join("b.yaml"), "kind: [").expect("file");
        let (controller, engine, _source) = controller(dir.path());
        let mut controller = controller.hold_for_unreadable(true);
        controller.start();
        assert_eq!(engine.count(), 0);
        fs::remove_file(dir.path().join("b.yaml")).expect("file");
        controller.refresh(&Scope::everything());
        assert_eq!(engine.count(), 1);
    }

    #[test]
    fn without_rules_of_an_earlier_run_nothing_is_waited_for() {
        let dir = tempfile::tempdir().expect("directory");
        fs::write(dir.path().join("b.yaml"), "kind: [").expect("file");
        let (mut controller, engine, source) = controller(dir.path());
        controller.start();
        assert!(engine.count() == 1 && !source.borrow().held);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_stays_unreadable_is_not_waited_for_for_ever() {
        let dir = tempfile::tempdir().expect("directory");
        fs::write(dir.path().join("a.yaml"), POD).expect("file");
        fs::write(dir.path().join("b.yaml"), "kind: [").expect("file");
        let (controller, engine, mut source) = controller(dir.path());
        let mut controller = controller.hold_for_unreadable(true);
        let mut watch = Watch::new(dir.path()).expect("watch");
        let (_gone, mut interfaces) = mpsc::unbounded_channel();
        let start = Instant::now();
        let follow = tokio::spawn(async move { controller.run(&mut watch, &mut interfaces).await });
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
        let mut watch = Watch::new(dir.path()).expect("watch");
        let (gone, mut interfaces) = mpsc::unbounded_channel();
        let follow = tokio::spawn(async move { controller.run(&mut watch, &mut interfaces).await });
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
