//! `flatfell run`: the daemon.
//!
//! In: flags. Out: rules in the kernel, until SIGTERM or SIGINT. What always holds: everything that can be wrong with the
//! flags is found before the kernel is touched; the rules stay when it stops.

use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use flatfell_rules::index::Index;
use tokio::runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::config::{RunArgs, Terminating};
use crate::controller::Controller;
use crate::engine::{self, Engine};
use crate::http::Server;
use crate::manifests::{Directory, Watch};
use crate::state::{SourceState, State};

/// How long answers may take to finish at the end.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Runs the command.
pub fn execute(args: &RunArgs) -> anyhow::Result<ExitCode> {
    if !std::fs::metadata(&args.manifests)
        .with_context(|| format!("--manifests {} cannot be read", args.manifests.display()))?
        .is_dir()
    {
        bail!("--manifests {} is no directory", args.manifests.display());
    }
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let engine = runtime.block_on(serve(args))?;
    // Whoever still answers holds the engine.
    runtime.shutdown_timeout(LAST_ANSWERS);
    match Arc::into_inner(engine) {
        Some(engine) => engine.stop(),
        None => tracing::warn!("a request is still being answered; the engine is not waited for"),
    }
    tracing::info!("stopped; the rules stay in place (`flatfell cleanup` removes them)");
    Ok(ExitCode::SUCCESS)
}

/// Starts everything and follows the directory until a signal comes.
async fn serve(args: &RunArgs) -> anyhow::Result<Arc<Engine>> {
    let mut signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let server = Server::bind(args.listen).await?;
    // inotify speaks of absolute paths.
    let manifests = std::path::absolute(&args.manifests)?;
    let mut watch = Watch::new(&manifests)?;
    let engine = Arc::new(Engine::start(args.engine())?);
    // Before anything is submitted: what is there now is of an earlier run.
    let has_earlier_rules = engine::tables_exist()?;
    let (sender, source) = watch::channel(Arc::new(SourceState::default()));
    let state = State { node: args.node.as_str().into(), source, engine: engine.clone(), totals: Arc::default() };
    tracing::info!(node = %args.node, manifests = %manifests.display(), "flatfell {}", env!("CARGO_PKG_VERSION"));
    tracing::info!("listening on http://{} (/metrics, /healthz, /readyz, /status)", server.address);
    let server = tokio::spawn(server.serve(state));
    let index = Index::new(&args.node).keep_policies_of_going_namespaces(args.terminating == Terminating::Keep);
    let controller = Controller::new(Directory::new(&manifests), index, Arc::clone(&engine), sender);
    let mut controller = controller.hold_for_unreadable(has_earlier_rules);
    let mut gone = engine.interface_gone();
    follow(&mut controller, &mut watch, &mut gone, &mut signals).await;
    server.abort();
    Ok(engine)
}

async fn follow(
    controller: &mut Controller<Engine>,
    watch: &mut Watch,
    gone: &mut mpsc::UnboundedReceiver<IpAddr>,
    (terminate, interrupt): &mut (Signal, Signal),
) {
    let name = tokio::select! {
        () = controller.run(watch, gone) => "nothing",
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!("{name} received, stopping");
}
