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
use flatfell_rules::index::Index;
use tokio::runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::cluster::{self, Cluster, Patience};
use crate::config::{RunArgs, Terminating};
use crate::controller::{Controller, Source};
use crate::engine::{self, Engine};
use crate::http::Server;
use crate::manifests::Manifests;
use crate::memory;
use crate::state::State;

/// How long answers may take to finish at the end.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

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
    let engine = Arc::new(Engine::start(args.engine())?);
    // Before anything is submitted: what is there now is of an earlier run.
    let has_earlier_rules = engine::tables_exist()?;
    let (sender, published) = watch::channel(Arc::new(source.state()));
    tracing::info!(node = %args.node, source = %published.borrow().origin, "flatfell {}", env!("CARGO_PKG_VERSION"));
    tracing::info!("listening on http://{} (/metrics, /healthz, /readyz, /status)", server.address);
    let state = State {
        node: args.node.as_str().into(),
        source: published,
        engine: engine.clone(),
        totals: Arc::default(),
        unprotected: Arc::default(),
    };
    let mut beside = JoinSet::new();
    if args.manifests.is_none() {
        let (access, taint) = (args.api.access(), args.api.startup_taint.clone());
        beside.spawn(memory::give_back_after_lists(state.source.clone()));
        beside.spawn(cluster::arrive(state.clone(), has_earlier_rules, access, taint));
    }
    beside.spawn(server.serve(state));
    let index = Index::new(&args.node).keep_policies_of_going_namespaces(args.terminating == Terminating::Keep);
    let controller = Controller::new(source, index, Arc::clone(&engine), sender);
    let mut controller = controller.hold_for_unreadable(has_earlier_rules);
    let mut gone = engine.interface_gone();
    follow(&mut controller, &mut gone, &mut signals).await;
    beside.shutdown().await;
    Ok(engine)
}

async fn follow<S: Source>(
    controller: &mut Controller<S, Engine>,
    gone: &mut mpsc::UnboundedReceiver<IpAddr>,
    (terminate, interrupt): &mut (Signal, Signal),
) {
    let name = tokio::select! {
        () = controller.run(gone) => "nothing",
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!("{name} received, stopping");
}
