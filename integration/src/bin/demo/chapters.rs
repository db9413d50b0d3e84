//! The chapters, in order.
//!
//! In: the stage. Out: what a person reads. What always holds: each chapter checks what it claims, and ends the demo where it is not so.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use flatfell_integration::Lab;

use super::daemon::{Daemon, series};
use super::screen::{Colour, Screen};
use super::stage::{self, Files};
use super::talk::{Heard, Servers, Talk};
use super::{interrupt, matrix, shop};

/// Longer than a cut may take; tests on a quiet machine hold it to 100 ms.
const CUT_WITHIN: Duration = Duration::from_millis(500);
/// How long a connection runs before and after the edit.
const RUNNING: Duration = Duration::from_millis(1000);

/// What a chapter works with.
struct Scene<'a> {
    lab: &'a Lab,
    files: &'a Files,
    /// Of node 1 and node 2.
    daemons: &'a [Daemon<'a>; 2],
}

/// Everything.
pub fn play() -> anyhow::Result<()> {
    let begin = Instant::now();
    let mut screen = Screen::detect();
    set_up(&mut screen);
    perform(&mut screen)?;
    the_end(&mut screen, begin.elapsed());
    Ok(())
}

/// What needs the stage; it is gone afterwards.
fn perform(screen: &mut Screen) -> anyhow::Result<()> {
    let lab = stage::lab()?;
    let files = Files::new()?;
    files.write("shop.yaml", shop::CLUSTER)?;
    let daemons = stage::daemons(&lab, &files)?;
    let scene = Scene { lab: &lab, files: &files, daemons: &daemons };
    let chapters = [before, policies, after, live_edit, status, metrics];
    for chapter in chapters {
        interrupt::check()?;
        chapter(&scene, screen)?;
    }
    Ok(())
}

/// Only what nft lists on node 2 with all policies in force.
pub fn listing() -> anyhow::Result<()> {
    let lab = stage::lab()?;
    let files = Files::new()?;
    files.write("shop.yaml", shop::CLUSTER)?;
    files.write_policies()?;
    let daemons = stage::daemons(&lab, &files)?;
    daemons[1].wait_for_policy("database")?;
    let text = daemons[1].listing()?;
    let own: Vec<&str> = text.split_inclusive("\n}\n").filter(|table| table.contains(" flatfell-3")).collect();
    print!("{}", own.concat());
    Ok(())
}

fn set_up(screen: &mut Screen) {
    screen.chapter("A small shop on two nodes");
    screen.say("Network namespaces stand for two nodes and their pods, wired as Flannel wires them: bridge cni0,");
    screen.say("VXLAN between the nodes, IPv4 and IPv6, a Service in front of the backend, a host outside.");
    println!();
    for (node, pods) in [
        ("node 1", "shop/frontend 10.244.1.10   elsewhere/stranger 10.244.1.11"),
        (
            "node 2",
            "shop/backend  10.244.2.10   shop/database      10.244.2.11   Service 10.96.0.10:80 -> backend:8080",
        ),
    ] {
        screen.say(&format!("{}  {pods}", screen.paint(Colour::Bold, node)));
    }
    println!();
    screen.say("On each node:  flatfell run --manifests DIR --node NAME");
    screen.say("DIR holds pods and namespaces, and no policy yet.");
}

fn before(scene: &Scene<'_>, screen: &mut Screen) -> anyhow::Result<()> {
    screen.chapter("Who reaches whom without policies: everybody reaches everybody");
    screen.say(
        "Real TCP packets over IPv4 and IPv6. yes: both arrive where they should and are answered; -- no: neither.",
    );
    println!();
    matrix::show(scene.lab, screen, false)
}

fn policies(scene: &Scene<'_>, screen: &mut Screen) -> anyhow::Result<()> {
    screen.chapter("Four policies are written into DIR");
    for (name, text) in shop::POLICIES {
        let (comment, _) = text.split_once('\n').unwrap_or((text, ""));
        let name = screen.paint(Colour::Bold, &format!("{name:<18}"));
        screen.say(&format!("{name} {}", comment.trim_start_matches("# ")));
    }
    println!();
    screen.say("One of them, backend.yaml:");
    println!();
    screen.quote(Colour::Dim, shop::EDITED_BEFORE.split_once('\n').map_or("", |(_, rest)| rest));
    let written = scene.files.write_policies()?;
    let [node1, node2] = scene.daemons;
    node1.wait_for_policy("frontend")?;
    node2.wait_for_policy("database")?;
    println!();
    screen.say(&format!("In force and counting on both nodes {} after the last file.", millis(written.elapsed())));
    Ok(())
}

fn after(scene: &Scene<'_>, screen: &mut Screen) -> anyhow::Result<()> {
    screen.chapter("Who reaches whom now");
    matrix::show(scene.lab, screen, true)?;
    println!();
    screen.say("A connection needs the sender's egress and the receiver's ingress. Policy looks behind the Service,");
    screen.say("a pod reaches itself through its own Service, and a node always reaches its own pods (probes).");
    Ok(())
}

/// Connections that run through an edit.
struct Talks {
    /// Frontend to backend through the Service, IPv4 and IPv6: forbidden by the edit.
    forbidden: [Talk; 2],
    /// Backend to database: not concerned.
    allowed: Talk,
}

impl Talks {
    fn start(lab: &Lab) -> anyhow::Result<Self> {
        let service = |to| Talk::start(lab, shop::FRONTEND, to, shop::TO_SERVICE.port);
        let [v4, v6] = shop::TO_SERVICE.addresses();
        let [database, _] = shop::TO_DATABASE.addresses();
        let allowed = Talk::start(lab, shop::BACKEND, database, shop::TO_DATABASE.port)?;
        Ok(Self { forbidden: [service(v4)?, service(v6)?], allowed })
    }
}

fn live_edit(scene: &Scene<'_>, screen: &mut Screen) -> anyhow::Result<()> {
    screen.chapter("A policy is edited while connections run");
    let servers = [(shop::BACKEND, 8080), (shop::DATABASE, shop::TO_DATABASE.port)];
    let _servers = Servers::start(scene.lab, &servers)?;
    let talks = Talks::start(scene.lab)?;
    stage::pause(RUNNING)?;
    let edited = shop::edited_after();
    screen.say("backend.yaml:");
    for (before, after) in shop::EDITED_BEFORE.lines().zip(edited.lines()).filter(|(a, b)| a != b) {
        screen.quote(Colour::Red, &format!("-{before}"));
        screen.quote(Colour::Green, &format!("+{after}"));
    }
    println!();
    let at_edit = talks.allowed.heard();
    let written = scene.files.write(shop::EDITED_FILE, &edited)?;
    stage::pause(RUNNING)?;
    for (talk, family) in talks.forbidden.iter().zip(["IPv4", "IPv6"]) {
        cut(screen, family, talk.heard(), written)?;
    }
    went_on(screen, at_edit, &talks.allowed)?;
    drop(talks);
    let refused = Talk::start(scene.lab, shop::FRONTEND, shop::TO_SERVICE.addresses()[0], shop::TO_SERVICE.port);
    ensure!(refused.is_err(), "a new connection of the frontend comes about though no policy allows it");
    screen.say("frontend -> Service              a new connection is refused too");
    restore(scene, screen)
}

/// The forbidden connection ended soon after the edit.
fn cut(screen: &Screen, family: &str, heard: Heard, written: Instant) -> anyhow::Result<()> {
    let after = heard.last.saturating_duration_since(written);
    ensure!(heard.count > 0, "the connection over {family} never ran");
    ensure!(after < CUT_WITHIN, "the connection over {family} ran on for {after:?} after the edit");
    let verdict = screen.paint(Colour::Red, "cut");
    screen.say(&format!(
        "frontend -> Service over {family}    {verdict}: {} messages, the last one {} after the file was written",
        heard.count,
        millis(after)
    ));
    Ok(())
}

/// The other connection did not stop.
fn went_on(screen: &Screen, at_edit: Heard, talk: &Talk) -> anyhow::Result<()> {
    let heard = talk.heard();
    ensure!(heard.last.elapsed() < CUT_WITHIN, "the connection that is allowed stopped");
    let verdict = screen.paint(Colour::Green, "runs on");
    screen.say(&format!(
        "backend -> database              {verdict}: {} messages before the edit, {} since",
        at_edit.count,
        heard.count - at_edit.count
    ));
    Ok(())
}

/// The first version again: new connections pass.
fn restore(scene: &Scene<'_>, screen: &Screen) -> anyhow::Result<()> {
    let written = scene.files.write(shop::EDITED_FILE, shop::EDITED_BEFORE)?;
    let [v4, _] = shop::TO_SERVICE.addresses();
    let deadline = written + Duration::from_secs(5);
    // One that is sent a moment too early is dropped, and TCP's own second try comes a second later.
    while Talk::start(scene.lab, shop::FRONTEND, v4, shop::TO_SERVICE.port).is_err() {
        interrupt::check()?;
        ensure!(Instant::now() < deadline, "the first version is back, and connections are still refused");
    }
    println!();
    let yes = screen.paint(Colour::Green, "new connections pass");
    screen.say(&format!("The first version is written back: {yes} again."));
    Ok(())
}

fn status(scene: &Scene<'_>, screen: &mut Screen) -> anyhow::Result<()> {
    screen.chapter("What node 2 says: flatfell status");
    screen.flush();
    scene.daemons[1].print_status()
}

fn metrics(scene: &Scene<'_>, screen: &mut Screen) -> anyhow::Result<()> {
    screen.chapter("The same for Prometheus: curl http://127.0.0.1:9469/metrics");
    let metrics = scene.daemons[1].metrics()?;
    for (what, name, labels) in [
        ("a rule's counter", "flatfell_rule_packets_total", ["policy=\"database\"", "direction=\"ingress\""]),
        ("what that rule says", "flatfell_rule_info", ["policy=\"database\"", "direction=\"ingress\""]),
        ("drops, by pod", "flatfell_dropped_packets_total", ["pod=\"database\"", "direction=\"ingress\""]),
    ] {
        let (lines, sum) = series(&metrics, name, &labels);
        ensure!(sum > 0, "{name} of the database counts nothing");
        screen.say(&format!("{what}:"));
        screen.quote(Colour::Dim, lines.first().context("a metric without a line")?);
    }
    println!();
    screen
        .say("A rule is known by what it says: its counter goes on when its policy's other rules are edited or moved.");
    Ok(())
}

fn the_end(screen: &mut Screen, took: Duration) {
    screen.chapter("Everything was as it must be");
    screen.say(&format!("It took {:.1} s; namespaces and daemons are gone.", took.as_secs_f64()));
    screen
        .say("The manifests are in integration/demo. Read on in README.md, docs/dataplane.md and docs/operations.md.");
}

fn millis(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}
