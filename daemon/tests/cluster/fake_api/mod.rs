//! An API server for tests: lists and watches over plain HTTP on loopback, and every way such a server can misbehave.
//!
//! In: objects, and what shall go wrong. Out: what a client hears. What always holds: versions are one sequence for all
//! objects, as etcd's are; a watch gets every event behind its version, or 410.

#![allow(dead_code, unused_imports, reason = "each test binary uses a part")]

mod answer;
mod protobuf;
mod world;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

pub use world::{Event, Fault, Streams, World};

/// What handlers share.
pub struct Shared {
    world: Mutex<World>,
    changed: Notify,
}

impl Shared {
    /// The objects and what shall go wrong.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A server that can be killed and started again at the same address.
pub struct FakeApi {
    shared: Arc<Shared>,
    address: SocketAddr,
    listener: Option<JoinHandle<()>>,
}

impl FakeApi {
    /// One that runs.
    pub async fn start() -> Self {
        let shared = Arc::new(Shared { world: Mutex::new(World::default()), changed: Notify::new() });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let listener = Some(tokio::spawn(serve(listener, Arc::clone(&shared))));
        Self { shared, address, listener }
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends it, with all connections.
    pub async fn kill(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.abort();
            // Cancelled is what it shall be.
            drop(listener.await);
        }
    }

    /// Starts it again with the same objects.
    pub async fn revive(&mut self) {
        let listener = TcpListener::bind(self.address).await.expect("the same address");
        self.listener = Some(tokio::spawn(serve(listener, Arc::clone(&self.shared))));
    }

    /// Ends all connections and goes on.
    pub async fn restart(&mut self) {
        self.kill().await;
        self.revive().await;
    }

    /// Changes what it has or does, and tells the watches.
    pub fn edit<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        let outcome = change(&mut self.shared.world());
        self.shared.changed.notify_waiters();
        outcome
    }

    /// Creates or changes an object.
    pub fn apply(&self, object: Value) {
        self.edit(|world| world.apply(object));
    }

    /// Deletes an object; the namespace is empty for what has none.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) {
        self.edit(|world| world.delete(kind, namespace, name));
    }

    /// What goes wrong from now on.
    pub fn fault(&self, fault: Fault) {
        self.edit(|world| world.fault = fault);
    }

    /// The requests so far, as paths with their queries.
    pub fn requests(&self) -> Vec<String> {
        self.shared.world().requests.clone()
    }

    /// A kubeconfig for it, with this user.
    pub fn kubeconfig(&self, user: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: fake\nclusters: [{{name: fake, cluster: {{server: \"{}\"}}}}]\n\
             users: [{{name: fake, user: {user}}}]\ncontexts: [{{name: fake, context: {{cluster: fake, user: fake}}}}]\n",
            self.url()
        )
    }
}

impl Drop for FakeApi {
    fn drop(&mut self) {
        if let Some(listener) = &self.listener {
            listener.abort();
        }
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    // Dropped with this task, and all connections with it.
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(answer::answer(request, shared).await) }
            });
            // What a client breaks off is its own affair.
            drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
        });
    }
}
