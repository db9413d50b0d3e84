//! A connection that runs: numbered messages and their echoes.
//!
//! In: who talks to which address. Out: how many messages came back, and when the last one did. What always holds: one
//! message is on the way at a time, so that the last echo is the last sign of life.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context;
use flatfell_integration::{Lab, Place};

/// Between two messages.
const PAUSE: Duration = Duration::from_millis(2);
/// How long either side waits before it looks whether it shall end.
const LOOK: Duration = Duration::from_millis(100);
/// For a connection that must not come about.
const CONNECT: Duration = Duration::from_millis(300);

/// What has come back so far.
#[derive(Clone, Copy, Debug)]
pub struct Heard {
    /// Messages.
    pub count: u64,
    /// When the last one came.
    pub last: Instant,
}

/// Servers of the shop: they echo until they are dropped.
pub struct Servers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Servers {
    /// Listens at both addresses of each place.
    pub fn start(lab: &Lab, places: &[(Place, u16)]) -> anyhow::Result<Self> {
        let mut servers = Self { stop: Arc::default(), threads: Vec::new() };
        for &(place, port) in places {
            for address in place.addresses() {
                let listener = lab.netns(place)?.run(|| TcpListener::bind((address, port)))??;
                listener.set_nonblocking(true)?;
                let stop = Arc::clone(&servers.stop);
                servers.threads.push(thread::spawn(move || serve(&listener, &stop)));
            }
        }
        Ok(servers)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

fn serve(listener: &TcpListener, stop: &AtomicBool) {
    thread::scope(|scope| {
        while !stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, _)) => {
                    scope.spawn(move || echo(stream, stop));
                }
                Err(_) => thread::sleep(PAUSE),
            }
        }
    });
}

fn echo(mut stream: TcpStream, stop: &AtomicBool) {
    let mut message = [0; 8];
    if stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(LOOK))).is_err() {
        return;
    }
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut message) {
            Ok(0) => return,
            Ok(length) => {
                if stream.write_all(&message[..length]).is_err() {
                    return;
                }
            }
            // Nothing came for a while; a broken stream ends at the next write or with the shop.
            Err(_) => {}
        }
    }
}

/// A client that talks until it is dropped.
pub struct Talk {
    stop: Arc<AtomicBool>,
    heard: Arc<Mutex<Heard>>,
    thread: Option<JoinHandle<()>>,
}

impl Talk {
    /// Connects and begins; an error if there is no connection within a moment.
    pub fn start(lab: &Lab, from: Place, to: IpAddr, port: u16) -> anyhow::Result<Self> {
        let address = SocketAddr::from((to, port));
        let stream = lab
            .netns(from)?
            .run(|| TcpStream::connect_timeout(&address, CONNECT))?
            .with_context(|| format!("no connection to {address}"))?;
        stream.set_read_timeout(Some(LOOK))?;
        stream.set_nodelay(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let heard = Arc::new(Mutex::new(Heard { count: 0, last: Instant::now() }));
        let (stopped, told) = (Arc::clone(&stop), Arc::clone(&heard));
        let thread = Some(thread::spawn(move || talk(stream, &stopped, &told)));
        Ok(Self { stop, heard, thread })
    }

    /// What has come back so far.
    pub fn heard(&self) -> Heard {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn talk(mut stream: TcpStream, stop: &AtomicBool, heard: &Mutex<Heard>) {
    let mut number: u64 = 0;
    let mut answer = [0; 8];
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        if stream.write_all(&number.to_be_bytes()).is_err() {
            return;
        }
        while stream.read_exact(&mut answer).is_err() {
            if stop.load(Ordering::Relaxed) {
                return;
            }
        }
        *heard.lock().unwrap_or_else(PoisonError::into_inner) = Heard { count: number, last: Instant::now() };
        thread::sleep(PAUSE);
    }
}
