//! `flatfell run`: the daemon.
//!
//! In: flags. Out: rules in the kernel, until SIGTERM or SIGINT. What always holds: everything that can be wrong with the
//! flags is found before the kernel is touched; the rules stay when it stops.

use std::future::Future;
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use flatfell_rules::effective::Effective;
use flatfell_rules::index::{Change, Index};
use tokio::runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinSet, block_in_place};

use crate::batch::Batch;
use crate::cluster::{self, Cluster, Patience};
use crate::cni;
use crate::cni::keeper::Keeper;
use crate::cni::sandboxes::Sandboxes;
use crate::config::{RunArgs, Terminating};
use crate::control::{Answer, Handler, Reply, Request, Socket};
use crate::controller::{Controller, Enforce, Source};
use crate::engine::{self, Engine, EngineConfig};
use crate::flows::{self, FlowConfig, Flows, Names, Reader};
use crate::http::Server;
use crate::manifests::Manifests;
use crate::memory;
use crate::metrics::Metrics;
use crate::pause::{ANNOTATION, Pause, Resumed};
use crate::state::{SourceState, State};

/// How long answers may take to finish at the end.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// How long the last transaction may take where a pause is ended at the end.
const LAST_COMMIT: Duration = Duration::from_secs(5);

/// Runs the command.
pub fn execute(args: &RunArgs) -> anyhow::Result<ExitCode> {
    memory::use_one_heap();
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let engine = match &args.manifests {
        Some(directory) => runtime.block_on(serve(args, manifests(directory))),
        None => runtime.block_on(serve(args, api_server(args))),
    }?;
    // Whoever still answers holds the engine.
    runtime.shutdown_timeout(LAST_ANSWERS);
    match Arc::into_inner(engine) {
        Some(engine) => engine.stop(),
        None => tracing::warn!("a request is still being answered; the engine is not waited for"),
    }
    tracing::info!("stopped; the rules stay in place (`flatfell cleanup` removes them)");
    Ok(ExitCode::SUCCESS)
}

async fn manifests(directory: &Path) -> anyhow::Result<Manifests> {
    let shown = directory.display();
    if !std::fs::metadata(directory).with_context(|| format!("--manifests {shown} cannot be read"))?.is_dir() {
        bail!("--manifests {shown} is no directory");
    }
    // inotify speaks of absolute paths.
    Ok(Manifests::follow(&std::path::absolute(directory)?)?)
}

async fn api_server(args: &RunArgs) -> anyhow::Result<Cluster> {
    Ok(Cluster::follow(&args.api.access(), &args.node, Patience::default()).await?)
}

/// Starts everything and follows the source until a signal comes.
async fn serve<S: Source>(
    args: &RunArgs,
    source: impl Future<Output = anyhow::Result<S>>,
) -> anyhow::Result<Arc<Engine>> {
    let mut signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let server = Server::bind(args.listen).await?;
    let source = source.await?;
    let flow_config = args.flows.config();
    let engine_config = args.engine();
    let opened = flows::open(&flow_config, engine_config.carried.clone())?;
    let engine = Arc::new(Engine::start(EngineConfig { flow_log: opened.kernel, ..engine_config })?);
    // The lock is held now: what lies in the run directory is nobody's who runs here.
    let socket = Socket::bind(&args.control.run_dir)?;
    // Before anything is submitted: what is there now is of an earlier run.
    let has_earlier_rules = block_in_place(engine::tables_exist)?;
    let (sender, published) = watch::channel(Arc::new(source.state()));
    tracing::info!(node = %args.node, source = %published.borrow().origin, "flatfell {}", env!("CARGO_PKG_VERSION"));
    tracing::info!("listening on http://{} (/metrics, /healthz, /readyz, /status)", server.address);
    let (control, state) = shown(args, &engine, published);
    let mut beside = JoinSet::new();
    let (ask, questions) = mpsc::unbounded_channel();
    let reader = read_flows(args, flow_config, opened, ask, (&engine, &state), &mut beside)?;
    if args.manifests.is_none() {
        let (access, taint) = (args.api.access(), args.api.startup_taint.clone());
        beside.spawn(memory::give_back_after_lists(state.source.clone()));
        beside.spawn(cluster::arrive(state.clone(), has_earlier_rules, access, taint));
    }
    let (plug, plugged) = mpsc::unbounded_channel();
    if args.cni.is_served() {
        serve_plugin(args, &engine, &state, plug, &mut beside)?;
    }
    beside.spawn(server.serve(state));
    beside.spawn(socket.serve(control.clone()));
    let index = Index::new(&args.node).keep_policies_of_going_namespaces(args.terminating == Terminating::Keep);
    let controller = Controller::new(source, index, Arc::clone(&control), sender);
    let mut controller = controller.hold_for_unreadable(has_earlier_rules).answering(questions).hearing(plugged);
    let mut gone = engine.interface_gone();
    follow(&mut controller, &mut gone, &mut signals, &control).await;
    // Nobody answers the reader any more.
    drop(controller);
    block_in_place(|| drop(reader));
    // The socket's file is gone when its task is.
    beside.shutdown().await;
    if let Some(effective) = control.pause.close() {
        tracing::warn!("it stops while paused, and nobody would end the pause: policy is enforced again before");
        block_in_place(|| engine.wait_enforced(&effective, LAST_COMMIT));
    }
    Ok(engine)
}

/// What can be asked of the daemon, and what it shows.
fn shown(args: &RunArgs, engine: &Arc<Engine>, source: watch::Receiver<Arc<SourceState>>) -> (Arc<Control>, State) {
    let control = Arc::new(Control {
        pause: Pause::new(Arc::clone(engine)),
        engine: Arc::clone(engine),
        source: source.clone(),
        flows: Arc::new(Flows::default()),
        stop: Notify::new(),
    });
    let state = State {
        node: args.node.as_str().into(),
        source,
        paused: control.pause.shown(),
        engine: engine.clone(),
        metrics: Arc::new(Metrics::new(args.metrics_series_max)),
        unprotected: Arc::default(),
        flows: Arc::clone(&control.flows),
        cni: Arc::default(),
    };
    (control, state)
}

/// Starts to read the flow log.
fn read_flows(
    args: &RunArgs,
    config: FlowConfig,
    opened: flows::Opened,
    ask: mpsc::UnboundedSender<flows::Question>,
    (engine, state): (&Arc<Engine>, &State),
    beside: &mut JoinSet<()>,
) -> anyhow::Result<Reader> {
    let enforcing = Arc::downgrade(engine);
    let parts = flows::Parts {
        config,
        opened,
        node: args.node.clone(),
        names: Names::new(&args.node, ask),
        enforced: Box::new(move || enforcing.upgrade()?.status().enforced.clone()),
        events: events(args, &state.flows, beside),
        flows: Arc::clone(&state.flows),
    };
    Reader::start(parts).context("--flow-log cannot be opened")
}

/// The CNI plugin's socket, and its place in the chain of plugins; the place comes second.
fn serve_plugin(
    args: &RunArgs,
    engine: &Arc<Engine>,
    state: &State,
    changes: mpsc::UnboundedSender<Change>,
    beside: &mut JoinSet<()>,
) -> anyhow::Result<()> {
    let directory = &args.cni.places.cni_run_dir;
    let socket = cni::server::Socket::bind(directory).context("--cni-run-dir")?;
    let enforcing = Arc::downgrade(engine);
    let hear = move |ports| {
        if let Some(engine) = enforcing.upgrade() {
            engine.pod_ports(ports);
        }
    };
    let sandboxes = Sandboxes::open(directory, changes, Box::new(hear));
    let counts = Arc::clone(&state.cni);
    let daemon = cni::server::Daemon { engine: Arc::clone(engine), sandboxes, counts };
    beside.spawn(socket.serve(Arc::new(daemon)));
    if let Some(keeper) = Keeper::new(&args.cni, Arc::clone(&state.cni))? {
        beside.spawn(keeper.keep());
    }
    Ok(())
}

/// Where drafts of Kubernetes Events go, if any are wanted; a task `beside` posts them.
fn events(args: &RunArgs, flows: &Flows, beside: &mut JoinSet<()>) -> Option<mpsc::Sender<flows::events::Draft>> {
    args.flows.events.then(|| {
        let (sender, drafts) = flows::events::queue();
        let counts = Arc::clone(flows.counts());
        beside.spawn(flows::events::post(args.api.access(), args.node.clone(), drafts, counts));
        sender
    })
}

/// What stands between the controller and the engine: pauses, by the control socket or the Node's annotation.
struct Control {
    pause: Pause<Engine>,
    engine: Arc<Engine>,
    source: watch::Receiver<Arc<SourceState>>,
    flows: Arc<Flows>,
    stop: Notify,
}

impl Control {
    /// Hands over what the Node says now: whether it is paused, where its pods have their addresses.
    fn read_node(&self) {
        let state = Arc::clone(&self.source.borrow());
        let node = state.own_node.as_ref();
        if let Some(node) = node {
            self.engine.node_ranges(&node.pod_ranges);
        }
        self.pause.annotation(node.and_then(|node| node.paused_until.as_deref()));
    }

    /// Hands it over whenever it may have changed.
    async fn follow_node(&self) {
        let mut source = self.source.clone();
        while source.changed().await.is_ok() {
            self.read_node();
        }
        std::future::pending().await
    }
}

impl Enforce for Control {
    fn enforce(&self, effective: Arc<Effective>, batch: Batch) {
        // Before the policy it was published with: a node that is paused starts paused.
        self.read_node();
        self.pause.enforce(effective, batch);
    }
}

impl Handler for Control {
    fn handle(&self, request: Request) -> Reply {
        Reply::Answer(Answer::Done(match request {
            Request::Flows { follow } => return Reply::Flows(self.flows.feed(), follow),
            Request::Pause { seconds } => {
                let until = self.pause.pause(Duration::from_secs(seconds));
                format!("paused until {until}: this node enforces no policy (`flatfell resume` ends it)")
            }
            Request::Resume => match self.pause.resume() {
                Resumed::WasNotPaused => "there was no pause: policy is enforced".to_owned(),
                Resumed::Enforcing => "the pause is over: policy is enforced again".to_owned(),
                Resumed::StillAnnotated(until) => format!(
                    "still paused until {until} by the Node's annotation: kubectl annotate node NAME {ANNOTATION}-"
                ),
            },
            Request::Stop => "stopping; the rules stay".to_owned(),
        }))
    }

    fn answered(&self, request: Request) {
        if request == Request::Stop {
            self.stop.notify_one();
        }
    }
}

async fn follow<S: Source>(
    controller: &mut Controller<S, Control>,
    gone: &mut mpsc::UnboundedReceiver<IpAddr>,
    (terminate, interrupt): &mut (Signal, Signal),
    control: &Control,
) {
    let name = tokio::select! {
        () = controller.run(gone) => "nothing",
        () = control.follow_node() => "nothing",
        () = control.pause.follow() => "nothing",
        () = control.stop.notified() => "a command to stop",
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!("{name} received, stopping");
}
