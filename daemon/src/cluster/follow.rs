//! List one resource, then watch it, for ever.
//!
//! In: the way to the API server. Out: [`Message`]s: what changed, what is wrong, how the watch stands. What always holds:
//! a list counts when it is complete, as one message; after anything that is not understood everything is listed again,
//! since what was missed is not known; between attempts there is a pause, with jitter.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant, SystemTime};

use kube::core::Request;
use kube::core::params::{ListParams, WatchParams};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::access::Access;
use super::arrival::timestamp;
use super::coding::{Coding, CodingError};
use super::failure::{Answer, Failure, shortened};
use super::ledger::{Draft, Findings, Ledger, News, version};
use super::lines::Lines;
use super::resource::{INITIAL_EVENTS_END, Resource};
use super::session::Session;
use super::watch_state::{Broken, WatchState};

/// How long one waits for what.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Between two signs of life of a watch: servers send a bookmark each minute.
    pub silence: Duration,
    /// For the first byte of an answer, and between two bytes of a list.
    pub answer: Duration,
    /// The longest pause before the next attempt. A server that comes back is to be found within two seconds.
    pub pause: Duration,
    /// The longest pause where the server has decided to refuse.
    pub refused_pause: Duration,
    /// How long a list that is older than what is known is not believed.
    pub stale: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(90),
            answer: Duration::from_secs(30),
            pause: Duration::from_millis(900),
            refused_pause: Duration::from_secs(5),
            stale: Duration::from_secs(60),
        }
    }
}

/// The first pause.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// What fails after this long fails for the first time.
const LASTED: Duration = Duration::from_secs(10);

/// A watch that has lasted this long works, also when nothing happens.
const PROVEN: Duration = Duration::from_secs(1);

/// Objects of a first list that are told together.
const SOME: usize = 256;

/// Objects of a page. Small, because a page is held as text.
const PAGE: u32 = 100;

/// What a watch tells its owner.
#[derive(Debug)]
pub struct Message {
    /// How it stands.
    pub watch: WatchState,
    /// What changed.
    pub news: Vec<News>,
    /// What is wrong, where that changed.
    pub findings: Option<Findings>,
    /// When the objects were created that the watch has shown as new.
    pub created: Vec<SystemTime>,
}

/// The watch of one resource.
pub struct Follow {
    resource: Resource,
    selector: Option<String>,
    patience: Patience,
    session: Session,
    out: mpsc::Sender<Message>,
    ledger: Ledger,
    /// What the ledger made of events and lists, and nobody was told yet. Outlives an attempt that fails: the ledger does.
    untold: Vec<News>,
    /// Creations that nobody was told of yet.
    created: Vec<SystemTime>,
    state: WatchState,
    /// From where to go on; `None` when everything has to be listed.
    position: Option<String>,
    /// Whether the server may be asked to stream its lists.
    streams: bool,
    /// Since when the server lists a state that is older than what is known.
    stale_since: Option<Instant>,
    pause: Duration,
}

/// The owner is gone: nobody wants to know.
struct Unheard;

/// Why an attempt ended.
enum End {
    Failed(Failure),
    Unheard,
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Unheard> for End {
    fn from(Unheard: Unheard) -> Self {
        Self::Unheard
    }
}

impl Follow {
    /// Follows a resource; of nodes only the one of this name.
    pub fn new(resource: Resource, node: &str, access: Access, patience: Patience, out: mpsc::Sender<Message>) -> Self {
        Self {
            resource,
            selector: (resource == Resource::Node).then(|| format!("metadata.name={node}")),
            patience,
            session: Session::new(access, patience.answer),
            out,
            ledger: Ledger::new(resource),
            untold: Vec::new(),
            created: Vec::new(),
            state: WatchState::new(resource),
            position: None,
            streams: true,
            stale_since: None,
            pause: FIRST_PAUSE,
        }
    }

    /// Until nobody listens any more.
    pub async fn run(mut self) {
        loop {
            let began = Instant::now();
            match self.attempt().await {
                // The server ends a watch now and then.
                Ok(()) => {}
                Err(End::Unheard) => return,
                Err(End::Failed(failure)) => {
                    if began.elapsed() >= LASTED {
                        self.pause = FIRST_PAUSE;
                    }
                    let pause = self.failed(failure);
                    if self.tell().await.is_err() {
                        return;
                    }
                    sleep(pause).await;
                }
            }
        }
    }

    /// Lists if it must, then watches until the watch ends.
    async fn attempt(&mut self) -> Result<(), End> {
        let lines = match self.position.clone() {
            None if self.streams => self.list_as_stream().await?,
            None => {
                let position = self.list_in_pages().await?;
                self.position = Some(position.clone());
                self.open(false, &position).await?
            }
            Some(position) => self.open(false, &position).await?,
        };
        self.watch(lines).await
    }

    async fn open(&mut self, with_list: bool, position: &str) -> Result<Lines, Failure> {
        let parameters = WatchParams {
            field_selector: self.selector.clone(),
            send_initial_events: with_list,
            ..WatchParams::default()
        };
        let request = Request::new(self.resource.path()).watch(&parameters, position);
        self.session.ask(self.resource, "watch", with_list, request).await
    }

    /// The list as the first events of a watch, which then goes on.
    async fn list_as_stream(&mut self) -> Result<Lines, End> {
        // Without a version the server sends its newest state.
        let mut lines = self.open(true, "").await?;
        let mut draft = self.ledger.begin_list();
        loop {
            let next = lines.next_within(self.patience.answer).await;
            let Ok(line) = next else {
                // A server that does not know what was asked for waits for changes now.
                self.streams = false;
                return Err(Failure::Silent(self.patience.answer).into());
            };
            let Some(line) = line? else { return Err(Failure::Ended.into()) };
            match self.event(lines.coding(), &line, true)? {
                Event::Put { object, .. } => {
                    self.draft(&mut draft, &object).await?;
                }
                Event::Delete(_) => return Err(garbage("a deletion within a list").into()),
                Event::Bookmark { metadata, is_end_of_list } => {
                    if is_end_of_list {
                        self.works();
                        self.take_list(draft, &metadata).await?;
                        return Ok(lines);
                    }
                }
            }
        }
    }

    async fn list_in_pages(&mut self) -> Result<String, End> {
        let mut draft = self.ledger.begin_list();
        let mut parameters =
            ListParams { field_selector: self.selector.clone(), limit: Some(PAGE), ..ListParams::default() };
        loop {
            let request = Request::new(self.resource.path()).list(&parameters);
            let mut answer = self.session.ask(self.resource, "list", false, request).await?;
            let text = answer.all(self.patience.answer).await?;
            let page = read_page(self.resource, answer.coding(), &text)?;
            drop(text);
            for item in items(&page)? {
                self.draft(&mut draft, item).await?;
            }
            self.heard();
            let metadata = page.get("metadata").cloned().unwrap_or_default();
            let next = metadata.get("continue").and_then(Value::as_str).filter(|token| !token.is_empty());
            match next {
                Some(token) => parameters.continue_token = Some(token.to_owned()),
                None => return self.take_list(draft, &metadata).await,
            }
        }
    }

    /// A complete list counts from now on, and is told as one.
    async fn take_list(&mut self, draft: Draft, metadata: &Value) -> Result<String, End> {
        let position = position(metadata)?;
        let listed = version(Some(metadata));
        self.refuse_stale(listed)?;
        self.untold.extend(self.ledger.complete(draft, listed));
        self.position = Some(position.clone());
        self.state.listed = true;
        self.state.lists += 1;
        self.tell().await?;
        Ok(position)
    }

    /// Of a first list much is told before it is complete.
    async fn draft(&mut self, draft: &mut Draft, object: &Value) -> Result<(), End> {
        self.untold.extend(self.ledger.draft(draft, object).map_err(garbage)?);
        if self.untold.len() >= SOME {
            self.tell().await?;
        }
        Ok(())
    }

    /// A list that is older than what is known is not believed for a while. A server that lags catches up; one that was
    /// restored from a backup does not, and then it is right.
    fn refuse_stale(&mut self, listed: u64) -> Result<(), Failure> {
        let known = self.ledger.newest();
        if listed == 0 || listed >= known {
            self.stale_since = None;
            return Ok(());
        }
        let since = *self.stale_since.get_or_insert_with(Instant::now);
        if since.elapsed() < self.patience.stale {
            return Err(Failure::Stale { listed, known });
        }
        self.stale_since = None;
        Ok(())
    }

    async fn watch(&mut self, mut lines: Lines) -> Result<(), End> {
        let mut is_proven = self.state.broken.is_none() && self.state.listed;
        let opened = Instant::now();
        loop {
            let patience = if is_proven { self.patience.silence } else { PROVEN };
            match lines.next_within(patience).await {
                Err(_) if is_proven => return Err(Failure::Silent(patience).into()),
                Err(_) => {}
                Ok(line) => match line? {
                    Some(line) => {
                        self.take_event(lines.coding(), &line)?;
                        self.works();
                        self.tell().await?;
                        is_proven = true;
                        continue;
                    }
                    None if opened.elapsed() < PROVEN => return Err(Failure::Ended.into()),
                    None => return Ok(()),
                },
            }
            is_proven = true;
            self.works();
            self.tell().await?;
        }
    }

    fn take_event(&mut self, coding: Coding, line: &[u8]) -> Result<(), Failure> {
        let object = match self.event(coding, line, false)? {
            Event::Put { object, is_new } => {
                let news = self.ledger.put(&object).map_err(garbage)?;
                if is_new && news.is_some() {
                    self.created.extend(created(&object));
                }
                self.untold.extend(news);
                object
            }
            Event::Delete(object) => {
                self.untold.extend(self.ledger.delete(&object).map_err(garbage)?);
                object
            }
            Event::Bookmark { metadata, .. } => {
                self.ledger.note_version(version(Some(&metadata)));
                self.position = Some(position(&metadata)?);
                return Ok(());
            }
        };
        self.position = Some(position(object.get("metadata").unwrap_or(&Value::Null))?);
        Ok(())
    }

    fn event(&mut self, coding: Coding, line: &[u8], streaming: bool) -> Result<Event, Failure> {
        let event = read_event(self.resource, coding, line, streaming)?;
        self.heard();
        Ok(event)
    }

    fn heard(&mut self) {
        self.state.heard = Some(Instant::now());
    }

    fn works(&mut self) {
        self.heard();
        if let Some(broken) = self.state.broken.take() {
            let seconds = broken.since.elapsed().as_secs();
            tracing::info!(resource = self.resource.name(), "watched again, after {seconds} s");
        }
    }

    /// How long to wait before the next attempt.
    fn failed(&mut self, failure: Failure) -> Duration {
        *self.state.failures.entry(failure.word()).or_default() += 1;
        if failure.asks_for_list() {
            self.position = None;
        }
        if failure.asks_for_new_client() {
            self.session.renew();
        }
        if matches!(failure, Failure::StreamRefused(_)) {
            // Once: from now on it is not asked for streams any more.
            self.streams = false;
            tracing::info!(resource = self.resource.name(), "{failure}");
            return Duration::ZERO;
        }
        self.log(&failure);
        let longest = if failure.is_decided() { self.patience.refused_pause } else { self.patience.pause };
        let since = self.state.broken.as_ref().map_or_else(|| self.broken_since(&failure), |broken| broken.since);
        self.state.broken = Some(Broken { since, failure });
        let pause = self.pause.min(longest);
        self.pause = (self.pause * 2).min(longest);
        jittered(pause)
    }

    /// A silence began when something was heard last.
    fn broken_since(&self, failure: &Failure) -> Instant {
        match (failure, self.state.heard) {
            (Failure::Silent(_), Some(heard)) => heard,
            _ => Instant::now(),
        }
    }

    /// Each failure once, not at each attempt.
    fn log(&self, failure: &Failure) {
        let before = self.state.broken.as_ref().map(|broken| broken.failure.word());
        if before == Some(failure.word()) {
            tracing::debug!(resource = self.resource.name(), "{failure}");
        } else {
            tracing::warn!(resource = self.resource.name(), "{failure}");
        }
    }

    async fn tell(&mut self) -> Result<(), Unheard> {
        self.state.objects = self.ledger.count();
        let news = std::mem::take(&mut self.untold);
        let created = std::mem::take(&mut self.created);
        let message = Message { watch: self.state.clone(), news, findings: self.ledger.new_findings(), created };
        self.out.send(message).await.map_err(|_| Unheard)
    }
}

/// What a line of a watch says.
#[derive(Debug)]
pub(super) enum Event {
    Put { object: Value, is_new: bool },
    Delete(Value),
    Bookmark { metadata: Value, is_end_of_list: bool },
}

/// What a line of a watch says.
pub(super) fn read_event(resource: Resource, coding: Coding, line: &[u8], streaming: bool) -> Result<Event, Failure> {
    let mut event = coding.event(line, resource).map_err(|error| garbage_text(line, &error))?;
    let object = event.get_mut("object").map(Value::take).unwrap_or_default();
    let word = event.get("type").and_then(Value::as_str).unwrap_or_default();
    if word == "ERROR" {
        let answer = Answer::of(&object, 0);
        return Err(Failure::of_status(resource, "watch", streaming, &answer));
    }
    expect_kind(resource, &object, "", true)?;
    match word {
        "ADDED" | "MODIFIED" => Ok(Event::Put { object, is_new: word == "ADDED" }),
        "DELETED" => Ok(Event::Delete(object)),
        "BOOKMARK" => {
            let metadata = object.get("metadata").cloned().unwrap_or_default();
            let end = metadata.get("annotations").and_then(|annotations| annotations.get(INITIAL_EVENTS_END));
            Ok(Event::Bookmark { is_end_of_list: end.and_then(Value::as_str) == Some("true"), metadata })
        }
        _ => Err(garbage(format!("an event of type {:?}", shortened(word)))),
    }
}

/// The page of a list.
pub(super) fn read_page(resource: Resource, coding: Coding, text: &[u8]) -> Result<Value, Failure> {
    let page = coding.page(text, resource).map_err(|error| garbage_text(text, &error))?;
    expect_kind(resource, &page, "List", true)?;
    for item in items(&page)? {
        expect_kind(resource, item, "", false)?;
    }
    Ok(page)
}

/// Items of lists need not say what they are.
fn expect_kind(resource: Resource, object: &Value, suffix: &str, required: bool) -> Result<(), Failure> {
    let expected = resource.kind();
    match object.get("kind").map(|kind| kind.as_str().unwrap_or_default()) {
        Some(kind) if kind.strip_suffix(suffix) == Some(expected) => Ok(()),
        None if !required && object.is_object() => Ok(()),
        found => Err(garbage(format!("{:?} where {expected}{suffix} was asked for", found.unwrap_or("no kind")))),
    }
}

/// The items of a page. A page without any is no page: a list that is cut off must not look like an empty one.
pub(super) fn items(page: &Value) -> Result<&[Value], Failure> {
    match page.get("items") {
        Some(Value::Array(items)) => Ok(items),
        // What Go writes for a list without items.
        Some(Value::Null) => Ok(&[]),
        _ => Err(garbage("a list without items")),
    }
}

/// When the API server says that an object was created.
fn created(object: &Value) -> Option<SystemTime> {
    let text = object.get("metadata")?.get("creationTimestamp")?.as_str()?;
    timestamp(text)
}

/// From where a watch can go on.
fn position(metadata: &Value) -> Result<String, Failure> {
    let version = metadata.get("resourceVersion").and_then(Value::as_str).filter(|version| !version.is_empty());
    version.map(str::to_owned).ok_or_else(|| garbage("no metadata.resourceVersion"))
}

fn garbage(what: impl ToString) -> Failure {
    Failure::Garbage(what.to_string())
}

fn garbage_text(text: &[u8], error: &CodingError) -> Failure {
    let begin = String::from_utf8_lossy(&text[..text.len().min(60)]).into_owned();
    garbage(format!("{error}; it begins with {:?}", shortened(&begin)))
}

/// Half of the pause to all of it, so that the nodes of a cluster do not come back at one moment.
fn jittered(pause: Duration) -> Duration {
    let half = pause / 2;
    let random = RandomState::new().hash_one(0_u8);
    let span = u64::try_from(half.as_micros()).unwrap_or(u64::MAX).max(1);
    half + Duration::from_micros(random % span)
}
