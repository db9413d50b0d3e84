//! From a decoded event to the kernel's acknowledgement: by kind of event, and by size of the cluster.
//!
//! In: numbers of pods as arguments (1,000, 10,000 and 150,000 without one). Out: a row for each kind and size, as Markdown. What always
//! holds: the kernel is real and the engine is the daemon's, in a network namespace of its own; each event is taken back
//! before the next one, untimed.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use flatfell::engine::{Engine, EngineConfig};
use flatfell_bench::events::{Event, changes, events, relabels};
use flatfell_bench::{NODE, Size};
use flatfell_integration::netns::Netns;
use flatfell_rules::effective::Evaluator;
use flatfell_rules::index::{Change, Index};
use nix::sys::resource::{UsageWho, getrusage};

/// How often each event happens.
const TIMES: usize = 100;
/// Between two events: what the engine does behind a commit is no part of the next one's time, but of the processor time.
const PAUSE: Duration = Duration::from_millis(40);
/// Under churn: between two relabels, how many go before sweeps have found their pace, and how many count.
const EACH: Duration = Duration::from_millis(200);
const BEFORE: usize = 150;
const COUNTED: usize = 300;
/// How long the kernel may take.
const WITHIN: Duration = Duration::from_secs(60);

fn main() -> anyhow::Result<()> {
    let sizes: Result<Vec<usize>, _> = std::env::args().skip(1).map(|size| size.parse()).collect();
    let mut sizes = sizes.context("numbers of pods")?;
    if sizes.is_empty() {
        sizes.extend([1_000, 10_000, 150_000]);
    }
    println!("| event | pods | p50 | p99 | processor time of one |");
    println!("|---|---|---|---|---|");
    sizes.into_iter().try_for_each(|pods| measure(Size::with_pods(pods)))
}

fn measure(size: Size) -> anyhow::Result<()> {
    let space = Netns::create(&[format!("ff{}-commits", std::process::id())])?;
    let mut node = Node { engine: space[0].run(|| Engine::start(EngineConfig::default()))??, evaluator: start(size) };
    let (cpu, begun) = (processor_time()?, Instant::now());
    node.enforce()?;
    let (taken, cpu) = (begun.elapsed().as_secs_f64() * 1e3, (processor_time()? - cpu).as_secs_f64() * 1e3);
    println!("| first load, evaluation included | {} | {taken:.0} ms | | {cpu:.0} ms |", size.pods);
    for event in events(size) {
        node.row(&event, size)?;
    }
    node.churn(size)
}

fn start(size: Size) -> Evaluator {
    let mut evaluator = Evaluator::new(Index::new(NODE));
    for change in changes(size) {
        evaluator.apply(change);
    }
    evaluator
}

/// A node's engine, and what it shall enforce.
struct Node {
    engine: Engine,
    evaluator: Evaluator,
}

impl Node {
    /// Until the kernel has what is known.
    fn enforce(&mut self) -> anyhow::Result<()> {
        let wanted = Arc::new(self.evaluator.effective());
        self.engine.submit(Arc::clone(&wanted));
        ensure!(
            self.engine.wait_enforced(&wanted, WITHIN),
            "not enforced within {WITHIN:?}: {:?}",
            self.engine.status()
        );
        Ok(())
    }

    fn happens(&mut self, changes: Vec<Change>) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        for change in changes {
            self.evaluator.apply(change);
        }
        self.enforce()?;
        Ok(begun.elapsed())
    }

    fn row(&mut self, event: &Event, size: Size) -> anyhow::Result<()> {
        let (mut times, mut processor) = (Vec::new(), Duration::ZERO);
        for _ in 0..TIMES {
            let cpu = processor_time()?;
            times.push(self.happens(vec![event.change.clone()])?);
            thread::sleep(PAUSE);
            processor += processor_time()? - cpu;
            self.happens(event.back.clone())?;
            thread::sleep(PAUSE);
        }
        times.sort_unstable();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let each = ms(processor) / f64::from(u32::try_from(TIMES)?);
        let (p50, p99) = (ms(times[TIMES / 2]), ms(times[TIMES * 99 / 100]));
        println!("| {} | {} | {p50:.2} ms | {p99:.2} ms | {each:.2} ms |", event.name, size.pods);
        Ok(())
    }

    /// Five relabels a second of peers of local pods: the share of a processor that they take.
    fn churn(&mut self, size: Size) -> anyhow::Result<()> {
        let mut relabels = relabels(size).cycle();
        let mut relabel = |node: &mut Self| -> anyhow::Result<()> {
            let next = Instant::now() + EACH;
            node.happens(relabels.next().into_iter().collect())?;
            thread::sleep(next.saturating_duration_since(Instant::now()));
            Ok(())
        };
        (0..BEFORE).try_for_each(|_| relabel(self))?;
        let (begun, cpu) = (Instant::now(), processor_time()?);
        (0..COUNTED).try_for_each(|_| relabel(self))?;
        let share = (processor_time()? - cpu).as_secs_f64() / begun.elapsed().as_secs_f64() * 100.0;
        println!("| five relabels a second | {} | | | {share:.2} % of a core |", size.pods);
        Ok(())
    }
}

/// What this process has used, its kernel's part included.
fn processor_time() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let time = |value: nix::sys::time::TimeVal| -> anyhow::Result<Duration> {
        Ok(Duration::from_secs(u64::try_from(value.tv_sec())?) + Duration::from_micros(u64::try_from(value.tv_usec())?))
    };
    Ok(time(usage.user_time())? + time(usage.system_time())?)
}
